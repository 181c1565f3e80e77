//! Clients that are killed in the middle of calls: what they held must serve others.

use std::time::Duration;

use eclosion_client::Client;
use eclosion_schemas::codec::{self, json};
use eclosion_schemas::ops::kernel::{Empty, Tree};
use eclosion_schemas::ops::pool::CallRequest;
use eclosion_schemas::view::TaskState;
use eclosion_schemas::{Payload, flow::EnvironmentSpec};
use tokio::process::{Child, Command};

use crate::failure::{Failure, ensure};
use crate::kernel::{Kernel, PATIENCE, WORKERS_MAX, source};
use crate::ledger::Ledger;
use crate::round::{Round, sessions};

/// Processes in the middle of `eclosion call pool.call`: one for each worker, and one that waits for one.
pub(crate) struct Callers {
    clients: Vec<Child>,
    sessions_before: usize,
}

impl Callers {
    pub(crate) async fn hold_every_worker(
        kernel: &Kernel,
        client: &Client,
        ledger: &Ledger,
    ) -> Result<Self, Failure> {
        let sessions_before = sessions(client).await?.len();
        let request = written(&request_of("hold", ledger))?;
        let call =
            || Command::from(kernel.command(&["call", "pool.call", &request])).kill_on_drop(true).spawn();
        let mut clients = Vec::new();
        for _ in 0..WORKERS_MAX {
            clients.push(call()?);
        }
        ledger.count("called", WORKERS_MAX).await?;
        clients.push(call()?);
        taken(client, clients.len() as u64).await?;
        Ok(Self { clients, sessions_before })
    }
}

/// A call of a function of `ledger.py`, which is told where the ledger is.
pub(crate) fn request_of(function: &str, ledger: &Ledger) -> CallRequest {
    CallRequest {
        timeout_ms: None,
        limits: None,
        function: format!("ledger:{function}"),
        code: source("flow").display().to_string(),
        code_hash: "crash".into(),
        environment: EnvironmentSpec::default(),
        arguments: Payload::default(),
        with: [("ledger".to_owned(), ledger.path().display().to_string().into())].into(),
    }
}

/// As it is written on the command line.
pub(crate) fn written(call: &CallRequest) -> Result<String, Failure> {
    Ok(json::from_msgpack(&codec::encode(call)?)?.to_string())
}

/// Until the actor that serves calls has taken so many.
async fn taken(client: &Client, calls: u64) -> Result<(), Failure> {
    let taking = async {
        loop {
            let tree = client.call::<Tree>(Empty {}).await?;
            if tree.actors.iter().any(|row| row.address == "/calls" && row.handled >= calls) {
                return Ok::<_, Failure>(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taking).await.map_err(|_| Failure::new("the calls are not taken"))?
}

impl Round {
    /// The run has nobody to compute it until the callers die; then it has every worker.
    pub(crate) async fn kill_callers(&mut self, mut callers: Callers) -> Result<(), Failure> {
        let waits =
            self.until("the run waits", |run| run.tasks.iter().any(|task| task.state == TaskState::Ready));
        let run = waits.await?;
        let started = run.tasks.iter().any(|task| task.attempt.0 > 0);
        ensure(!started, || format!("a task was started on a worker that a call holds: {run:?}"))?;
        // The one that waits first: whoever is killed with it must not hand it a worker while it dies.
        if let Some(mut waiting) = callers.clients.pop() {
            waiting.kill().await?;
        }
        self.sessions_end(callers.sessions_before + callers.clients.len()).await?;
        for client in &mut callers.clients {
            client.kill().await?;
        }
        self.ledger.count("cancelled", WORKERS_MAX).await?;
        self.sessions_end(callers.sessions_before).await?;
        self.every_worker_works().await?;
        let called = self.ledger.lines().iter().filter(|line| line.event == "called").count();
        ensure(called == WORKERS_MAX, || format!("{called} calls were begun, one for nobody"))
    }
}
