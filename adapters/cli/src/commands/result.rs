//! Values out of the artifact store: the value itself decoded, its files put into a directory.
//!
//! Pieces go to a directory of their own beside their destination and are renamed once all of them came, so that a
//! fetch that broke off leaves nothing half-written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use eclosion_client::Client;
use eclosion_schemas::codec::json;
use eclosion_schemas::ops::artifact::{Get, GetReply, GetRequest};
use eclosion_schemas::ops::run::GetReply as RunReply;
use eclosion_schemas::view::ArtifactView;
use eclosion_schemas::{Code, Error, Part, Payload};
use serde::Serialize;
use serde_json::Value;

use crate::render::value::key_order;

/// A longer body is not decoded for a screen; its file remains.
const BODY_BYTES_MAX: u64 = 64 << 20;

/// A value, decoded; parts that were written are the paths of their files in it.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) artifact: Option<ArtifactView>,
    pub(super) value: Value,
    /// Names of fields in their author's order.
    pub(super) order: Vec<String>,
    pub(super) files: Vec<Written>,
}

#[derive(Debug, Serialize)]
pub(super) struct Written {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) codec: String,
}

/// Which parts become files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Those that were files where they were made.
    Files,
    Everything,
}

/// The result of a run that succeeded.
pub(super) async fn of_run(client: &Client, found: &RunReply, out: &Path) -> Result<Option<Fetched>, Error> {
    let Some(payload) = &found.run.result else { return Ok(None) };
    if payload.parts.is_empty() {
        return Ok(Some(decoded(payload, None, Vec::new(), &BTreeMap::new())?));
    }
    // A run does not name its result's task: it is the one whose output this is, most likely one that nobody needs.
    let needed: BTreeSet<_> = found.tasks.iter().flat_map(|task| &task.needs).collect();
    let mut tasks: Vec<_> = found.tasks.iter().map(|task| &task.task).collect();
    tasks.sort_by_key(|task| needed.contains(task));
    for task in tasks {
        let name = format!("{}/{task}", found.run.run);
        let download = match Download::of(client, &name, out, Some(payload)).await {
            Ok(download) => download,
            Err(error) if matches!(error.code, Code::NotFound | Code::Precondition) => continue,
            Err(error) => return Err(error),
        };
        if let Some(download) = download {
            return download.keep(Keep::Files, out).map(Some);
        }
    }
    Ok(Some(decoded(payload, None, Vec::new(), &BTreeMap::new())?))
}

/// Any artifact.
pub(super) async fn fetch(client: &Client, name: &str, out: &Path, keep: Keep) -> Result<Fetched, Error> {
    match Download::of(client, name, out, None).await? {
        Some(download) => download.keep(keep, out),
        None => Err(Error::internal("artifact.differs", format!("{name} is not what was asked for"))),
    }
}

/// What has come: pieces in files by the index of their part, and the reply.
struct Download {
    reply: GetReply,
    place: Place,
}

impl Download {
    /// Nothing, if it turns out to be another value than `wanted`.
    async fn of(
        client: &Client,
        name: &str,
        out: &Path,
        wanted: Option<&Payload>,
    ) -> Result<Option<Self>, Error> {
        let mut place = Place::beside(out);
        let mut pieces = client.stream::<Get>(GetRequest { name: name.into() }).await?;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            if wanted.is_some_and(|wanted| wanted.parts.len() <= piece.part as usize) {
                return Ok(None);
            }
            place.append(piece.part, &piece.bytes).map_err(|why| unwritable(&place.path, &why))?;
        }
        let reply = pieces.reply().await?;
        let is_wanted = wanted.is_none_or(|wanted| *wanted == reply.payload);
        Ok(is_wanted.then_some(Self { reply, place }))
    }

    fn keep(self, keep: Keep, out: &Path) -> Result<Fetched, Error> {
        let Self { reply, mut place } = self;
        let body = place.body(&reply.payload)?;
        let (mut files, mut paths) = (Vec::new(), BTreeMap::new());
        let mut names = BTreeSet::new();
        for (index, part) in (0_u32..).zip(&reply.payload.parts) {
            let wanted = part.codec == "file" || keep == Keep::Everything;
            if !wanted || (body.is_some() && index == 0) {
                continue;
            }
            let mut name = file_name(part, index);
            if !names.insert(name.clone()) {
                name = format!("{index}-{name}");
                names.insert(name.clone());
            }
            let path = place.publish(index, out, &name).map_err(|why| unwritable(out, &why))?;
            paths.insert(index, path.clone());
            files.push(Written { path, bytes: part.bytes, codec: part.codec.clone() });
        }
        let mut fetched = decoded(&reply.payload, body.as_deref(), files, &paths)?;
        fetched.artifact = Some(reply.artifact);
        Ok(fetched)
    }
}

fn decoded(
    payload: &Payload,
    body: Option<&[u8]>,
    files: Vec<Written>,
    paths: &BTreeMap<u32, PathBuf>,
) -> Result<Fetched, Error> {
    let bytes = body.unwrap_or(&payload.body);
    let mut value = json::from_msgpack(bytes)?;
    name_parts(&mut value, payload, paths);
    Ok(Fetched { artifact: None, value, order: key_order(bytes), files })
}

/// A part is shown as the path of its file, or else as what it is. As deep as the codec lets a value be.
fn name_parts(value: &mut Value, payload: &Payload, paths: &BTreeMap<u32, PathBuf>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| name_parts(item, payload, paths)),
        Value::Object(fields) => {
            let index = fields.get(json::PART_KEY).and_then(Value::as_u64).filter(|_| fields.len() == 1);
            let Some(index) = index.and_then(|index| u32::try_from(index).ok()) else {
                return fields.values_mut().for_each(|field| name_parts(field, payload, paths));
            };
            if let Some(path) = paths.get(&index) {
                *value = path.to_string_lossy().into_owned().into();
            } else if let Some(part) = payload.parts.get(index as usize) {
                fields.insert("codec".into(), part.codec.clone().into());
                fields.insert("bytes".into(), part.bytes.into());
            }
        }
        _ => {}
    }
}

/// The name that a file had, without any path: it comes from outside.
fn file_name(part: &Part, index: u32) -> String {
    let named =
        part.name.as_deref().and_then(|name| Path::new(name).file_name()).and_then(|name| name.to_str());
    let is_plain = |name: &&str| !name.starts_with('.') && !name.chars().any(char::is_control);
    named.filter(is_plain).map_or_else(|| format!("part-{index}.{}", safe(&part.codec)), str::to_owned)
}

fn safe(codec: &str) -> String {
    let word: String = codec.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    if word.is_empty() { "bin".into() } else { word }
}

fn unwritable(path: &Path, why: &io::Error) -> Error {
    let code = match why.kind() {
        io::ErrorKind::PermissionDenied => Code::Denied,
        _ => Code::Unavailable,
    };
    Error::new(code, "out.write", format!("{} cannot be written: {why}", path.display()))
        .help("--out DIR, where you may write")
}

/// A directory for pieces; made with the first of them, removed when dropped.
struct Place {
    path: PathBuf,
    open: BTreeMap<u32, File>,
}

impl Place {
    fn beside(out: &Path) -> Self {
        let path = out.join(format!(".fetch-{}", std::process::id()));
        Self { path, open: BTreeMap::new() }
    }

    fn append(&mut self, part: u32, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = self.open.get_mut(&part) {
            return file.write_all(bytes);
        }
        fs::create_dir_all(&self.path)?;
        // Parts come one after the other: the one before is complete.
        self.open.clear();
        let mut file = OpenOptions::new().create(true).append(true).open(self.piece(part))?;
        file.write_all(bytes)?;
        self.open.insert(part, file);
        Ok(())
    }

    fn piece(&self, part: u32) -> PathBuf {
        self.path.join(part.to_string())
    }

    /// The body, where it was too long to ride along and became part 0 itself.
    fn body(&mut self, payload: &Payload) -> Result<Option<Vec<u8>>, Error> {
        self.open.clear();
        match payload.parts.first() {
            Some(first) if first.codec == "msgpack" && first.bytes <= BODY_BYTES_MAX => {
                let path = self.piece(0);
                fs::read(&path).map(Some).map_err(|why| unwritable(&path, &why))
            }
            _ => Ok(None),
        }
    }

    fn publish(&mut self, part: u32, out: &Path, name: &str) -> io::Result<PathBuf> {
        let piece = self.piece(part);
        // A part without bytes came without a piece.
        if !piece.exists() {
            self.append(part, &[])?;
        }
        let path = out.join(name);
        fs::rename(&piece, &path)?;
        path.canonicalize()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.clear();
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: Option<&str>, codec: &str) -> Part {
        Part { bytes: 3, codec: codec.into(), name: name.map(str::to_owned), ..Part::default() }
    }

    #[test]
    fn a_files_name_never_leaves_the_directory() {
        for (name, expected) in [
            (Some("report.html"), "report.html"),
            (Some("../../etc/passwd"), "passwd"),
            (Some("/etc/passwd"), "passwd"),
            (Some(".."), "part-2.file"),
            (Some(".bashrc"), "part-2.file"),
            (Some("a\u{1b}[2Jb"), "part-2.file"),
            (Some(""), "part-2.file"),
            (None, "part-2.file"),
        ] {
            assert_eq!(file_name(&part(name, "file"), 2), expected, "{name:?}");
        }
        assert_eq!(file_name(&part(None, "../x"), 0), "part-0.x");
    }

    #[test]
    fn a_part_is_shown_as_its_file_or_as_what_it_is() {
        let payload =
            Payload { body: bytes_of(), parts: vec![part(Some("r.html"), "file"), part(None, "npy")] };
        let paths = BTreeMap::from([(0, PathBuf::from("/out/r.html"))]);
        let fetched = decoded(&payload, None, Vec::new(), &paths).unwrap();
        let expected = serde_json::json!({"r": "/out/r.html", "x": {"$part": 1, "codec": "npy", "bytes": 3}});
        assert_eq!(fetched.value, expected);
    }

    fn bytes_of<T: From<Vec<u8>>>() -> T {
        let part = |index: u8| [0xd6, 1, 0, 0, 0, index];
        [vec![0x82, 0xa1, b'r'], part(0).to_vec(), vec![0xa1, b'x'], part(1).to_vec()].concat().into()
    }

    #[test]
    fn pieces_become_a_file_only_once_they_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let mut place = Place::beside(&out);
        place.append(0, b"ab").unwrap();
        place.append(0, b"c").unwrap();
        place.append(1, b"lost").unwrap();
        assert!(!out.join("r.html").exists());
        let path = place.publish(0, &out, "r.html").unwrap();
        drop(place);
        assert_eq!(fs::read(path).unwrap(), b"abc");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }
}
