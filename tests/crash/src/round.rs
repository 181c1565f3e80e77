//! One round: a run, its faults, its end, and the verdict.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use eclosion_client::Client;
use eclosion_schemas::RunId;
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::ops::kernel::{Empty, OnFull, Tree};
use eclosion_schemas::ops::pool;
use eclosion_schemas::ops::run::{Get, GetReply, RunRequest, Start, StartRequest};
use eclosion_schemas::view::{RunState, TaskState, WorkerState};
use eclosion_test_disk::FaultyDisk;

use crate::account::Account;
use crate::failure::{Failure, ensure};
use crate::fault::Fault;
use crate::kernel::{Kernel, PATIENCE, WORKERS_MAX, source};
use crate::ledger::Ledger;
use crate::seed::Seed;
use crate::strikes::callers::Callers;
use crate::{leftovers, verdict};

const WIDTH: u64 = 6;
/// What an orderly stop may leave has this long to end.
const ENDING: Duration = Duration::from_secs(10);

/// What is under way.
pub(crate) struct Round {
    /// Dropped first: nothing of it may still use the disk.
    pub(crate) kernel: Kernel,
    pub(crate) client: Client,
    pub(crate) run: RunId,
    pub(crate) ledger: Ledger,
    pub(crate) account: Account,
    disk: Option<FaultyDisk>,
}

/// Plays a round with faults that this machine can do.
pub(crate) async fn run(
    seed: u64,
    faults: &[Fault],
    dice: &mut Seed,
    disk: Option<FaultyDisk>,
) -> Result<String, Failure> {
    let directory = tempfile::Builder::new().prefix("ecl").tempdir()?;
    let ledger = Ledger::new(&directory.path().join("ledger"));
    for made in ["run", "ledger", "gate"] {
        fs::create_dir_all(directory.path().join(made))?;
    }
    private(&directory.path().join("run"))?;
    let state = disk.as_ref().map_or_else(|| directory.path().to_path_buf(), FaultyDisk::path).join("state");
    fs::create_dir_all(&state)?;
    let mut kernel = Kernel::new(directory.path(), &state);
    let client = kernel.start().await?;
    let callers = match faults.contains(&Fault::CallersKilled) {
        true => Some(Callers::hold_every_worker(&kernel, &client, &ledger).await?),
        false => None,
    };
    let work_ms = 20 + dice.below(60);
    let set = [("width", WIDTH), ("work_ms", work_ms)];
    let run = start(&client, directory.path(), "flow/flow.toml", &set).await?;
    let mut round = Round { kernel, client, run, ledger, account: Account::default(), disk };
    let value = (1..=WIDTH).map(|item| item * 4).sum();
    round.account.expected.insert(round.run.clone(), value);
    let verdict = round.until_judged(seed, faults, dice, callers).await;
    verdict.map_err(|why| {
        // What can still be looked at is kept.
        drop(round);
        Failure::new(format!("{why}\n  left in {}", directory.keep().display()))
    })
}

fn private(directory: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?)
}

/// Starts a run of one of the flows, with its places and these parameters.
async fn start(client: &Client, directory: &Path, flow: &str, set: &[(&str, u64)]) -> Result<RunId, Failure> {
    let (flow, set) = (flow_of(flow)?, parameters(directory, set));
    let request = StartRequest { flow, set, tenant: None, new: true, idem: None, no_cache: false };
    Ok(client.call::<Start>(request).await?.run)
}

pub(crate) fn flow_of(file: &str) -> Result<FlowSpec, Failure> {
    let mut flow: FlowSpec = toml::from_str(&fs::read_to_string(source(file))?).map_err(Failure::new)?;
    flow.code = source("flow").display().to_string();
    flow.code_hash = "crash".into();
    Ok(flow)
}

/// The places of a round, and these.
pub(crate) fn parameters(directory: &Path, set: &[(&str, u64)]) -> BTreeMap<String, serde_json::Value> {
    let places = ["ledger", "gate"].map(|place| (place, directory.join(place).display().to_string().into()));
    let numbers = set.iter().map(|(name, number)| (*name, (*number).into()));
    places.into_iter().chain(numbers).map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Round {
    async fn until_judged(
        &mut self,
        seed: u64,
        faults: &[Fault],
        dice: &mut Seed,
        callers: Option<Callers>,
    ) -> Result<String, Failure> {
        if let Err(why) = self.play(faults, dice, callers).await {
            let run = tokio::time::timeout(Duration::from_secs(2), self.get()).await;
            let shown = run.map_or_else(|_| "no answer".into(), |run| format!("{:?}", run.map(unended)));
            let log = self.kernel.log_tail();
            return Err(Failure::new(format!("{why}\n  run: {shown:.2000}\n  log:\n{log}")));
        }
        self.kernel.stop(&self.client).await?;
        self.nothing_is_left(ENDING)?;
        verdict::judge(self, self.kernel.directory(), seed)
    }

    async fn play(
        &mut self,
        faults: &[Fault],
        dice: &mut Seed,
        callers: Option<Callers>,
    ) -> Result<(), Failure> {
        if let Some(callers) = callers {
            self.kill_callers(callers).await?;
        }
        self.second_layer_runs().await?;
        for fault in faults {
            self.strike(*fault, dice).await?;
            self.second_layer_runs().await?;
        }
        self.open_gate("all")?;
        self.run_succeeds().await?;
        self.strike_afterwards(faults, dice).await
    }

    async fn strike_afterwards(&mut self, faults: &[Fault], dice: &mut Seed) -> Result<(), Failure> {
        let mut after: Vec<_> =
            faults.iter().filter_map(|fault| Some((fault.comes_after()?, *fault))).collect();
        after.sort_by_key(|(place, _)| *place);
        after.dedup();
        for (_, fault) in after {
            let struck = match fault {
                Fault::Service(victim) => self.kill_service(victim, dice).await,
                Fault::Stream(victim) => self.kill_stream(victim, dice).await,
                Fault::Arena(victim) => self.kill_arena(victim, dice).await,
                Fault::Ticks => self.kill_around_ticks(dice).await,
                Fault::Collection => self.kill_collection(dice).await,
                _ => self.crowds(dice).await,
            };
            struck.map_err(|why| Failure::new(format!("{fault:?}: {why}")))?;
        }
        Ok(())
    }

    /// Another run, which is from now on the one under way.
    pub(crate) async fn start(&mut self, flow: &str, set: &[(&str, u64)], value: u64) -> Result<(), Failure> {
        self.run = start(&self.client, self.kernel.directory(), flow, set).await?;
        self.account.expected.insert(self.run.clone(), value);
        Ok(())
    }

    /// An orderly stop, and a kernel with other settings.
    pub(crate) async fn begin_again(&mut self) -> Result<(), Failure> {
        self.kernel.stop(&self.client).await?;
        self.client = self.kernel.start().await?;
        Ok(())
    }

    pub(crate) async fn run_succeeds(&self) -> Result<(), Failure> {
        let filter = format!("run/{}/state", self.run);
        let ended = async || Ok(Some(self.get().await?).filter(|run| run.run.state.is_final()));
        let end = self.until_told(&filter, "the run ends", ended).await?;
        ensure(end.run.state == RunState::Succeeded, || {
            format!("the run ended {:?}: {:?}", end.run.state, end.run.error)
        })
    }

    async fn strike(&mut self, fault: Fault, dice: &mut Seed) -> Result<(), Failure> {
        match fault {
            Fault::WorkerKilled => self.kill_worker(dice).await,
            Fault::KernelKilled => self.kill_kernel(1, dice).await,
            Fault::KernelKilledTwice => self.kill_kernel(2, dice).await,
            Fault::KeeperKilled => self.kill_keeper().await,
            Fault::ClientKilled => self.kill_client().await,
            Fault::Panic("/session") => self.panic_session().await,
            Fault::Panic(address) => self.panic(address).await,
            Fault::Abandoned => self.abandon().await,
            Fault::PowerCut => self.cut_power(dice).await,
            Fault::SyncFails => self.fail_sync().await,
            Fault::BitFlipped => self.flip_bit(dice).await,
            // They come before the run, and after it: see `run` and `strike_afterwards`.
            _ => Ok(()),
        }
    }

    pub(crate) fn disk(&mut self) -> Result<&mut FaultyDisk, Failure> {
        self.disk.as_mut().ok_or_else(|| Failure::new("this round has no disk of its own"))
    }

    pub(crate) fn nothing_is_left(&self, patience: Duration) -> Result<(), Failure> {
        leftovers::none_within(self.kernel.directory(), &self.kernel.instance(), patience)
            .map_err(Failure::new)
    }

    /// Lets tasks of the second layer end: one by its id, or `all`.
    pub(crate) fn open_gate(&self, which: &str) -> Result<(), Failure> {
        Ok(fs::write(self.kernel.directory().join("gate").join(which), "open")?)
    }

    pub(crate) async fn get(&self) -> Result<GetReply, Failure> {
        Ok(self.client.call::<Get>(RunRequest { run: self.run.clone() }).await?)
    }

    /// Looks after each change that the run's subscription brings, until `reached`.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        reached: impl Fn(&GetReply) -> bool,
    ) -> Result<GetReply, Failure> {
        let filter = format!("run/{}/**", self.run);
        let found = async || Ok(Some(self.get().await?).filter(|run| reached(run)));
        self.until_told(&filter, what, found).await
    }

    /// Looks after each change of these subjects, until `look` finds something.
    pub(crate) async fn until_told<T>(
        &self,
        filter: &str,
        what: &str,
        look: impl AsyncFn() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let waiting = async {
            let mut changes = self.client.subscribe(filter).on_full(OnFull::Latest).await?;
            loop {
                if let Some(found) = look().await? {
                    return Ok::<_, Failure>(found);
                }
                match changes.next().await {
                    Some(change) => drop(change?),
                    None => return Err(Failure::new("the subscription ended")),
                }
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(format!("waited in vain until {what}"))),
        }
    }

    /// Asks again and again, where nothing tells of a change, until `look` finds something.
    pub(crate) async fn until_asked<T>(
        &self,
        what: &str,
        look: impl AsyncFn() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let asking = async {
            loop {
                match look().await? {
                    Some(found) => return Ok(found),
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let vain = |_| Failure::new(format!("asked in vain until {what}"));
        tokio::time::timeout(PATIENCE, asking).await.map_err(vain)?
    }

    pub(crate) async fn second_layer_runs(&mut self) -> Result<(), Failure> {
        self.until("a task of the second layer runs", |run| !running(run).is_empty()).await.map(drop)
    }

    pub(crate) async fn every_worker_works(&mut self) -> Result<(), Failure> {
        let all = |run: &GetReply| running(run).len() == WORKERS_MAX;
        self.until("every worker works for the run", all).await.map(drop)
    }

    /// Workers that compute, by their pids.
    pub(crate) async fn busy(&self) -> Result<BTreeMap<u32, String>, Failure> {
        let status = self.client.call::<pool::Status>(pool::StatusRequest {}).await?;
        let busy = status.workers.into_iter().filter(|worker| worker.state == WorkerState::Busy);
        Ok(busy.map(|worker| (worker.pid, worker.worker.to_string())).collect())
    }

    pub(crate) async fn sessions(&self) -> Result<Vec<String>, Failure> {
        sessions(&self.client).await
    }
}

/// What a run that does not end is waiting for.
fn unended(mut run: GetReply) -> GetReply {
    run.tasks.retain(|task| task.state != TaskState::Succeeded);
    run
}

pub(crate) async fn sessions(client: &Client) -> Result<Vec<String>, Failure> {
    let tree = client.call::<Tree>(Empty {}).await?;
    let addresses = tree.actors.into_iter().map(|row| row.address);
    Ok(addresses.filter(|address| address.starts_with("/sessions/")).collect())
}

/// The tasks of the second layer that run, and their attempts.
pub(crate) fn running(run: &GetReply) -> BTreeMap<String, u32> {
    let tasks = run.tasks.iter().filter(|task| task.state == TaskState::Running);
    let second = tasks.filter(|task| task.task.as_str().starts_with("second"));
    second.map(|task| (task.task.to_string(), task.attempt.0)).collect()
}

/// How many tasks of the second layer have no result yet.
pub(crate) fn unfinished(run: &GetReply) -> usize {
    let second = run.tasks.iter().filter(|task| task.task.as_str().starts_with("second"));
    second.filter(|task| task.state != TaskState::Succeeded).count()
}
