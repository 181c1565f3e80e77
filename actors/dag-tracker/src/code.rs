//! The port for the files of a flow's code.
//!
//! A content key names code by the hash that its files had when the flow was read. They lie in a directory that people
//! edit, and a worker imports them when it first needs them. So whoever reports a result that is to be kept looks at them
//! once more and says what it found (`CommitRequest::code`); the core decides whether the result becomes an entry.
//!
//! The hash alone would not do: a worker that imported an edited file and computes on after it was put back would be
//! believed. Hence also whether any file was written since the worker was told to import them; if so, its next attempt
//! has to import anew.

use std::path::Path;

use eclosion_schemas::ops::task::CodeSeen;
use eclosion_schemas::{Error, Timestamp};

/// Implemented by an adapter over directories; in the simulation by a text that somebody edits.
pub trait CodeFiles: Send + Sync {
    /// What lies below `root` now, and whether any of it was written at `told_at` or later. When in doubt, it was.
    ///
    /// Blocks for as long as a walk over the directories takes: not for the thread of an actor.
    ///
    /// # Errors
    /// The files cannot be read, or are too many.
    fn look(&self, root: &Path, told_at: Timestamp) -> Result<CodeSeen, Error>;
}
