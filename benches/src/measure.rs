//! Sampling: candidates take turns, so that a neighbor's burst hits all of them alike.

use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::Failure;
use crate::distribution::Distribution;
use crate::report::{Role, Row, Unit};

/// Rounds in which each candidate has its turn.
pub(crate) const ROUNDS: usize = 21;

/// The runtime that all candidates share: the scheduler that the kernel uses, on one thread, because on two cores a
/// wake across them costs fifty times what is measured here and depends on the neighbors.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Ok(Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// The samples of one candidate, one list of figures an operation for each round.
#[derive(Debug)]
pub(crate) struct Samples {
    name: &'static str,
    role: Role,
    unit: Unit,
    rounds: Vec<Vec<f64>>,
}

impl Samples {
    pub(crate) fn of(role: Role, name: &'static str) -> Self {
        Self { name, role, unit: Unit::Ns, rounds: Vec::with_capacity(ROUNDS) }
    }

    pub(crate) fn of_bytes(role: Role, name: &'static str) -> Self {
        Self { unit: Unit::Bytes, ..Self::of(role, name) }
    }

    pub(crate) fn begin_round(&mut self) {
        self.rounds.push(Vec::new());
    }

    /// `took` for `operations` in a row.
    pub(crate) fn add(&mut self, took: Duration, operations: u32) {
        self.push(took.as_nanos() as f64 / f64::from(operations));
    }

    /// `total` of the candidate's unit for `parts` alike.
    pub(crate) fn add_bytes(&mut self, total: u64, parts: u32) {
        self.push(total as f64 / f64::from(parts));
    }

    fn push(&mut self, figure: f64) {
        if let Some(round) = self.rounds.last_mut() {
            round.push(figure);
        }
    }

    /// Medians over the rounds; the first warms up and does not count.
    pub(crate) fn row(self) -> Row {
        let rounds: Vec<_> = self.rounds.into_iter().skip(1).map(sorted).collect();
        let histogram = Distribution::of(rounds.iter().flatten().copied());
        let of = |share: f64| rounds.iter().map(|round| quantile(round, share)).collect::<Vec<_>>();
        let by_round = of(0.5);
        let p50s = sorted(by_round.clone());
        let mean = |round: &Vec<f64>| round.iter().sum::<f64>() / round.len().max(1) as f64;
        let means = sorted(rounds.iter().map(mean).collect());
        Row {
            name: self.name,
            role: self.role,
            unit: self.unit,
            p50: quantile(&p50s, 0.5),
            p50_low: quantile(&p50s, 0.1),
            p50_high: quantile(&p50s, 0.9),
            p99: quantile(&sorted(of(0.99)), 0.5),
            per_s: (self.unit == Unit::Ns).then(|| 1e9 / quantile(&means, 0.5)),
            rounds: rounds.len(),
            histogram,
            by_round,
        }
    }
}

/// Runs `work` and adds what it took.
pub(crate) async fn timed(samples: &mut Samples, operations: u32, work: impl Future<Output = ()>) {
    let start = Instant::now();
    work.await;
    samples.add(start.elapsed(), operations);
}

pub(crate) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}
