//! What a round has done and seen, for the judge: who was killed, what a client was told, what may be forgotten.

use std::collections::{BTreeMap, BTreeSet};

use eclosion_schemas::RunId;
use eclosion_schemas::ops::kernel::Delivery;
use eclosion_schemas::ops::run::GetReply;
use eclosion_schemas::view::TaskState;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::kernel::WORKERS_MAX;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Kills {
    pub(crate) worker: usize,
    /// Each takes along every worker that there is.
    pub(crate) keeper: usize,
    pub(crate) kernel: usize,
}

/// What a client was told: it must never become untrue.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Told {
    /// The last position that was named.
    pub(crate) seq: u64,
    pub(crate) finished: BTreeSet<String>,
}

impl Told {
    pub(crate) fn hear(&mut self, delivery: &Delivery) {
        let (Delivery::Snapshot { subject, seq, value, .. } | Delivery::Change { subject, seq, value, .. }) =
            delivery
        else {
            return;
        };
        self.seq = self.seq.max(seq.0);
        let task = subject.strip_suffix("/state").and_then(|head| head.split("/task/").nth(1));
        if let Some(task) = task.filter(|_| value["state"] == "succeeded") {
            self.finished.insert(task.to_owned());
        }
    }

    pub(crate) fn hear_run(&mut self, run: &GetReply) {
        self.seq = self.seq.max(run.run.seq.0);
        self.finished.extend(finished(run));
    }
}

pub(crate) fn finished(run: &GetReply) -> BTreeSet<String> {
    let done = run.tasks.iter().filter(|task| task.state == TaskState::Succeeded);
    done.map(|task| task.task.to_string()).collect()
}

/// A run of quick tasks: the judge must see that several waited at one worker, or the round has proven nothing.
#[derive(Debug, Serialize)]
pub(crate) struct CrowdRun {
    pub(crate) run: RunId,
    /// What waited behind the one that blocked must have been given back.
    pub(crate) blocks: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Account {
    /// The value of each run.
    pub(crate) expected: BTreeMap<RunId, u64>,
    pub(crate) kills: Kills,
    pub(crate) told: Told,
    pub(crate) crowds: Vec<CrowdRun>,
    forgotten_ns: u64,
}

impl Account {
    /// Every process is dead. What was not synced, or was not whole, may be gone with them: of attempts that started
    /// before now the journal need not know.
    pub(crate) fn everything_died(&mut self) {
        self.kills.keeper += 1;
        let now = clock_gettime(ClockId::Monotonic);
        let part = |part: i64| u64::try_from(part).unwrap_or(0);
        self.forgotten_ns = part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec);
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "expected": self.expected,
            "kills": self.kills,
            "workers_max": WORKERS_MAX,
            "told": self.told,
            "crowds": self.crowds,
            "forgotten_ns": self.forgotten_ns,
        })
    }
}
