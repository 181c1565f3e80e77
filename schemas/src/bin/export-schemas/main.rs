//! Writes what other languages read: `cargo schemas`; `cargo schemas --check` says what has drifted and changes nothing.
//!
//! | file | for |
//! |---|---|
//! | `schemas/json/api-1.json` | every operation, event and wire type as JSON Schema |
//! | `schemas/golden/*.hex`, `*.json` | frames, byte by byte, and what they say |
//! | `python-workers/src/eclosion/_schemas.py` | the types as msgspec Structs |
//! | `python-workers/src/eclosion/client/_operations.py`, `_async_operations.py` | the operations as typed methods |
//!
//! All of them are committed. The output depends on nothing but the source: maps are sorted, no time, no paths.

mod api;
mod golden;
mod python;
mod python_operations;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Folders that hold generated files alone, so that what is not generated any more is removed from them.
const OWNED: [&str; 2] = ["schemas/json", "schemas/golden"];

/// Paths from the root of the repository, and their text.
type Files = BTreeMap<PathBuf, String>;

fn main() -> ExitCode {
    let check = std::env::args().skip(1).any(|argument| argument == "--check");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match produce().and_then(|files| apply(&root, &files, check)) {
        Ok(changed) => report(&changed, check),
        Err(why) => {
            let _ = writeln!(io::stderr(), "export-schemas: {why}");
            ExitCode::from(70)
        }
    }
}

fn produce() -> Result<Files, String> {
    let api = api::build()?;
    let mut files = golden::files()?;
    files.insert("schemas/json/api-1.json".into(), api.to_text()?);
    files.insert("python-workers/src/eclosion/_schemas.py".into(), python::emit(&api)?);
    let client = Path::new("python-workers/src/eclosion/client");
    files.insert(client.join("_operations.py"), python_operations::emit(&api)?);
    files.insert(client.join("_async_operations.py"), python_operations::emit_async(&api)?);
    Ok(files)
}

/// The paths that differ from what is generated; unless only checked, they are written.
fn apply(root: &Path, files: &Files, check: bool) -> Result<Vec<PathBuf>, String> {
    let mut changed = Vec::new();
    for (path, text) in files {
        let target = root.join(path);
        if fs::read(&target).is_ok_and(|found| found == text.as_bytes()) {
            continue;
        }
        if !check {
            target.parent().map_or(Ok(()), fs::create_dir_all).map_err(|why| at(path, &why))?;
            fs::write(&target, text).map_err(|why| at(path, &why))?;
        }
        changed.push(path.clone());
    }
    for path in stale(root, files)? {
        if !check {
            fs::remove_file(root.join(&path)).map_err(|why| at(&path, &why))?;
        }
        changed.push(path);
    }
    Ok(changed)
}

fn stale(root: &Path, files: &Files) -> Result<Vec<PathBuf>, String> {
    let mut stale = Vec::new();
    for folder in OWNED {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries {
            let path = Path::new(folder).join(entry.map_err(|why| at(Path::new(folder), &why))?.file_name());
            if !files.contains_key(&path) {
                stale.push(path);
            }
        }
    }
    stale.sort();
    Ok(stale)
}

fn report(changed: &[PathBuf], check: bool) -> ExitCode {
    let verb = if check { "drifted" } else { "written" };
    for path in changed {
        let _ = writeln!(io::stdout(), "{verb}: {}", path.display());
    }
    if check && !changed.is_empty() {
        let _ = writeln!(io::stderr(), "run `cargo schemas` and commit what it writes");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn at(path: &Path, why: &io::Error) -> String {
    format!("{}: {why}", path.display())
}
