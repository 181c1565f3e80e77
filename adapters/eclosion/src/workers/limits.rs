//! Sees to it that no attempt takes up more than it may: samples the trees of workers, and kills the one that does; and
//! where workers are in groups, has the system hold each to the limits of what it computes.
//!
//! A loop of its own, which lives only while it has something to look at: an attempt with a limit of memory (its lease)
//! or of processes, or a bound on what idle workers may hold. Without either, nobody reads the process table.
//!
//! A verdict is passed only on the attempt that was measured: if it ended meanwhile, nothing happens. What the pool
//! manager is told (`pool.usage`) is for readers, and for recycling, which it decides.

use std::sync::Arc;
use std::time::Duration;

use eclosion_process::ProcessId;
use eclosion_process::limits::{Bounds, Excess, Look, Usage};
use eclosion_schemas::certificate::Death;
use eclosion_schemas::ops::pool::{self, UsageRequest, WorkerUsage};
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{Fence, WorkerId};

use super::table::Entry;
use super::{WorkerHost, lock};

const LOOK: Duration = Duration::from_millis(250);
/// The pool manager is told after so many looks.
const LOOKS_PER_REPORT: u32 = 4;

/// What the lease and the limits of an attempt say of its tree.
pub(super) fn bounds_of(execute: &Execute) -> Bounds {
    Bounds {
        memory_bytes: execute.lease.get("memory").copied().filter(|bytes| *bytes > 0),
        processes: execute.limits.and_then(|limits| limits.processes),
    }
}

/// A tree that is looked at.
struct Watched {
    worker: WorkerId,
    leader: ProcessId,
    /// The attempt that it computes, and what that may take up.
    attempt: Option<(Fence, Bounds)>,
}

impl WorkerHost {
    /// Looks from now on, unless somebody does.
    pub(super) fn look_at_limits(&self) {
        if std::mem::replace(&mut *lock(&self.0.looking), true) {
            return;
        }
        let host = self.clone();
        tokio::spawn(async move {
            let mut looks = 0_u32;
            while host.look(looks.is_multiple_of(LOOKS_PER_REPORT)).await {
                looks = looks.wrapping_add(1);
                tokio::time::sleep(LOOK).await;
            }
        });
    }

    /// One look; false if there is nothing to look at any more.
    async fn look(&self, report: bool) -> bool {
        let Some(watched) = self.watched() else { return false };
        let looked = tokio::task::spawn_blocking(move || measured(watched)).await;
        // A look that panicked has seen nothing; the next one may.
        let Ok(looked) = looked else { return true };
        for (watched, _, excess) in &looked {
            if let (Some((fence, _)), Some(excess)) = (watched.attempt, excess) {
                self.judge(&watched.worker, fence, *excess);
            }
        }
        if report {
            let workers = looked.iter().filter_map(|(watched, usage, _)| {
                let Usage { memory_bytes, processes } = (*usage)?;
                Some(WorkerUsage { worker: watched.worker.clone(), rss_bytes: memory_bytes, processes })
            });
            let request = UsageRequest { workers: workers.collect() };
            // The next look says it again.
            if let Ok(kernel) = self.kernel() {
                drop(kernel.bus().ask::<pool::Usage>(request).await);
            }
        }
        true
    }

    /// Whoever is to be looked at; none if there is no limit. Under the same lock it is said that nobody looks any more, so that none is missed.
    fn watched(&self) -> Option<Vec<Watched>> {
        let workers = lock(&self.0.workers);
        let all = self.0.config.samples_idle && !workers.is_empty();
        let has_limits = |entry: &Entry| entry.attempts.values().any(|attempt| !attempt.bounds.is_none());
        if self.is_stopping() || !(all || workers.values().any(has_limits)) {
            *lock(&self.0.looking) = false;
            return None;
        }
        let up = workers.iter().filter_map(|(worker, entry)| {
            let attempt = entry.attempts.first_key_value().map(|(fence, attempt)| (*fence, attempt.bounds));
            Some(Watched { worker: worker.clone(), leader: entry.process?, attempt })
        });
        Some(up.collect())
    }

    /// The worker's group is told what its attempt may take up, after this has returned: to take memory back may take a
    /// while. Attempts of one worker follow each other, and so do these words.
    pub(super) fn keep_limits(&self, worker: &WorkerId) {
        let groups = Arc::clone(&self.0.config.groups);
        if !groups.is_kept() {
            return;
        }
        let Some(mut bounds) = self.unkept(worker, false) else { return };
        let (host, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move {
            loop {
                let (groups, named) = (Arc::clone(&groups), worker.clone());
                let told = tokio::task::spawn_blocking(move || groups.limit(&named, bounds)).await;
                if let Ok(Err(why)) = told {
                    tracing::debug!(%worker, %why, "its group cannot be told; it is sampled");
                }
                match host.unkept(&worker, true) {
                    Some(next) => bounds = next,
                    None => return,
                }
            }
        });
    }

    /// What the worker's group has to be told; none, if it knows, or somebody else is about to tell it.
    fn unkept(&self, worker: &WorkerId, is_teller: bool) -> Option<Bounds> {
        lock(&self.0.workers).get_mut(worker)?.unkept(is_teller)
    }

    fn judge(&self, worker: &WorkerId, fence: Fence, excess: Excess) {
        let computes = lock(&self.0.workers)
            .get(worker)
            .and_then(|entry| entry.attempts.first_key_value())
            .is_some_and(|(first, _)| *first == fence);
        if !computes {
            return;
        }
        tracing::warn!(%worker, %fence, ?excess, "an attempt went beyond its limit and is killed");
        self.condemn(
            worker,
            match excess {
                Excess::Memory { limit_bytes, measured_bytes } => {
                    Death::OutOfMemory { limit_bytes, measured_bytes: Some(measured_bytes) }
                }
                Excess::Processes { limit, counted } => Death::TooManyProcesses { limit, counted },
            },
        );
    }
}

fn measured(watched: Vec<Watched>) -> Vec<(Watched, Option<Usage>, Option<Excess>)> {
    let look = Look::now();
    let measure = |one: Watched| {
        let usage = look.usage(one.leader);
        let excess = one.attempt.and_then(|(_, bounds)| look.excess(one.leader, bounds));
        (one, usage, excess)
    };
    watched.into_iter().map(measure).collect()
}
