//! The `.py` files of a code root: their hash, and whether they are still what they were. Implements the DAG tracker's
//! [`CodeFiles`].
//!
//! A look walks the directories once. What the files hash to is remembered under what the walk says of them (path,
//! length, inode, time of the last write and of the last change of the inode), so nothing is read again until something
//! was touched. What was touched within the last tick of the file system's clock is not remembered: the next write could
//! look the same.
//!
//! "Written since" is told by the inode's change time, which no program can set: a file that was edited and put back has
//! a new one, whatever `mtime` says. What it cannot see: a clock that is put back meanwhile, a directory that was moved
//! away and back as a whole, a `.py` file that was there only for a while; and file systems that keep no such time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use eclosion_dag_tracker::CodeFiles;
use eclosion_schemas::ops::task::CodeSeen;
use eclosion_schemas::{Error, Timestamp};

use crate::lock;

/// `.py` files of one code root; more than this is not a flow's own code.
const FILES_MAX: usize = 10_000;
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Code roots whose hashes are remembered; beyond this all are forgotten, and read again.
const ROOTS_MAX: usize = 64;
/// File systems stamp with a clock that stands still for up to so long.
const TICK_MS: u64 = 16;

/// What a walk says of one file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    path: PathBuf,
    bytes: u64,
    inode: u64,
    written_ns: i128,
    changed_ns: i128,
}

/// Cheap to make; remembers what it has read.
#[derive(Debug, Default)]
pub struct CodeDirectories {
    known: Mutex<BTreeMap<PathBuf, (Vec<Stamp>, String)>>,
}

impl CodeFiles for CodeDirectories {
    fn look(&self, root: &Path, told_at: Timestamp) -> Result<CodeSeen, Error> {
        let walked_at = now();
        let stamps = walked(root)?;
        let newest_ms = stamps.iter().map(|stamp| stamp.changed_ns / 1_000_000).max().unwrap_or_default();
        let newest_ms = u64::try_from(newest_ms).unwrap_or_default();
        let is_written = newest_ms.saturating_add(TICK_MS) >= told_at.0;
        let hash = self.hash(root, stamps, newest_ms.saturating_add(TICK_MS) < walked_at.0)?;
        Ok(CodeSeen { hash, is_written })
    }
}

impl CodeDirectories {
    fn hash(&self, root: &Path, stamps: Vec<Stamp>, is_at_rest: bool) -> Result<String, Error> {
        if let Some((known, hash)) = lock(&self.known).get(root)
            && *known == stamps
        {
            return Ok(hash.clone());
        }
        let hash = hash_of(root, &stamps)?;
        if is_at_rest {
            let mut known = lock(&self.known);
            if known.len() >= ROOTS_MAX {
                known.clear();
            }
            known.insert(root.to_owned(), (stamps, hash.clone()));
        }
        Ok(hash)
    }
}

/// The kernel's clock is this one; what is compared with files must be.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// BLAKE3 over every `.py` file below `root`: its relative path and content, in the order of the paths.
///
/// # Errors
/// `invalid` or `not_found` for what cannot be read, and for more code than a flow has.
pub fn hash(root: &Path) -> Result<String, Error> {
    hash_of(root, &walked(root)?)
}

fn hash_of(root: &Path, files: &[Stamp]) -> Result<String, Error> {
    let mut hash = blake3::Hasher::new();
    for Stamp { path, .. } in files {
        let content = fs::read(path).map_err(|why| unreadable(path, &why))?;
        let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy();
        for part in [name.as_bytes(), &content] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hash.finalize().to_hex().to_string())
}

fn unreadable(path: &Path, why: &std::io::Error) -> Error {
    let message = format!("{} cannot be read: {why}", path.display());
    match why.kind() {
        std::io::ErrorKind::NotFound => Error::not_found("flow.file", message),
        _ => Error::invalid("flow.file", message),
    }
}

/// In the order of the paths.
fn walked(root: &Path) -> Result<Vec<Stamp>, Error> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(directory: &Path, files: &mut Vec<Stamp>) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(|why| unreadable(directory, &why))? {
        let entry = entry.map_err(|why| unreadable(directory, &why))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(|why| unreadable(directory, &why))?);
        let name = entry.file_name();
        let hidden =
            name.to_string_lossy().starts_with('.') || name == "__pycache__" || name == "node_modules";
        if kind.is_dir() && !hidden {
            collect(&path, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "py") {
            let metadata = entry.metadata().map_err(|why| unreadable(&path, &why))?;
            if metadata.len() > FILE_BYTES_MAX || files.len() >= FILES_MAX {
                return Err(Error::invalid(
                    "flow.code",
                    format!("{} holds too much code", directory.display()),
                )
                .help("put the flow's own code into a directory of its own and name it: code = \"DIR\""));
            }
            files.push(stamp(path, &metadata));
        }
    }
    Ok(())
}

fn stamp(path: PathBuf, metadata: &fs::Metadata) -> Stamp {
    let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Stamp {
        path,
        bytes: metadata.len(),
        inode: metadata.ino(),
        written_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
        changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far enough from now that no tick is in doubt.
    const HOUR_MS: u64 = 3_600_000;

    fn root(text: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("steps.py"), text).unwrap();
        root
    }

    #[test]
    fn an_edit_that_was_undone_is_seen() {
        let root = root("x = 1\n");
        let files = CodeDirectories::default();
        let file = root.path().join("steps.py");
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        let before = files.look(root.path(), now().plus_ms(HOUR_MS)).unwrap();
        assert_eq!(before, CodeSeen { hash: hash(root.path()).unwrap(), is_written: false });

        let told_at = now();
        fs::write(&file, "x = 2\n").unwrap();
        let edited = files.look(root.path(), told_at).unwrap();
        assert!(edited.is_written && edited.hash != before.hash, "{edited:?}");
        fs::write(&file, "x = 1\n").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        let undone = files.look(root.path(), told_at).unwrap();
        assert_eq!(undone, CodeSeen { hash: before.hash, is_written: true });
    }

    #[test]
    fn what_lies_still_is_read_once_and_what_was_just_written_is_not_remembered() {
        let root = root("x = 1\n");
        let files = CodeDirectories::default();
        let stamps = walked(root.path()).unwrap();
        let first = files.hash(root.path(), stamps.clone(), false).unwrap();
        assert!(lock(&files.known).is_empty());
        assert_eq!(files.hash(root.path(), stamps.clone(), true).unwrap(), first);
        // The stamps are those of before: whoever believes them reads nothing.
        fs::write(root.path().join("steps.py"), "x = 2\n").unwrap();
        assert_eq!(files.hash(root.path(), stamps, true).unwrap(), first);
        assert_ne!(files.hash(root.path(), walked(root.path()).unwrap(), true).unwrap(), first);
    }

    #[test]
    fn a_root_that_is_gone_has_no_hash() {
        let gone = Path::new("/nowhere/at/all");
        assert_eq!(
            CodeDirectories::default().look(gone, now()).unwrap_err().code,
            eclosion_schemas::Code::NotFound
        );
    }
}
