//! The listening socket: closed to other users, one kernel's alone, and calm when descriptors run out.
//!
//! Owned by one supervised actor, which loops over [`Listener::accept`] and gives each [`Accepted`] connection to a
//! session's actor. Invariants (P10, P-SEC-1, P-BND-3, P-BND-7):
//!
//! 1. The file has mode 0600 before it can be found, in a directory of our own that others cannot enter.
//! 2. No byte is read from a peer of another user.
//! 3. A socket somebody answers on is never taken away: only one that refuses is unlinked. The caller holds the lock of
//!    the state directory, so that nobody else binds in between.
//! 4. Above the cap a connection is told so and closed; out of descriptors, accepting pauses.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use eclosion_schemas::frame::{Frame, Limits, StreamId};
use eclosion_schemas::{Code, Error, Retry, Role};
use interprocess::local_socket::tokio::{Listener as Socket, Stream};
use interprocess::local_socket::traits::tokio::Listener as _;
use interprocess::local_socket::{GenericFilePath, ListenerOptions, ToFsName};
use interprocess::os::unix::local_socket::ListenerOptionsExt;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What fits into a socket address, without its closing zero.
const PATH_BYTES_MAX: usize = 107;
/// How long accepting pauses when descriptors or memory are short.
const PAUSE: Duration = Duration::from_millis(100);

/// Where to listen, and to how many.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    pub path: PathBuf,
    /// Connections at the same time.
    pub connections_max: usize,
}

impl ListenOptions {
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), connections_max: Limits::DEFAULT.connections as usize }
    }
}

/// Who is at the other end, as the operating system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// Absent where it cannot be known, as in another namespace.
    pub pid: Option<u32>,
}

impl Peer {
    /// # Errors
    /// The socket does not say.
    pub fn of(stream: &OwnedFd) -> io::Result<Self> {
        let peer = rustix::net::sockopt::socket_peercred(stream)?;
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).ok();
        Ok(Self { uid: peer.uid.as_raw(), pid })
    }

    /// The most it may be: our own user and root may do everything, others nothing at all.
    #[must_use]
    pub fn role(&self) -> Role {
        if self.is_trusted() { Role::Admin } else { Role::View }
    }

    /// The user that this process runs as, and nobody else, root included.
    #[must_use]
    pub fn is_ourselves(&self) -> bool {
        self.uid == rustix::process::geteuid().as_raw()
    }

    fn is_trusted(self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// A connection that may be heard.
#[derive(Debug)]
pub struct Accepted {
    pub(crate) stream: OwnedFd,
    pub(crate) peer: Peer,
    pub(crate) place: Option<Place>,
}

/// A place among the connections that are allowed; free again when it is dropped.
pub(crate) type Place = OwnedSemaphorePermit;

impl Accepted {
    /// A stream that was made in pairs or inherited: it counts nowhere.
    ///
    /// # Errors
    /// The socket does not say who is at its other end.
    pub fn inherited(stream: OwnedFd) -> io::Result<Self> {
        Ok(Self { peer: Peer::of(&stream)?, stream, place: None })
    }

    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }
}

/// See the module. Dropping it removes the socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    path: PathBuf,
    places: Arc<Semaphore>,
    connections_max: usize,
}

impl Listener {
    /// Binds. The caller holds the lock of its state directory.
    ///
    /// # Errors
    /// `invalid` for a path that is too long, `denied` for a directory that others can enter, `already_exists` when
    /// somebody answers there, `unavailable` with the operating system's words otherwise.
    pub fn bind(options: ListenOptions) -> Result<Self, Error> {
        let ListenOptions { path, connections_max } = options;
        check_length(&path)?;
        prepare_directory(&path)?;
        remove_stale(&path)?;
        let name =
            path.as_path().to_fs_name::<GenericFilePath>().map_err(|why| failed(&path, "name", &why))?;
        let options = ListenerOptions::new().name(name).mode(0o600);
        let socket = options.create_tokio().map_err(|why| failed(&path, "listen on", &why))?;
        Ok(Self { socket, path, places: Arc::new(Semaphore::new(connections_max)), connections_max })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections_max.saturating_sub(self.places.available_permits())
    }

    /// The next connection. It never gives up: what one connection does wrong costs that connection, and what the
    /// machine is short of is waited for. Cancel-safe.
    pub async fn accept(&self) -> Accepted {
        loop {
            match self.socket.accept().await {
                Ok(stream) => {
                    if let Some(accepted) = self.admit(stream) {
                        return accepted;
                    }
                }
                Err(why) if is_peers(&why) => {}
                Err(why) => {
                    tracing::warn!(%why, path = %self.path.display(), "cannot accept now");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: Stream) -> Option<Accepted> {
        let Stream::UdSocket(stream) = stream;
        let stream: OwnedFd = tokio::net::UnixStream::from(stream).into_std().ok()?.into();
        let peer = Peer::of(&stream).ok()?;
        if !peer.is_trusted() {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "a connection of another user was closed unheard");
            return None;
        }
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Some(Accepted { stream, peer, place: Some(place) }),
            Err(_) => {
                self.refuse(&stream);
                None
            }
        }
    }

    /// One frame into a socket that is empty; whether it arrives is not waited for.
    fn refuse(&self, stream: &OwnedFd) {
        let text = format!("this kernel has {} connections already", self.connections_max);
        let error =
            Error::new(Code::Exhausted, "connection.limit", text).retry(Retry::After { after_ms: 500 });
        let mut bytes = BytesMut::new();
        if Frame::error(StreamId::CONNECTION, &error).encode(&mut bytes).is_ok() {
            let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
            // A peer that has gone already misses nothing.
            let _ = rustix::net::send(stream, &bytes, flags);
        }
    }
}

/// Errors of the connection that was about to be accepted, not of the socket.
fn is_peers(why: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(why.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn check_length(path: &Path) -> Result<(), Error> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes <= PATH_BYTES_MAX {
        return Ok(());
    }
    let text =
        format!("a socket's path has at most {PATH_BYTES_MAX} bytes, this one {bytes}: {}", path.display());
    Err(Error::invalid("socket.path", text).help("set ECLOSION_LISTEN to a shorter path"))
}

/// Set on directories in which everybody has something, such as `/tmp`.
const STICKY: u32 = 0o1000;

/// The directory must be ours and closed to others; one that is missing is made so.
fn prepare_directory(path: &Path) -> Result<(), Error> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let Some(parent) = parent else {
        let text = format!("{} names no directory for the socket", path.display());
        return Err(Error::invalid("socket.path", text).help("give an absolute path"));
    };
    let made = std::fs::DirBuilder::new().mode(0o700).create(parent);
    if let Err(why) = made
        && why.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(failed(parent, "create", &why));
    }
    let found = std::fs::metadata(parent).map_err(|why| failed(parent, "look at", &why))?;
    let (mode, ours) = (found.mode() & 0o777, rustix::process::geteuid().as_raw());
    if found.uid() == ours && mode.trailing_zeros() >= 6 {
        return Ok(());
    }
    let text = format!(
        "{} has mode {mode:o} and belongs to user {}; others could reach the socket",
        parent.display(),
        found.uid()
    );
    // One that everybody shares must stay as it is.
    let is_shared = found.uid() != ours || found.mode() & STICKY != 0;
    let help = if is_shared {
        let own = parent.join("eclosion").join(path.file_name().unwrap_or_default());
        format!("choose a directory that is yours alone, such as that of {}", own.display())
    } else {
        format!("chmod 700 {}", parent.display())
    };
    Err(Error::new(Code::Denied, "socket.directory", text).help(help))
}

fn remove_stale(path: &Path) -> Result<(), Error> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(failed(path, "look at", &why)),
    };
    if !found.file_type().is_socket() {
        let text = format!("{} is there and is no socket", path.display());
        return Err(
            Error::new(Code::AlreadyExists, "socket.path", text).help("remove it, or choose another path")
        );
    }
    match probe(path) {
        Err(rustix::io::Errno::CONNREFUSED) => {
            std::fs::remove_file(path).map_err(|why| failed(path, "remove", &why))
        }
        Err(rustix::io::Errno::NOENT) => Ok(()),
        // Connected, or too busy to say so: somebody is there.
        Ok(()) | Err(rustix::io::Errno::AGAIN) => {
            let text = format!("another kernel listens on {}", path.display());
            Err(Error::new(Code::AlreadyExists, "socket.taken", text).help("eclosion status"))
        }
        Err(why) => Err(failed(path, "probe", &why.into())),
    }
}

fn probe(path: &Path) -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

fn failed(path: &Path, what: &str, why: &io::Error) -> Error {
    let text = format!("cannot {what} {}: {why}", path.display());
    Error::new(Code::Unavailable, "socket.failed", text)
}
