//! The socket itself: recvmsg and sendmsg on a non-blocking descriptor, woken by the runtime.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::DESCRIPTORS_MAX;

#[derive(Debug)]
pub(crate) struct Socket(UnixStream);

impl Socket {
    pub(crate) fn new(stream: OwnedFd) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(stream);
        stream.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(stream)?))
    }

    /// Receives what is there, at most a buffer full; 0 is the peer's end.
    pub(crate) fn poll_receive(
        &self,
        task: &mut Context<'_>,
        buffer: &mut [u8],
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_read_ready(task))?;
            let mut all = None;
            let received = self.0.try_io(Interest::READABLE, || {
                let (bytes, is_all) = receive(self.0.as_fd(), buffer, descriptors)?;
                if is_all && bytes > 0 {
                    // Nothing more is there, and what comes later will say so: one system call less for each wake.
                    all = Some(bytes);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(bytes)
            });
            match received {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(bytes) = all {
                        return Poll::Ready(Ok(bytes));
                    }
                }
                received => return Poll::Ready(received),
            }
        }
    }

    /// Ends both directions: the peer reads what was sent, and then the end.
    pub(crate) fn shutdown(&self) {
        // A peer that has gone already misses nothing.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }

    /// Sends a first part of `bytes` with the descriptors, without waiting.
    pub(crate) fn try_send(&self, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
        send(self.0.as_fd(), bytes, descriptors)
    }

    pub(crate) fn poll_send(
        &self,
        task: &mut Context<'_>,
        bytes: &[u8],
        descriptors: &[OwnedFd],
    ) -> Poll<io::Result<usize>> {
        loop {
            // Most of the time there is room, which the socket itself knows best.
            match self.try_send(bytes, descriptors) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
            ready!(self.0.poll_write_ready(task))?;
            match self.0.try_io(Interest::WRITABLE, || self.try_send(bytes, descriptors)) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

/// Returns how many bytes came, and whether nothing more was there.
fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<(usize, bool)> {
    let room = buffer.len();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)
    })?;
    let before = descriptors.len();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than a frame may have"));
    }
    // A read stops behind bytes that descriptors ride with, so that a short one does not mean the end of what is there.
    let is_all = got.bytes < room && descriptors.len() == before;
    Ok((got.bytes, is_all))
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than a frame may have"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
    })?;
    Ok(sent)
}
