//! Seeds, and canaries that they must find. `SIM_SEED=7 cargo test -p eclosion-simulation` repeats one of them;
//! `SIM_SEEDS=5000` plays more.

use eclosion_simulation::{Canary, Report, play};

const SEEDS: u64 = 400;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn keeps_every_promise_in_every_world() {
    if let Some(seed) = number("SIM_SEED") {
        match play(seed, None) {
            Ok(report) => println!("seed {seed}: {report:?}"),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let mut sum = Report::default();
    for seed in 0..number("SIM_SEEDS").unwrap_or(SEEDS) {
        match play(seed, None) {
            Ok(report) => add(&mut sum, &report),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{sum:?}");
    // Worlds in which nothing happens prove nothing.
    assert!(
        sum.kernels_killed > 100 && sum.power_cuts > 50 && sum.panics > 100 && sum.adopted > 20,
        "{sum:?}"
    );
    assert!(sum.commits > 1_000 && sum.ahead > 100 && sum.returned > 10, "{sum:?}");
}

fn add(sum: &mut Report, report: &Report) {
    sum.records += report.records;
    sum.runs += report.runs;
    sum.commits += report.commits;
    sum.starts += report.starts;
    sum.kernels_killed += report.kernels_killed;
    sum.power_cuts += report.power_cuts;
    sum.panics += report.panics;
    sum.workers_killed += report.workers_killed;
    sum.adopted += report.adopted;
    sum.ahead += report.ahead;
    sum.returned += report.returned;
}

#[test]
fn finds_every_mistake_that_is_made_on_purpose() {
    for (canary, words) in [
        (Canary::AcceptStaleFence, "did not make"),
        (Canary::ShowBeforeSynced, "the power cut lost it"),
        (Canary::GrantTwice, "more than there is"),
        (Canary::ForgetWish, ""),
    ] {
        // By some promise at once, and by the very one that it breaks in some world.
        let mut found = (0..SEEDS).filter_map(|seed| play(seed, Some(canary)).err());
        assert!(
            found.any(|failure| failure.text.contains(words)),
            "{canary:?} was not found in {SEEDS} seeds"
        );
    }
}

#[test]
fn a_seed_is_one_world() {
    let [one, two] = [play(11, None), play(11, None)].map(|played| format!("{:?}", played.unwrap()));
    assert_eq!(one, two);
}
