//! Packets with descriptors over Unix sockets, never blocking.
//!
//! [`Link`] is one SOCK_SEQPACKET connection: it sends what fits, keeps a bounded rest for when the peer reads again,
//! and takes one packet at a time. A packet longer than the limit, or a peer that lets its outbox fill up, is an error
//! that the owner answers by closing the link. Everything is opened close-on-exec; nobody inherits by accident.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::MESSAGE_BYTES_MAX;

/// Most descriptors that one packet carries; a zygote is sent a stream and a lifeline.
const DESCRIPTORS_MAX: usize = 2;

/// Packets that wait for a peer which does not read: every worker's exit, twice over.
const OUTBOX_PACKETS_MAX: usize = 1024;

/// A byte stream between kernel and worker.
///
/// # Errors
/// The system is out of descriptors.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(SocketType::STREAM)
}

/// A packet connection: keeper and zygote, or keeper and worker.
///
/// # Errors
/// The system is out of descriptors.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(SocketType::SEQPACKET)
}

fn pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// A socket address may be 108 bytes long and a directory longer: the directory is opened, and the address goes by
/// its descriptor. The descriptor must live until the address was used.
fn address(path: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket needs a directory and a name"));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, SocketAddrUnix::new(short)?))
}

/// Binds and listens. The caller holds the directory's lock and has removed a stale socket; its umask is 077.
///
/// # Errors
/// Whatever bind says.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (_directory, address) = address(path)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// Connects; a Unix socket does so at once or not at all.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` where nobody listens.
pub fn dial(path: &Path) -> io::Result<Link> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (_directory, address) = address(path)?;
    rustix::net::connect(&socket, &address)?;
    Ok(Link::new(socket))
}

/// Whether anybody listens at a path, of whatever kind. One who is too busy to say so does.
pub fn is_answered(path: &Path) -> bool {
    [SocketType::STREAM, SocketType::SEQPACKET].into_iter().any(|kind| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None) else {
            return true;
        };
        let Ok((_directory, address)) = address(path) else { return false };
        matches!(rustix::net::connect(&socket, &address), Ok(()) | Err(rustix::io::Errno::AGAIN))
    })
}

/// The next waiting connection of our own user; another user's is closed unheard.
///
/// # Errors
/// Whatever accept says, except that nobody waits.
pub fn accept(listener: impl AsFd) -> io::Result<Option<Link>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = match rustix::net::accept_with(listener, flags) {
        Ok(socket) => socket,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {
            return Ok(None);
        }
        Err(why) => return Err(why.into()),
    };
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    Ok((peer.uid == rustix::process::geteuid()).then(|| Link::new(socket)))
}

/// What one attempt to receive gave.
#[derive(Debug)]
pub enum Received<M> {
    Message(M, Vec<OwnedFd>),
    /// Nothing is there now.
    Nothing,
    /// The peer closed its end.
    End,
}

/// One packet connection.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

impl Link {
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, outbox: VecDeque::new() }
    }

    /// Sends now, or as soon as [`flush`](Self::flush) finds room. Descriptors are closed here once they are sent.
    ///
    /// # Errors
    /// The peer is gone, does not read, or the message is too long: close the link.
    pub fn send(&mut self, message: &impl Serialize, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let packet = encode(message)?;
        if self.outbox.len() >= OUTBOX_PACKETS_MAX {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "the peer does not read"));
        }
        self.outbox.push_back((packet, descriptors));
        self.flush()
    }

    /// Packets wait for room: poll for writing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends what fits.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some((packet, descriptors)) = self.outbox.front() {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match send_packet(self.socket.as_fd(), packet, &borrowed) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    /// Takes one packet.
    ///
    /// # Errors
    /// It is too long or not a message of this kind: close the link.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Received<M>> {
        let mut bytes = vec![0_u8; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        let got = match got {
            Ok(got) => got,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Received::Nothing),
            Err(rustix::io::Errno::CONNRESET) => return Ok(Received::End),
            Err(why) => return Err(why.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if got.bytes == 0 {
            return Ok(Received::End);
        }
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is longer than 64 KiB"));
        }
        Ok(Received::Message(serde_json::from_slice(&bytes[..got.bytes])?, descriptors))
    }
}

/// A message as the bytes of one packet.
///
/// # Errors
/// It is longer than [`MESSAGE_BYTES_MAX`].
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let packet = serde_json::to_vec(message)?;
    if packet.len() > MESSAGE_BYTES_MAX {
        let text = format!("a message of {} bytes is longer than 64 KiB", packet.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(packet)
}

/// Sends one packet at once or says `WouldBlock`.
///
/// # Errors
/// The peer is gone or its buffer is full.
pub fn send_packet(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{FromZygote, ToWorker};

    #[test]
    fn a_descriptor_rides_with_its_packet() {
        let (ours, theirs) = packet_pair().unwrap();
        let (mut ours, theirs) = (Link::new(ours), Link::new(theirs));
        let (stream, _kept) = stream_pair().unwrap();
        ours.send(&ToWorker::Adopt {}, vec![stream]).unwrap();
        match theirs.receive::<ToWorker>().unwrap() {
            Received::Message(ToWorker::Adopt {}, descriptors) => assert_eq!(descriptors.len(), 1),
            other => panic!("{other:?}"),
        }
        assert!(matches!(theirs.receive::<ToWorker>().unwrap(), Received::Nothing));
        drop(ours);
        assert!(matches!(theirs.receive::<ToWorker>().unwrap(), Received::End));
    }

    #[test]
    fn refuses_a_packet_longer_than_the_limit_on_both_ends() {
        let (ours, theirs) = packet_pair().unwrap();
        let long = FromZygote::Failed { error: "x".repeat(MESSAGE_BYTES_MAX) };
        assert!(Link::new(ours.try_clone().unwrap()).send(&long, Vec::new()).is_err());
        let raw = serde_json::to_vec(&long).unwrap();
        send_packet(ours.as_fd(), &raw, &[]).unwrap();
        assert!(Link::new(theirs).receive::<FromZygote>().is_err());
    }

    #[test]
    fn refuses_a_peer_that_never_reads_instead_of_growing() {
        let (ours, _theirs) = packet_pair().unwrap();
        let mut ours = Link::new(ours);
        let long = FromZygote::Failed { error: "x".repeat(60_000) };
        let sent = (0..=2 * OUTBOX_PACKETS_MAX).take_while(|_| ours.send(&long, Vec::new()).is_ok()).count();
        assert!(ours.is_full() && sent < 2 * OUTBOX_PACKETS_MAX, "{sent}");
    }

    #[test]
    fn no_bytes_panic_the_reader() {
        let (ours, theirs) = packet_pair().unwrap();
        let theirs = Link::new(theirs);
        for bytes in [&b"\xff\xfe"[..], b"{", b"[[[[", b"{\"ready\":{}}", b"null", &[b'['; 60_000]] {
            send_packet(ours.as_fd(), bytes, &[]).unwrap();
            assert!(theirs.receive::<FromZygote>().is_err());
        }
    }
}
