//! `cargo measure [b2 b3 …] [--json]`: budgets, measured beside the floor and the peer of each; `cargo measure cold`: what
//! it costs to build.
//!
//! This file is the registry; a budget is a file of its own, named after its id.

mod b10_dag;
mod b12_object;
mod b13_start;
mod b14_recovery;
mod b15_journal;
mod b18_cores;
mod b1_view;
mod b2_ask;
mod b3_tell;
mod b4_publish;
mod b5_idle;
mod b6_client;
mod b8_call;
mod b9_calls;
mod cold;
mod distribution;
mod load;
mod measure;
mod report;

use std::process::ExitCode;

use report::Report;

/// As the binary has it; floors and peers in this process have it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;
type Bench = fn() -> Result<Report, Failure>;

const REGISTRY: &[(&str, Bench)] = &[
    ("b1", b1_view::run),
    ("b2", b2_ask::run),
    ("b3", b3_tell::run),
    ("b4", b4_publish::run),
    ("b5", b5_idle::run),
    ("b6", b6_client::run),
    ("b8", b8_call::run),
    ("b9", b9_calls::run),
    ("b10", b10_dag::run),
    ("b12", b12_object::run),
    ("b13", b13_start::run),
    ("b14", b14_recovery::run),
    ("b15", b15_journal::run),
    ("b18", b18_cores::run),
];

const USAGE: &str = "\
usage: cargo measure [BUDGET …] [--json], or cargo measure cold [--json]

  b1   read and publish a view             b9   pipelined Python calls
  b2   in-process ask                      b10  durable steps
  b3   in-process tell                     b12  100 MiB array, object class
  b4   publish to 8 subscribers            b13  start
  b5   idle actors                         b14  recovery
  b6   call of an attached client          b15  journal
  b8   warm Python call                    b18  hot operations of the subsystems
  cold what each set of features costs to build from nothing

Without a budget, all of them; from b8 on they want `cargo build --release` before.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).map(|word| word.to_lowercase()).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // A process of its own, for what an earlier sample in the same one would change.
        [b5_idle::SAMPLE, who] => ended(b5_idle::sample(who).map(|line| report::say(&line))),
        [cold::NAME] => ended(cold::run(false)),
        [cold::NAME, "--json"] => ended(cold::run(true)),
        words => budgets(words),
    }
}

fn budgets(words: &[&str]) -> ExitCode {
    let (flags, ids): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| word.starts_with('-'));
    let known = |id: &&str| REGISTRY.iter().any(|(name, _)| name == id);
    let json = flags.contains(&"--json");
    if flags.iter().any(|flag| ["--help", "-h"].contains(flag)) {
        report::say(USAGE);
        return ExitCode::SUCCESS;
    }
    let unknown = ids.iter().find(|id| !known(id)).or(flags.iter().find(|flag| **flag != "--json"));
    if let Some(unknown) = unknown {
        report::complain(&format!("there is no `{unknown}`\n\n{USAGE}"));
        return ExitCode::from(2);
    }
    if cfg!(debug_assertions) {
        report::complain("measuring a debug build: its ratios say nothing of what users get");
    }
    for (name, bench) in REGISTRY {
        if !ids.is_empty() && !ids.contains(name) {
            continue;
        }
        match bench() {
            Ok(report) if json => report.print_json(),
            Ok(report) => report.print_table(),
            Err(why) => {
                report::complain(&format!("{name}: {why}"));
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn ended(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            report::complain(&why.to_string());
            ExitCode::FAILURE
        }
    }
}
