//! Eclosion's configuration: which settings there are, and where a process finds what was said of them.
//!
//! ```no_run
//! # fn demo() -> Result<(), eclosion_schemas::Error> {
//! use eclosion::config::{self, Flags, Surroundings};
//! let configuration = config::load(&Surroundings::of_process(), &Flags::default())?;
//! let options = eclosion::Options::configured(&configuration.settings)?;
//! # Ok(()) }
//! ```
//!
//! `table` lists every setting; `file` turns an `eclosion.toml` into entries; `machine` knows what defaults follow from
//! this machine. What wins over what, and what is refused, is [`eclosion_kernel::config`]'s: it is pure, and knows no
//! file format, so the TOML parser is needed here and not in the kernel.
//!
//! Nothing here happens by itself. [`Surroundings::of_process`] is the one place that reads `ECLOSION_*`, and only a
//! binary calls it; who embeds a kernel says what is to be said by [`resolve`], or fills [`crate::Options`] by hand.
//! Left where they are: `XDG_*` and `HOME` ([`crate::places`]), `RUST_LOG`, `NO_COLOR`, what a child process inherits,
//! and `ECLOSION_SECRET_*`, which are values and no settings.

mod file;
pub(crate) mod machine;
#[cfg(feature = "workers")]
mod retention;
#[cfg(feature = "workers")]
mod scarce;
mod table;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use eclosion_kernel::config::{Entry, Given, Kind, Origin, Preset, Row, Setting, Settings, Value};
use eclosion_schemas::{Error, suggest};

#[cfg(feature = "workers")]
pub(crate) use retention::retention;
#[cfg(feature = "workers")]
pub(crate) use scarce::{rates, resources};
pub use table::*;

use crate::places::{self, Base};

/// The name of the file of a project and of a user.
pub const FILE: &str = "eclosion.toml";
/// It names the project's file, as `--config` does.
pub const FILE_VARIABLE: &str = "ECLOSION_CONFIG";
/// What all variables of ours start with.
const PREFIX: &str = "ECLOSION_";
/// Variables with values that are nobody's business.
const SECRETS: &str = "ECLOSION_SECRET_";

/// What a process finds around it.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The environment.
    pub variables: Vec<(OsString, OsString)>,
    /// The working directory.
    pub directory: PathBuf,
    /// The user's own file, whether it is there or not; none without a home directory.
    pub user_file: Option<PathBuf>,
    /// Defaults that follow from this machine and this user.
    pub defaults: Vec<Entry>,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let base = Base::of_user();
        Self {
            variables: std::env::vars_os().collect(),
            // One that was removed: paths stay relative, and fail where they are used.
            directory: std::env::current_dir().unwrap_or_default(),
            user_file: base.config.as_ref().map(|config| config.join(FILE)),
            defaults: machine::defaults(&base),
        }
    }
}

/// What was said on the command line.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// In place of the project's file that would be found.
    pub file: Option<PathBuf>,
    pub entries: Vec<Entry>,
}

/// Settings, and the files that they were read from.
#[derive(Debug, Clone)]
pub struct Configuration {
    pub settings: Settings,
    pub files: Files,
}

/// The files that count here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The nearest from the working directory upward, or the one that was named.
    pub project: Option<PathBuf>,
    /// Only if it is there.
    pub user: Option<PathBuf>,
}

/// Reads files and variables, and resolves them with the flags.
///
/// # Errors
/// `invalid` for whatever is wrong in one of them, by its place (see [`eclosion_kernel::config::resolve`], and
/// `config.file`, `config.syntax`, `config.encoding`, `config.unknown_variable`); `denied` with `config.owner` for a
/// project's file that was found and that somebody else can change.
pub fn load(surroundings: &Surroundings, flags: &Flags) -> Result<Configuration, Error> {
    let files = files(surroundings, flags)?;
    let mut entries = surroundings.defaults.clone();
    if let Some(user) = &files.user {
        entries.extend(file::entries(user, |file, line| Origin::User { file, line })?);
    }
    if let Some(project) = &files.project {
        entries.extend(file::entries(project, |file, line| Origin::Project { file, line })?);
    }
    entries.extend(variables(&surroundings.variables)?);
    entries.extend(flags.entries.iter().cloned());
    Ok(Configuration { settings: resolve(entries, &surroundings.directory)?, files })
}

/// Resolves entries against [`TABLE`], without reading anything; `directory` is what relative paths are seen from.
///
/// # Errors
/// As of [`eclosion_kernel::config::resolve`], and `config.contradiction` for two values that exclude each other.
pub fn resolve(entries: impl IntoIterator<Item = Entry>, directory: &Path) -> Result<Settings, Error> {
    let settings = eclosion_kernel::config::resolve(&TABLE, entries, directory)?;
    consistent(&settings)?;
    let listen = match (settings.path(&RUNTIME_DIR), settings.name(&INSTANCE)) {
        (Ok(runtime), Ok(instance)) => Some(places::socket(runtime, instance)),
        _ => None,
    };
    let settings = settings.or_default(&LISTEN, listen.map(Value::Path));
    let dialed = settings.path(&LISTEN).ok().map(Path::to_owned);
    Ok(settings.or_default(&SOCKET, dialed.map(Value::Path)))
}

/// What no single setting can say of itself.
fn consistent(settings: &Settings) -> Result<(), Error> {
    let (Ok(min), Ok(max)) = (settings.whole(&WORKERS_MIN), settings.whole(&WORKERS_MAX)) else {
        return Ok(());
    };
    if min <= max {
        return Ok(());
    }
    let said = |setting: &Setting, number| match settings.row(setting) {
        Some(row) => format!("`{}` ({number}, {})", setting.key, row.origin),
        None => format!("`{}` ({number})", setting.key),
    };
    let message = format!("{} is above {}", said(&WORKERS_MIN, min), said(&WORKERS_MAX, max));
    Err(Error::invalid("config.contradiction", message).help("lower the one or raise the other"))
}

/// Which files count, without reading them.
///
/// # Errors
/// `denied` for a project's file that was found and that somebody else can change.
pub fn files(surroundings: &Surroundings, flags: &Flags) -> Result<Files, Error> {
    let user = surroundings.user_file.clone().filter(|path| path.is_file());
    let by_variable =
        surroundings.variables.iter().find(|(name, value)| name == FILE_VARIABLE && !value.is_empty());
    let named = flags.file.as_deref().or(by_variable.map(|(_, value)| Path::new(value)));
    let project = match named {
        Some(named) => Some(surroundings.directory.join(named)),
        None => file::nearest(&surroundings.directory, user.as_deref())?,
    };
    Ok(Files { project, user })
}

/// Variables of settings; an empty one says nothing. One that is ours but for a slip is refused: nobody would notice
/// that it has no effect.
fn variables(variables: &[(OsString, OsString)]) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        match TABLE.iter().find(|setting| setting.variable == name) {
            Some(setting) => entries.extend(said_by(setting, value)),
            None => known(name)?,
        }
    }
    Ok(entries)
}

/// The variable of a family says several, with commas between: `openai=60/min,search=10/s`.
fn said_by(setting: &Setting, value: &OsString) -> Vec<Entry> {
    let origin = || Origin::Environment { variable: setting.variable };
    let Some(family) = setting.key.strip_suffix('*') else {
        let (key, given) = (setting.key.to_owned(), Given::Typed(value.clone()));
        return vec![Entry { key, given, origin: origin() }];
    };
    let value = value.to_string_lossy();
    let member = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let (key, given) = (format!("{family}{}", name.trim()), Given::Typed(value.trim().into()));
        Entry { key, given, origin: origin() }
    };
    value.split(',').map(member).collect()
}

/// The prefix is shared: with secrets, with tests, with applications on top. Only what is near to ours is a slip.
fn known(name: &str) -> Result<(), Error> {
    if name == FILE_VARIABLE || name.starts_with(SECRETS) {
        return Ok(());
    }
    let tail = |name: &'static str| name.strip_prefix(PREFIX).unwrap_or(name);
    let ours = TABLE.iter().map(|setting| setting.variable).chain([FILE_VARIABLE]).map(tail);
    match suggest::nearest(name.strip_prefix(PREFIX).unwrap_or(name), ours) {
        Some(meant) => Err(Error::invalid("config.unknown_variable", format!("{name} sets nothing"))
            .help(format!("did you mean {PREFIX}{meant}?"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
