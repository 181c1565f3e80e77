//! `eclosion cache`.

use clap::Subcommand;
use eclosion_schemas::{RunId, TaskId};

use crate::values;

#[derive(Debug, Subcommand)]
pub(crate) enum Cache {
    /// List the results that are kept, newest first.
    Ls {
        /// Of this function: module:qualname.
        #[arg(long)]
        function: Option<String>,
        #[arg(long, default_value_t = 50, value_parser = values::at_least_one())]
        limit: u32,
    },
    /// Say whether a step's result was used again, from where, or what differed.
    Explain { run: RunId, task: TaskId },
    /// Forget results, so that their steps are computed the next time; no output is deleted.
    Drop {
        /// A key of `eclosion cache ls`, or a function: module:qualname.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        what: Option<String>,
        /// All of them.
        #[arg(long)]
        all: bool,
        #[arg(long, default_value = "")]
        reason: String,
    },
}
