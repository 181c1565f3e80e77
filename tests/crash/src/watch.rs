//! Waiting for what happens in a directory: told by the operating system, not by looking again and again.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::failure::Failure;
use crate::kernel::PATIENCE;

/// What happens to the files of one directory, from now on.
#[derive(Debug)]
pub(crate) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    pub(crate) fn on(directory: &Path) -> Result<Self, Failure> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watch = inotify::init(flags)?;
        let wanted =
            inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, directory, wanted)?;
        // SAFETY: an `OwnedFd` that nobody else has always gives the same open descriptor.
        #[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor of another kind")]
        let registered = unsafe { AsyncFd::register(watch) };
        Ok(Self(registered.map_err(Failure::new)?))
    }

    /// Until something has changed since the last time. What it was, is for the caller to see.
    pub(crate) async fn changed(&self) -> Result<(), Failure> {
        let mut ready = self.0.readable().await?;
        let mut events = [0; 4096];
        while rustix::io::read(&self.0, &mut events).is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}

/// Looks at once and after every change in `directory`, until `look` finds something.
pub(crate) async fn until<T>(
    directory: &Path,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, Failure> {
    let watch = Watch::on(directory)?;
    let waiting = async {
        loop {
            match look() {
                Some(found) => return Ok(found),
                None => watch.changed().await?,
            }
        }
    };
    let vain = |_| Failure::new(format!("waited in vain until {what}"));
    tokio::time::timeout(PATIENCE, waiting).await.map_err(vain)?
}
