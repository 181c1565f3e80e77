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

/// One call of a service: every caller is answered.
#[derive(Debug, Serialize)]
pub(crate) struct ServiceCall {
    pub(crate) label: String,
    /// `ok`, or the reason of the refusal.
    pub(crate) outcome: Option<String>,
}

/// What a client had of a stream when one of its parties was killed, or at its end.
#[derive(Debug, Serialize)]
pub(crate) struct StreamEnd {
    pub(crate) label: String,
    /// The indexes of the items, in the order in which they came.
    pub(crate) received: Vec<u64>,
    /// How many more than were received may have been made.
    pub(crate) slack: u64,
    /// `ok`, or the reason why it ended; nothing if nobody was left to be told.
    pub(crate) outcome: Option<String>,
    /// A generator whose worker was killed cannot be closed; nor need one be, that the next kernel finds without a caller.
    pub(crate) is_closed: Option<bool>,
}

/// What became of the shared memory of one call. Arenas are told apart by their inodes.
#[derive(Debug, Serialize)]
pub(crate) struct ArenaEnd {
    pub(crate) label: String,
    /// The sum of the argument's bytes.
    pub(crate) sum: u64,
    pub(crate) outcome: Option<String>,
    /// Arenas whose kernel is dead, and all that anybody still has.
    pub(crate) gone: BTreeSet<u64>,
    pub(crate) left: BTreeSet<u64>,
    /// Arenas of a kernel that lives: the same room serves the next call.
    pub(crate) before: BTreeSet<u64>,
    pub(crate) after: BTreeSet<u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Schedule {
    pub(crate) name: String,
    pub(crate) every_ms: u64,
}

/// What a plan showed, and what must not go.
#[derive(Debug, Serialize)]
pub(crate) struct Collection {
    pub(crate) planned: BTreeSet<String>,
    pub(crate) held: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Account {
    /// The value of each run.
    pub(crate) expected: BTreeMap<RunId, u64>,
    pub(crate) kills: Kills,
    pub(crate) told: Told,
    pub(crate) crowds: Vec<CrowdRun>,
    pub(crate) services: Vec<ServiceCall>,
    pub(crate) streams: Vec<StreamEnd>,
    pub(crate) arenas: Vec<ArenaEnd>,
    pub(crate) schedules: Vec<Schedule>,
    pub(crate) collections: Vec<Collection>,
    /// A worker was killed with an attempt in hand.
    pub(crate) took_along: bool,
    forgotten_ns: u64,
}

impl Account {
    /// A name that nothing else in this round has.
    pub(crate) fn label(&self) -> String {
        format!("l{}", self.services.len() + self.streams.len() + self.arenas.len())
    }

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
            "services": self.services,
            "streams": self.streams,
            "arenas": self.arenas,
            "schedules": self.schedules,
            "collections": self.collections,
            "forgotten_ns": self.forgotten_ns,
        })
    }
}
