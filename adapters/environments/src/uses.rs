//! Which environments this kernel uses: kept from being collected by the other kernels that share the cache.
//!
//! A lock, shared by all users, on the file `NAME.use` beside the environment; its time of change is that of the last use.
//! Who collects takes it exclusively. It says nothing about building, which has a lock of its own (`place`).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

#[derive(Debug, Default)]
pub(crate) struct Uses(Mutex<BTreeMap<PathBuf, File>>);

/// Beside the directory of an environment.
#[must_use]
pub fn use_file(environment: &Path) -> PathBuf {
    let mut name = environment.as_os_str().to_owned();
    name.push(".use");
    name.into()
}

impl Uses {
    /// `environment`: its directory. What cannot be locked is used all the same: then only its age protects it.
    pub(crate) fn hold(&self, environment: &Path) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.contains_key(environment) {
            let path = use_file(environment);
            let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
            match opened.and_then(|file| file.try_lock_shared().map(|()| file).map_err(Into::into)) {
                Ok(file) => drop(held.insert(environment.to_owned(), file)),
                Err(why) => tracing::warn!(path = %path.display(), %why, "its use cannot be recorded"),
            }
        }
        if let Some(Err(why)) = held.get(environment).map(|file| file.set_modified(SystemTime::now())) {
            tracing::warn!(environment = %environment.display(), %why, "its use cannot be recorded");
        }
    }

    pub(crate) fn let_go(&self, environment: &Path) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(environment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_collects_gets_the_lock_only_when_nobody_uses_it() {
        let cache = tempfile::tempdir().unwrap();
        let environment = cache.path().join("abc");
        let (one, other) = (Uses::default(), Uses::default());
        one.hold(&environment);
        other.hold(&environment);
        let collector = File::open(use_file(&environment)).unwrap();
        assert!(collector.try_lock().is_err());
        one.let_go(&environment);
        assert!(collector.try_lock().is_err());
        other.let_go(&environment);
        assert!(collector.try_lock().is_ok());
    }
}
