//! Kills the real kernel with real Python at each of its joints, and has an independent judge look at what is left.
//!
//! ```text
//! eclosion-crash              every fault once
//! eclosion-crash N            N rounds, each with a seed of its own, printed
//! eclosion-crash A..B         the rounds of these seeds, so that several can run at a time
//! eclosion-crash --seed S     one round again
//! eclosion-crash --list       what a round may do
//! ```
//!
//! A round: an own state directory, an own kernel process and an own marker in its environment → a flow whose tasks keep
//! ledgers → faults from the seed, each at a moment named by an event and never by a sleep → the run must end with the
//! right value → the kernel is stopped, nothing may be left of it → the judge reads a copy of the journal and the
//! ledgers. Every round the judge is also shown a forged violation, which it must find.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this binary talks to whoever runs it")]

mod account;
mod failure;
mod fault;
mod kernel;
mod ledger;
mod leftovers;
mod round;
mod seed;
mod strikes;
mod verdict;
mod watch;

use std::process::ExitCode;

use eclosion_test_disk::FaultyDisk;

use failure::Failure;
use fault::Fault;
use seed::Seed;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let seeds: Vec<u64> = match words[..] {
        ["--list"] => {
            Fault::ALL.iter().enumerate().for_each(|(seed, fault)| println!("{seed} {fault:?}"));
            return ExitCode::SUCCESS;
        }
        ["--seed", seed] => seed.parse().into_iter().collect(),
        [] => (0..Fault::ALL.len() as u64).collect(),
        [rounds] => range(rounds).map(Iterator::collect).unwrap_or_default(),
        _ => Vec::new(),
    };
    if seeds.is_empty() {
        eprintln!("usage: cargo crash [ROUNDS | FROM..TO | --seed SEED | --list]");
        return ExitCode::from(2);
    }
    rounds(&seeds)
}

/// `N` or `A..B`.
fn range(text: &str) -> Option<std::ops::Range<u64>> {
    let (from, to) = text.split_once("..").unwrap_or(("0", text));
    Some(from.parse().ok()?..to.parse().ok()?)
}

/// What became of all rounds.
#[derive(Default)]
struct Totals {
    passed: usize,
    failed: usize,
    /// Faults that this machine cannot do.
    skipped: usize,
}

impl Totals {
    /// What so many rounds without a failure say, and no more: the rule of three.
    fn bound(&self) -> String {
        let rounds = self.passed + self.failed;
        if self.failed > 0 || rounds == 0 {
            return format!("{} of {rounds} rounds passed: that bounds nothing", self.passed);
        }
        let percent = (300.0 / rounds as f64).min(100.0);
        format!(
            "all {rounds} rounds passed: with 95 % confidence fewer than {percent:.2} % of such rounds fail (3/{rounds})"
        )
    }
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
    let mut totals = Totals::default();
    for &seed in seeds {
        runtime.block_on(one(seed, &mut totals));
    }
    println!("{} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.skipped);
    println!("{}", totals.bound());
    if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn one(seed: u64, totals: &mut Totals) {
    let mut dice = Seed::new(seed);
    let mut faults = fault::choose(seed, &mut dice);
    let disk = disk_for(&mut faults, totals);
    if faults.is_empty() {
        return;
    }
    let began = std::time::Instant::now();
    match round::run(seed, &faults, &mut dice, disk).await {
        Ok(summary) => {
            totals.passed += 1;
            println!("round {seed}: ok in {:.1} s, {faults:?}, {summary}", began.elapsed().as_secs_f64());
        }
        Err(why) => {
            totals.failed += 1;
            println!("round {seed}: FAILED, {faults:?}\n  {why}\n  again: cargo crash --seed {seed}");
        }
    }
}

/// A disk, if one of the faults needs it; without one those are taken out, and that is said.
fn disk_for(faults: &mut Vec<Fault>, totals: &mut Totals) -> Option<FaultyDisk> {
    if !faults.iter().any(|fault| fault.needs_disk()) {
        return None;
    }
    let made = FaultyDisk::new().map_err(Failure::from);
    if let Err(why) = &made {
        let skipped: Vec<_> = faults.extract_if(.., |fault| fault.needs_disk()).collect();
        totals.skipped += skipped.len();
        println!("SKIPPED {skipped:?}: {why}");
    }
    made.ok()
}
