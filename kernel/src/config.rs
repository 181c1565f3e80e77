//! Configuration with origins: what was said where, checked against a table, and whose word counts.
//!
//! This is the pure half: a table of [`Setting`]s and [`Entry`]s in, [`Settings`] out, each value with its [`Origin`]. It
//! opens no file, reads no variable, knows no file format and no setting by name, so an application with actors of its
//! own resolves a table of its own in the same way. Reading files and the environment is the composition root's.
//!
//! 1. A later origin wins: default < user < project < environment < flag; of equal ones the one said last.
//! 2. Every entry is checked, also one that another overrides: a mistake is no less one because it has no effect today.
//! 3. All or nothing: one wrong entry, and there are no settings. The refusal names each by its place.
//! 4. A refusal never repeats a text that was said. It may be a secret in the wrong place.
//! 5. A relative path is seen from where it was said: beside its file, else from the working directory.

mod value;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eclosion_schemas::{Error, suggest};

pub use value::is_name;

/// Of a refusal; what is wrong beyond these is counted.
const REFUSALS_MAX: usize = 8;

/// One thing that may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Dotted; a unit goes last: `keeper.grace_ms`. `rates.*` is a family: `rates.` with any name behind it.
    pub key: &'static str,
    pub kind: Kind,
    pub default: Preset,
    /// The environment variable that sets it.
    pub variable: &'static str,
    /// One sentence.
    pub doc: &'static str,
}

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 1 to 32 letters, digits, `-` or `_`: safe as the name of a file.
    Name,
    /// Made absolute.
    Path,
    /// Both ends included.
    Whole { min: u64, max: u64 },
    /// At most 256 characters, none of them a control character. Who uses it reads it.
    Text,
}

/// What counts when nobody says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    Name(&'static str),
    Whole(u64),
    /// It follows from what is said here. Whoever resolves brings it as an entry of [`Origin::Default`], or by
    /// [`Settings::or_default`].
    Derived(&'static str),
}

/// A value that fits its setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Name(String),
    Path(PathBuf),
    Whole(u64),
    Text(String),
}

/// Where a value was said. The order of the variants is that of precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    User { file: Arc<Path>, line: u32 },
    Project { file: Arc<Path>, line: u32 },
    Environment { variable: &'static str },
    Flag { flag: &'static str },
}

/// What somebody said, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub given: Given,
    pub origin: Origin,
}

/// The form in which it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// In a variable or a flag, where everything is text: read as what the setting takes.
    Typed(OsString),
    /// A text, said as such.
    Text(String),
    /// A whole number, said as such.
    Whole(i128),
    /// Something that no setting takes; the word for it, with its article: `a list`.
    Other(&'static str),
}

/// A setting, its value, and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub setting: &'static Setting,
    /// That of the setting; of a family the member's own, such as `rates.openai`.
    pub key: String,
    /// None where nobody said anything and the default could not be derived.
    pub value: Option<Value>,
    pub origin: Origin,
}

/// Every setting of a table, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    rows: Vec<Row>,
}

/// Resolves a table; `directory` is what relative paths of variables and flags are seen from.
///
/// # Errors
/// `invalid`, with the place of each entry that is wrong: `config.unknown_key`, `config.type`, `config.range`,
/// `config.value`. The reason is that of the first, the others are its causes.
pub fn resolve(
    table: &[&'static Setting],
    entries: impl IntoIterator<Item = Entry>,
    directory: &Path,
) -> Result<Settings, Error> {
    let mut rows: Vec<Row> = table.iter().map(|setting| Row::of(setting)).collect();
    let mut refusals = Refusals::default();
    for entry in entries {
        let Some(row) = row_for(&mut rows, &entry.key) else {
            refusals.add(|| unknown(table, &entry));
            continue;
        };
        match value::read(row.setting, &entry, directory) {
            Ok(value) if entry.origin.rank() >= row.origin.rank() => {
                (row.value, row.origin) = (Some(value), entry.origin);
            }
            Ok(_) => {}
            Err(refusal) => refusals.add(|| refusal),
        }
    }
    refusals.none()?;
    Ok(Settings { rows })
}

/// The row of a key; that of a family's member is made when it is said first, behind those that were.
fn row_for<'a>(rows: &'a mut Vec<Row>, key: &str) -> Option<&'a mut Row> {
    let found = rows.iter().position(|row| row.key == key && !row.is_family());
    let at = found.or_else(|| {
        let at = rows.iter().position(|row| row.is_family() && row.setting.member(key).is_some())?;
        let family = rows[at].setting;
        let end = at + rows[at..].iter().take_while(|row| row.setting == family).count();
        rows.insert(end, Row { key: key.to_owned(), ..Row::of(family) });
        Some(end)
    })?;
    rows.get_mut(at)
}

fn unknown(table: &[&'static Setting], entry: &Entry) -> Error {
    let message = format!("{}: `{}` is no setting", entry.origin.place(), entry.key);
    Error::invalid("config.unknown_key", message).help(meant(table, &entry.key))
}

/// A key with a slip in it, one without its section, and a section that is used as a key are all worth a hint.
fn meant(table: &[&'static Setting], key: &str) -> String {
    let keys = || table.iter().map(|setting| setting.key);
    let last = |key: &'static str| key.rsplit('.').next().unwrap_or(key);
    let section = format!("{key}.");
    if let Some(inside) = keys().find(|known| known.starts_with(&section)) {
        return format!("`{key}` is a section, of settings such as `{inside}`");
    }
    let near = suggest::nearest(key, keys()).or_else(|| {
        let chunk = key.rsplit('.').next().unwrap_or(key);
        let near = keys().map(last).find(|known| *known == chunk);
        let near = near.or_else(|| suggest::nearest(chunk, keys().map(last)))?;
        keys().find(|known| last(known) == near)
    });
    match near {
        Some(known) => format!("did you mean `{known}`?"),
        None => "`config show` lists every setting".into(),
    }
}

/// What is wrong, in the order in which it was found.
#[derive(Debug, Default)]
struct Refusals {
    found: Vec<Error>,
    more: usize,
}

impl Refusals {
    /// Lazy: a file of nothing but mistakes costs no more than the ones that are told.
    fn add(&mut self, refusal: impl FnOnce() -> Error) {
        match self.found.len() < REFUSALS_MAX {
            true => self.found.push(refusal()),
            false => self.more += 1,
        }
    }

    fn none(self) -> Result<(), Error> {
        let mut found = self.found.into_iter();
        let Some(first) = found.next() else { return Ok(()) };
        let mut refusal = found.fold(first, |first, other| match &other.help {
            Some(help) => first.cause(format!("{}; {help}", other.message)),
            None => first.cause(other.message),
        });
        if self.more > 0 {
            refusal = refusal.cause(format!("and {} more", self.more));
        }
        Err(refusal)
    }
}

impl Settings {
    /// In the table's order.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }

    /// None for a setting of another table.
    #[must_use]
    pub fn row(&self, setting: &Setting) -> Option<&Row> {
        self.rows.iter().find(|row| row.setting.key == setting.key)
    }

    /// Brings a default that follows from other settings; a value that is there already stays.
    #[must_use]
    pub fn or_default(mut self, setting: &Setting, value: Option<Value>) -> Self {
        if let Some(row) =
            self.rows.iter_mut().find(|row| row.setting.key == setting.key && row.value.is_none())
        {
            row.value = value;
        }
        self
    }

    /// What was said of a family: the members' names and texts, in the order of their names.
    pub fn members(&self, family: &Setting) -> impl Iterator<Item = (&str, &str)> {
        let members = self.rows.iter().filter(|row| row.setting.key == family.key);
        let said = members.filter_map(|row| match &row.value {
            Some(Value::Text(text)) => Some((row.setting.member(&row.key)?, text.as_str())),
            _ => None,
        });
        said.collect::<std::collections::BTreeMap<_, _>>().into_iter()
    }

    /// Whether somebody said it.
    #[must_use]
    pub fn is_said(&self, setting: &Setting) -> bool {
        self.row(setting).is_some_and(|row| row.origin != Origin::Default)
    }

    /// # Errors
    /// `precondition` when nobody said it and no default could be derived, or the setting takes something else.
    pub fn name(&self, setting: &Setting) -> Result<&str, Error> {
        match self.row(setting).and_then(|row| row.value.as_ref()) {
            Some(Value::Name(name)) => Ok(name),
            _ => Err(unset(setting)),
        }
    }

    /// # Errors
    /// As of [`Settings::name`].
    pub fn path(&self, setting: &Setting) -> Result<&Path, Error> {
        match self.row(setting).and_then(|row| row.value.as_ref()) {
            Some(Value::Path(path)) => Ok(path),
            _ => Err(unset(setting)),
        }
    }

    /// # Errors
    /// As of [`Settings::name`].
    pub fn whole(&self, setting: &Setting) -> Result<u64, Error> {
        match self.row(setting).and_then(|row| row.value.as_ref()) {
            Some(Value::Whole(number)) => Ok(*number),
            _ => Err(unset(setting)),
        }
    }
}

fn unset(setting: &Setting) -> Error {
    let from = match setting.default {
        Preset::Derived(from) => format!(", and its default cannot be derived: {from}"),
        _ => String::new(),
    };
    Error::new(
        eclosion_schemas::Code::Precondition,
        "config.unset",
        format!("`{}` is not set{from}", setting.key),
    )
    .help(format!("set {}", setting.variable))
}

impl Setting {
    /// The name behind a family's dot.
    #[must_use]
    pub fn member<'a>(&self, key: &'a str) -> Option<&'a str> {
        let name = key.strip_prefix(self.key.strip_suffix('*')?)?;
        is_name(name).then_some(name)
    }
}

impl Row {
    /// The family itself, of which nothing can be said but by its members.
    fn is_family(&self) -> bool {
        self.key.ends_with(".*")
    }

    fn of(setting: &'static Setting) -> Self {
        let value = match setting.default {
            Preset::Name(name) => Some(Value::Name(name.to_owned())),
            Preset::Whole(number) => Some(Value::Whole(number)),
            Preset::Derived(_) => None,
        };
        Self { setting, key: setting.key.to_owned(), value, origin: Origin::Default }
    }
}

impl Origin {
    /// The layer's name.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        match self {
            Origin::Default => "default",
            Origin::User { .. } => "user",
            Origin::Project { .. } => "project",
            Origin::Environment { .. } => "environment",
            Origin::Flag { .. } => "flag",
        }
    }

    /// Where to look: `eclosion.toml:3`, a variable, a flag.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Origin::Default => "default".into(),
            Origin::User { file, line } | Origin::Project { file, line } => {
                format!("{}:{line}", file.display())
            }
            Origin::Environment { variable } => (*variable).to_owned(),
            Origin::Flag { flag } => (*flag).to_owned(),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::User { .. } => 1,
            Origin::Project { .. } => 2,
            Origin::Environment { .. } => 3,
            Origin::Flag { .. } => 4,
        }
    }
}

/// `default`, `project /home/ada/iris/eclosion.toml:3`, `environment ECLOSION_GRACE_MS`, `flag --instance`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str(self.layer()),
            _ => write!(f, "{} {}", self.layer(), self.place()),
        }
    }
}

#[cfg(test)]
mod tests;
