//! `eclosion arb …`

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Arb {
    /// Show what there is to share, what is free, and how many hold and wait.
    Status,
    /// Show who holds what, and since when.
    Leases,
    /// Show who waits for whom, oldest first.
    Waiting {
        /// Show instead whose turn it would be, in order, if there were enough of everything.
        #[arg(long)]
        dry_run: bool,
    },
}
