//! What is built: an environment for a spec, and the runtime's directory for an interpreter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use eclosion_schemas::Error;
use eclosion_schemas::flow::EnvironmentSpec;
use serde::Serialize;
use tokio::time::Instant;

use crate::failure;
use crate::interpreter::Interpreter;
use crate::place::{Claim, Place};
use crate::resolver::{Progress, Resolver};
use crate::uses::Uses;

/// More than any project lists; a bound, so that a request cannot make a command line without end.
const REQUIREMENTS_MAX: usize = 1024;
const REQUIREMENT_BYTES_MAX: usize = 1024;
/// Where a spec names no interpreter.
const DEFAULT_PYTHON: &str = "python3";

/// What may be set from outside.
#[derive(Debug, Clone)]
pub struct EnvironmentOptions {
    /// The cache directory; made on first use.
    pub cache: PathBuf,
    /// For one build, waiting for another builder included.
    pub build_timeout: Duration,
    /// `uv`, where it is to be used; else pip.
    pub uv: Option<PathBuf>,
}

impl EnvironmentOptions {
    /// Ten minutes, and uv if it is on PATH.
    #[must_use]
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self { cache: cache.into(), build_timeout: Duration::from_secs(600), uv: Resolver::find_uv() }
    }
}

/// Builds environments and finds built ones.
#[derive(Debug)]
pub struct Environments {
    options: EnvironmentOptions,
    /// By what a spec calls them; a worker's start does not pay for a probe twice.
    known: Mutex<BTreeMap<PathBuf, Known>>,
    uses: Uses,
}

#[derive(Debug, Clone)]
struct Known {
    interpreter: Interpreter,
    /// Of the executable when it was probed: an upgrade in place is another interpreter.
    modified: Option<SystemTime>,
}

/// What makes a directory valid, and says what it is to whoever looks.
#[derive(Debug, Serialize)]
struct Marker<'a> {
    schema: &'static str,
    requirements: &'a [&'a str],
    interpreter: &'a Interpreter,
    resolver: &'static str,
}

impl Environments {
    #[must_use]
    pub fn new(options: EnvironmentOptions) -> Self {
        Self { options, known: Mutex::default(), uses: Uses::default() }
    }

    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.options.cache
    }

    /// Keeps the environment that this interpreter belongs to from being collected by others, for as long as this kernel
    /// lives or until [`Environments::let_go`]; one that was not built here is nobody's to collect.
    pub fn hold(&self, python: &Path) {
        let built = self.options.cache.join("environments");
        let name = python.strip_prefix(&built).ok().and_then(|inside| inside.components().next());
        if let Some(name) = name {
            self.uses.hold(&built.join(name));
        }
    }

    /// This kernel does not use the environment in this directory any more.
    pub fn let_go(&self, environment: &Path) {
        self.uses.let_go(environment);
    }

    /// The interpreter of the environment, built now if it is not there. Two callers at once build once.
    ///
    /// Dropping the future kills the resolver and removes what it wrote.
    ///
    /// # Errors
    /// `environment.interpreter`, `environment.requirement`, `environment.resolve`, `environment.disk`,
    /// `environment.timeout`; with the resolver's last words in `causes`.
    pub async fn build(
        &self,
        spec: &EnvironmentSpec,
        progress: impl Fn(Progress) + Send,
    ) -> Result<PathBuf, Error> {
        let requirements = requirements(spec)?;
        progress(Progress::phase("interpreter", "looking at the interpreter"));
        let interpreter =
            self.interpreter(Path::new(spec.python.as_deref().unwrap_or(DEFAULT_PYTHON))).await?;
        if requirements.is_empty() {
            return Ok(interpreter.executable);
        }
        let deadline = Instant::now() + self.options.build_timeout;
        let place = Place::new(self.options.cache.join("environments"), &hash(&requirements, &interpreter));
        let python = place.path().join("bin/python");
        // Before it is looked for: what is found must not be collected meanwhile.
        if place.path().exists() {
            self.hold(&python);
        }
        // An interpreter that was removed leaves its environments with a link to nothing.
        let is_whole = |_: &Path| python.exists();
        let unfinished = match place.claim(deadline, is_whole, &progress).await? {
            Claim::Built => return Ok(python),
            Claim::Mine(unfinished) => unfinished,
        };
        let resolver = Resolver::choose(self.options.uv.as_deref(), &interpreter);
        if let Err(error) = resolver.environment(&unfinished, &requirements, deadline, &progress).await {
            unfinished.take_back().await;
            return Err(error);
        }
        let marker = Marker {
            schema: "eclosion/environment/v1",
            requirements: &requirements,
            interpreter: &interpreter,
            resolver: resolver.name(),
        };
        unfinished.finish(&marker).await?;
        Ok(python)
    }

    /// Who an interpreter is; asked of itself once.
    ///
    /// # Errors
    /// `environment.interpreter`: there is none, or it is none that workers run on.
    pub async fn interpreter(&self, python: &Path) -> Result<Interpreter, Error> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(python).cloned();
        if let Some(known) = known
            && known.modified.is_some()
            && known.modified == modified(&known.interpreter.executable)
        {
            return Ok(known.interpreter);
        }
        let interpreter = Interpreter::probe(python).await?;
        let known = Known { modified: modified(&interpreter.executable), interpreter: interpreter.clone() };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(python.to_owned(), known);
        Ok(interpreter)
    }

    pub(crate) fn options(&self) -> &EnvironmentOptions {
        &self.options
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// Sorted and each once: their order in a file changes nothing.
fn requirements(spec: &EnvironmentSpec) -> Result<Vec<&str>, Error> {
    let mut requirements: Vec<_> = spec.requirements.iter().map(|text| text.trim()).collect();
    requirements.sort_unstable();
    requirements.dedup();
    if requirements.len() > REQUIREMENTS_MAX {
        return Err(failure::requirement(&format!(
            "{} requirements are more than {REQUIREMENTS_MAX}",
            requirements.len()
        )));
    }
    for text in &requirements {
        // An option or a path would be taken as such by the resolver.
        let is_named = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        if !is_named || text.len() > REQUIREMENT_BYTES_MAX || text.contains(char::is_control) {
            return Err(failure::requirement(&format!("`{}` is no requirement", text.escape_debug())));
        }
    }
    Ok(requirements)
}

/// Every part with its length before it, so that no two lists hash alike.
fn hash(requirements: &[&str], interpreter: &Interpreter) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"eclosion/environment/v1");
    for part in interpreter.identity().iter().map(String::as_str).chain(requirements.iter().copied()) {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(requirements: &[&str]) -> EnvironmentSpec {
        EnvironmentSpec {
            requirements: requirements.iter().map(|text| (*text).to_owned()).collect(),
            ..EnvironmentSpec::default()
        }
    }

    fn interpreter(version: &str) -> Interpreter {
        Interpreter {
            executable: "/usr/bin/python3".into(),
            base: "/usr/bin/python3".into(),
            version: version.into(),
            abi: "cpython-311-x86_64-linux-gnu".into(),
            pip: None,
        }
    }

    #[test]
    fn the_hash_is_of_content_and_not_of_order() {
        let (one, other) = (spec(&["six==1.16.0", "attrs"]), spec(&["attrs", " six==1.16.0", "attrs"]));
        let (one, other) = (requirements(&one).unwrap(), requirements(&other).unwrap());
        assert_eq!(hash(&one, &interpreter("3.11.7")), hash(&other, &interpreter("3.11.7")));
        assert_ne!(hash(&one, &interpreter("3.11.7")), hash(&one, &interpreter("3.11.8")));
        assert_ne!(hash(&["ab", "c"], &interpreter("3")), hash(&["a", "bc"], &interpreter("3")));
    }

    #[test]
    fn refuses_options_paths_and_control_characters() {
        for text in ["-r x", "--index-url=http://x", "./here", "/abs", "", "a\nb", &"x".repeat(2000)] {
            let refused = requirements(&spec(&[text])).unwrap_err();
            assert_eq!(refused.reason, "environment.requirement", "{text}");
        }
        assert!(
            requirements(&spec(&["scikit-learn[x]==1.9.1; python_version > '3'", "a @ file:///b"])).is_ok()
        );
    }
}
