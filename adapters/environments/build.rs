//! Lists the Python runtime's sources, so that the binary carries them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    // Of this build and not of the one that compiled this script: checkouts may share a target directory.
    let manifest =
        env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| io::Error::other("cargo sets CARGO_MANIFEST_DIR"))?;
    let root = Path::new(&manifest).join("../../python-workers/src");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(&root.join("eclosion"), &mut files)?;
    if !files.iter().any(|file| file.ends_with("eclosion/worker.py")) {
        // A binary without it builds and starts, and then no worker does.
        return Err(io::Error::other(format!("{} holds no Python runtime", root.display())));
    }
    files.sort();
    let mut list = String::from("pub(crate) static FILES: &[(&str, &[u8])] = &[\n");
    for file in files {
        let name = file.strip_prefix(&root).map_err(io::Error::other)?.display().to_string();
        let path = file.canonicalize()?;
        // Writing to a String cannot fail.
        _ = writeln!(list, "    ({name:?}, include_bytes!({path:?})),");
    }
    list.push_str("];\n");
    let out =
        env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    fs::write(out.join("runtime_files.rs"), list)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = fs::read_dir(directory)
        .map_err(|why| io::Error::new(why.kind(), format!("{}: {why}", directory.display())))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "__pycache__" {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "py") || name == "py.typed" {
            files.push(path);
        }
    }
    Ok(())
}
