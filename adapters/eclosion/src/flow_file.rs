//! A flow as a person names it: `flow.toml`, `flow.json`, or `FILE.py:flow`.
//!
//! Loading makes the flow absolute: its code root, the hash of that code, and parameters that name files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use eclosion_dag_tracker::load;
use eclosion_environments::{EnvironmentOptions, Environments};
use eclosion_schemas::error::RemoteException;
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::suggest::{nearest, shell_word};
use eclosion_schemas::{Code, Error};
use eclosion_store_fs::code_files;
use serde::Deserialize;

/// Of a directory in which a flow file is looked for that was meant.
const NAMES_MAX: usize = 1_000;
/// Importing a Python file may take this long.
const DESCRIBE: Duration = Duration::from_secs(60);

/// Reads a flow and makes it complete.
///
/// `python_path` is what `FILE.py:flow` is described with: the runtime's own directories.
///
/// # Errors
/// `not_found` for a missing file, `invalid` for one that is no flow, each with where and why.
pub async fn read(target: &str, python_path: &[PathBuf]) -> Result<FlowSpec, Error> {
    match target.rsplit_once(".py:") {
        Some((stem, name)) => described(&PathBuf::from(format!("{stem}.py")), name, python_path).await,
        None => from_file(Path::new(target)),
    }
}

/// What `FILE.py:flow` is described with: the runtime's own directories for `python3`, laid out below the cache.
///
/// # Errors
/// `unavailable` without a usable `python3`, or when what the runtime needs cannot be had.
pub async fn python_path(cache: &Path) -> Result<Vec<PathBuf>, Error> {
    let environments = Environments::new(EnvironmentOptions::new(cache));
    environments.runtime_paths(Path::new("python3")).await
}

fn from_file(path: &Path) -> Result<FlowSpec, Error> {
    let shown = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|why| unreadable(path, &why))?;
    let spec = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => load::from_json(&text, &shown)?,
        Some("toml") => load::from_toml(&text, &shown)?,
        _ => {
            return Err(Error::invalid(
                "flow.file",
                format!("{shown} is neither .toml, .json nor FILE.py:flow"),
            )
            .help("what can be named: eclosion run --help"));
        }
    };
    complete(spec, path, None)
}

fn unreadable(path: &Path, why: &std::io::Error) -> Error {
    let message = format!("{} cannot be read: {why}", path.display());
    match why.kind() {
        std::io::ErrorKind::NotFound => Error::not_found("flow.file", message).help(meant(path)),
        _ => Error::invalid("flow.file", message),
    }
}

/// The flow file beside it that was probably meant.
fn meant(path: &Path) -> String {
    let beside = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = fs::read_dir(beside).into_iter().flatten().take(NAMES_MAX).flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let flows =
        names.iter().map(String::as_str).filter(|name| name.ends_with(".toml") || name.ends_with(".json"));
    let wanted = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    match nearest(&wanted, flows) {
        Some(name) => {
            let meant = path.with_file_name(name).display().to_string();
            format!("did you mean `{meant}`? Then: eclosion run {}", shell_word(&meant))
        }
        None => "check the path; what can be named: eclosion run --help".to_owned(),
    }
}

async fn described(path: &Path, name: &str, python_path: &[PathBuf]) -> Result<FlowSpec, Error> {
    let path = path.canonicalize().map_err(|why| unreadable(path, &why))?;
    let paths = std::env::join_paths(python_path)
        .map_err(|why| Error::invalid("flow.python", format!("the runtime's path: {why}")))?;
    let child = tokio::process::Command::new("python3")
        .args(["-m", "eclosion.describe"])
        .arg(format!("{}:{name}", path.display()))
        .env("PYTHONPATH", paths)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DESCRIBE, child)
        .await
        .map_err(|_| Error::deadline("importing the flow's file"))?
        .map_err(|why| {
            Error::new(Code::Unavailable, "flow.python", format!("python3 cannot be started: {why}"))
        })?;
    if !output.status.success() {
        return Err(undescribed(&path, name, &output));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    complete(load::from_json(&text, &path.display().to_string())?, &path, Some(name))
}

/// What importing the file raised, as data.
#[derive(Deserialize)]
struct Described {
    raised: RemoteException,
}

fn undescribed(path: &Path, name: &str, output: &Output) -> Error {
    let path = path.display();
    let Ok(Described { raised }) = serde_json::from_slice(&output.stdout) else {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Error::invalid("flow.python", format!("{path}:{name} is no flow")).cause(words);
    };
    let mut error = Error::invalid("flow.python", format!("{path} cannot be imported"));
    if raised.kind == "ModuleNotFoundError" {
        error = error.help(
            "the file is imported with `python3`, before there is an environment: what tasks alone need, import inside them",
        );
    }
    error.remote = Some(Box::new(raised));
    error
}

/// Absolute code root, and its hash; and what names this flow anywhere: the file, and in Python the flow in it.
fn complete(mut spec: FlowSpec, file: &Path, name: Option<&str>) -> Result<FlowSpec, Error> {
    let source = file.canonicalize().map_err(|why| unreadable(file, &why))?.display().to_string();
    spec.source = Some(name.map_or_else(|| source.clone(), |name| format!("{source}:{name}")));
    let beside = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let root = beside.join(&spec.code);
    let root = root.canonicalize().map_err(|why| {
        Error::not_found("flow.code", format!("the code root {} cannot be read: {why}", root.display()))
            .help("`code` is relative to the flow file")
    })?;
    spec.code_hash = code_files::hash(&root)?;
    spec.code = root.to_string_lossy().into_owned();
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: &str = "schema = \"eclosion/flow/v1\"\nname = \"x\"\n[tasks.a]\nrun = \"steps:a\"\n";

    #[tokio::test]
    async fn completes_a_flow_with_its_code() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("flow.toml");
        fs::write(&file, FLOW).unwrap();
        fs::write(directory.path().join("steps.py"), "def a(): return 1\n").unwrap();
        let first = read(file.to_str().unwrap(), &[]).await.unwrap();
        assert!(Path::new(&first.code).is_absolute());
        let source = file.canonicalize().unwrap().display().to_string();
        assert_eq!(first.source, Some(source));
        fs::write(directory.path().join("steps.py"), "def a(): return 2\n").unwrap();
        assert_ne!(read(file.to_str().unwrap(), &[]).await.unwrap().code_hash, first.code_hash);
    }

    #[tokio::test]
    async fn a_missing_file_is_not_found() {
        assert_eq!(read("/nowhere/flow.toml", &[]).await.unwrap_err().code, Code::NotFound);
        assert_eq!(read("Cargo.lock", &[]).await.unwrap_err().code, Code::NotFound);
    }
}
