//! `eclosion arb …`

use clap::{Args, Subcommand};
use eclosion_schemas::{LeaseId, LeaseKey};

use crate::values;

#[derive(Debug, Subcommand)]
pub(crate) enum Arb {
    /// Show what there is to share, what is free, and how many hold and wait.
    Status,
    /// Show who holds what, and since when.
    #[command(visible_alias = "ls")]
    Leases,
    /// Show who waits for whom, oldest first.
    Waiting {
        /// Show instead which task's turn it would be, in order, if there were enough of everything.
        #[arg(long)]
        dry_run: bool,
    },
    /// Take locks, resources or tokens: for a time, or for as long as a command runs.
    #[command(
        after_help = "Examples:\n  eclosion arb acquire db -- ./migrate.sh\n  eclosion arb acquire index:shared --ttl 10m"
    )]
    Acquire(Box<Acquire>),
    /// Let a lease that ends by time end later.
    Renew {
        lease: LeaseId,
        /// From now on.
        #[arg(long, value_name = "DURATION", value_parser = values::duration_ms)]
        ttl: u64,
    },
    /// Give a client's lease back, or take it away from its holder.
    Release {
        lease: LeaseId,
        /// What `acquire` has said; without it this is an operator's act, and recorded.
        #[arg(long)]
        key: Option<LeaseKey>,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        reason: String,
        /// Say who would lose it, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Acquire {
    /// Names of locks; NAME:shared with others who share it.
    #[arg(value_name = "LOCK", required_unless_present_any = ["resource", "rate"])]
    pub(crate) locks: Vec<String>,
    /// Something counted: cpu in thousandths of a core, memory in bytes.
    #[arg(long, value_name = "NAME=AMOUNT", value_parser = values::counted)]
    pub(crate) resource: Vec<(String, u64)>,
    /// Tokens of a rate.
    #[arg(long, value_name = "NAME=TOKENS", value_parser = values::counted)]
    pub(crate) rate: Vec<(String, u64)>,
    /// It ends after this, unless it is renewed.
    #[arg(long, value_name = "DURATION", value_parser = values::duration_ms)]
    pub(crate) ttl: Option<u64>,
    /// Give up after this [default: wait as long as it takes].
    #[arg(long, value_name = "DURATION", value_parser = values::duration_ms)]
    pub(crate) wait: Option<u64>,
    /// What for; shown to who waits.
    #[arg(long, default_value = "")]
    pub(crate) purpose: String,
    /// Held while it runs, and given back with its end. Should the lease be lost, the command is killed.
    #[arg(last = true, conflicts_with = "ttl")]
    pub(crate) command: Vec<String>,
}
