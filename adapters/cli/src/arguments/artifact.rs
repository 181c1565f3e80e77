//! `eclosion artifact …`

use std::path::PathBuf;

use crate::values;

use clap::{Args, Subcommand, ValueHint};
use eclosion_schemas::{RunId, Seq};

#[derive(Debug, Subcommand)]
pub(crate) enum Artifact {
    /// List artifacts by name.
    Ls {
        /// Names that start with this: RUN/. By the flow finds `eclosion artifact search`.
        #[arg(default_value = "")]
        prefix: String,
        #[arg(long)]
        run: Option<RunId>,
        #[arg(long, default_value_t = 100, value_parser = values::at_least_one())]
        limit: u32,
    },
    /// Find artifacts by what is known of them, newest first.
    Search(Search),
    /// Print a value, and put its files into a directory.
    Get {
        /// RUN/TASK, FLOW/TASK, FLOW/TASK@VERSION, FLOW/TASK@TAG, or a digest.
        name: String,
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        out: Option<PathBuf>,
    },
    /// Let a tag lead to an artifact, wherever it led before.
    Tag {
        /// RUN/TASK, FLOW/TASK, FLOW/TASK@VERSION, FLOW/TASK@TAG, or a digest.
        name: String,
        /// Begins with a letter; FLOW/TASK@TAG is a name from then on.
        tag: String,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Take a tag away; its history stays.
    Untag {
        /// FLOW/TASK@TAG
        name: String,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// List tags and where they lead.
    Tags {
        /// Of paths that start with this: FLOW/, or FLOW/TASK.
        #[arg(default_value = "")]
        prefix: String,
        /// Also where they led before, oldest first.
        #[arg(long)]
        history: bool,
        #[arg(long, default_value_t = 100, value_parser = values::at_least_one())]
        limit: u32,
    },
    /// Hold an artifact, so that it is not collected.
    Pin(Pin),
    /// Let an artifact go that was pinned.
    Unpin(Pin),
    /// List what is pinned, by whom and why.
    Pins {
        /// Of artifacts whose name RUN/TASK starts with this.
        #[arg(default_value = "")]
        prefix: String,
        #[arg(long, default_value_t = 100, value_parser = values::at_least_one())]
        limit: u32,
    },
    /// Show what an artifact was made from, and what was made from it.
    Lineage {
        /// RUN/TASK
        name: String,
    },
    /// Compare what is stored with its names.
    Verify { name: Option<String> },
}

#[derive(Debug, Args)]
pub(crate) struct Search {
    /// Words, each of which occurs in the name, flow, file name, codec or digest.
    pub(crate) words: Vec<String>,
    #[arg(long)]
    pub(crate) run: Option<RunId>,
    #[arg(long)]
    pub(crate) flow: Option<String>,
    /// A task of a flow, or one instance of a fan-out.
    #[arg(long)]
    pub(crate) task: Option<String>,
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// msgpack, npy, arrow, bytes and others, as `ls` shows them.
    #[arg(long)]
    pub(crate) codec: Option<String>,
    #[arg(long, value_name = "BYTES")]
    pub(crate) bytes_min: Option<u64>,
    #[arg(long, value_name = "BYTES")]
    pub(crate) bytes_max: Option<u64>,
    /// Go on where an earlier search stopped.
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub(crate) before: Option<Seq>,
    #[arg(long, default_value_t = 100, value_parser = values::at_least_one())]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// RUN/TASK, FLOW/TASK, FLOW/TASK@VERSION, FLOW/TASK@TAG, or a digest.
    pub(crate) name: String,
    /// Who holds it; it is held until every holder has let go.
    #[arg(long, default_value = "operator")]
    pub(crate) holder: String,
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

fn seq(text: &str) -> Result<Seq, std::num::ParseIntError> {
    text.parse().map(Seq)
}
