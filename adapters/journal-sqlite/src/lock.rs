//! One kernel per directory.
//!
//! An advisory lock of the whole file, held by the open descriptor: it falls with the process, however that dies, and
//! a file left behind means nothing. The descriptor is close-on-exec, so no child keeps it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Failure, io};

#[derive(Debug)]
pub(crate) struct DirectoryLock(#[expect(dead_code, reason = "held, not used")] File);

impl DirectoryLock {
    pub(crate) fn take(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::Locked { directory: directory.to_owned(), pid: holder(&mut file) });
            }
            Err(TryLockError::Error(why)) => return Err(io("lock", &path)(why)),
        }
        // For a person; nobody decides by it.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(io("write", &path))?;
        Ok(Self(file))
    }
}

/// Its holder writes the pid just after it has taken the lock, so it can be missing for a moment.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = Read::by_ref(file).take(32).read_to_string(&mut text);
    let pid = text.trim();
    if read.is_ok() && !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()) {
        pid.to_owned()
    } else {
        "not known yet".to_owned()
    }
}
