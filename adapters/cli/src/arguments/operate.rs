//! What operators say: actors, dead letters, the journal's records, processes, the audit record.

use clap::{Args, Subcommand};
use eclosion_schemas::Seq;

use crate::values;

/// Something that changes a running kernel.
#[derive(Debug, Clone, Args)]
pub(crate) struct Deed {
    /// Why; it is kept in the audit record.
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
    /// Say what it would touch, and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OnActor {
    /// As in `eclosion tree`: /pool, /dag, /sessions/3.
    pub(crate) address: String,
    #[command(flatten)]
    pub(crate) deed: Deed,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    pub(crate) actor: OnActor,
    /// How long to wait until it has handled what it has, in seconds; it goes on draining after that.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dead {
    /// List dead letters, newest first.
    Ls {
        #[arg(long, default_value_t = 100, value_parser = values::at_least_one())]
        limit: u32,
    },
    /// Show a dead letter with its request.
    Show { id: u64 },
    /// Deliver a dead letter again.
    Replay {
        id: u64,
        #[command(flatten)]
        deed: Deed,
    },
    /// Drop a dead letter for good.
    Drop {
        id: u64,
        #[command(flatten)]
        deed: Deed,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on with what is recorded from now on.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// How many of the last records to begin with.
    #[arg(short = 'n', long, default_value_t = 20)]
    pub(crate) tail: u32,
    /// Begin after this record instead.
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub(crate) after: Option<Seq>,
    /// Only these kinds: run.started, or 'run.*' for a family; may be given more than once.
    #[arg(long = "kind", value_name = "KIND")]
    pub(crate) kinds: Vec<String>,
}

fn seq(text: &str) -> Result<Seq, std::num::ParseIntError> {
    text.parse().map(Seq)
}

#[derive(Debug, Args)]
pub(crate) struct Audit {
    #[arg(long, default_value_t = 20, value_parser = values::at_least_one())]
    pub(crate) limit: u32,
}
