//! `eclosion pool …`

use clap::{Args, Subcommand};
use eclosion_schemas::WorkerId;

#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// List workers and environments, and what waits.
    Ls,
    /// Show one worker.
    Show { worker: WorkerId },
    /// Start nothing any more; workers finish what they have in hand, then end.
    Drain {
        /// Only this worker.
        worker: Option<WorkerId>,
        #[command(flatten)]
        how: How,
    },
    /// Start attempts again, after a drain or a cordon.
    Resume {
        /// Only this worker.
        worker: Option<WorkerId>,
        #[command(flatten)]
        how: How,
    },
    /// Give a worker nothing any more, and let it live.
    Cordon {
        worker: WorkerId,
        #[command(flatten)]
        how: How,
    },
    /// End a worker when it has finished what it has in hand; another takes its place.
    Recycle {
        worker: WorkerId,
        #[command(flatten)]
        how: How,
    },
    /// Kill a worker with all that it started; what it has in hand is tried again.
    Kill {
        worker: WorkerId,
        #[command(flatten)]
        how: How,
    },
    /// Tasks that have killed three workers, and are refused.
    #[command(subcommand)]
    Quarantine(Quarantine),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Quarantine {
    /// List them, with how their workers died.
    Ls,
    /// Let one be tried again.
    Release {
        /// Its content, or a beginning of it.
        content: String,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, Args)]
pub(crate) struct How {
    /// Say what it would meet, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Why; it is recorded, and shown.
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}
