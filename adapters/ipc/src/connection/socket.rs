//! The socket itself: recvmsg and sendmsg on a non-blocking descriptor, woken by the runtime.
//!
//! It waits to be readable and for nothing else. A socket that waits to be writable as well is woken by its peer for every
//! message that the peer reads, which costs both of them; so that is waited for only while the peer takes nothing.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::DESCRIPTORS_MAX;

#[derive(Debug)]
pub(crate) struct Socket {
    stream: AsyncFd<OwnedFd>,
    /// The same socket, while there is no room in it.
    full: Mutex<Option<AsyncFd<OwnedFd>>>,
}

impl Socket {
    pub(crate) fn new(stream: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&stream, true)?;
        let stream = watched(stream, Interest::READABLE)?;
        Ok(Self { stream, full: Mutex::default() })
    }

    /// Receives what is there, at most a buffer full; 0 is the peer's end.
    pub(crate) fn poll_receive(
        &self,
        task: &mut Context<'_>,
        buffer: &mut [u8],
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut there = ready!(self.stream.poll_read_ready(task))?;
            match receive(self.stream.as_fd(), buffer, descriptors) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => there.clear_ready(),
                Ok((bytes, is_all)) => {
                    if is_all && bytes > 0 {
                        // What comes later will say so: one system call less for each wake.
                        there.clear_ready();
                    }
                    return Poll::Ready(Ok(bytes));
                }
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
    }

    /// Ends both directions: the peer reads what was sent, and then the end.
    pub(crate) fn shutdown(&self) {
        // A peer that has gone already misses nothing.
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
    }

    /// Sends a first part of `bytes` with the descriptors, without waiting.
    pub(crate) fn try_send(&self, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
        send(self.stream.as_fd(), bytes, descriptors)
    }

    pub(crate) fn poll_send(
        &self,
        task: &mut Context<'_>,
        bytes: &[u8],
        descriptors: &[OwnedFd],
    ) -> Poll<io::Result<usize>> {
        // Most of the time there is room, which the socket itself knows best.
        match self.try_send(bytes, descriptors) {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            sent => return Poll::Ready(sent),
        }
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = match full.take() {
            Some(waiting) => waiting,
            None => watched(self.stream.get_ref().try_clone()?, Interest::WRITABLE)?,
        };
        loop {
            let Poll::Ready(room) = waiting.poll_write_ready(task) else {
                *full = Some(waiting);
                return Poll::Pending;
            };
            match self.try_send(bytes, descriptors) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => room?.clear_ready(),
                sent => return Poll::Ready(sent),
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio's own sockets wait for both")]
fn watched(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
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
