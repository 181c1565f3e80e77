//! One round: a run, its faults, its end, and the verdict.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use eclosion_client::Client;
use eclosion_schemas::certificate::Death;
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::operation::{NoItem, Operation};
use eclosion_schemas::ops::arbitration;
use eclosion_schemas::ops::artifact;
use eclosion_schemas::ops::kernel::{Empty, OnFull, Ping, Tree};
use eclosion_schemas::ops::pool;
use eclosion_schemas::ops::run::{Get, GetReply, RunRequest, Start, StartRequest};
use eclosion_schemas::view::{RunState, TaskState, WorkerState};
use eclosion_schemas::{Durability, Error, Role, RunId};
use rustix::process::{Pid, Signal, kill_process};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::kernel::{Kernel, PATIENCE, python, source};
use crate::leftovers;
use crate::seed::Seed;

/// What went wrong in a round, in words.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl std::fmt::Display) -> Self {
        Self(text.to_string())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Failure {
    fn from(why: std::io::Error) -> Self {
        Self::new(why)
    }
}

impl From<Error> for Failure {
    fn from(why: Error) -> Self {
        Self::new(why)
    }
}

/// The kernel's own `chaos.panic`, as a stranger sees it.
struct Chaos;
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct ChaosRequest {
    address: String,
}
impl Operation for Chaos {
    type Request = ChaosRequest;
    type Reply = ();
    type Item = NoItem;
    const NAME: &'static str = "chaos.panic";
    const ADDRESS: &'static str = "/kernel";
    const ROLE: Role = Role::Admin;
    const DURABILITY: Durability = Durability::Call;
    const DOC: &'static str = "Makes an actor panic.";
    fn example() -> ChaosRequest {
        ChaosRequest { address: "/dag".into() }
    }
}

const WIDTH: u64 = 6;
const WORKERS_MAX: usize = 64;

#[derive(Debug, Default, Serialize)]
struct Kills {
    worker: usize,
    keeper: usize,
    kernel: usize,
}

/// What is under way.
struct Round {
    kernel: Kernel,
    client: Client,
    run: RunId,
    kills: Kills,
}

pub(crate) async fn run(seed: u64, faults: &[Fault], dice: &mut Seed) -> Result<String, Failure> {
    let directory = tempfile::Builder::new().prefix("ecl").tempdir()?;
    let ledger = directory.path().join("ledger");
    for made in ["run", "state", "ledger"] {
        fs::create_dir_all(directory.path().join(made))?;
    }
    private(&directory.path().join("run"))?;
    let gate = directory.path().join("gate");
    let mut kernel = Kernel::new(directory.path());
    let client = kernel.start().await?;
    let run = start(&client, &ledger, &gate, 20 + dice.below(60)).await?;
    let mut round = Round { kernel, client, run, kills: Kills::default() };
    let outcome = round.play(faults, dice, &gate).await;
    if let Err(why) = outcome {
        let tasks = tokio::time::timeout(Duration::from_secs(2), round.get()).await;
        let shown = tasks.map_or_else(|_| "no answer".into(), |tasks| format!("{tasks:?}"));
        return Err(Failure::new(format!(
            "{why}\n  run: {shown:.2000}\n  log:\n{}",
            round.kernel.log_tail()
        )));
    }
    let Round { mut kernel, client, run, kills } = round;
    kernel.stop(&client).await?;
    leftovers::none_within(directory.path(), Duration::from_secs(10))?;
    judge(directory.path(), &kernel.journal(), &run, &kills, seed)
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

fn private(directory: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?)
}

async fn start(client: &Client, ledger: &Path, gate: &Path, work_ms: u64) -> Result<RunId, Failure> {
    let text = fs::read_to_string(source("flow/flow.toml"))?;
    let mut flow: FlowSpec = toml::from_str(&text).map_err(Failure::new)?;
    flow.code = source("flow").display().to_string();
    flow.code_hash = "crash".into();
    let set = BTreeMap::from([
        ("ledger".to_owned(), ledger.display().to_string().into()),
        ("gate".to_owned(), gate.display().to_string().into()),
        ("width".to_owned(), WIDTH.into()),
        ("work_ms".to_owned(), work_ms.into()),
    ]);
    let request = StartRequest { flow, set, tenant: None, new: true, idem: None };
    Ok(client.call::<Start>(request).await?.run)
}

impl Round {
    async fn play(&mut self, faults: &[Fault], dice: &mut Seed, gate: &Path) -> Result<(), Failure> {
        self.until("a task of the second layer runs", second_layer_runs).await?;
        for fault in faults {
            self.strike(*fault, dice).await?;
            self.until("a task runs again", second_layer_runs).await?;
        }
        fs::write(gate, "open")?;
        let end = self.until("the run ends", |run| run.run.state.is_final()).await?;
        if end.run.state == RunState::Succeeded {
            Ok(())
        } else {
            Err(Failure::new(format!("the run ended {:?}: {:?}", end.run.state, end.run.error)))
        }
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
        }
    }

    async fn get(&self) -> Result<GetReply, Failure> {
        Ok(self.client.call::<Get>(RunRequest { run: self.run.clone() }).await?)
    }

    /// Looks after each change that the run's subscription brings, until `reached`.
    async fn until(&mut self, what: &str, reached: impl Fn(&GetReply) -> bool) -> Result<GetReply, Failure> {
        let waiting = async {
            let filter = format!("run/{}/**", self.run);
            let mut changes = self.client.subscribe(filter).on_full(OnFull::Latest).await?;
            loop {
                let found = self.get().await?;
                if reached(&found) {
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

    async fn busy(&self) -> Result<BTreeMap<u32, String>, Failure> {
        let status = self.client.call::<pool::Status>(pool::StatusRequest {}).await?;
        let busy = status.workers.into_iter().filter(|worker| worker.state == WorkerState::Busy);
        Ok(busy.map(|worker| (worker.pid, worker.worker.to_string())).collect())
    }

    async fn kill_worker(&mut self, dice: &mut Seed) -> Result<(), Failure> {
        let busy: Vec<u32> = self.busy().await?.into_keys().collect();
        let pid = *busy
            .get(dice.below(busy.len() as u64) as usize)
            .ok_or_else(|| Failure::new("no worker is busy"))?;
        self.has_started(pid).await?;
        kill(pid)?;
        self.kills.worker += 1;
        let dead = move |run: &GetReply| {
            run.tasks.iter().any(|task| task.certificates.iter().any(|death| death.pid == pid))
        };
        let found = self.until("the worker has its certificate", dead).await?;
        let death = found.tasks.iter().flat_map(|task| &task.certificates).find(|death| death.pid == pid);
        let Some(death) = death else { return Err(Failure::new("no certificate")) };
        let complete = matches!(death.death, Death::Killed { signal: 9, .. })
            && death.task.is_some()
            && death.attempt.is_some()
            && death.last_lines.iter().any(|line| line.starts_with("working on"));
        if complete { Ok(()) } else { Err(Failure::new(format!("the certificate is incomplete: {death:?}"))) }
    }

    /// Waits until the worker's ledger says that it is in the middle of a task.
    async fn has_started(&self, pid: u32) -> Result<(), Failure> {
        let path = self.kernel_directory().join("ledger").join(format!("{pid}.jsonl"));
        let started = async {
            loop {
                let text = fs::read_to_string(&path).unwrap_or_default();
                if text
                    .lines()
                    .last()
                    .is_some_and(|line| line.contains("\"start\"") && line.contains("second"))
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, started)
            .await
            .map_err(|_| Failure::new("the busy worker starts nothing"))
    }

    async fn kill_kernel(&mut self, times: usize, dice: &mut Seed) -> Result<(), Failure> {
        let before = self.busy().await?;
        for again in 0..times {
            self.kernel.kill()?;
            self.kills.kernel += 1;
            if again + 1 < times {
                // The next one dies somewhere in its recovery: nothing tells from outside where it is.
                let started = self.kernel.start();
                let moment = Duration::from_millis(dice.below(60));
                let _ = tokio::time::timeout(moment, started).await;
            }
        }
        self.client = self.kernel.start().await?;
        let after = self.busy().await?;
        if before.iter().all(|(pid, _)| after.contains_key(pid)) {
            Ok(())
        } else {
            Err(Failure::new(format!("busy workers were not taken over: {before:?} then {after:?}")))
        }
    }

    async fn kill_keeper(&mut self) -> Result<(), Failure> {
        let before = self.busy().await?;
        let pids = leftovers::processes(&self.kernel_directory());
        let keeper = pids.into_iter().find(|pid| is_keeper(*pid)).ok_or_else(|| Failure::new("no keeper"))?;
        kill(keeper)?;
        self.kills.keeper += 1;
        let lost = move |run: &GetReply| {
            let dead = |pid: &u32| {
                run.tasks.iter().any(|task| task.certificates.iter().any(|death| death.pid == *pid))
            };
            before.keys().all(dead)
        };
        self.until("every attempt is lost", lost).await.map(drop)
    }

    fn kernel_directory(&self) -> std::path::PathBuf {
        self.kernel.socket().parent().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default()
    }

    /// A follower that is killed gives its session back, and the run goes on.
    async fn kill_client(&mut self) -> Result<(), Failure> {
        let before = self.sessions().await?.len();
        let mut follower =
            self.kernel.command(&["sub", "run/**", "--json"]).stdout(Stdio::piped()).spawn()?;
        let lines = follower.stdout.take().map(BufReader::new);
        let mut first = String::new();
        lines.ok_or_else(|| Failure::new("no output"))?.read_line(&mut first)?;
        follower.kill()?;
        follower.wait()?;
        let given_back = async {
            while self.sessions().await?.len() > before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, Failure>(())
        };
        tokio::time::timeout(PATIENCE, given_back).await.map_err(|_| Failure::new("its session stays"))?
    }

    async fn sessions(&self) -> Result<Vec<String>, Failure> {
        let tree = self.client.call::<Tree>(Empty {}).await?;
        let addresses = tree.actors.into_iter().map(|row| row.address);
        Ok(addresses.filter(|address| address.starts_with("/sessions/")).collect())
    }

    async fn panic_session(&mut self) -> Result<(), Failure> {
        let before = self.sessions().await?;
        let victim = Client::connect(&self.kernel.socket()).await?;
        victim.call::<Ping>(Empty {}).await?;
        let new = self.sessions().await?.into_iter().find(|address| !before.contains(address));
        let address = new.ok_or_else(|| Failure::new("the second client has no session"))?;
        self.client.call::<Chaos>(ChaosRequest { address }).await?;
        let over = tokio::time::timeout(PATIENCE, victim.closed()).await;
        over.map_err(|_| Failure::new("the client of a dead session was not told"))?;
        self.client.call::<Ping>(Empty {}).await?;
        Ok(())
    }

    /// The next incarnation answers what was waiting, the others keep answering, workers keep pid and attempt.
    async fn panic(&mut self, address: &'static str) -> Result<(), Failure> {
        let (before, attempts) = (self.busy().await?, attempts(&self.get().await?));
        let request = ChaosRequest { address: address.to_owned() };
        let (panicked, answered) = tokio::join!(async { self.client.call::<Chaos>(request).await }, async {
            self.client.call::<pool::Status>(pool::StatusRequest {}).await?;
            self.client.call::<arbitration::Status>(arbitration::StatusRequest {}).await?;
            let list = artifact::ListRequest { run: None, prefix: String::new(), limit: 10 };
            self.client.call::<artifact::List>(list).await?;
            self.client.call::<Get>(RunRequest { run: self.run.clone() }).await?;
            Client::connect(&self.kernel.socket()).await?.call::<Ping>(Empty {}).await
        });
        panicked?;
        answered?;
        self.restarted(address).await?;
        let (after, now) = (self.busy().await?, attempts_of(&attempts, &self.get().await?));
        if before.iter().all(|(pid, _)| after.contains_key(pid)) && now == attempts {
            Ok(())
        } else {
            Err(Failure::new(format!("{address}: {before:?} {attempts:?} became {after:?} {now:?}")))
        }
    }

    async fn restarted(&self, address: &str) -> Result<(), Failure> {
        let again = async {
            loop {
                let tree = self.client.call::<Tree>(Empty {}).await?;
                let row = tree.actors.into_iter().find(|row| row.address == address);
                if row.is_some_and(|row| row.incarnation.0 > 1) {
                    return Ok::<_, Failure>(());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, again)
            .await
            .map_err(|_| Failure::new(format!("{address} did not panic")))?
    }
}

fn second_layer_runs(run: &GetReply) -> bool {
    run.tasks.iter().any(|task| task.task.as_str().starts_with("second") && task.state == TaskState::Running)
}

fn attempts(run: &GetReply) -> BTreeMap<String, u32> {
    let running = run.tasks.iter().filter(|task| task.state == TaskState::Running);
    running.map(|task| (task.task.to_string(), task.attempt.0)).collect()
}

/// The attempts, now, of the tasks that were running then.
fn attempts_of(then: &BTreeMap<String, u32>, run: &GetReply) -> BTreeMap<String, u32> {
    let same = run.tasks.iter().filter(|task| then.contains_key(task.task.as_str()));
    same.map(|task| (task.task.to_string(), task.attempt.0)).collect()
}

fn kill(pid: u32) -> Result<(), Failure> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Failure::new("no pid"))?;
    kill_process(pid, Signal::KILL).map_err(|why| Failure::new(format!("{pid:?}: {why}")))
}

fn is_keeper(pid: u32) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).nth(1) == Some(b"keeper")
}

/// The verdict of a program that shares no code with the kernel; and the proof that it can say no.
fn judge(directory: &Path, journal: &Path, run: &RunId, kills: &Kills, seed: u64) -> Result<String, Failure> {
    let copy = directory.join("judged");
    fs::create_dir_all(copy.join("journal"))?;
    for entry in fs::read_dir(journal)? {
        let path = entry?.path();
        if path.is_file() {
            fs::copy(&path, copy.join("journal").join(path.file_name().unwrap_or_default()))?;
        }
    }
    fs::rename(directory.join("ledger"), copy.join("ledger"))?;
    let expected = BTreeMap::from([(run.to_string(), (1..=WIDTH).map(|item| item * 4).sum::<u64>())]);
    let about = serde_json::json!({"expected": expected, "kills": kills, "workers_max": WORKERS_MAX});
    fs::write(copy.join("round.json"), about.to_string())?;
    let judged =
        |forge: &[&str]| Command::new(python()).arg(source("judge.py")).arg(&copy).args(forge).output();
    let verdict = judged(&[])?;
    let words = String::from_utf8_lossy(&verdict.stdout).trim().to_owned();
    if !verdict.status.success() {
        return Err(Failure::new(format!("{words}\n{}", String::from_utf8_lossy(&verdict.stderr))));
    }
    let forgeries = ["double-commit", "lost-record", "spurious-start"];
    let forgery = forgeries[(seed % 3) as usize];
    if judged(&["--forge", forgery])?.status.code() != Some(1) {
        return Err(Failure::new(format!("the judge does not find a {forgery}")));
    }
    Ok(words)
}
