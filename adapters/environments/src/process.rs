//! A resolver's process: its lines as they come, its end in time, its whole group killed otherwise.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// Kept of what it says: the last words say why it failed.
const LINES_KEPT: usize = 40;
/// A longer line is cut into several.
const LINE_BYTES_MAX: usize = 2048;

/// Beside these, `PIP_*`, `UV_*`, `SSL_*` and proxies: where packages come from is the user's to say.
const KEPT: [&str; 12] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "NETRC",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "ECLOSION_MARKER",
];
/// These would put packages elsewhere than into the environment.
const REFUSED: [&str; 8] = [
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "PIP_PYTHON",
    "PIP_REQUIRE_VIRTUALENV",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
];

/// Why a process gave no result.
#[derive(Debug)]
pub(crate) enum Failed {
    Start(std::io::Error),
    Ended(ExitStatus, Vec<String>),
    Late(Vec<String>),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failed::Start(why) => write!(f, "it cannot be started: {why}"),
            Failed::Ended(status, lines) => {
                write!(f, "it ended with {status}")?;
                lines.last().map_or(Ok(()), |line| write!(f, ": {line}"))
            }
            Failed::Late(_) => f.write_str("it did not end in time"),
        }
    }
}

/// With a cleared environment, in a process group of its own.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let kept = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept));
    command.env_clear().envs(kept).env("NO_COLOR", "1").env("PYTHONUNBUFFERED", "1");
    // Not wherever the kernel was started: a stray module there is none of the resolver's.
    command.current_dir(Path::new("/")).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn is_kept(name: &str) -> bool {
    let is_packaging = ["PIP_", "UV_", "SSL_"].iter().any(|prefix| name.starts_with(prefix));
    let is_proxy = name.to_ascii_lowercase().ends_with("_proxy");
    !REFUSED.contains(&name) && (KEPT.contains(&name) || is_packaging || is_proxy)
}

/// Runs to the end and gives the last lines. Dropping the future kills the group.
pub(crate) async fn run(
    mut command: Command,
    deadline: Instant,
    mut on_line: impl FnMut(&str),
) -> Result<Vec<String>, Failed> {
    let mut child = Group(command.spawn().map_err(Failed::Start)?);
    let mut kept = VecDeque::new();
    let mut stdout = child.0.stdout.take().map(Lines::new);
    let mut stderr = child.0.stderr.take().map(Lines::new);
    let talk = async {
        while stdout.is_some() || stderr.is_some() {
            let line = tokio::select! {
                line = next(&mut stdout), if stdout.is_some() => line,
                line = next(&mut stderr), if stderr.is_some() => line,
            };
            let Some(line) = line else { continue };
            on_line(&line);
            if kept.len() == LINES_KEPT {
                kept.pop_front();
            }
            kept.push_back(line);
        }
        child.0.wait().await
    };
    let ended = tokio::time::timeout_at(deadline, talk).await;
    let lines = kept.into();
    match ended {
        Ok(Ok(status)) if status.success() => Ok(lines),
        Ok(Ok(status)) => Err(Failed::Ended(status, lines)),
        Ok(Err(why)) => Err(Failed::Start(why)),
        Err(_) => Err(Failed::Late(lines)),
    }
}

/// A child that leads its group. Dropped before its end, the group is killed.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Its id is none once it was waited for, and then the group's number may be another's.
        let leader = self.0.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(leader) = leader
            && let Err(why) = rustix::process::kill_process_group(leader, Signal::KILL)
        {
            tracing::warn!(%why, "a resolver's process group could not be killed");
        }
    }
}

/// The next line that says something; at the end the source is `None`.
async fn next<R: AsyncRead + Unpin>(source: &mut Option<Lines<R>>) -> Option<String> {
    let line = source.as_mut()?.next().await;
    if line.is_none() {
        *source = None;
    }
    line
}

/// Lines of bounded length, ended by a newline or, as progress bars do, by a return.
struct Lines<R> {
    source: R,
    pending: Vec<u8>,
    is_over: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(source: R) -> Self {
        Self { source, pending: Vec::new(), is_over: false }
    }

    /// Cancelling it loses nothing: what was read is kept for the next call.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.cut() {
                return Some(line);
            }
            if self.is_over {
                return None;
            }
            let read = self.source.read_buf(&mut self.pending).await.unwrap_or(0);
            self.is_over = read == 0;
        }
    }

    fn cut(&mut self) -> Option<String> {
        loop {
            let end = self.pending.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (line, rest) = match end {
                Some(at) => {
                    (at.min(LINE_BYTES_MAX), if at < LINE_BYTES_MAX { at + 1 } else { LINE_BYTES_MAX })
                }
                None if self.pending.len() >= LINE_BYTES_MAX => (LINE_BYTES_MAX, LINE_BYTES_MAX),
                None if self.is_over && !self.pending.is_empty() => (self.pending.len(), self.pending.len()),
                None => return None,
            };
            let text = String::from_utf8_lossy(&self.pending[..line]).trim().to_owned();
            self.pending.drain(..rest);
            if !text.is_empty() {
                return Some(text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = command("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn lines_come_bounded_and_the_last_are_kept() {
        let deadline = Instant::now() + Duration::from_secs(20);
        let script = "printf 'a\\r\\nb\\n\\n'; seq 100 >&2; printf '%5000d' 1; echo; printf end; exit 3";
        let mut heard = 0;
        match run(shell(script), deadline, |_| heard += 1).await {
            Err(Failed::Ended(status, lines)) => {
                assert_eq!(status.code(), Some(3));
                assert!(lines.len() == LINES_KEPT && lines.iter().all(|line| line.len() <= LINE_BYTES_MAX));
            }
            other => panic!("{other:?}"),
        }
        assert!(heard > 100, "{heard}");
    }

    #[tokio::test]
    async fn a_process_that_takes_too_long_is_killed_with_its_group() {
        // The pipe ends when the last of the group that holds it does.
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = shell("sleep 1000 & sleep 1000");
        command.stderr(writer);
        let late = run(command, Instant::now() + Duration::from_millis(50), |_| {}).await;
        assert!(matches!(late, Err(Failed::Late(_))));
        let read = tokio::task::spawn_blocking(move || std::io::read_to_string(reader));
        tokio::time::timeout(Duration::from_secs(20), read).await.unwrap().unwrap().unwrap();
    }

    #[test]
    fn keeps_what_says_where_packages_come_from_and_nothing_else() {
        for name in ["PIP_INDEX_URL", "UV_INDEX", "SSL_CERT_FILE", "https_proxy", "NO_PROXY", "PATH"] {
            assert!(is_kept(name), "{name}");
        }
        for name in ["PIP_TARGET", "PYTHONPATH", "LD_PRELOAD", "ECLOSION_SECRET_X", "VIRTUAL_ENV"] {
            assert!(!is_kept(name), "{name}");
        }
    }
}
