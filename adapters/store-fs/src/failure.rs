//! What can go wrong with files.

use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::{Digest, ItemId, Retry};
use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("`{0}` is not the name of a content")]
    NotADigest(Digest),
    #[error("`{id}` is not the name of a collected artifact")]
    NotAnItem { id: ItemId },
    #[error("there is no artifact {digest}")]
    Missing { digest: Digest },
    #[error("nothing is staged as {stage}")]
    UnknownStage { stage: u64 },
    #[error("{limit} files are staged already")]
    TooManyStages { limit: usize },
    #[error("the disk has no room for {bytes} bytes")]
    NoRoom { bytes: u64 },
    #[error("the bytes of artifact {digest} hash to {found}")]
    HashMismatch { digest: Digest, found: Digest },
    #[error("a packed artifact is damaged")]
    Broken,
    #[error("the packed form of artifact {digest} is damaged")]
    Damaged { digest: Digest },
    #[error("a file is too long to be packed")]
    TooLong,
    #[error("a staged file changed its length while it was read")]
    Changed,
    #[error("{action}: {why}")]
    Io { action: &'static str, why: std::io::Error },
    #[error("an earlier sync of artifacts failed")]
    Poisoned,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let (code, reason) = match &failure {
            Failure::NotADigest(_) | Failure::NotAnItem { .. } => (Code::Invalid, "artifact.digest"),
            Failure::TooLong => (Code::Invalid, "artifact.too_long"),
            Failure::Missing { .. } => (Code::NotFound, "artifact.missing"),
            Failure::UnknownStage { .. } => (Code::NotFound, "artifact.stage"),
            Failure::TooManyStages { .. } => (Code::Exhausted, "artifact.stages"),
            Failure::NoRoom { .. } => (Code::Exhausted, "artifact.disk"),
            Failure::HashMismatch { .. } | Failure::Broken | Failure::Damaged { .. } => {
                (Code::DataLoss, "artifact.hash_mismatch")
            }
            Failure::Changed => (Code::Precondition, "artifact.changed"),
            Failure::Io { .. } => (Code::Unavailable, "artifact.io"),
            Failure::Poisoned => (Code::Unavailable, "artifact.poisoned"),
        };
        let error = Error::new(code, reason, failure.to_string());
        match failure {
            Failure::TooManyStages { .. } => error.retry(Retry::After { after_ms: 100 }),
            Failure::NoRoom { .. } => {
                error.help("make room on the disk of the state directory; df -h shows it")
            }
            Failure::HashMismatch { digest, .. } | Failure::Damaged { digest } => {
                error.help(format!("the file is in quarantine/{digest} now; run what made it again"))
            }
            Failure::Changed => error.help("a task must not write to an array or file after it was returned"),
            Failure::Io { .. } => error.help("df -h and dmesg say whether the disk is full or failing"),
            Failure::Poisoned => {
                error.help("eclosion status; then stop the kernel, mend the disk, and start it again")
            }
            _ => error,
        }
    }
}

pub(crate) fn failed(action: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |why| Failure::Io { action, why: why.into() }
}
