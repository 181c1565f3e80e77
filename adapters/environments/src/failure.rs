//! What a person is told when an environment cannot be built.

use std::io;
use std::path::Path;

use eclosion_schemas::{Code, Error, Retry};

use crate::process::Failed;

/// Of the resolver's words, in its order.
const BEGINNING_LINES: usize = 4;
const END_LINES: usize = 8;

/// Signs that the index could not be reached, in the words of pip and uv.
const UNREACHABLE: [&str; 9] = [
    "NewConnectionError",
    "Temporary failure in name resolution",
    "Connection refused",
    "Connection reset",
    "ConnectTimeout",
    "Read timed out",
    "ProxyError",
    "dns error",
    "error sending request",
];

pub(crate) fn requirement(text: &str) -> Error {
    Error::invalid("environment.requirement", text.to_owned())
        .help("write requirements as PEP 508 does, for example `numpy>=2` or `mine @ file:///path/to/mine`")
}

pub(crate) fn interpreter(python: &Path, text: &str) -> Error {
    Error::invalid("environment.interpreter", format!("`{}` cannot be used: {text}", python.display()))
        .help("set environment.python to a Python 3.10 or newer; `command -v python3` shows the default")
}

pub(crate) fn disk(path: &Path, why: &io::Error) -> Error {
    Error::new(Code::Unavailable, "environment.disk", format!("{} cannot be written: {why}", path.display()))
        .help("free some space (`df -h`) or point XDG_CACHE_HOME at a directory that can be written")
        .retry(Retry::After { after_ms: 30_000 })
}

pub(crate) fn timeout(words: &[String]) -> Error {
    let error = Error::new(Code::Unavailable, "environment.timeout", "the environment was not built in time")
        .help("run it again: what was downloaded is in the resolver's cache")
        .retry(Retry::Now);
    with_words(error, words)
}

/// A resolver's or installer's process that failed, in its own words.
pub(crate) fn resolver(name: &str, path: &Path, failed: Failed) -> Error {
    let (status, words) = match failed {
        Failed::Start(why) => {
            let text = format!("{name} cannot be started: {why}");
            return Error::new(Code::Unavailable, "environment.resolve", text)
                .help("set environment.python to another interpreter, or look at this one: eclosion doctor");
        }
        Failed::Late(words) => return timeout(&words),
        Failed::Ended(status, words) => (status, words),
    };
    let says = |sign: &str| words.iter().any(|line| line.contains(sign));
    if says("No space left on device") || says("Disk quota exceeded") {
        return with_words(disk(path, &io::Error::from(io::ErrorKind::StorageFull)), &words);
    }
    // What Debian's Python says of itself, making a virtual environment.
    if says("ensurepip is not available") || says("No module named ensurepip") || says("No module named venv")
    {
        let text = "the interpreter has neither pip nor what makes one, and uv is not on PATH";
        return with_words(
            Error::invalid("environment.interpreter", text).help(
                "install the system's python3-venv or python3-pip, put uv on PATH, or set environment.python",
            ),
            &words,
        );
    }
    let error = if UNREACHABLE.iter().any(|sign| says(sign)) {
        Error::new(
            Code::Unavailable,
            "environment.resolve",
            format!("{name} could not reach the package index"),
        )
        .help("check the network and the proxy, or name another index with PIP_INDEX_URL or UV_INDEX")
        .retry(Retry::After { after_ms: 10_000 })
    } else {
        Error::invalid("environment.resolve", format!("{name} could not install the requirements ({status})"))
            .help("change environment.requirements in the flow file and run it again")
    };
    with_words(error, &words)
}

/// From its first error on; of a long story the beginning and the end.
fn with_words(error: Error, words: &[String]) -> Error {
    let is_error = |line: &String| line.to_ascii_lowercase().starts_with("error");
    let told = &words[words.iter().position(is_error).unwrap_or(0)..];
    let end = told.len().saturating_sub(END_LINES).max(told.len().min(BEGINNING_LINES));
    let chosen = told.iter().take(BEGINNING_LINES).chain(&told[end..]);
    chosen.fold(error, |error, line| error.cause(line.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = words.iter().map(|line| (*line).to_owned()).collect();
        with_words(requirement("x"), &words).causes
    }

    #[test]
    fn an_interpreter_without_pip_is_not_blamed_on_the_requirements() {
        use std::os::unix::process::ExitStatusExt as _;
        let words = vec!["/usr/bin/python3: No module named ensurepip".to_owned()];
        let failed = Failed::Ended(std::process::ExitStatus::from_raw(256), words);
        let error = resolver("pip", Path::new("/cache/x"), failed);
        assert_eq!((error.code.as_str(), error.reason.as_str()), ("invalid", "environment.interpreter"));
        assert!(error.causes.len() == 1 && error.help.is_some_and(|help| help.contains("python3-venv")));
    }

    #[test]
    fn the_resolvers_words_are_told_from_its_first_error_on() {
        assert_eq!(causes(&["Collecting x", "ERROR: none", "more"]), ["ERROR: none", "more"]);
        assert_eq!(causes(&["only", "this"]), ["only", "this"]);
        assert!(causes(&[]).is_empty());
        let long: Vec<_> = (0..40).map(|n| format!("error {n}")).collect();
        let told = causes(&long.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((told.len(), &*told[0], &*told[11]), (12, "error 0", "error 39"));
        assert_eq!(causes(&["error 0", "1", "2", "3", "4", "5"]).len(), 6);
    }
}
