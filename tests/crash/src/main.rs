//! Kills the real kernel with real Python at each of its joints, and has an independent judge look at what is left.
//!
//! ```text
//! eclosion-crash N            N rounds, each with a seed of its own, printed
//! eclosion-crash --seed S     one round again
//! eclosion-crash --list       what a round may do
//! ```
//!
//! A round: an own state directory, an own kernel process and an own marker in its environment → a flow whose tasks keep
//! ledgers → faults from the seed, each at a moment named by an event and never by a sleep → the run must end with the
//! right value → the kernel is stopped, nothing may be left of it → the judge reads a copy of the journal and the
//! ledgers. Every round the judge is also shown a forged violation, which it must find.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this binary talks to whoever runs it")]

mod fault;
mod kernel;
mod leftovers;
mod round;
mod seed;

use std::process::ExitCode;

use fault::Fault;
use seed::Seed;

const ROUNDS: u64 = 12;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let seeds: Vec<u64> = match words[..] {
        ["--list"] => {
            Fault::ALL.iter().for_each(|fault| println!("{fault:?}"));
            return ExitCode::SUCCESS;
        }
        ["--seed", seed] => seed.parse().into_iter().collect(),
        [] => (0..ROUNDS).collect(),
        [rounds] => rounds.parse().map(|rounds: u64| (0..rounds).collect()).unwrap_or_default(),
        _ => Vec::new(),
    };
    if seeds.is_empty() {
        eprintln!("usage: cargo crash [ROUNDS | --seed SEED | --list]");
        return ExitCode::from(2);
    }
    rounds(&seeds)
}

fn rounds(seeds: &[u64]) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(why) => {
            eprintln!("no runtime: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut failed = 0;
    for &seed in seeds {
        let mut dice = Seed::new(seed);
        let faults = fault::choose(seed, &mut dice);
        match runtime.block_on(round::run(seed, &faults, &mut dice)) {
            Ok(summary) => println!("round {seed}: ok, {faults:?}, {summary}"),
            Err(why) => {
                failed += 1;
                println!("round {seed}: FAILED, {faults:?}\n  {why}\n  again: cargo crash --seed {seed}");
            }
        }
    }
    println!("{} passed, {failed} failed", seeds.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
