//! Where a kernel's things are: XDG directories, one instance beside the other.
//!
//! | place | default | holds |
//! |---|---|---|
//! | state | `$XDG_STATE_HOME/eclosion/INSTANCE` | journal, artifacts, logs of workers |
//! | runtime | `$XDG_RUNTIME_DIR/eclosion`, else `/tmp/eclosion-UID` | the sockets |
//! | cache | `$XDG_CACHE_HOME/eclosion` | environments, the Python runtime |
//!
//! Each is a setting (`places.*`, `kernel.listen`); the defaults are those of the table above, and `Base` is the one
//! reader of the variables in it. Directories are made 0700. A runtime directory that belongs to somebody else, or that
//! others may write, is refused.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use eclosion_kernel::config::is_name;
use eclosion_schemas::{Code, Error};
use etcetera::BaseStrategy;

use crate::config::{self, Settings};

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
    /// The places of an instance where XDG puts them, whatever is configured.
    ///
    /// # Errors
    /// `invalid` for an instance name that could leave its directory, `precondition` without a home directory.
    pub fn of(instance: &str) -> Result<Self, Error> {
        check_instance(instance)?;
        let Base { state, runtime, cache, .. } = Base::of_user();
        let (Some(state), Some(cache)) = (state, cache) else {
            return Err(Error::new(Code::Precondition, "places.home", "there is no home directory")
                .help("set HOME, or XDG_STATE_HOME and XDG_CACHE_HOME"));
        };
        Ok(Self::in_directories(instance, &state, &runtime, cache, socket(&runtime, instance)))
    }

    /// The places that settings name.
    ///
    /// # Errors
    /// `precondition` with `config.unset` for a directory that nobody named and that has no default, because there is
    /// no home directory.
    pub fn configured(settings: &Settings) -> Result<Self, Error> {
        let (state, runtime) = (settings.path(&config::STATE_DIR)?, settings.path(&config::RUNTIME_DIR)?);
        let cache = settings.path(&config::CACHE_DIR)?.to_owned();
        let socket = settings.path(&config::LISTEN)?.to_owned();
        Ok(Self::in_directories(settings.name(&config::INSTANCE)?, state, runtime, cache, socket))
    }

    fn in_directories(instance: &str, state: &Path, runtime: &Path, cache: PathBuf, socket: PathBuf) -> Self {
        let (state, runtime) = (state.join(instance), runtime.join(instance));
        Self { instance: instance.to_owned(), state, runtime, cache, socket }
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

    /// What retention collected of logs and scratch, until its grace is over; artifacts have theirs beside them.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.state.join("trash")
    }

    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }
}

/// The socket of an instance below the directory of all sockets.
pub(crate) fn socket(runtime: &Path, instance: &str) -> PathBuf {
    runtime.join(format!("{instance}.sock"))
}

/// Where XDG puts what is ours, for all instances. Without a home directory some have no place.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) config: Option<PathBuf>,
    pub(crate) state: Option<PathBuf>,
    pub(crate) cache: Option<PathBuf>,
    pub(crate) runtime: PathBuf,
}

impl Base {
    /// Reads `HOME` and `XDG_*`.
    pub(crate) fn of_user() -> Self {
        let base = etcetera::base_strategy::Xdg::new().ok();
        let of = |directory: fn(&etcetera::base_strategy::Xdg) -> PathBuf| {
            base.as_ref().map(|base| directory(base).join("eclosion"))
        };
        let runtime = base.as_ref().and_then(BaseStrategy::runtime_dir).map_or_else(
            || PathBuf::from(format!("/tmp/eclosion-{}", rustix::process::getuid().as_raw())),
            |runtime| runtime.join("eclosion"),
        );
        Self {
            config: of(BaseStrategy::config_dir),
            state: of(|base| base.state_dir().unwrap_or_else(|| base.data_dir())),
            cache: of(BaseStrategy::cache_dir),
            runtime,
        }
    }
}

fn check_instance(instance: &str) -> Result<(), Error> {
    if is_name(instance) {
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
    // One that everybody shares, such as `/tmp`, must stay as it is.
    let is_shared = !mine || found.mode() & 0o1000 != 0;
    let help = match is_shared {
        true => "choose a directory that is yours alone".to_owned(),
        false => format!("chmod 700 {}, or choose another directory", directory.display()),
    };
    Err(Error::new(Code::Denied, "places.owner", message).help(help))
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
