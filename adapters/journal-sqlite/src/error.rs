//! What can go wrong, and what a person should do about it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use eclosion_schemas::Seq;
use eclosion_schemas::error::{Code, Error};

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("another kernel (pid {pid}) lives on {}", directory.display())]
    Locked { directory: PathBuf, pid: String },
    #[error("{action} {}: {why}", path.display())]
    Io { action: &'static str, path: PathBuf, why: std::io::Error },
    #[error("{action} the journal: {why}")]
    Database { action: &'static str, why: rusqlite::Error },
    #[error("{0}")]
    Damaged(Box<Damage>),
    #[error("the journal is of format {found}, this kernel reads {known}")]
    Format { found: i64, known: i64 },
    #[error("all connections for reading were busy for {waited_ms} ms")]
    ReadersBusy { waited_ms: u64 },
    #[error("an earlier write or sync failed: {why}")]
    Poisoned { why: Arc<str> },
    #[error("the batch begins with record {found}, expected {expected}")]
    OutOfOrder { expected: Seq, found: Seq },
}

/// What verification found.
#[derive(Debug, Clone)]
pub struct Damage {
    /// The last record that is whole, with everything before it.
    pub intact: Seq,
    /// What the mark promised.
    pub promised: Seq,
    /// `None`: what there is, is right, but records at the end are missing.
    pub corrupt: Option<String>,
    /// Which file is damaged and where, or the directory.
    pub place: Option<String>,
    /// Where the files were copied to, or why they could not be.
    pub copy: Option<Result<PathBuf, String>>,
}

impl Damage {
    pub(crate) fn truncated(intact: Seq, promised: u64) -> Self {
        Self { intact, promised: Seq(promised), corrupt: None, place: None, copy: None }
    }

    pub(crate) fn corrupt(intact: Seq, what: impl Into<String>) -> Self {
        Self { intact, promised: Seq(0), corrupt: Some(what.into()), place: None, copy: None }
    }

    fn help(&self) -> String {
        let copy = match &self.copy {
            Some(Ok(path)) => format!("a copy of the files is in {}", path.display()),
            Some(Err(why)) => format!("the files are as they were (no copy could be made: {why})"),
            None => "the files are as they were".to_owned(),
        };
        let lost = self.promised.0.saturating_sub(self.intact.0);
        let lost = if lost == 0 {
            "whatever came after it".to_owned()
        } else {
            format!("{lost} synced record(s) and whatever came after them")
        };
        format!(
            "{copy}; restore a backup, or go on from record {} without {lost}: eclosion up --accept-loss",
            self.intact
        )
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.corrupt {
            Some(what) => write!(f, "the journal is damaged after record {}: {what}", self.intact),
            None => {
                write!(f, "the journal ends with record {}, but {} was synced", self.intact, self.promised)
            }
        }?;
        self.place.as_ref().map_or(Ok(()), |place| write!(f, "; {place}"))
    }
}

impl From<Damage> for Failure {
    fn from(damage: Damage) -> Self {
        Failure::Damaged(Box::new(damage))
    }
}

impl Failure {
    /// What the mark said, for a failure found by somebody who did not know it.
    pub(crate) fn promising(self, promised: u64) -> Self {
        match self {
            Failure::Damaged(mut damage) => {
                damage.promised = damage.promised.max(Seq(promised));
                Failure::Damaged(damage)
            }
            // While the chain is verified, a database that cannot be read is a damaged one.
            Failure::Database { why, .. } if is_damage(&why) => {
                Damage { promised: Seq(promised), ..Damage::corrupt(Seq(0), why.to_string()) }.into()
            }
            other => other,
        }
    }
}

/// SQLite says that the file is not what it wrote.
pub(crate) fn is_damage(why: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SchemaChanged, Unknown};
    match why {
        // `Unknown` is SQLite's plain error: a table or a column is gone.
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, DatabaseCorrupt | NotADatabase | SchemaChanged | Unknown)
        }
        // A table or a value is not as it was declared.
        _ => true,
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::Locked { pid, .. } => Error::new(Code::Conflict, "journal.locked", message)
                .help(format!("eclosion status shows it; stop it with: eclosion down, or kill {pid}")),
            Failure::Damaged(damage) => {
                let reason = if damage.corrupt.is_some() { "journal.corrupt" } else { "journal.truncated" };
                Error::new(Code::DataLoss, reason, message).help(damage.help())
            }
            Failure::Format { .. } => Error::new(Code::Precondition, "journal.format", message)
                .help("start the kernel that wrote it, or a newer one"),
            Failure::ReadersBusy { .. } => Error::new(Code::Unavailable, "journal.readers_busy", message)
                .retry(eclosion_schemas::Retry::After { after_ms: 100 }),
            Failure::Io { .. } | Failure::Database { .. } => {
                Error::new(Code::Unavailable, "journal.io", message)
                    .help("df -h and dmesg say whether the disk is full or failing")
            }
            Failure::Poisoned { .. } => Error::new(Code::Unavailable, "journal.poisoned", message)
                .help("eclosion status; then stop the kernel, mend the disk, and start it again"),
            Failure::OutOfOrder { .. } => Error::internal("journal.order", message),
        }
    }
}

pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Failure + 'a {
    move |why| Failure::Io { action, path: path.to_owned(), why }
}

pub(crate) fn database(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Failure {
    move |why| Failure::Database { action, why }
}
