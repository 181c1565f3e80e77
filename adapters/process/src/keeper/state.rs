//! What the keeper decides, without a process or a clock in sight.
//!
//! [`State::step`] takes one [`Input`] and the time and returns the [`Action`]s that the shell performs, in order.
//!
//! ```text
//!            Hello              kernel's EOF               grace passed, Shutdown           no child left
//!  Alone ───────────► Attended ──────────────► Alone … ──────────────────────────► Ending ─────────────► Exit
//!                                                          SIGTERM to all, 2 s, SIGKILL until nothing lives
//!
//!  a worker:  Spawn → waiting (its zygote starts) → forking (asked) → alive → dead (a record, until Forget)
//! ```
//!
//! Invariants: (1) a worker's id is spawned once: again changes nothing, and a dead one is reported again. (2) Every
//! spawn is answered by `spawned` or `spawn_failed`, unless its kernel is gone; a kernel that comes back reads in
//! `welcome` what became of it. (3) An exit is never dropped while its record is not forgotten, up to
//! [`RECORDS_MAX`]. (4) A pid is believed to be a worker's only after the shell saw that it descends from the keeper.
//!
//! It deliberately knows no task, no frame and no resource: it parents.

use std::collections::{BTreeMap, VecDeque};

use eclosion_schemas::WorkerId;

use super::step::{Action, Exit, Input, KernelId, ZygoteId, ZygoteKey};
use crate::message::{FromKeeper, FromZygote, KnownWorker, SpawnWorker, WELCOME_WORKERS_MAX};
use crate::procfs::ProcessId;

/// Workers that live or are about to.
pub(super) const WORKERS_MAX: usize = 512;
/// Exit records that no kernel has journaled; the oldest goes first.
pub(super) const RECORDS_MAX: usize = 1024;
/// Zygotes at a time; beyond, the one idle for longest is ended.
pub(super) const ZYGOTES_MAX: usize = 16;
/// Exits that were seen before their zygote said whose they are.
const UNCLAIMED_MAX: usize = 256;
/// A keeper whose first kernel never says hello.
const FIRST_HELLO_MS: u64 = 10_000;
/// Importing the preloads: cold disks are slow, but not this slow.
const ZYGOTE_READY_MS: u64 = 120_000;
const FORK_MS: u64 = 30_000;
/// Between SIGTERM and SIGKILL at the end.
const TERMINATE_MS: u64 = 2_000;
/// After SIGKILL, for processes stuck in the system; then the keeper leaves them to init.
const KILLED_MS: u64 = 5_000;
/// How often the end looks again.
const ENDING_TICK_MS: u64 = 50;

#[derive(Debug)]
struct Zygote {
    key: ZygoteKey,
    ready: bool,
    /// Of its start; later, of its last use.
    since_ms: u64,
    waiting: VecDeque<Wanted>,
    forking: BTreeMap<WorkerId, Forking>,
}

#[derive(Debug)]
struct Wanted {
    spawn: SpawnWorker,
    /// A zygote died with it before.
    is_second: bool,
}

#[derive(Debug)]
struct Forking {
    wanted: Wanted,
    since_ms: u64,
    /// A signal that came before there was a process.
    signal: Option<(i32, bool)>,
}

#[derive(Debug)]
struct Worker {
    process: ProcessId,
    brand: u32,
    exit: Option<Exit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Attended(KernelId),
    Alone { until_ms: u64 },
    Ending { kill_at_ms: u64 },
}

#[derive(Debug)]
pub(super) struct State {
    instance: String,
    pid: u32,
    grace_ms: u64,
    epoch: u32,
    phase: Phase,
    zygotes: BTreeMap<ZygoteId, Zygote>,
    zygotes_started: u64,
    workers: BTreeMap<WorkerId, Worker>,
    brands_given: u32,
    /// Dead workers, oldest first.
    records: VecDeque<WorkerId>,
    unclaimed: VecDeque<(ProcessId, Exit)>,
}

impl State {
    #[must_use]
    pub(super) fn new(instance: String, pid: u32, grace_ms: u64, now_ms: u64) -> Self {
        Self {
            instance,
            pid,
            grace_ms,
            epoch: 0,
            phase: Phase::Alone { until_ms: now_ms + FIRST_HELLO_MS.max(grace_ms) },
            zygotes: BTreeMap::new(),
            zygotes_started: 0,
            workers: BTreeMap::new(),
            brands_given: 0,
            records: VecDeque::new(),
            unclaimed: VecDeque::new(),
        }
    }

    #[must_use]
    pub(super) fn step(&mut self, input: Input, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Hello { kernel, instance, epoch } => self.hello(kernel, &instance, epoch, &mut actions),
            Input::KernelGone { kernel } => self.kernel_gone(kernel, now_ms, &mut actions),
            Input::Spawn(spawn) => self.spawn(spawn, now_ms, &mut actions),
            Input::Signal { worker, signal, tree } => self.signal(&worker, signal, tree, &mut actions),
            Input::Forget { worker } => self.forget(&worker),
            Input::Shutdown => self.end(now_ms, &mut actions),
            Input::Zygote { zygote, said, process } => {
                self.zygote_said(zygote, said, process, now_ms, &mut actions);
            }
            Input::ZygoteGone { zygote, text } => self.zygote_gone(zygote, &text, now_ms, &mut actions),
            Input::Reaped { process, exit } => self.reaped(process, exit, &mut actions),
            Input::Childless => {
                if matches!(self.phase, Phase::Ending { .. }) {
                    actions.push(Action::Exit);
                }
            }
            Input::Tick => self.tick(now_ms, &mut actions),
        }
        actions
    }

    /// When a [`Input::Tick`] is due.
    #[must_use]
    pub(super) fn wake_at_ms(&self, now_ms: u64) -> Option<u64> {
        let phase = match self.phase {
            Phase::Attended(_) => None,
            Phase::Alone { until_ms } => Some(until_ms),
            Phase::Ending { .. } => Some(now_ms + ENDING_TICK_MS),
        };
        phase.into_iter().chain(self.zygotes.values().filter_map(Zygote::due_ms)).min()
    }

    #[must_use]
    pub(super) fn worker_of(&self, pid: u32) -> Option<(&WorkerId, ProcessId, u32)> {
        let mut living = self.workers.iter().filter(|(_, worker)| worker.exit.is_none());
        let found = living.find(|(_, worker)| worker.process.pid == pid);
        found.map(|(id, worker)| (id, worker.process, worker.brand))
    }

    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. })
    }

    fn hello(&mut self, kernel: KernelId, instance: &str, epoch: u32, actions: &mut Vec<Action>) {
        if self.is_ending() {
            return actions.push(Action::Refuse(kernel, "the keeper is ending".into()));
        }
        if instance != self.instance {
            let text = format!("this is the keeper of {}, not of {instance}", self.instance);
            return actions.push(Action::Refuse(kernel, text));
        }
        if epoch < self.epoch {
            let text = format!("a kernel of epoch {} was here, epoch {epoch} is older", self.epoch);
            return actions.push(Action::Refuse(kernel, text));
        }
        self.epoch = epoch;
        self.phase = Phase::Attended(kernel);
        actions.push(Action::Attend(kernel));
        self.welcome(actions);
        for (id, worker) in self.workers.iter().filter(|(_, worker)| worker.exit.is_none()) {
            actions.push(Action::HandOver(id.clone(), worker.process));
        }
    }

    fn welcome(&self, actions: &mut Vec<Action>) {
        let known: Vec<_> = self.workers.iter().map(|(id, worker)| worker.known(id)).collect();
        let pid = self.pid;
        let mut parts = known.chunks(WELCOME_WORKERS_MAX).peekable();
        if parts.peek().is_none() {
            actions.push(Action::Tell(FromKeeper::Welcome { pid, workers: Vec::new(), more: false }));
        }
        while let Some(part) = parts.next() {
            let more = parts.peek().is_some();
            actions.push(Action::Tell(FromKeeper::Welcome { pid, workers: part.to_vec(), more }));
        }
    }

    fn kernel_gone(&mut self, kernel: KernelId, now_ms: u64, actions: &mut Vec<Action>) {
        if self.phase != Phase::Attended(kernel) {
            return;
        }
        self.phase = Phase::Alone { until_ms: now_ms + self.grace_ms };
        if self.grace_ms == 0 {
            self.end(now_ms, actions);
        }
    }

    fn spawn(&mut self, spawn: SpawnWorker, now_ms: u64, actions: &mut Vec<Action>) {
        if let Some(worker) = self.workers.get(&spawn.worker) {
            if let Some(exit) = worker.exit {
                actions.push(Action::Tell(exited(&spawn.worker, worker.process, exit)));
            }
            return;
        }
        if self.zygotes.values().any(|zygote| zygote.knows(&spawn.worker)) {
            return;
        }
        if self.is_ending() {
            return actions.push(spawn_failed(&spawn.worker, "the keeper is ending"));
        }
        if self.worker_count() >= WORKERS_MAX {
            let text = format!("the keeper holds {WORKERS_MAX} workers already");
            return actions.push(spawn_failed(&spawn.worker, &text));
        }
        self.want(Wanted { spawn, is_second: false }, now_ms, actions);
    }

    fn want(&mut self, wanted: Wanted, now_ms: u64, actions: &mut Vec<Action>) {
        let key = ZygoteKey::of(&wanted.spawn);
        let found = self.zygotes.iter().find(|(_, zygote)| zygote.key == key).map(|(id, _)| *id);
        let Some(id) = found.or_else(|| self.start_zygote(key, now_ms, actions)) else {
            let text = format!("{ZYGOTES_MAX} zygotes are starting or forking; try again");
            return actions.push(spawn_failed(&wanted.spawn.worker, &text));
        };
        if let Some(zygote) = self.zygotes.get_mut(&id) {
            zygote.waiting.push_back(wanted);
            zygote.fork_waiting(id, now_ms, actions);
        }
    }

    fn worker_count(&self) -> usize {
        let coming: usize =
            self.zygotes.values().map(|zygote| zygote.waiting.len() + zygote.forking.len()).sum();
        coming + self.workers.len() - self.records.len()
    }

    fn start_zygote(&mut self, key: ZygoteKey, now_ms: u64, actions: &mut Vec<Action>) -> Option<ZygoteId> {
        if self.zygotes.len() >= ZYGOTES_MAX {
            let idle = self.zygotes.iter().filter(|(_, zygote)| zygote.is_idle());
            let oldest = idle.min_by_key(|(_, zygote)| zygote.since_ms).map(|(id, _)| *id)?;
            self.zygotes.remove(&oldest);
            actions.push(Action::EndZygote(oldest));
        }
        self.zygotes_started += 1;
        let id = ZygoteId(self.zygotes_started);
        actions.push(Action::StartZygote(id, key.clone()));
        self.zygotes.insert(id, Zygote::new(key, now_ms));
        Some(id)
    }

    fn signal(&mut self, id: &WorkerId, signal: i32, tree: bool, actions: &mut Vec<Action>) {
        if let Some(worker) = self.workers.get(id) {
            if worker.exit.is_none() {
                let (process, brand) = (worker.process, worker.brand);
                actions.push(Action::Signal { process, brand, signal, tree });
            }
            return;
        }
        for zygote in self.zygotes.values_mut() {
            if let Some(forking) = zygote.forking.get_mut(id) {
                forking.signal = Some((signal, tree));
            }
            let before = zygote.waiting.len();
            zygote.waiting.retain(|wanted| wanted.spawn.worker != *id);
            if zygote.waiting.len() < before {
                actions.push(spawn_failed(id, "stopped before it was started"));
            }
        }
    }

    fn forget(&mut self, id: &WorkerId) {
        if self.workers.get(id).is_some_and(|worker| worker.exit.is_some()) {
            self.workers.remove(id);
            self.records.retain(|record| record != id);
        }
    }

    fn zygote_said(
        &mut self,
        id: ZygoteId,
        said: FromZygote,
        process: Option<ProcessId>,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        let Some(zygote) = self.zygotes.get_mut(&id) else { return };
        match said {
            FromZygote::Ready { .. } => {
                zygote.ready = true;
                zygote.since_ms = now_ms;
                zygote.fork_waiting(id, now_ms, actions);
            }
            FromZygote::Failed { error } => {
                actions.push(Action::EndZygote(id));
                self.zygote_gone(id, &error, now_ms, actions);
            }
            FromZygote::ForkFailed { worker, error } => {
                if zygote.forking.remove(&worker).is_some() {
                    actions.push(Action::Release(worker.clone()));
                    actions.push(spawn_failed(&worker, &error));
                }
            }
            FromZygote::Forked { worker, pid } => {
                let Some(forking) = zygote.forking.remove(&worker) else { return };
                zygote.since_ms = now_ms;
                // One that is there still was not reaped, whatever had its pid before.
                let is_gone = |(ended, _): &(ProcessId, Exit)| process.is_none() && ended.pid == pid;
                let ended = self.unclaimed.iter().position(is_gone).and_then(|at| self.unclaimed.remove(at));
                match ended.map(|(process, _)| process).or(process) {
                    Some(process) => self.forked(worker, process, ended, forking.signal, actions),
                    None => {
                        actions.push(Action::Release(worker.clone()));
                        actions
                            .push(spawn_failed(&worker, "the zygote named a process that is not its child"));
                    }
                }
            }
        }
    }

    fn forked(
        &mut self,
        id: WorkerId,
        process: ProcessId,
        ended: Option<(ProcessId, Exit)>,
        signal: Option<(i32, bool)>,
        actions: &mut Vec<Action>,
    ) {
        self.brands_given = self.brands_given.wrapping_add(1);
        let brand = self.brands_given;
        self.workers.insert(id.clone(), Worker { process, brand, exit: None });
        let ProcessId { pid, start_ticks } = process;
        if ended.is_none() {
            actions.push(Action::Adopt { worker: id.clone(), process, brand });
        }
        let spawned = FromKeeper::Spawned { worker: id.clone(), pid, start_ticks };
        actions.push(Action::TellWithStream(id.clone(), spawned));
        if let Some((_, exit)) = ended {
            self.died(&id, exit, actions);
        } else if let Some((signal, tree)) = signal {
            actions.push(Action::Signal { process, brand, signal, tree });
        } else if self.is_ending() {
            let signal = rustix::process::Signal::TERM.as_raw();
            actions.push(Action::Signal { process, brand, signal, tree: true });
        }
    }

    /// One that died while it started would die again: what waits for it fails with its words. One that served before
    /// was killed, and what it left undone is tried once more.
    fn zygote_gone(&mut self, id: ZygoteId, text: &str, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(zygote) = self.zygotes.remove(&id) else { return };
        let served = zygote.ready && !self.is_ending();
        for (worker, forking) in zygote.forking {
            // A worker that was forked all the same finds its lifeline closed and ends.
            actions.push(Action::Release(worker.clone()));
            if served && !forking.wanted.is_second && forking.signal.is_none() {
                self.want(Wanted { is_second: true, ..forking.wanted }, now_ms, actions);
            } else {
                actions.push(spawn_failed(&worker, text));
            }
        }
        actions.extend(zygote.waiting.iter().map(|wanted| spawn_failed(&wanted.spawn.worker, text)));
    }

    fn reaped(&mut self, process: ProcessId, exit: Exit, actions: &mut Vec<Action>) {
        let living = self
            .workers
            .iter()
            .find(|(_, worker)| worker.exit.is_none() && worker.process.pid == process.pid);
        if let Some(id) = living.map(|(id, _)| id.clone()) {
            return self.died(&id, exit, actions);
        }
        // An orphan of some worker, or a worker whose zygote has not spoken yet.
        if self.zygotes.values().any(|zygote| !zygote.forking.is_empty()) {
            self.unclaimed.push_back((process, exit));
            if self.unclaimed.len() > UNCLAIMED_MAX {
                self.unclaimed.pop_front();
            }
        } else {
            self.unclaimed.clear();
        }
    }

    fn died(&mut self, id: &WorkerId, exit: Exit, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.exit = Some(exit);
        actions.push(Action::Release(id.clone()));
        actions.push(Action::Tell(exited(id, worker.process, exit)));
        self.records.push_back(id.clone());
        if self.records.len() > RECORDS_MAX
            && let Some(oldest) = self.records.pop_front()
        {
            self.workers.remove(&oldest);
        }
    }

    fn tick(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Alone { until_ms } if now_ms >= until_ms => self.end(now_ms, actions),
            Phase::Ending { kill_at_ms } if now_ms >= kill_at_ms + KILLED_MS => actions.push(Action::Exit),
            Phase::Ending { kill_at_ms } if now_ms >= kill_at_ms => {
                actions.push(Action::SignalAll(rustix::process::Signal::KILL.as_raw()));
            }
            _ => {}
        }
        let overdue = |zygote: &Zygote| zygote.due_ms().is_some_and(|due_ms| now_ms >= due_ms);
        let late: Vec<_> =
            self.zygotes.iter().filter(|(_, zygote)| overdue(zygote)).map(|(id, _)| *id).collect();
        for id in late {
            actions.push(Action::EndZygote(id));
            self.zygote_gone(id, "its zygote did not answer in time", now_ms, actions);
        }
    }

    fn end(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if self.is_ending() {
            return;
        }
        self.phase = Phase::Ending { kill_at_ms: now_ms + TERMINATE_MS };
        for id in self.zygotes.keys().copied().collect::<Vec<_>>() {
            actions.push(Action::EndZygote(id));
            self.zygote_gone(id, "the keeper is ending", now_ms, actions);
        }
        actions.push(Action::SignalAll(rustix::process::Signal::TERM.as_raw()));
    }
}

impl Zygote {
    fn new(key: ZygoteKey, now_ms: u64) -> Self {
        Self { key, ready: false, since_ms: now_ms, waiting: VecDeque::new(), forking: BTreeMap::new() }
    }

    fn knows(&self, worker: &WorkerId) -> bool {
        self.forking.contains_key(worker) || self.waiting.iter().any(|wanted| wanted.spawn.worker == *worker)
    }

    fn is_idle(&self) -> bool {
        self.ready && self.waiting.is_empty() && self.forking.is_empty()
    }

    fn due_ms(&self) -> Option<u64> {
        if !self.ready {
            return Some(self.since_ms + ZYGOTE_READY_MS);
        }
        self.forking.values().map(|forking| forking.since_ms + FORK_MS).min()
    }

    fn fork_waiting(&mut self, id: ZygoteId, now_ms: u64, actions: &mut Vec<Action>) {
        if !self.ready {
            return;
        }
        for wanted in self.waiting.drain(..) {
            let spawn = wanted.spawn.clone();
            self.forking.insert(spawn.worker.clone(), Forking { wanted, since_ms: now_ms, signal: None });
            actions.push(Action::Fork(id, spawn));
        }
    }
}

impl Worker {
    fn known(&self, id: &WorkerId) -> KnownWorker {
        KnownWorker {
            worker: id.clone(),
            pid: self.process.pid,
            start_ticks: self.process.start_ticks,
            alive: self.exit.is_none(),
            status: self.exit.map(|exit| exit.how),
            peak_rss_bytes: self.exit.map(|exit| exit.peak_rss_bytes),
            oom_limit_bytes: self.exit.and_then(|exit| exit.oom_limit_bytes),
        }
    }
}

fn spawn_failed(worker: &WorkerId, error: &str) -> Action {
    Action::Tell(FromKeeper::SpawnFailed { worker: worker.clone(), error: clip(error) })
}

/// The words of a resolver or a traceback may be long; the last ones say most.
fn clip(text: &str) -> String {
    const TEXT_BYTES_MAX: usize = 8 * 1024;
    let from = text.len().saturating_sub(TEXT_BYTES_MAX);
    text.char_indices().find(|(at, _)| *at >= from).map_or(String::new(), |(at, _)| text[at..].to_owned())
}

fn exited(worker: &WorkerId, process: ProcessId, exit: Exit) -> FromKeeper {
    let Exit { how, peak_rss_bytes, oom_limit_bytes } = exit;
    FromKeeper::Exited { worker: worker.clone(), pid: process.pid, how, peak_rss_bytes, oom_limit_bytes }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
