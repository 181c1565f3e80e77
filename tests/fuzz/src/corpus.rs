//! What inputs are made from: the golden frames, the flows of this repository, and what was found once.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Of one target: `corpus/TARGET`, in the order of their names.
#[must_use]
pub fn kept(target: &str) -> Vec<Vec<u8>> {
    files(&root().join("tests/fuzz/corpus").join(target), "").into_iter().map(|(_, bytes)| bytes).collect()
}

/// The golden frames, each file as the bytes that it stands for.
#[must_use]
pub fn golden_frames() -> Vec<Vec<u8>> {
    files(&root().join("schemas/golden"), "hex").into_iter().map(|(_, text)| unhex(&text)).collect()
}

/// Every flow file of the repository's own.
#[must_use]
pub fn flows() -> Vec<Vec<u8>> {
    let folders = ["python-workers/flows/automl", "tests/crash/flow"];
    let found = folders.iter().flat_map(|folder| files(&root().join(folder), "toml"));
    found.map(|(_, bytes)| bytes).collect()
}

fn files(folder: &Path, extension: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<_> = entries
        .filter(|path| path.is_file())
        .filter(|path| extension.is_empty() || path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths.into_iter().filter_map(|path| fs::read(&path).ok().map(|bytes| (path, bytes))).collect()
}

fn unhex(text: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Vec<u8> = text.iter().filter_map(digit).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
