//! What every command works with: the manners that were asked for, and the configuration, resolved once.
//!
//! A configuration that is wrong anywhere ends the command before it does anything; `config path`, `doctor` and
//! `completion` alone go without one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process;

use clap::CommandFactory;
use eclosion::config::{self, Configuration, Entry, Given, Origin, Row, Setting, Surroundings, Value};
use eclosion::{Options, Places};
use eclosion_schemas::Error;
use eclosion_schemas::suggest::shell_word;

use crate::arguments::{Arguments, Flags};

const PROGRAM: &str = "eclosion";
const INSTANCE: &str = "--instance";
const SOCKET: &str = "--socket";
const SETTING: &str = "--setting";
const CONFIG: &str = "--config";

pub(crate) struct Globals {
    pub(crate) json: bool,
    pub(crate) configuration: Configuration,
}

impl Globals {
    /// Reads files and environment.
    ///
    /// # Errors
    /// `invalid` and `denied`, as of [`config::load`]; `invalid` for a `--setting` without `=`.
    pub(crate) fn read(flags: &Flags) -> Result<Self, Error> {
        let configuration = config::load(&Surroundings::of_process(), &said(flags)?)?;
        Ok(Self { json: flags.json, configuration })
    }

    pub(crate) fn places(&self) -> Result<Places, Error> {
        Places::configured(&self.configuration.settings)
    }

    pub(crate) fn options(&self) -> Result<Options, Error> {
        // The keeper is this binary in another role.
        let this = std::env::current_exe()
            .map_err(|why| Error::internal("binary", format!("this binary is not to be found: {why}")))?;
        let configured = Options::configured(&self.configuration.settings)?;
        // This process is the kernel's alone, so that it may move itself.
        Ok(Options { keeper_binary: Some(this), cgroups: true, ..configured })
    }

    /// The socket to dial.
    pub(crate) fn socket(&self) -> Result<PathBuf, Error> {
        self.configuration.settings.path(&config::SOCKET).map(PathBuf::from)
    }

    /// Whether a running kernel is meant, by its socket: then none is started.
    pub(crate) fn names_a_running_kernel(&self) -> bool {
        self.configuration.settings.is_said(&config::SOCKET)
    }

    /// Tells the log of a kernel what it works with.
    pub(crate) fn log(&self) {
        let settings: Vec<_> = self.said().map(|(row, value)| format!("{}={value}", row.key)).collect();
        tracing::info!(settings = settings.join(" "), "configured");
    }

    /// Gives a kernel in the background this configuration. It works in another directory, so what was found from here
    /// or is relative to it travels as an absolute path; its own reading of the same files and variables yields the rest.
    pub(crate) fn hand_on(&self, command: &mut process::Command) {
        let project = self.configuration.files.project.as_deref();
        let can_be_read_again = project.is_none_or(is_lasting);
        if let Some(project) = project {
            command.arg(CONFIG).arg(if can_be_read_again { project } else { Path::new("/dev/null") });
        }
        for (row, value) in self.said() {
            // The variable of a family says all its members; it is inherited as it is.
            let is_member = row.key != row.setting.key;
            match row.origin {
                Origin::Environment { .. } if is_member => {}
                Origin::Environment { variable } => _ = command.env(variable, plain(value)),
                Origin::Project { .. } if can_be_read_again => {}
                Origin::Flag { .. } | Origin::Project { .. } => {
                    let mut pair = OsString::from(&row.key);
                    pair.push("=");
                    pair.push(plain(value));
                    command.arg(SETTING).arg(pair);
                }
                Origin::Default | Origin::User { .. } => {}
            }
        }
    }

    fn said(&self) -> impl Iterator<Item = (&Row, &Value)> {
        let rows = self.configuration.settings.rows().filter(|row| row.origin != Origin::Default);
        rows.filter_map(|row| Some((row, row.value.as_ref()?)))
    }
}

/// Whether another process finds the same in it: not in our stdin, or in a pipe that was read.
fn is_lasting(file: &Path) -> bool {
    file.is_file() && !file.starts_with("/dev") && !file.starts_with("/proc")
}

/// As it is typed: a path byte for byte.
fn plain(value: &Value) -> OsString {
    match value {
        Value::Path(path) => path.clone().into(),
        Value::Name(_) | Value::Whole(_) | Value::Text(_) => value.to_string().into(),
    }
}

impl Flags {
    /// `text` with the flags that name a kernel in every command of ours in it, so that each means the same kernel.
    pub(crate) fn repeated_in(&self, text: &str) -> String {
        let own = [
            (INSTANCE, self.instance.as_deref()),
            (SOCKET, self.socket.as_ref().map(|path| path.as_os_str())),
            (CONFIG, self.config.as_ref().map(|path| path.as_os_str())),
        ];
        let said = own.into_iter().filter_map(|(flag, value)| Some((flag, value?)));
        let said: String =
            said.map(|(flag, value)| format!(" {flag} {}", shell_word(&value.to_string_lossy()))).collect();
        if said.is_empty() {
            return text.to_owned();
        }
        let known = Arguments::command();
        let mut pieces = text.split(PROGRAM);
        let mut repeated = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            // Neither the end of a path nor a word of a sentence.
            let starts_a_word = !repeated.ends_with(|c: char| c.is_alphanumeric() || "/-_.".contains(c));
            let mut words = piece.strip_prefix(' ').unwrap_or_default().split(|c: char| !c.is_alphanumeric());
            let is_command = words.next().is_some_and(|word| known.find_subcommand(word).is_some());
            repeated.push_str(PROGRAM);
            if starts_a_word && is_command {
                repeated.push_str(&said);
            }
            repeated.push_str(piece);
        }
        repeated
    }
}

/// What the command line says. A flag of its own comes after `--setting`, and so wins.
pub(crate) fn said(flags: &Flags) -> Result<config::Flags, Error> {
    let mut entries = flags.settings.iter().map(|pair| setting(pair)).collect::<Result<Vec<_>, _>>()?;
    let own = |setting: &Setting, value: &OsStr, flag| entry(setting.key.to_owned(), value.to_owned(), flag);
    entries.extend(flags.instance.as_ref().map(|instance| own(&config::INSTANCE, instance, INSTANCE)));
    entries.extend(flags.socket.as_ref().map(|socket| own(&config::SOCKET, socket.as_os_str(), SOCKET)));
    Ok(config::Flags { file: flags.config.clone(), entries })
}

fn setting(pair: &OsStr) -> Result<Entry, Error> {
    let bytes = pair.as_bytes();
    let split = bytes.iter().position(|byte| *byte == b'=').map(|at| (&bytes[..at], &bytes[at + 1..]));
    match split {
        Some((key, value)) if !key.is_empty() => {
            let key = String::from_utf8_lossy(key).into_owned();
            Ok(entry(key, OsStr::from_bytes(value).to_owned(), SETTING))
        }
        _ => Err(Error::invalid("config.flag", "--setting takes KEY=VALUE")
            .help("--setting pool.workers_max=2; eclosion config show lists every setting")),
    }
}

fn entry(key: String, value: OsString, flag: &'static str) -> Entry {
    Entry { key, given: Given::Typed(value), origin: Origin::Flag { flag } }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn read(words: &[&str]) -> Result<Vec<(String, Given, Origin)>, Error> {
        let words = ["eclosion"].iter().chain(words).chain(&["status"]);
        let entries = said(&Arguments::try_parse_from(words).unwrap().flags)?.entries;
        Ok(entries.into_iter().map(|entry| (entry.key, entry.given, entry.origin)).collect())
    }

    #[test]
    fn a_flag_of_its_own_comes_after_a_setting() {
        let said = read(&["--instance", "x", "--setting", "kernel.instance=y=z"]).unwrap();
        let typed = |text: &str| Given::Typed(text.into());
        let flag = |flag| Origin::Flag { flag };
        assert_eq!(
            said,
            [
                ("kernel.instance".to_owned(), typed("y=z"), flag("--setting")),
                ("kernel.instance".to_owned(), typed("x"), flag("--instance")),
            ]
        );
    }

    #[test]
    fn a_help_names_the_kernel_that_was_meant() {
        let words = ["eclosion", "--instance", "other", "--config", "a b.toml", "status"];
        let flags = Arguments::try_parse_from(words).unwrap().flags;
        for (help, expected) in [
            ("eclosion up", "eclosion --instance other --config 'a b.toml' up"),
            ("see `eclosion doctor`", "see `eclosion --instance other --config 'a b.toml' doctor`"),
            ("less /x/eclosion up", "less /x/eclosion up"),
            ("eclosion is not there", "eclosion is not there"),
            ("wait", "wait"),
        ] {
            assert_eq!(flags.repeated_in(help), expected);
        }
        let plain = Arguments::try_parse_from(["eclosion", "status"]).unwrap().flags;
        assert_eq!(plain.repeated_in("eclosion up"), "eclosion up");
    }

    #[test]
    fn a_setting_without_its_key_is_refused_and_not_repeated() {
        for bad in ["hunter2", "=hunter2", ""] {
            let refusal = read(&["--setting", bad]).unwrap_err();
            assert_eq!(refusal.reason, "config.flag");
            assert!(!format!("{refusal:?}").contains("hunter2"));
        }
    }
}
