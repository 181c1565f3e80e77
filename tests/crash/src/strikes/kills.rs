//! SIGKILL of a worker, the kernel, the keeper, a client.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use eclosion_schemas::certificate::{Death, DeathCertificate};
use eclosion_schemas::ops::run::GetReply;
use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Failure, ensure};
use crate::kernel::PATIENCE;
use crate::ledger::Line;
use crate::leftovers;
use crate::round::Round;
use crate::seed::Seed;

impl Round {
    pub(crate) async fn kill_worker(&mut self, dice: &mut Seed) -> Result<(), Failure> {
        let busy: Vec<u32> = self.busy().await?.into_keys().collect();
        let pid = *busy
            .get(dice.below(busy.len() as u64) as usize)
            .ok_or_else(|| Failure::new("no worker is busy"))?;
        let hand = self.ledger.has_started(pid).await?;
        kill(pid)?;
        self.account.kills.worker += 1;
        self.account.took_along = true;
        let dead = move |run: &GetReply| certificate(run, pid).is_some();
        let found = self.until("the worker has its certificate", dead).await?;
        let death = certificate(&found, pid).ok_or_else(|| Failure::new("no certificate"))?;
        ensure(is_complete(death, &hand), || format!("the certificate is incomplete: {death:?}, {hand:?}"))
    }

    pub(crate) async fn kill_kernel(&mut self, times: usize, dice: &mut Seed) -> Result<(), Failure> {
        let before = self.busy().await?;
        for again in 0..times {
            self.kernel.kill().await?;
            self.account.kills.kernel += 1;
            if again + 1 < times {
                // The next one dies somewhere in its recovery: nothing tells from outside where it is.
                let moment = Duration::from_millis(dice.below(60));
                let started = self.kernel.start();
                let _ = tokio::time::timeout(moment, started).await;
            }
        }
        self.client = self.kernel.start().await?;
        let after = self.busy().await?;
        ensure(before.keys().all(|pid| after.contains_key(pid)), || {
            format!("busy workers were not taken over: {before:?} then {after:?}")
        })
    }

    pub(crate) async fn kill_keeper(&mut self) -> Result<(), Failure> {
        let before = self.busy().await?;
        self.strike_keeper()?;
        let lost = move |run: &GetReply| before.keys().all(|pid| certificate(run, *pid).is_some());
        self.until("every attempt is lost", lost).await.map(drop)
    }

    pub(crate) fn strike_keeper(&mut self) -> Result<(), Failure> {
        let pids = leftovers::processes(self.kernel.directory());
        let keeper = pids.into_iter().find(|pid| is_keeper(*pid)).ok_or_else(|| Failure::new("no keeper"))?;
        kill(keeper)?;
        self.account.kills.keeper += 1;
        Ok(())
    }

    /// A follower that is killed gives its session back, and the run goes on.
    pub(crate) async fn kill_client(&mut self) -> Result<(), Failure> {
        let before = self.sessions().await?.len();
        let mut follower =
            self.kernel.command(&["sub", "run/**", "--json"]).stdout(Stdio::piped()).spawn()?;
        let lines = follower.stdout.take().map(BufReader::new);
        let mut first = String::new();
        lines.ok_or_else(|| Failure::new("no output"))?.read_line(&mut first)?;
        follower.kill()?;
        follower.wait()?;
        self.sessions_end(before).await
    }

    /// Until no more sessions are there than `before`.
    pub(crate) async fn sessions_end(&self, before: usize) -> Result<(), Failure> {
        let given_back = async {
            while self.sessions().await?.len() > before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, Failure>(())
        };
        tokio::time::timeout(PATIENCE, given_back).await.map_err(|_| Failure::new("its session stays"))?
    }
}

fn certificate(run: &GetReply, pid: u32) -> Option<&DeathCertificate> {
    run.tasks.iter().flat_map(|task| &task.certificates).find(|death| death.pid == pid)
}

/// It names the signal, and the same task and attempt as the worker's own ledger, and what that printed.
fn is_complete(death: &DeathCertificate, hand: &Line) -> bool {
    matches!(death.death, Death::Killed { signal: 9, .. })
        && death.task.as_ref().is_some_and(|task| task.task.as_str() == hand.task)
        && death.attempt.is_some_and(|attempt| attempt.0 == hand.attempt)
        && death.last_lines.iter().any(|line| line.starts_with("working on"))
}

pub(super) fn kill(pid: u32) -> Result<(), Failure> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Failure::new("no pid"))?;
    kill_process(pid, Signal::KILL).map_err(|why| Failure::new(format!("{pid:?}: {why}")))
}

fn is_keeper(pid: u32) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).nth(1) == Some(b"keeper")
}
