//! An `eclosion.toml`: finding it, reading it, and each of its values with its line.
//!
//! A refusal names file, line and column, and repeats nothing of the text: it may hold a secret. A project's file that
//! is found and not named must be ours to trust: whoever can write into a directory above could otherwise say where our
//! journal goes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eclosion_schemas::{Code, Error};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Entry, FILE, Given, Origin, TABLE};

/// A file of all settings takes a few hundred.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The project's file: the nearest from `directory` upward. The user's own is not taken for it.
///
/// # Errors
/// `denied` for one that somebody else can change.
pub(super) fn nearest(directory: &Path, user: Option<&Path>) -> Result<Option<PathBuf>, Error> {
    // A relative directory was removed under us; there is nothing above it.
    let above = directory.ancestors().filter(|above| above.is_absolute());
    let mut files = above.map(|above| above.join(FILE)).filter(|path| Some(path.as_path()) != user);
    let Some(path) = files.find(|path| path.is_file()) else { return Ok(None) };
    let metadata = fs::metadata(&path).map_err(|why| unreadable(&path, &why))?;
    let owners = [rustix::process::getuid().as_raw(), 0];
    if owners.contains(&metadata.uid()) && metadata.mode() & 0o002 == 0 {
        return Ok(Some(path));
    }
    let message = format!("{} can be changed by somebody else (owner {})", path.display(), metadata.uid());
    Err(Error::new(Code::Denied, "config.owner", message)
        .help(format!("read it, then name it: --config {}", path.display())))
}

/// What a file says; `origin` makes the origin of a line.
pub(super) fn entries(path: &Path, origin: impl Fn(Arc<Path>, u32) -> Origin) -> Result<Vec<Entry>, Error> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|why| {
        let (line, column) = position(&bytes, why.valid_up_to());
        let message = format!("{}:{line}:{column}: this is not UTF-8", path.display());
        Error::invalid("config.encoding", message).help("save the file as UTF-8")
    })?;
    let table = DeTable::parse(text).map_err(|why| {
        let (line, column) = position(&bytes, why.span().map_or(0, |span| span.start));
        Error::invalid("config.syntax", format!("{}:{line}:{column}: {}", path.display(), why.message()))
            .help("the file is TOML: [section], then key = value, one a line")
    })?;
    let mut said = Vec::new();
    flatten("", table.get_ref(), &mut said);
    said.sort_by_key(|(at, ..)| *at);
    let file: Arc<Path> = path.into();
    let (mut seen, mut line) = (0, 1);
    let entry = |(at, key, given)| {
        line += text[seen..at].matches('\n').count() as u32;
        seen = at;
        Entry { key, given, origin: origin(Arc::clone(&file), line) }
    };
    Ok(said.into_iter().map(entry).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|why| unreadable(path, &why))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|why| unreadable(path, &why))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("{} is larger than {FILE_BYTES_MAX} bytes", path.display());
        return Err(Error::invalid("config.file", message).help("it should hold settings alone"));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, why: &io::Error) -> Error {
    Error::invalid("config.file", format!("{} cannot be read: {why}", path.display()))
        .help(format!("ls -l {}", path.display()))
}

/// Values with their dotted keys and where they start. An empty section of ours says nothing; another one is
/// somebody's mistake.
fn flatten(prefix: &str, table: &DeTable<'_>, said: &mut Vec<(usize, String, Given)>) {
    for (name, value) in table.iter() {
        let key = match prefix {
            "" => name.get_ref().to_string(),
            _ => format!("{prefix}.{}", name.get_ref()),
        };
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => flatten(&key, inner, said),
            DeValue::Table(_) if is_section(&key) => {}
            _ => said.push((name.span().start, key, given(value))),
        }
    }
}

fn is_section(key: &str) -> bool {
    TABLE.iter().any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

fn given(value: &Spanned<DeValue<'_>>) -> Given {
    match value.get_ref() {
        DeValue::String(text) => Given::Text(text.to_string()),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Given::Whole(number),
            Err(_) => Given::Other("a number without end"),
        },
        DeValue::Float(_) => Given::Other("a number with a fraction"),
        DeValue::Boolean(_) => Given::Other("true or false"),
        DeValue::Datetime(_) => Given::Other("a date"),
        DeValue::Array(_) => Given::Other("a list"),
        DeValue::Table(_) => Given::Other("a table"),
    }
}

/// Line and column of a byte, both from 1; a column counts characters.
fn position(bytes: &[u8], at: usize) -> (usize, usize) {
    let before = &bytes[..at.min(bytes.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    (line, String::from_utf8_lossy(&before[start..]).chars().count() + 1)
}
