//! The command line, as clap reads it. A family of commands has its own file below.

pub(crate) mod arb;
pub(crate) mod artifact;
pub(crate) mod cache;
pub(crate) mod operate;
pub(crate) mod pool;
pub(crate) mod rerun;
pub(crate) mod schedule;
pub(crate) mod service;

pub(crate) mod gc;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use eclosion_schemas::{RunId, TaskId};

use self::operate::{Audit, Dead, Drain, Events, OnActor};
use crate::values;

/// Runs flows of Python steps so that none of them is lost.
#[derive(Debug, Parser)]
#[command(name = "eclosion", version, max_term_width = 110, infer_long_args = false)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes. No environment here: variables are a layer of the configuration, and not of clap's.
#[derive(Debug, Clone, Args)]
pub(crate) struct Flags {
    /// Print JSON: one document, or one per line where it streams.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Which kernel of this user is meant [env: ECLOSION_INSTANCE].
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) instance: Option<OsString>,
    /// The socket of a running kernel, in place of the instance's own [env: ECLOSION_SOCKET].
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,
    /// The project's settings, in place of the nearest eclosion.toml from here upward [env: ECLOSION_CONFIG].
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Set a setting, such as pool.workers_max=2; `eclosion config show` lists them.
    #[arg(long = "setting", global = true, value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a flow and follow it to its end.
    Run(Run),
    /// Run a finished run again: what failed, or from a step on.
    Rerun(rerun::Rerun),
    /// Follow a run that was started before.
    Attach(Attach),
    /// Check a flow without running it.
    Validate(Flow),
    /// Start the kernel in the background.
    Up(Up),
    /// Stop the kernel and its workers, once they have finished what they have in hand.
    Down(Down),
    /// Show the kernel's state, its journal and what it found.
    Status,
    /// Show every actor.
    Tree(Tree),
    /// Show every process of the kernel, with what it uses.
    Ps,
    /// Show what the journal recorded, and what it records from now on.
    Events(Events),
    /// End an actor after what it has in hand and begin its next life.
    Restart(OnActor),
    /// End an actor now.
    Kill(OnActor),
    /// Have an actor take no more messages; they wait.
    Pause(OnActor),
    /// Have an actor that is paused or draining take messages again.
    Resume(OnActor),
    /// Have an actor take nothing new, and wait until it has handled what it has.
    Drain(Drain),
    /// List, show, replay and drop dead letters.
    #[command(subcommand)]
    Dead(Dead),
    /// Show what operators did, when and why, and what came of it.
    ///
    /// Each act stands there before it is done, also one that was refused; `--dry-run` does nothing, and leaves no trace.
    Audit(Audit),
    /// List, show and cancel runs.
    #[command(subcommand)]
    Runs(Runs),
    /// Show what tasks printed.
    Logs(Logs),
    /// Say why a run, a task or a call waits or failed.
    Why(Why),
    /// Make, look at, preview, suspend and fire schedules.
    #[command(subcommand)]
    Schedule(schedule::Schedule),
    /// List, find, fetch, tag, pin and check artifacts.
    #[command(subcommand)]
    Artifact(artifact::Artifact),
    /// List, explain and drop results that are used again.
    #[command(subcommand)]
    Cache(cache::Cache),
    /// Show who holds and who waits for resources, locks and rates.
    #[command(subcommand)]
    Arb(arb::Arb),
    /// Look at workers and environments, and end or hold workers.
    Pool {
        #[command(subcommand)]
        act: Option<pool::Pool>,
    },
    /// Start, stop and list Python objects that the kernel holds, and begins again when they die.
    #[command(subcommand)]
    Service(service::Service),
    /// Plan, apply and take back deletions.
    #[command(subcommand)]
    Gc(gc::Gc),
    /// Describe the operations that the kernel knows.
    Describe(Describe),
    /// Call an operation by its name.
    Call(Call),
    /// Subscribe to subjects and print what is published.
    Sub(Sub),
    /// Show settings, and where each was set.
    #[command(subcommand)]
    Config(Config),
    /// Look for what keeps Eclosion from working here.
    Doctor,
    /// Print a completion script.
    Completion { shell: clap_complete::Shell },
}

/// A flow and its parameters.
#[derive(Debug, Args)]
pub(crate) struct Flow {
    /// flow.toml, flow.json, or FILE.py:NAME.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) flow: String,
    /// Set a parameter: JSON, else text. The path of an existing file becomes absolute.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) flow: Flow,
    /// Print the run's id and leave; a kernel is started in the background if there is none.
    #[arg(long)]
    pub(crate) detach: bool,
    /// Start another run even if an equal one is unfinished.
    #[arg(long)]
    pub(crate) new: bool,
    /// Compute what the cache could give, too, and keep the results there.
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Where files of the result are put.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    pub(crate) run: RunId,
    /// Where files of the result are put.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Serve in this process, until it is told to stop.
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Go on from the last whole record of a damaged journal.
    #[arg(long)]
    pub(crate) accept_loss: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// How long attempts in hand may take; what is not finished then is tried again by the next kernel.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) timeout: u64,
    /// Wait for nothing.
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) now: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tree {
    /// Show it again every second.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Runs {
    /// List runs, newest first.
    Ls {
        /// running, cancelling, succeeded, failed or cancelled.
        #[arg(long, value_parser = crate::values::run_state)]
        state: Option<eclosion_schemas::view::RunState>,
        #[arg(long, default_value_t = 20, value_parser = values::at_least_one())]
        limit: u32,
    },
    /// Show a run and its tasks.
    Show { run: RunId },
    /// Cancel a run: nothing of it commits any more.
    Cancel {
        run: RunId,
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// A run, or a call as `eclosion pool` names it.
    pub(crate) run: RunId,
    pub(crate) task: Option<TaskId>,
    /// Go on until the run ends.
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    /// A run, or a call as `eclosion pool` names it.
    pub(crate) run: RunId,
    pub(crate) task: Option<TaskId>,
}

#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// An operation such as run.start; all, if none is named.
    pub(crate) operation: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// An operation such as run.list.
    pub(crate) operation: String,
    /// The request as JSON; `-` reads it from stdin.
    #[arg(default_value = "{}")]
    pub(crate) request: String,
    /// How long to wait, in seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub(crate) deadline: u64,
    /// The key by which a repetition is known as such.
    #[arg(long, value_name = "KEY")]
    pub(crate) idem: Option<String>,
    /// Say where the time went: queued, handled, journal, worker, python, back.
    #[arg(long)]
    pub(crate) timings: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Show every setting with what counts here and now.
    Show {
        /// Say where each was set: default, user, project, environment or flag.
        #[arg(long)]
        origin: bool,
    },
    /// Show which files count here.
    Path,
}

#[derive(Debug, Args)]
pub(crate) struct Sub {
    /// run/**, run/*/state, environment/**; `*` is one chunk, `**` the tail.
    pub(crate) filter: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_role_that_nobody_types_is_no_suggestion() {
        let refused = Arguments::try_parse_from(["eclosion", "keper"]).unwrap_err();
        assert!(!refused.to_string().contains("keeper"), "{refused}");
    }

    #[test]
    fn globals_may_stand_behind_the_command() {
        let read =
            Arguments::try_parse_from(["eclosion", "runs", "ls", "--json", "--instance", "x"]).unwrap();
        assert!(read.flags.json && read.flags.instance.is_some_and(|name| name == "x"));
    }

    #[test]
    fn a_parameter_is_set_beside_a_setting() {
        let words = ["eclosion", "run", "f.toml", "--set", "a=1", "--setting", "x.y=3", "--set", "b=2"];
        let read = Arguments::try_parse_from(words).unwrap();
        assert_eq!(read.flags.settings, ["x.y=3"]);
        assert!(matches!(read.command, Command::Run(run) if run.flow.set == ["a=1", "b=2"]));
    }

    #[test]
    fn a_run_that_is_no_id_is_a_usage_error() {
        let refused = Arguments::try_parse_from(["eclosion", "runs", "show", "../etc"]).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
    }
}
