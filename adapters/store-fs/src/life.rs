//! Whether the last life on a directory of artifacts ended in order. One that was killed may have sealed files that only
//! the cache holds, and records that name them: the journal syncs its own tail when it is opened, and this does the same
//! for the files, before any of it is shown.
//!
//! The file `alive` is there from the start of a life to its end. It need not be durable: a power cut that loses it loses
//! the cache as well.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Failure, failed};
use crate::files;

const ALIVE: &str = "alive";

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Life {
    root: OwnedFd,
}

impl Life {
    /// After a life that was killed, everything that was written to this file system is on the disk when it returns.
    pub(crate) fn begin(root: OwnedFd) -> Result<Self, Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&root, ALIVE, flags, Mode::RUSR | Mode::WUSR) {
            Ok(_) => {}
            Err(Errno::EXIST) => {
                rustix::fs::syncfs(&root).map_err(failed("syncing what an earlier life sealed"))?;
            }
            Err(why) => return Err(failed("opening")(why)),
        }
        Ok(Self { root })
    }

    /// Everything that was sealed is on the disk.
    pub(crate) fn end(&self) {
        files::remove(&self.root, ALIVE);
    }
}
