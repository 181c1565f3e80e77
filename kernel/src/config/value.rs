//! From what was said to a value that fits its setting.

use std::fmt;
use std::path::Path;

use eclosion_schemas::Error;

use super::{Entry, Given, Kind, Origin, Setting, Value};

/// What a name is at most.
const NAME_BYTES_MAX: usize = 32;
const TEXT_BYTES_MAX: usize = 256;

/// Whether it is 1 to 32 letters, digits, `-` or `_`: safe as the name of a file.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Reads what was said as what the setting takes.
pub(super) fn read(setting: &Setting, entry: &Entry, directory: &Path) -> Result<Value, Error> {
    let refused = Refused { setting, entry };
    match (setting.kind, &entry.given) {
        (Kind::Name, Given::Text(text)) => refused.name(text),
        (Kind::Name, Given::Typed(typed)) => refused.name(&typed.to_string_lossy()),
        (Kind::Path, Given::Text(text)) => refused.path(Path::new(text), directory),
        (Kind::Path, Given::Typed(typed)) => refused.path(Path::new(typed), directory),
        (Kind::Text, Given::Text(text)) => refused.text(text),
        (Kind::Text, Given::Typed(typed)) => refused.text(&typed.to_string_lossy()),
        (Kind::Text, Given::Whole(number)) => refused.text(&number.to_string()),
        (Kind::Whole { min, max }, Given::Whole(number)) => refused.whole(*number, min, max),
        (Kind::Whole { min, max }, Given::Typed(typed)) => {
            let number = typed.to_str().and_then(|text| text.parse().ok());
            refused.whole(number.ok_or_else(|| refused.kind())?, min, max)
        }
        _ => Err(refused.kind()),
    }
}

/// An entry, and what is said when it does not fit.
struct Refused<'a> {
    setting: &'a Setting,
    entry: &'a Entry,
}

impl Refused<'_> {
    fn name(&self, text: &str) -> Result<Value, Error> {
        match is_name(text) {
            true => Ok(Value::Name(text.to_owned())),
            false => {
                Err(self.error("config.value", "is no name").help("use 1 to 32 letters, digits, - or _"))
            }
        }
    }

    fn text(&self, text: &str) -> Result<Value, Error> {
        match text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control) {
            true => Ok(Value::Text(text.to_owned())),
            false => Err(self
                .error("config.value", "is too long a text, or more than one line")
                .help(self.setting.doc)),
        }
    }

    fn path(&self, path: &Path, directory: &Path) -> Result<Value, Error> {
        if path.as_os_str().is_empty() {
            return Err(self.error("config.value", "is empty").help("name a path, or remove it"));
        }
        if path.starts_with("~") {
            // A shell would have replaced it; here it would become a directory of that name.
            return Err(self.error("config.value", "starts with ~").help("write the home directory out"));
        }
        Ok(Value::Path(self.base(directory).join(path)))
    }

    fn base<'a>(&'a self, directory: &'a Path) -> &'a Path {
        match &self.entry.origin {
            Origin::User { file, .. } | Origin::Project { file, .. } => file.parent().unwrap_or(directory),
            _ => directory,
        }
    }

    fn whole(&self, number: i128, min: u64, max: u64) -> Result<Value, Error> {
        match u64::try_from(number) {
            Ok(number) if (min..=max).contains(&number) => Ok(Value::Whole(number)),
            _ => Err(self
                .error("config.range", &format!("is out of range with {number}"))
                .help(format!("from {min} to {max}"))),
        }
    }

    fn kind(&self) -> Error {
        let takes = match self.setting.kind {
            Kind::Name => "a name",
            Kind::Path => "a path",
            Kind::Whole { .. } => "a whole number",
            Kind::Text => "a text",
        };
        let given = match &self.entry.given {
            Given::Typed(_) | Given::Text(_) => "a text",
            Given::Whole(_) => "a number",
            Given::Other(word) => word,
        };
        self.error("config.type", &format!("takes {takes} and was given {given}")).help(self.setting.doc)
    }

    fn error(&self, reason: &str, what: &str) -> Error {
        let message = format!("{}: `{}` {what}", self.entry.origin.place(), self.entry.key);
        Error::invalid(reason, message)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Name(text) | Value::Text(text) => f.write_str(text),
            Value::Path(path) => path.display().fmt(f),
            Value::Whole(number) => number.fmt(f),
        }
    }
}
