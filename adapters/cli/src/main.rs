//! The binary `eclosion`: a kernel, its keeper, and the client that people use.
//!
//! Reading order: `arguments` (what can be said), `globals` (settings), `commands` (what each does), `session` (the way
//! to a kernel), `daemon` (being one), `telemetry` (spans), `render` (what it looks like), `terminal` and `exit` (manners: data on stdout,
//! talk on stderr, nothing from outside steers the terminal, exit codes that scripts may branch on).
//!
//! It deliberately decides nothing: what it shows, any client can ask for over the same socket.

mod arguments;
mod commands;
mod daemon;
mod exit;
mod globals;
mod render;
mod session;
mod telemetry;
mod terminal;
mod values;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use eclosion_schemas::Error;

use crate::arguments::Arguments;

/// A step's memory is taken on one thread and given back on another, which the system's allocator makes dear.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    // Before any thread: the keeper is single-threaded for good. Nobody types it, so clap does not know it.
    if let Some(("keeper", rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return keeper(rest);
    }
    // What is wrong with the words themselves, clap says, and ends with 2; help and version end with 0.
    let matches = Arguments::command().try_get_matches().unwrap_or_else(|why| {
        if why.use_stderr() && words.iter().take_while(|word| *word != "--").any(|word| word == "--json") {
            render::error::usage(&why);
        }
        why.exit()
    });
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|why| why.exit());
    let flags = arguments.flags.clone();
    terminal::given(&flags);
    let command = telemetry::begin(
        matches.subcommand_name().unwrap_or_default(),
        matches!(arguments.command, arguments::Command::Up(_)),
    );
    let outcome = perform(arguments);
    command.end(outcome.as_ref());
    ExitCode::from(outcome.unwrap_or_else(|error| {
        render::error::report(&error, &flags);
        exit::code_of(&error)
    }))
}

/// How long what was under way may take to be dropped.
const LEAVE: Duration = Duration::from_millis(300);

fn perform(arguments: Arguments) -> Result<u8, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|why| Error::internal("runtime", format!("no runtime: {why}")))?;
    let code = runtime.block_on(commands::perform(arguments));
    // What still runs is dropped, and takes its processes along (pip, say). A thread that still reads stdin or a dead
    // disk must not keep a finished command.
    runtime.shutdown_timeout(LEAVE);
    code
}

fn keeper(words: &[String]) -> ExitCode {
    let value = |name: &str| {
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1).cloned()
    };
    let named = |(name, path): (&String, &String)| (name == "--temporary").then(|| path.into());
    let temporary = words.iter().zip(words.iter().skip(1)).filter_map(named).collect();
    match (value("--instance"), value("--dir"), value("--grace-ms").and_then(|text| text.parse().ok())) {
        (Some(instance), Some(dir), Some(grace_ms)) => {
            let groups = value("--groups").map(Into::into);
            let dir = dir.into();
            eclosion::keeper_main(eclosion::KeeperOptions { instance, dir, grace_ms, temporary, groups })
        }
        _ => ExitCode::from(exit::USAGE),
    }
}
