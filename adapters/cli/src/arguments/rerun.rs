//! `eclosion rerun`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use eclosion_schemas::{RunId, TaskId};

#[derive(Debug, Args)]
pub(crate) struct Rerun {
    /// A run that has finished, however it did.
    pub(crate) run: RunId,
    /// Compute this task, or this instance of a fan-out, again, with all that needs it; may be given several times.
    #[arg(long, value_name = "TASK")]
    pub(crate) from: Vec<TaskId>,
    /// Set a parameter beside those that the run was given; what uses it is computed.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// Take results over even if code or environment have changed since.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Show what would be taken over and what computed, and why; start nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the new run's id and leave; a kernel is started in the background if there is none.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) detach: bool,
    /// Where files of the result are put.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) out: Option<PathBuf>,
}
