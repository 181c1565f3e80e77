//! A panic of one actor, asked for over the kernel's own door.

use std::collections::BTreeMap;
use std::time::Duration;

use eclosion_client::Client;
use eclosion_schemas::operation::{NoItem, Operation};
use eclosion_schemas::ops::kernel::{Empty, Ping, Tree};
use eclosion_schemas::ops::run::{Get, GetReply, RunRequest};
use eclosion_schemas::ops::{arbitration, artifact, pool};
use eclosion_schemas::{Durability, Incarnation, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, ensure};
use crate::kernel::PATIENCE;
use crate::round::{Round, running};

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

impl Round {
    pub(crate) async fn panic_session(&mut self) -> Result<(), Failure> {
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
    pub(crate) async fn panic(&mut self, address: &'static str) -> Result<(), Failure> {
        let (before, attempts) = (self.busy().await?, running(&self.get().await?));
        let incarnation = self.incarnation(address).await?;
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
        self.restarted(address, incarnation).await?;
        let (after, now) = (self.busy().await?, attempts_of(&attempts, &self.get().await?));
        ensure(before.keys().all(|pid| after.contains_key(pid)) && now == attempts, || {
            format!("{address}: {before:?} {attempts:?} became {after:?} {now:?}")
        })
    }

    /// A panic and the next incarnation, whatever else goes on.
    pub(crate) async fn panic_amid(&mut self, address: &'static str) -> Result<(), Failure> {
        let incarnation = self.incarnation(address).await?;
        self.client.call::<Chaos>(ChaosRequest { address: address.to_owned() }).await?;
        self.restarted(address, incarnation).await
    }

    async fn incarnation(&self, address: &str) -> Result<Option<Incarnation>, Failure> {
        let tree = self.client.call::<Tree>(Empty {}).await?;
        let row = tree.actors.into_iter().find(|row| row.address == address);
        Ok(row.map(|row| row.incarnation))
    }

    async fn restarted(&self, address: &str, before: Option<Incarnation>) -> Result<(), Failure> {
        let again = async {
            while self.incarnation(address).await? <= before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, Failure>(())
        };
        tokio::time::timeout(PATIENCE, again)
            .await
            .map_err(|_| Failure::new(format!("{address} did not panic")))?
    }
}

/// The attempts, now, of the tasks that were running then.
fn attempts_of(then: &BTreeMap<String, u32>, run: &GetReply) -> BTreeMap<String, u32> {
    let same = run.tasks.iter().filter(|task| then.contains_key(task.task.as_str()));
    same.map(|task| (task.task.to_string(), task.attempt.0)).collect()
}
