//! `eclosion service …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use eclosion_schemas::ServiceName;
use eclosion_schemas::ops::service::RestartPolicy;

#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// Start a Python object as a service, and wait until it is called at its address.
    Start(Start),
    /// End a service; it is not begun again before it is started or restarted.
    Stop {
        name: ServiceName,
        /// Why; it is recorded.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// List services: their state, address, process and restarts.
    Ls,
    /// Begin the next life of a service, with its code as it is now, and wait until it is called at its address.
    Restart {
        name: ServiceName,
        /// Why; it is recorded.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    pub(crate) name: ServiceName,
    /// MODULE:CLASS, decorated with `@service`.
    pub(crate) object: String,
    /// The root of its code [default: this directory].
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub(crate) code: Option<PathBuf>,
    /// When it is begun again.
    #[arg(long, value_enum, default_value_t = Policy::OnFailure)]
    pub(crate) restart: Policy,
    /// More restarts than this within the window, and it has failed.
    #[arg(long, default_value_t = 5)]
    pub(crate) restarts_max: u32,
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) window: u64,
    /// An interpreter, by path or by name on PATH [default: python3].
    #[arg(long)]
    pub(crate) python: Option<String>,
    /// A requirement of its environment; as often as there are any.
    #[arg(long = "requirement", value_name = "PEP508")]
    pub(crate) requirements: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Policy {
    Never,
    OnFailure,
    Always,
}

impl From<Policy> for RestartPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Never => Self::Never,
            Policy::OnFailure => Self::OnFailure,
            Policy::Always => Self::Always,
        }
    }
}
