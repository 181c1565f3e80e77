//! What a kernel that never comes back leaves besides processes: its socket's file, and directories of half-done work.
//!
//! A keeper that ends without a kernel removes it, while it still has its lock: a later kernel has no worker before that
//! is released, so nobody uses the directories. A socket may be a later kernel's all the same, of one that is just
//! starting; so only the very file that was there when the kernel went is removed, and only if nobody answers on it.
//!
//! It deliberately reports nothing: whoever would hear of it is gone, and the next kernel looks for the same things.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::socket;

/// Device, inode and time of the last change: no other file has the same three.
type Identity = (u64, u64, (i64, i64));

#[derive(Debug)]
pub(super) struct Temporary {
    paths: Vec<PathBuf>,
    sockets: Vec<(PathBuf, Identity)>,
}

impl Temporary {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, sockets: Vec::new() }
    }

    /// The kernel has gone: the sockets that are there now are the ones that it had.
    pub(super) fn note(&mut self) {
        let sockets = self.paths.iter().filter_map(|path| Some((path.clone(), socket_at(path)?)));
        self.sockets = sockets.collect();
    }

    pub(super) fn remove(&self) {
        for (path, noted) in &self.sockets {
            if !socket::is_answered(path) && socket_at(path) == Some(*noted) {
                drop(fs::remove_file(path));
            }
        }
        self.paths.iter().for_each(|path| empty(path));
    }
}

fn socket_at(path: &Path) -> Option<Identity> {
    let found = fs::symlink_metadata(path).ok().filter(|found| found.file_type().is_socket())?;
    Some((found.dev(), found.ino(), (found.ctime(), found.ctime_nsec())))
}

/// Removes what is in a directory; the directory itself may be expected to be there.
fn empty(directory: &Path) {
    let is_directory = fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir());
    let entries = if is_directory { fs::read_dir(directory).ok() } else { None };
    for entry in entries.into_iter().flatten().flatten() {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        drop(if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_the_socket_of_the_kernel_that_went_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k.sock");
        let mut temporary = Temporary::new(vec![path.clone()]);
        drop(UnixListener::bind(&path).unwrap());
        temporary.note();
        fs::rename(&path, directory.path().join("old")).unwrap();
        let later = UnixListener::bind(&path).unwrap();
        temporary.remove();
        assert!(path.exists(), "it is a later kernel's");
        drop(later);
        temporary.remove();
        assert!(path.exists(), "it was a later kernel's");
        temporary.note();
        temporary.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_somebody_answers_on_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut temporary = Temporary::new(vec![path.clone()]);
        temporary.note();
        temporary.remove();
        assert!(path.exists());
    }

    #[test]
    fn a_directory_is_emptied_and_nothing_is_followed_out_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("stage"), directory.path().join("kept"));
        fs::create_dir_all(inside.join("w-1/deep")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "kept").unwrap();
        fs::write(inside.join("17"), "half").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        Temporary::new(vec![inside.clone(), directory.path().join("nowhere")]).remove();
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
        assert!(outside.join("file").exists());
    }
}
