//! The binary in a directory of its own: state, sockets and settings lie below it, and nothing of this machine's is seen.

use std::path::Path;
use std::process::{Command, Stdio};

/// Environments are built once for all tests: what they are is in their name.
pub(crate) fn eclosion(directory: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eclosion"));
    command.args(words).current_dir(directory).stdin(Stdio::null());
    for name in ["ECLOSION_SOCKET", "ECLOSION_LISTEN", "ECLOSION_INSTANCE", "ECLOSION_CONFIG"] {
        command.env_remove(name);
    }
    command
        .env("ECLOSION_STATE_DIR", directory.join("state"))
        .env("ECLOSION_RUNTIME_DIR", directory.join("run"))
        .env("ECLOSION_CACHE_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("errors-cache"))
        .env("XDG_CONFIG_HOME", directory.join("config"));
    command
}
