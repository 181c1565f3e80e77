//! What went wrong in a round, in words.

use eclosion_schemas::Error;
use eclosion_schemas::codec::CodecError;

#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl std::fmt::Display) -> Self {
        Self(text.to_string())
    }
}

/// Fails with `text` unless `holds`.
pub(crate) fn ensure(holds: bool, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure(text())) }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Failure {
    fn from(why: std::io::Error) -> Self {
        Self::new(why)
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(why: rustix::io::Errno) -> Self {
        Self::new(why)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(why: serde_json::Error) -> Self {
        Self::new(why)
    }
}

impl From<Error> for Failure {
    fn from(why: Error) -> Self {
        Self::new(why)
    }
}

impl From<CodecError> for Failure {
    fn from(why: CodecError) -> Self {
        Self::new(why)
    }
}
