//! Starting a zygote: one interpreter per (environment, python, preload), with a cleared environment.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::step::{ZygoteId, ZygoteKey};
use super::sys;
use crate::procfs::KEEPER_MARK;
use crate::socket::{self, Link};

/// The zygote's end of its socket.
const SOCKET: i32 = 3;

/// What a zygote keeps of the keeper's own environment. `ECLOSION_MARKER` is for whoever looks for leftovers.
const KEPT: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "ECLOSION_MARKER"];

/// Fixed, so that a task computes the same each time and a fork finds no thread pools.
const FIXED: [(&str, &str); 4] = [
    ("OMP_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("MKL_NUM_THREADS", "1"),
    ("PYTHONHASHSEED", "0"),
];

/// How much of what a zygote wrote is shown when it dies.
const LAST_WORDS_BYTES: usize = 2048;

#[derive(Debug)]
pub(super) struct Handle {
    pub(super) link: Link,
    pub(super) pid: u32,
    /// What it writes until it forks; its last words, if it dies.
    output: PathBuf,
}

impl Handle {
    pub(super) fn start(id: ZygoteId, key: &ZygoteKey, directory: &Path) -> io::Result<Self> {
        let (ours, theirs) = socket::packet_pair()?;
        let theirs = above(theirs, SOCKET)?;
        let output = directory.join(format!("zygote-{}.log", id.0));
        let log = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&output)?;
        let mut command = Command::new(&key.python);
        command.args(["-m", "eclosion.zygote", "--fd", &SOCKET.to_string()]);
        for module in &key.preload {
            command.args(["--preload", module]);
        }
        command.env_clear().envs(environment(key, directory));
        // Not the user's code: with `-m` the working directory is the first place where modules are looked for.
        command.current_dir(directory);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        sys::pass(&mut command, &theirs, SOCKET);
        let child = command.spawn().inspect_err(|_| drop(fs::remove_file(&output)))?;
        Ok(Self { link: Link::new(ours), pid: child.id(), output })
    }

    /// What it wrote last. Its log goes with the handle.
    pub(super) fn last_words(&self) -> String {
        let bytes = fs::read(&self.output).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(LAST_WORDS_BYTES)..];
        String::from_utf8_lossy(tail).trim().to_owned()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A file that is gone already is as good.
        drop(fs::remove_file(&self.output));
    }
}

/// The same descriptor with a number above the one it is to become.
fn above(descriptor: OwnedFd, number: i32) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() > number {
        return Ok(descriptor);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, number + 1)?)
}

fn environment(key: &ZygoteKey, directory: &Path) -> Vec<(OsString, OsString)> {
    let kept = KEPT.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    let fixed = FIXED.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let asked = key.args_env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let mut all: Vec<_> = kept.chain(fixed).chain(asked).collect();
    let asked = key.args_env.get("PYTHONPATH").map(OsString::from).unwrap_or_default();
    let paths = std::env::split_paths(&asked).chain(key.code_paths.iter().map(PathBuf::from));
    // A path that holds a separator cannot be said in this variable; it is left out, and the import says what misses.
    let paths = paths.filter(|path| !path.as_os_str().is_empty() && std::env::join_paths([path]).is_ok());
    if let Ok(joined) = std::env::join_paths(paths) {
        all.push(("PYTHONPATH".into(), joined));
    }
    all.push((KEEPER_MARK.into(), directory.as_os_str().to_owned()));
    all
}
