//! Seeds, and mistakes on purpose that they must find. `SIM_SEED=7` repeats one of them, `SIM_SEEDS=5000` plays more,
//! `SIM_SEED_FIRST=100000` others.

#![expect(clippy::unwrap_used, reason = "a player that panicked has failed the test")]

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use eclosion_simulation::{Failure, Mutant, Point, Report, play};

const SEEDS: u64 = 520;
/// Worlds that are played at the same time; each is a thread of its own and knows of no other.
const PLAYERS: usize = 2;

/// Past the test harness, which keeps what passes to itself: how many worlds were played at which rate stands in every log.
fn say(line: &str) {
    // Whoever closed its end does not read it either.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Plays seeds until all are played or one has failed.
fn play_all(first: u64, count: u64) -> Result<Report, Failure> {
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Ok(Report::default()));
    std::thread::scope(|scope| {
        for _ in 0..PLAYERS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || sum.lock().unwrap().is_err() {
                        return;
                    }
                    let played = play(seed, None);
                    let mut sum = sum.lock().unwrap();
                    match (sum.as_mut(), played) {
                        (Ok(sum), Ok(report)) => sum.add(&report),
                        (Ok(_), Err(failure)) => *sum = Err(failure),
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

#[test]
fn keeps_every_promise_in_every_world() {
    if let Some(seed) = number("SIM_SEED") {
        match play(seed, None) {
            Ok(report) => say(&format!("seed {seed}: {report:?}")),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let (first, count) = (number("SIM_SEED_FIRST").unwrap_or(0), number("SIM_SEEDS").unwrap_or(SEEDS));
    let began = Instant::now();
    let sum = play_all(first, count).unwrap_or_else(|failure| panic!("{failure}"));
    let rate = count as f64 / began.elapsed().as_secs_f64();
    if count >= SEEDS {
        has_met_everything(&sum);
    }
    say(&format!("{count} worlds from seed {first} on, {rate:.1} a second\n{sum}"));
}

/// Seeds prove what they meet: each kind of fault has happened in some world, and so has what the actors are there for.
fn has_met_everything(sum: &Report) {
    for count in [
        sum.kernels_killed,
        sum.died_in_recovery,
        sum.power_cuts,
        sum.torn,
        sum.missing,
        sum.nameless,
        sum.clock_jumps,
        sum.workers_killed,
        sum.escalations,
        sum.adopted,
        sum.reused,
        sum.unkept,
        sum.ticks_skipped,
        sum.purged,
        sum.restored,
        sum.acts,
    ] {
        assert!(count > 0, "something has not happened in any world:\n{sum}");
    }
    assert_eq!(sum.nemeses.len(), 6, "{:?}", sum.nemeses);
    // EIO of a write, ENOSPC, EIO of a sync.
    assert_eq!(sum.disk_errors.len(), 3, "{:?}", sum.disk_errors);
    // Each of the actors at each of them is what `panics.rs` is for.
    for point in Point::ALL {
        assert!(sum.points.keys().any(|(_, met)| *met == point), "nobody has panicked {point:?}");
    }
}

#[test]
fn a_seed_is_one_world() {
    for seed in [11, 12, 13] {
        let [one, two] = [play(seed, None), play(seed, None)].map(|played| format!("{:?}", played.unwrap()));
        assert_eq!(one, two);
    }
}

/// `SIM_MUTANT=AckBeforeSync` tries one of them alone.
fn is_tried(mutant: Mutant) -> bool {
    std::env::var("SIM_MUTANT").map_or(true, |wanted| wanted == format!("{mutant:?}"))
}

/// For each mistake: words of the promise that must find it, in some world. Any other promise may have been first in others.
const FOUND_BY: [(Mutant, &str); 26] = [
    (Mutant::AckBeforeSync, "the power cut lost it"),
    (Mutant::SkipDirectorySync, "the power cut lost it"),
    (Mutant::SkipFileSync, "the power cut lost it"),
    (Mutant::SealOverSynced, "the power cut lost it"),
    (Mutant::AcceptStaleFence, "did not make"),
    (Mutant::FenceWithoutEpoch, "has fence"),
    (Mutant::ReuseSeq, "follows"),
    (Mutant::ReplayPastBad, "follows"),
    (Mutant::OpenWithoutSync, "what was synced is lost"),
    (Mutant::RetryFailedSync, "what was synced is lost"),
    (Mutant::PublishBeforeSynced, "the power cut lost it"),
    (Mutant::DispatchBeforeWritten, "on the disk"),
    (Mutant::LeaseByWallClock, "more than there is"),
    (Mutant::CollectPinned, "holds it"),
    (Mutant::KeepStateAcrossPanic, "replay differs"),
    (Mutant::CommitCancelled, "after its run was over"),
    (Mutant::LyingSync, "what was synced is lost"),
    (Mutant::GrantTwice, "more than there is"),
    (Mutant::ForgetWish, ""),
    (Mutant::TickWithoutKey, "has not fired"),
    (Mutant::TickAgain, "is not"),
    (Mutant::LoseTick, "in silence"),
    (Mutant::TrashWithoutRecord, "without a record"),
    (Mutant::TrustTheHash, "not computed by"),
    (Mutant::CollectUnplanned, "no plan has shown it"),
    (Mutant::SurveyAheadOfRows, ""),
];

#[test]
fn every_mistake_on_purpose_is_found_and_by_the_promise_that_it_breaks() {
    let next = AtomicU64::new(0);
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PLAYERS {
            scope.spawn(|| {
                while let Some((mutant, words)) =
                    usize::try_from(next.fetch_add(1, Ordering::Relaxed)).ok().and_then(|n| FOUND_BY.get(n))
                {
                    if !is_tried(*mutant) {
                        continue;
                    }
                    let began = Instant::now();
                    let mut failures = (0..SEEDS).filter_map(|seed| play(seed, Some(*mutant)).err());
                    match failures.find(|failure| failure.text.contains(words)) {
                        Some(Failure { seed, text, .. }) => say(&format!(
                            "{mutant:?}: found after {} worlds in {:.1} s: {}",
                            seed + 1,
                            began.elapsed().as_secs_f64(),
                            text.lines().next().unwrap_or_default()
                        )),
                        None => missed.lock().unwrap().push(*mutant),
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found in {SEEDS} seeds: {missed:?}");
}
