//! Looks for what keeps Eclosion from working here. It changes nothing, and each finding says what to do.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use eclosion::Places;
use eclosion::cgroups::{self, Refusal, Site};
use eclosion_client::Client;
use eclosion_schemas::Error;
use eclosion_schemas::ops::kernel::{Empty, Status};
use serde::Serialize;

use crate::arguments::Flags;
use crate::exit;
use crate::globals::Globals;
use crate::render::{self, pairs};
use crate::session;
use crate::terminal::{document, print, talk};

/// Environments alone may take this much.
const FREE_BYTES_MIN: u64 = 2 << 30;
/// What a socket's path may be long, without its last zero byte.
const SOCKET_BYTES_MAX: usize = 107;
const PYTHON: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    is_well: bool,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Check {
    fn well(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, is_well: true, text: text.into(), help: None }
    }

    fn ill(name: &'static str, text: impl Into<String>, help: impl Into<String>) -> Self {
        Self { name, is_well: false, text: text.into(), help: Some(help.into()) }
    }
}

pub(super) async fn doctor(flags: &Flags) -> Result<u8, Error> {
    let mut checks = vec![python().await, limits()];
    match configured(flags) {
        Ok((check, places, socket)) => {
            checks.push(check);
            for (name, path) in
                [("state", &places.state), ("runtime", &places.runtime), ("cache", &places.cache)]
            {
                checks.push(directory(name, path));
            }
            checks.push(disk(&places.cache));
            checks.push(kernel(&socket).await);
        }
        Err(why) => checks.push(Check::ill("config", why.message, why.help.unwrap_or_default())),
    }
    let is_well = checks.iter().all(|check| check.is_well);
    if flags.json {
        document("doctor", &serde_json::json!({"is_well": is_well, "checks": checks}))?;
    } else {
        let lines: Vec<_> = checks.iter().map(|check| (check.name, mark(check))).collect();
        print(&flags.repeated_in(&pairs(&lines)))?;
        for check in &checks {
            if let Some(help) = &check.help {
                talk(&format!("{}: {}", check.name, flags.repeated_in(help)));
            }
        }
    }
    Ok(if is_well { exit::OK } else { exit::FAILED })
}

fn mark(check: &Check) -> String {
    format!("{}  {}", if check.is_well { "ok  " } else { "FAIL" }, check.text)
}

/// Where everything else is looked for, so without it there is nothing to look at.
fn configured(flags: &Flags) -> Result<(Check, Places, PathBuf), Error> {
    let globals = Globals::read(flags)?;
    let (places, socket) = (globals.places()?, globals.socket()?);
    let files = &globals.configuration.files;
    let read: Vec<_> = [&files.project, &files.user].into_iter().flatten().collect();
    let text = match read.is_empty() {
        true => "no file; defaults and environment".into(),
        false => read.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    Ok((Check::well("config", text), places, socket))
}

/// 3.10 or later, with `venv`, which environments are made by.
async fn python() -> Check {
    const SAY: &str = "import sys, venv; print('%d.%d.%d %s' % (*sys.version_info[:3], sys.executable))";
    let help = "install Python 3.10 or later with its venv module; `python3` must be on PATH";
    let asked = tokio::process::Command::new("python3")
        .args(["-c", SAY])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(PYTHON, asked).await {
        Ok(Ok(output)) => output,
        Ok(Err(why)) => return Check::ill("python", format!("python3 cannot be started: {why}"), help),
        Err(_) => return Check::ill("python", "python3 does not answer", help),
    };
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
        return Check::ill("python", format!("python3 fails: {why}"), help);
    }
    match is_new_enough(&text) {
        true => Check::well("python", text),
        false => Check::ill("python", text, help),
    }
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', ' ']).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (3, 10)
}

/// What exists must be ours alone; what does not must have a parent that we may write.
fn directory(name: &'static str, path: &Path) -> Check {
    let shown = path.display();
    let Some(found) = existing(path) else {
        return Check::ill(name, format!("{shown}: nothing above it exists"), "set HOME");
    };
    let probe = tempfile::Builder::new().prefix(".doctor").tempfile_in(&found);
    if let Err(why) = probe {
        let help = format!("make {} writable, or set ECLOSION_{}_DIR", found.display(), name.to_uppercase());
        return Check::ill(name, format!("{shown} cannot be written: {why}"), help);
    }
    let is_open = found == path && std::fs::metadata(path).is_ok_and(|found| found.mode() & 0o022 != 0);
    match is_open {
        true => Check::ill(name, format!("{shown} can be changed by others"), format!("chmod 700 {shown}")),
        false => Check::well(name, shown.to_string()),
    }
}

/// The path itself, or what exists above it.
fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|above| above.is_dir()).map(Path::to_owned)
}

fn disk(path: &Path) -> Check {
    let free = existing(path).and_then(|found| rustix::fs::statvfs(&found).ok());
    let Some(free) = free.map(|free| free.f_bavail.saturating_mul(free.f_frsize)) else {
        return Check::ill("disk", "free space cannot be read", format!("df -h {}", path.display()));
    };
    let text = format!("{} free", render::bytes(free));
    match free >= FREE_BYTES_MIN {
        true => Check::well("disk", text),
        false => Check::ill(
            "disk",
            text,
            format!("make room, or set ECLOSION_CACHE_DIR; see df -h {}", path.display()),
        ),
    }
}

/// Nothing has to be mended: said because a machine with cgroups lets people expect them. What is looked at is where a
/// kernel would stand that is started here and now; `pool` says it of one that runs.
fn limits() -> Check {
    let looked = Site::here().and_then(|site| cgroups::look(&site));
    let text = match looked {
        Ok(plan) => {
            let base = plan.base.display();
            format!("memory and processes of tasks are limited by cgroups below {base}, and by sampling")
        }
        Err(Refusal { why, help }) => {
            let help = help.map(|help| format!("; for a cgroup: {help}")).unwrap_or_default();
            format!("memory and processes of tasks are limited by sampling; no cgroup is used: {why}{help}")
        }
    };
    Check::well("limits", text)
}

/// None running is well: `run` starts one.
async fn kernel(socket: &Path) -> Check {
    let shown = socket.display();
    if socket.as_os_str().len() > SOCKET_BYTES_MAX {
        let text = format!("{shown} is longer than the {SOCKET_BYTES_MAX} bytes of a socket's path");
        return Check::ill("kernel", text, "set ECLOSION_RUNTIME_DIR to a shorter path");
    }
    let client = match Client::connect(socket).await {
        Ok(client) => client,
        Err(why) if why.reason == "kernel.unreachable" => {
            return Check::well("kernel", format!("none listens on {shown}; `eclosion up` starts one"));
        }
        Err(why) => return silent(socket, &why).await,
    };
    match client.call::<Status>(Empty {}).await {
        Ok(status) if status.state == "ready" => Check::well(
            "kernel",
            format!("pid {}, up {}, on {shown}", status.pid, render::duration(status.uptime_ms)),
        ),
        Ok(status) => {
            Check::ill("kernel", format!("pid {} is {}", status.pid, status.state), "eclosion status")
        }
        Err(why) => silent(socket, &why).await,
    }
}

/// It listens and does not answer, so it would not answer `down` either.
async fn silent(socket: &Path, why: &Error) -> Check {
    match session::listener(socket).await {
        Some(pid) => {
            let help = format!("kill -9 {pid}; the next `eclosion up` goes on with its runs");
            Check::ill("kernel", format!("pid {pid}: {}", why.message), help)
        }
        None => Check::ill("kernel", why.message.clone(), "eclosion up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_is_new_enough_from_3_10_on() {
        for (version, expected) in
            [("3.10.0 /usr/bin/python3", true), ("3.9.18 x", false), ("4.0.0 x", true), ("", false)]
        {
            assert_eq!(is_new_enough(version), expected, "{version}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_well_if_it_can_be_made() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        assert!(directory("state", &path).is_well);
        assert!(!path.exists());
    }
}
