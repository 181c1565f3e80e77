//! Calls of a service in flight, and the service or the kernel is killed: every caller is answered at once, nothing is
//! done twice, and the address comes back with the service.

use std::process::Stdio;
use std::time::Duration;

use eclosion_client::{CallOptions, Exchange};
use eclosion_schemas::codec;
use eclosion_schemas::ops::kernel::{Describe, DescribeRequest, Empty, Tree};
use tokio::process::{Child, Command};

use crate::account::ServiceCall;
use crate::failure::{Failure, ensure};
use crate::fault::Victim;
use crate::kernel::{Kernel, PATIENCE, python, source};
use crate::round::Round;
use crate::seed::Seed;

const ADDRESS: &str = "/desk";
/// Answered before the strike.
const ANSWERED: u64 = 3;

impl Round {
    pub(crate) async fn kill_service(&mut self, victim: Victim, dice: &mut Seed) -> Result<(), Failure> {
        let sessions = self.sessions().await?.len();
        let mut service = self.serve().await?;
        for _ in 0..=dice.below(ANSWERED) {
            self.tell().await?;
        }
        let waiting = self.crowd_at_the_desk(1 + dice.below(6)).await?;
        let held = waiting[0].0.clone();
        match victim {
            Victim::Kernel => {
                self.kernel.kill().await?;
                self.account.kills.kernel += 1;
            }
            _ => service.kill().await?,
        }
        for (label, exchange) in waiting {
            let reply = tokio::time::timeout(PATIENCE, exchange.reply()).await;
            let outcome = reply.ok().map(|reply| reply.map_or_else(|why| why.reason, |_| "ok".into()));
            self.account.services.push(ServiceCall { label, outcome });
        }
        if victim == Victim::Kernel {
            // It ends with its connection, and what runs in it is left alone. Who has started it starts it again.
            self.open_gate(&held)?;
            let ended = tokio::time::timeout(PATIENCE, service.wait()).await;
            ended.map_err(|_| Failure::new("the service outlives its connection"))??;
            self.client = self.kernel.start().await?;
        }
        self.is_served(false).await?;
        let mut again = self.serve().await?;
        self.tell().await?;
        again.kill().await?;
        self.is_served(false).await?;
        self.sessions_end(sessions).await
    }

    /// One that is running, and others behind it: sent, or still in the mailbox.
    async fn crowd_at_the_desk(&mut self, behind: u64) -> Result<Vec<(String, Exchange)>, Failure> {
        let first = self.next_call(0);
        let held = self.ask_desk("desk.hold", &first).await?;
        self.ledger.of_call(&first, "served", 1).await?;
        let mut waiting = vec![(first, held)];
        for place in 1..=behind {
            let label = self.next_call(place);
            let exchange = self.ask_desk("desk.tell", &label).await?;
            waiting.push((label, exchange));
        }
        Ok(waiting)
    }

    fn next_call(&self, place: u64) -> String {
        format!("{}-{place}", self.account.label())
    }

    async fn tell(&mut self) -> Result<(), Failure> {
        let label = self.next_call(0);
        let reply = self.ask_desk("desk.tell", &label).await?.reply().await?;
        let said: String = codec::decode(&reply)?;
        ensure(said == label, || format!("told {label}, it said {said}"))?;
        self.account.services.push(ServiceCall { label, outcome: Some("ok".into()) });
        Ok(())
    }

    async fn ask_desk(&self, operation: &str, label: &str) -> Result<Exchange, Failure> {
        let mut request = serde_json::json!({"ledger": self.ledger.path(), "label": label});
        if operation == "desk.hold" {
            request["gate"] = self.kernel.directory().join("gate").display().to_string().into();
        }
        // Longer than anybody here waits: whoever is answered by it was not answered.
        let deadline = Some(PATIENCE + Duration::from_secs(60));
        let options = CallOptions { deadline, ..CallOptions::default() };
        Ok(self.client.open(operation, codec::encode(&request)?.into(), options).await?)
    }

    /// The process, once its address is served and its operations are known, which is a moment later.
    async fn serve(&self) -> Result<Child, Failure> {
        let service = command(&self.kernel).spawn()?;
        self.is_served(true).await?;
        self.until_asked("the service's operations are known", async || {
            let known = self.client.call::<Describe>(DescribeRequest { name: None }).await?.operations;
            Ok(known.iter().any(|operation| operation["name"] == "desk.tell").then_some(()))
        })
        .await?;
        Ok(service)
    }

    async fn is_served(&self, wanted: bool) -> Result<(), Failure> {
        self.until_asked(if wanted { "the service is served" } else { "its address is free" }, async || {
            let actors = self.client.call::<Tree>(Empty {}).await?.actors;
            Ok((actors.iter().any(|row| row.address == ADDRESS) == wanted).then_some(()))
        })
        .await
    }
}

fn command(kernel: &Kernel) -> Command {
    let paths = [source("flow"), source("../../python-workers/src")];
    let mut command = Command::new(python());
    command
        .args(["-m", "eclosion.service", "desk:Desk", "--socket"])
        .arg(kernel.socket())
        .env("PYTHONPATH", paths.map(|path| path.display().to_string()).join(":"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // So that it is found among what a round leaves behind.
    command.env("ECLOSION_RUNTIME_DIR", kernel.directory());
    command
}
