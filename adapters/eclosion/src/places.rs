//! Where a kernel's things are: XDG directories, one instance beside the other.
//!
//! | place | default | holds |
//! |---|---|---|
//! | state | `$XDG_STATE_HOME/eclosion/INSTANCE` | journal, artifacts, logs of workers |
//! | runtime | `$XDG_RUNTIME_DIR/eclosion`, else `/tmp/eclosion-UID` | the sockets |
//! | cache | `$XDG_CACHE_HOME/eclosion` | environments, the Python runtime |
//!
//! Directories are made 0700. A runtime directory that belongs to somebody else, or that others may write, is refused.

use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use eclosion_schemas::{Code, Error};
use etcetera::BaseStrategy;

/// The instance that is meant when none is named.
pub const DEFAULT_INSTANCE: &str = "default";

/// The directories of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    pub instance: String,
    pub state: PathBuf,
    /// The sockets are here; short, because a socket's path is at most 107 bytes.
    pub runtime: PathBuf,
    pub cache: PathBuf,
    /// Clients dial it.
    pub socket: PathBuf,
}

impl Places {
    /// The places of an instance, by the environment: `ECLOSION_STATE_DIR`, `ECLOSION_CACHE_DIR`,
    /// `ECLOSION_RUNTIME_DIR` and `ECLOSION_LISTEN` before the XDG variables, and those before their defaults.
    ///
    /// # Errors
    /// `invalid` for an instance name that could leave its directory, `precondition` without a home directory.
    pub fn of(instance: &str) -> Result<Self, Error> {
        check_instance(instance)?;
        let base = etcetera::base_strategy::Xdg::new().map_err(|why| {
            Error::new(Code::Precondition, "places.home", format!("there is no home directory: {why}"))
                .help("set HOME, or ECLOSION_STATE_DIR and ECLOSION_CACHE_DIR")
        })?;
        let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let state = from("ECLOSION_STATE_DIR")
            .unwrap_or_else(|| base.state_dir().unwrap_or_else(|| base.data_dir()).join("eclosion"))
            .join(instance);
        let runtime = from("ECLOSION_RUNTIME_DIR").unwrap_or_else(|| match base.runtime_dir() {
            Some(runtime) => runtime.join("eclosion"),
            None => PathBuf::from(format!("/tmp/eclosion-{}", rustix::process::getuid().as_raw())),
        });
        let socket = from("ECLOSION_LISTEN").unwrap_or_else(|| runtime.join(format!("{instance}.sock")));
        Ok(Self {
            instance: instance.to_owned(),
            state,
            runtime: runtime.join(instance),
            cache: from("ECLOSION_CACHE_DIR").unwrap_or_else(|| base.cache_dir().join("eclosion")),
            socket,
        })
    }

    /// Everything of an instance below one directory: for tests and for embedders that keep their own house.
    #[must_use]
    pub fn below(directory: &Path, instance: &str) -> Self {
        Self {
            instance: instance.to_owned(),
            state: directory.join("state"),
            runtime: directory.join("run"),
            cache: directory.join("cache"),
            socket: directory.join("run").join("kernel.sock"),
        }
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// `denied` for a directory that is not ours alone, `unavailable` when one cannot be made.
    pub fn make(&self) -> Result<(), Error> {
        for directory in [&self.state, &self.runtime, &self.cache] {
            private(directory)?;
        }
        match self.socket.parent() {
            Some(parent) if parent != self.runtime => private(parent),
            _ => Ok(()),
        }
    }

    #[must_use]
    pub fn artifacts(&self) -> PathBuf {
        self.state.join("artifacts")
    }

    /// Of attempts that run; nothing in it outlives its worker.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.state.join("scratch")
    }

    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }
}

fn check_instance(instance: &str) -> Result<(), Error> {
    let fits = !instance.is_empty()
        && instance.len() <= 32
        && instance.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fits {
        return Ok(());
    }
    Err(Error::invalid("places.instance", format!("`{instance}` is no instance name"))
        .help("use 1 to 32 letters, digits, - or _"))
}

fn private(directory: &Path) -> Result<(), Error> {
    let unavailable = |why: &std::io::Error| {
        Error::new(Code::Unavailable, "places.make", format!("{} cannot be made: {why}", directory.display()))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|why| unavailable(&why))?;
    let found = fs::metadata(directory).map_err(|why| unavailable(&why))?;
    let mine = found.uid() == rustix::process::getuid().as_raw();
    if mine && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let message = format!(
        "{} can be changed by others (owner {}, mode {:o})",
        directory.display(),
        found.uid(),
        found.mode() & 0o777
    );
    Err(Error::new(Code::Denied, "places.owner", message)
        .help(format!("chmod 700 {0}, or choose another directory", directory.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_an_instance_that_could_leave_its_directory() {
        for bad in ["", "..", "a/b", "a b", &"x".repeat(33)] {
            assert_eq!(check_instance(bad).unwrap_err().reason, "places.instance", "{bad:?}");
        }
        assert!(check_instance("my-desk_2").is_ok());
    }

    #[test]
    fn refuses_a_directory_that_others_may_write() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(private(directory.path()).unwrap_err().reason, "places.owner");
    }
}
