//! A crowd: hundreds of tasks that take no time, so that several wait at each worker and outcomes are on their way at any
//! moment. The kernel is told that its tasks are quick: on a machine with much to do they would not be for a while, and
//! nothing would wait. The dice choose who is struck, and after how many ends.
//!
//! The second crowd has a task that blocks in its midst. What waits behind it must be given back and end elsewhere while
//! it still blocks: its gate is opened only then.

use std::collections::{BTreeSet, VecDeque};

use eclosion_schemas::ops::pool;
use eclosion_schemas::ops::run::GetReply;
use eclosion_schemas::view::WorkerState;

use super::kills::kill;
use crate::account::CrowdRun;
use crate::failure::{Failure, ensure};
use crate::ledger::Ends;
use crate::round::Round;
use crate::seed::Seed;

const WIDTH: usize = 300;
/// Of a crowd of which more have ended, too little may be left to be struck.
const STRUCK_WITHIN: usize = 220;
/// Crowds that may have nobody behind the one that blocks, by chance.
const BLOCKED_MAX: usize = 3;

/// In their order, each with the number of ends that it waits for after the one before.
type Strikes = VecDeque<(Strike, usize)>;

#[derive(Debug, Clone, Copy)]
enum Strike {
    Worker,
    Kernel,
    Keeper,
    Panic(&'static str),
}

/// Each at most once a crowd: a task may be lost with its worker only so often.
const DEADLY: [Strike; 2] = [Strike::Worker, Strike::Keeper];
/// Workers keep what they have.
const SPARING: [Strike; 4] =
    [Strike::Kernel, Strike::Panic("/dag"), Strike::Panic("/pool"), Strike::Panic("/journal/syncer")];

impl Round {
    pub(crate) async fn crowds(&mut self, dice: &mut Seed) -> Result<(), Failure> {
        self.kernel.give_ahead(true);
        self.begin_again().await?;
        let mut left = strikes(&[&SPARING[..], &DEADLY].concat(), 3, dice);
        while !left.is_empty() {
            let before = left.len();
            self.start_crowd(None).await?;
            self.strike_amid(&mut left, dice).await?;
            self.run_succeeds().await?;
            ensure(left.len() < before, || "a crowd was over before it could be struck".into())?;
        }
        self.crowd_behind_one(dice).await?;
        // Of the kernel that whoever comes next begins with.
        self.kernel.give_ahead(false);
        Ok(())
    }

    async fn crowd_behind_one(&mut self, dice: &mut Seed) -> Result<(), Failure> {
        for _ in 0..BLOCKED_MAX {
            // Not among the first, nor among the last: there is a crowd before it and after it.
            let blocking = WIDTH as u64 / 10 + dice.below(WIDTH as u64 / 2);
            self.start_crowd(Some(blocking)).await?;
            let mut left = strikes(&SPARING, 1, dice);
            let mut ends = self.strike_amid(&mut left, dice).await?;
            let ended = ends.reach(WIDTH - 1).await?;
            ensure(ended == WIDTH - 1, || format!("item {blocking} did not block"))?;
            // Only now may its worker die: with it, what waits behind would not be given back.
            left.extend(DEADLY.get(dice.below(3) as usize).map(|strike| (*strike, 0)));
            for (strike, _) in left {
                self.strike_crowd(strike, dice).await?;
            }
            self.open_gate(&format!("crowd-{}", self.run))?;
            self.run_succeeds().await?;
            if given_back(&self.get().await?) {
                return Ok(());
            }
        }
        Err(Failure::new("nothing waited behind a task that blocks, so nothing was given back"))
    }

    async fn start_crowd(&mut self, blocking: Option<u64>) -> Result<(), Failure> {
        let width = WIDTH as u64;
        let set = [("width", width), ("blocks", blocking.unwrap_or(0))];
        self.start("flow/crowd.toml", &set, (1..=width).sum()).await?;
        self.account.crowds.push(CrowdRun { run: self.run.clone(), blocks: blocking.is_some() });
        Ok(())
    }

    /// Takes strikes as long as there is a crowd to strike; whatever is left came too late for this one.
    async fn strike_amid(&mut self, left: &mut Strikes, dice: &mut Seed) -> Result<Ends, Failure> {
        let mut ends = Ends::of(&self.ledger, &self.run, "quick");
        while let Some((strike, later)) = left.front().copied() {
            let moment = ends.reach(0).await? + later;
            if moment >= STRUCK_WITHIN || ends.reach(moment).await? >= WIDTH - 1 {
                break;
            }
            let struck = self.strike_crowd(strike, dice).await;
            struck.map_err(|why| Failure::new(format!("{strike:?} after {moment} ends: {why}")))?;
            left.pop_front();
        }
        Ok(ends)
    }

    async fn strike_crowd(&mut self, strike: Strike, dice: &mut Seed) -> Result<(), Failure> {
        let some = async || Ok(Some(self.attached().await?).filter(|pids| !pids.is_empty()));
        let before = self.until_told("worker/*/state", "there is a worker", some).await?;
        match strike {
            Strike::Worker => {
                let chosen = dice.below(before.len() as u64) as usize;
                let victim: BTreeSet<u32> = before.into_iter().skip(chosen).take(1).collect();
                victim.iter().try_for_each(|pid| kill(*pid))?;
                self.account.kills.worker += 1;
                self.are_gone(&victim).await
            }
            Strike::Keeper => {
                self.strike_keeper()?;
                self.are_gone(&before).await
            }
            Strike::Kernel => {
                self.kernel.kill().await?;
                self.account.kills.kernel += 1;
                self.client = self.kernel.start().await?;
                self.are_still_there(&before).await
            }
            Strike::Panic(address) => {
                self.panic_amid(address).await?;
                self.are_still_there(&before).await
            }
        }
    }

    /// Workers that the kernel has, by their pids.
    async fn attached(&self) -> Result<BTreeSet<u32>, Failure> {
        let status = self.client.call::<pool::Status>(pool::StatusRequest {}).await?;
        let is_attached =
            |state| matches!(state, WorkerState::Idle | WorkerState::Busy | WorkerState::Stopping);
        let attached = status.workers.into_iter().filter(|worker| is_attached(worker.state));
        Ok(attached.map(|worker| worker.pid).collect())
    }

    async fn are_gone(&self, pids: &BTreeSet<u32>) -> Result<(), Failure> {
        let gone = async || Ok(self.attached().await?.is_disjoint(pids).then_some(()));
        self.until_told("worker/*/state", "the death of a worker is known", gone).await
    }

    async fn are_still_there(&self, before: &BTreeSet<u32>) -> Result<(), Failure> {
        let after = self.attached().await?;
        ensure(before.is_subset(&after), || format!("workers were not kept: {before:?} then {after:?}"))
    }
}

/// So many of these, or up to two more.
fn strikes(of: &[Strike], least: usize, dice: &mut Seed) -> Strikes {
    let mut left = of.to_vec();
    let count = least + dice.below(3) as usize;
    let later = (STRUCK_WITHIN / count) as u64;
    let chosen = |_| (left.swap_remove(dice.below(left.len() as u64) as usize), dice.below(later) as usize);
    (0..count).map(chosen).collect()
}

/// Tried again although nothing was lost.
fn given_back(run: &GetReply) -> bool {
    run.tasks.iter().any(|task| task.attempt.0 > 1 && task.certificates.is_empty())
}
