//! `eclosion gc`.

use clap::{Args, Subcommand};
use eclosion_schemas::ops::gc::{Item, ItemKind};

use crate::values;

#[derive(Debug, Subcommand)]
pub(crate) enum Gc {
    /// Show what would be deleted now and why, and what is held by whom.
    Plan {
        /// run, log, artifact, environment, scratch, segment or record.
        #[arg(long, value_name = "KIND")]
        only: Option<ItemKind>,
        /// List every item, in the order in which they are done.
        #[arg(long)]
        items: bool,
    },
    /// Do what the plan shows: what is collected goes into the trash, what was there for long enough goes for good.
    Apply(Apply),
    /// List what is in the trash, or empty it.
    Trash {
        /// Delete everything in the trash for good, before its time.
        #[arg(long)]
        empty: bool,
        #[arg(long, default_value = "", value_name = "TEXT")]
        reason: String,
    },
    /// Bring an item back from the trash, such as run/7k2m4q9d.
    Restore {
        item: Item,
        #[arg(long, default_value = "", value_name = "TEXT")]
        reason: String,
    },
    /// List the records of deletions, newest first.
    Log {
        #[arg(long, default_value_t = 20, value_parser = values::at_least_one())]
        limit: u32,
    },
    /// Show the settings that the kernel runs with, and where each was set.
    Policy,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Change nothing, show the plan.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do it; without this the plan is shown.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) yes: bool,
    /// run, log, artifact, environment, scratch, segment or record.
    #[arg(long, value_name = "KIND")]
    pub(crate) only: Option<ItemKind>,
    /// Recorded with every deletion.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(crate) reason: String,
}
