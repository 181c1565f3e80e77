//! The code of the simulated flows: every now and then somebody edits it, and puts it back a moment later. The twin of
//! `adapters/eclosion/src/code_files.rs`, and what a host does with it.
//!
//! When, the clock of the world says and no die: the seeds play the same with and without. What a process has imported
//! is the ledger's to know; that a result is kept only if it was computed by what its key names is checked there.

use std::path::Path;

use eclosion_dag_tracker::CodeFiles;
use eclosion_schemas::ops::task::{CodeSeen, Execute};
use eclosion_schemas::{Error, Timestamp, WorkerId};

use crate::mutants::Mutant;
use crate::world::{FAULTS_UNTIL_US, World};

/// What flows name; anything else is an edit.
pub(crate) const CODE: &str = "code";
/// Edited this often, and for so long.
const PERIOD_MS: u64 = 1_000;
const EDITED_MS: u64 = 100;

/// The files at one moment.
struct Files {
    now_ms: u64,
}

impl Files {
    fn is_edited(&self) -> bool {
        self.now_ms < FAULTS_UNTIL_US / 1_000 && self.now_ms % PERIOD_MS >= PERIOD_MS - EDITED_MS
    }

    fn written_ms(&self) -> u64 {
        let now_ms = self.now_ms.min(FAULTS_UNTIL_US / 1_000);
        let put_back_ms = now_ms - now_ms % PERIOD_MS;
        if self.is_edited() { put_back_ms + PERIOD_MS - EDITED_MS } else { put_back_ms }
    }
}

impl CodeFiles for Files {
    fn look(&self, _: &Path, told_at: Timestamp) -> Result<CodeSeen, Error> {
        let hash = if self.is_edited() { "edited" } else { CODE }.to_owned();
        Ok(CodeSeen { hash, is_written: self.written_ms() >= told_at.0 })
    }
}

/// A hash as a worker is told it: it imports anew whenever the text is another.
pub(crate) fn label(hash: &str, told_ms: u64) -> String {
    format!("{hash}~{told_ms}")
}

impl World {
    fn code(&self) -> Files {
        Files { now_ms: self.now_us / 1_000 }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    /// A process begins an attempt: it imports what it has not, as the files are now.
    pub(crate) fn import(&mut self, worker: &WorkerId, execute: &Execute) {
        let is_edited = self.code().is_edited();
        let Some(process) = self.machine.processes.get_mut(worker) else { return };
        if process.imported.as_ref().is_none_or(|(label, _)| *label != execute.code_hash) {
            process.imported = Some((execute.code_hash.clone(), is_edited));
        }
        if process.imported.as_ref().is_some_and(|(_, is_edited)| *is_edited) {
            self.machine.by_edited.insert(execute.fence);
        }
    }

    /// What a holder says of the code of a result; a worker that it cannot trust any more imports anew.
    pub(crate) fn code_seen(&mut self, worker: &WorkerId, execute: &Execute) -> Option<CodeSeen> {
        let (_, told) = execute.keeps.then(|| execute.code_hash.split_once('~'))??;
        let told_ms: u64 = told.parse().ok()?;
        let mut seen = self.code().look(Path::new(&execute.code), Timestamp(told_ms)).ok()?;
        if self.has(Mutant::TrustTheHash) {
            seen.is_written = false;
        }
        if (seen.is_written || seen.hash != CODE)
            && let Some(process) = self.machine.processes.get_mut(worker)
            && process.told.as_ref().is_some_and(|(_, at_ms)| *at_ms == told_ms)
        {
            process.told = None;
        }
        Some(seen)
    }
}
