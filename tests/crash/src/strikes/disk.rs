//! The disk under the state directory: without power, or dead under a file system that goes on.

use eclosion_schemas::ops::kernel::{Empty, Status};
use eclosion_schemas::ops::run::{List, ListRequest};
use serde_json::Value;

use crate::account::finished;
use crate::failure::{Failure, ensure};
use crate::kernel::{PATIENCE, WORKERS_MAX, source};
use crate::round::{Round, running, unfinished};
use crate::seed::Seed;

impl Round {
    /// The power goes while steps finish and their successors start, and a client follows.
    pub(crate) async fn cut_power(&mut self, dice: &mut Seed) -> Result<(), Failure> {
        let run = self.get().await?;
        self.account.told.hear_run(&run);
        // Whatever strikes next finds every worker at work.
        let spare = unfinished(&run).saturating_sub(WORKERS_MAX);
        let tasks: Vec<String> = running(&run).into_keys().take(spare).collect();
        let wanted = tasks.len() - dice.below(tasks.len() as u64) as usize;
        self.follow(&tasks, wanted).await?;
        self.disk()?.cut_power()?;
        self.kernel.kill_all().await?;
        self.account.kills.kernel += 1;
        self.account.everything_died();
        self.disk()?.power_on()?;
        self.client = self.kernel.start().await?;
        self.what_was_told_is_there().await
    }

    /// Lets these tasks end, and listens until so many of them were told to be finished. What comes after that, while
    /// the power goes, proves nothing and is not heard.
    async fn follow(&mut self, tasks: &[String], wanted: usize) -> Result<(), Failure> {
        let filter = format!("run/{}/task/*/state", self.run);
        let mut changes = self.client.subscribe(filter).await?;
        tasks.iter().try_for_each(|task| self.open_gate(task))?;
        let following = async {
            let told = &mut self.account.told;
            while tasks.iter().filter(|task| told.finished.contains(*task)).count() < wanted {
                match changes.next().await {
                    Some(delivery) => told.hear(&delivery?),
                    None => return Err(Failure::new("the subscription ended")),
                }
            }
            Ok(())
        };
        let vain = |_| Failure::new("a follower is not told that steps finished");
        tokio::time::timeout(PATIENCE, following).await.map_err(vain)?
    }

    async fn what_was_told_is_there(&self) -> Result<(), Failure> {
        let told = &self.account.told;
        let synced = self.client.call::<Status>(Empty {}).await?.synced;
        let finished = finished(&self.get().await?);
        ensure(synced.0 >= told.seq && told.finished.is_subset(&finished), || {
            format!("told: {told:?}; there is: #{synced} {finished:?}")
        })
    }

    /// Writes are taken and syncs fail: the kernel turns read-only, says so, and goes on reading.
    pub(crate) async fn fail_sync(&mut self) -> Result<(), Failure> {
        self.every_worker_works().await?;
        let before = self.busy().await?;
        self.account.told.hear_run(&self.get().await?);
        self.disk()?.fail()?;
        // Whether the first of them happened, nobody can know, unless another sync has failed before it.
        self.is_refused(&["unknown", "unavailable"]).await?;
        self.is_refused(&["unavailable"]).await?;
        self.says_so().await?;
        self.still_reads().await?;
        let after = self.busy().await?;
        ensure(before == after, || format!("busy workers changed: {before:?} then {after:?}"))?;
        let down = self.kernel.say(&["down"]).await?;
        ensure(down.status.success(), || format!("down: {down:?}"))?;
        self.kernel.stopped().await?;
        // Its workers ended with it, and that could not be recorded.
        self.kernel.kill_all().await?;
        self.account.everything_died();
        self.disk()?.power_on()?;
        self.client = self.kernel.start().await?;
        self.what_was_told_is_there().await?;
        let runs = self.client.call::<List>(ListRequest { state: None, limit: 10 }).await?.runs;
        ensure(runs.len() == 1, || format!("what was not synced has happened: {runs:?}"))
    }

    /// A change is refused: with a code, a reason, whether to try again, and the next command.
    async fn is_refused(&self, codes: &[&str]) -> Result<(), Failure> {
        let flow = source("flow/flow.toml");
        let refused =
            self.kernel.say(&["run", &flow.to_string_lossy(), "--detach", "--new", "--json"]).await?;
        let error: Value = serde_json::from_slice(&refused.stdout)?;
        let help = error["help"].as_str().unwrap_or_default();
        let named = codes.iter().any(|code| error["code"] == *code) && error["reason"] == "journal.poisoned";
        let advised = error["retry"]["policy"] == "never" && help.starts_with("eclosion status");
        ensure(refused.status.code() == Some(5) && named && advised, || {
            format!("a change on a dead disk: {}, {error}", refused.status)
        })
    }

    async fn says_so(&self) -> Result<(), Failure> {
        let status = self.kernel.say(&["status", "--json"]).await?;
        let shown: Value = serde_json::from_slice(&status.stdout)?;
        let finding = |text: &str| {
            let all = shown["findings"].as_array().map_or(&[][..], Vec::as_slice);
            all.iter().filter_map(Value::as_str).any(|finding| finding.contains(text))
        };
        let said = shown["state"] == "read_only"
            && finding("read-only")
            && finding("Input/output error")
            && finding("eclosion down && eclosion up");
        ensure(status.status.success() && said, || format!("status of a read-only kernel: {shown}"))?;
        let status = self.kernel.say(&["status"]).await?;
        let (out, err) = (String::from_utf8_lossy(&status.stdout), String::from_utf8_lossy(&status.stderr));
        let said = out.contains("read_only") && err.contains("eclosion down && eclosion up");
        ensure(status.status.success() && said, || format!("status of a read-only kernel: {out}\n{err}"))
    }

    async fn still_reads(&self) -> Result<(), Failure> {
        let run = self.run.to_string();
        let reads: [&[&str]; 6] = [
            &["runs", "ls"],
            &["runs", "show", &run],
            &["why", &run],
            &["pool"],
            &["tree"],
            &["artifact", "ls"],
        ];
        for read in reads {
            let answer = self.kernel.say(read).await?;
            ensure(answer.status.success(), || format!("{read:?} of a read-only kernel: {answer:?}"))?;
        }
        Ok(())
    }
}
