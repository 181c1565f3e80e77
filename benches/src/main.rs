//! `cargo measure [b2 b3 …] [--json]`: budgets, measured beside the floor and the peer of each.
//!
//! This file is the registry; a budget is a file of its own, named after its id.

mod b10_dag;
mod b12_object;
mod b13_start;
mod b14_recovery;
mod b15_journal;
mod b1_view;
mod b2_ask;
mod b3_tell;
mod b4_publish;
mod b6_client;
mod b8_call;
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
    ("b6", b6_client::run),
    ("b8", b8_call::run),
    ("b10", b10_dag::run),
    ("b12", b12_object::run),
    ("b13", b13_start::run),
    ("b14", b14_recovery::run),
    ("b15", b15_journal::run),
];

fn main() -> ExitCode {
    let (flags, ids): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|arg| arg.starts_with('-'));
    let known = |id: &String| REGISTRY.iter().any(|(name, _)| name == id);
    let json = flags.iter().any(|flag| flag == "--json");
    if flags.iter().any(|flag| flag != "--json") || !ids.iter().all(known) {
        let all: Vec<_> = REGISTRY.iter().map(|(name, _)| *name).collect();
        report::complain(&format!("usage: cargo measure [{}] [--json]", all.join("|")));
        return ExitCode::from(2);
    }
    for (name, bench) in REGISTRY {
        if !ids.is_empty() && !ids.iter().any(|id| id == name) {
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
