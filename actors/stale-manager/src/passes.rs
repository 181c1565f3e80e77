//! `/stale/passes`: what looks at the disk first. `gc.plan`, `gc.apply`, `gc.restore`, `gc.purge`, and the passes that
//! are due by themselves.
//!
//! ```text
//! survey (blocking threads) ─► decide some of the plan ─► wait until they are moved ─► … until nothing is left ─► gc.passed
//! ```
//!
//! A plain actor beside the journaled one, because a pure core cannot look. It decides nothing: each decision is made by
//! the core, with what it knows that a survey cannot. A pass that dies with its kernel goes on with the next one: what
//! was decided is outstanding there, and what was not is planned again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eclosion_bus::{Bus, InHand, Responder};
use eclosion_kernel::Handler;
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::events::GcPassed;
use eclosion_schemas::operation::{Durability, NoItem, Operation, Role, Value};
use eclosion_schemas::ops::gc::{
    ADDRESS, Apply, ApplyReply, ApplyRequest, Item, ItemKind, PassCause, Plan, PlanReply, Purge,
    PurgeRequest, Restore, RestoreReply, RestoreRequest,
};
use eclosion_schemas::{Digest, EffectId, ItemId, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::hands::{Hands, Ports};
use crate::state::{CollectReply, CollectRequest, Tally};
use crate::survey::{Found, Survey};

pub use eclosion_schemas::ops::gc::PASSES;

/// Requests served at a time; more wait in the mailbox.
const REQUESTS_MAX: usize = 4;
/// What was moved into the trash for the quota is purged by the next round.
const ROUNDS_MAX: u32 = 8;
/// A survey that more was named since than is remembered, is taken again so often.
const SURVEYS_MAX: u32 = 3;
const DEADLINE: Duration = Duration::from_secs(10);
/// Without any report for this long, what is on its way is left to the hands.
const PATIENCE: Duration = Duration::from_secs(60);

/// Decides the next items of a plan. Between the two actors of this crate, as all of these.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Collect;
/// Records the end of a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passed;
/// Items on their way, and what came of the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Busy;
/// Decides a restore.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bring;
/// Decides that items leave the trash; how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Empty;

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BusyRequest {}

macro_rules! internal {
    ($name:ident, $request:ty, $reply:ty, $wire:literal, $doc:literal, $example:expr) => {
        impl Operation for $name {
            type Request = $request;
            type Reply = $reply;
            type Item = NoItem;
            const NAME: &'static str = $wire;
            const ADDRESS: &'static str = ADDRESS;
            const ROLE: Role = Role::Service;
            const DURABILITY: Durability = Durability::Process;
            const DOC: &'static str = $doc;

            fn example() -> $request {
                $example
            }
        }
    };
}

internal!(
    Collect,
    CollectRequest,
    CollectReply,
    "gc.collect",
    "Decides the next items of a plan.",
    CollectRequest::default()
);
internal!(Busy, BusyRequest, (u64, Tally), "gc.busy", "Counts items on their way.", BusyRequest {});
internal!(Bring, RestoreRequest, RestoreReply, "gc.bring", "Decides a restore.", Restore::example());
internal!(Empty, PurgeRequest, u64, "gc.empty", "Decides what leaves the trash.", PurgeRequest::default());
internal!(
    Passed,
    GcPassed,
    (),
    "gc.pass",
    "Records the end of a pass.",
    GcPassed {
        cause: PassCause::Asked,
        reason: String::new(),
        effect: None,
        collected: 0,
        purged: 0,
        freed_bytes: 0,
        held: 0,
        used_bytes: 0,
        findings: Vec::new(),
    }
);

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Passes {
    bus: Arc<OnceLock<Bus>>,
    hands: Hands,
    places: Arc<Semaphore>,
}

enum Request {
    Plan(Option<ItemKind>),
    Apply(ApplyRequest),
    Restore(RestoreRequest),
    Purge(PurgeRequest),
}

impl Passes {
    pub(crate) fn new(bus: Arc<OnceLock<Bus>>, hands: Hands) -> Self {
        Self { bus, hands, places: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }
}

impl Handler for Passes {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is no core: a survey must not keep the next request waiting"
    )]
    async fn handle(&mut self, message: InHand) {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let request = request(&message);
        let operation = message.operation;
        let responder = message.finish();
        let (Some(request), Some(bus)) = (request, self.bus.get().cloned()) else {
            let text = format!("{PASSES} does not serve {operation}");
            return responder.reply(Err(Error::new(Code::Unimplemented, "operation.address", text)));
        };
        let pass = Pass { bus, hands: self.hands.clone() };
        // A survey takes its time; the next request need not wait for it.
        tokio::spawn(async move {
            let outcome = pass.serve(request, &responder).await;
            responder.reply(outcome);
            drop(place);
        });
    }
}

fn request(message: &InHand) -> Option<Request> {
    if let Some(request) = message.request::<Plan>() {
        Some(Request::Plan(request.only))
    } else if let Some(request) = message.request::<Apply>() {
        Some(Request::Apply(request.clone()))
    } else if let Some(request) = message.request::<Restore>() {
        Some(Request::Restore(request.clone()))
    } else {
        message.request::<Purge>().cloned().map(Request::Purge)
    }
}

fn boxed<T: Send + 'static>(reply: T) -> Value {
    Box::new(reply)
}

/// What one pass needs.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) bus: Bus,
    pub(crate) hands: Hands,
}

impl Pass {
    async fn serve(&self, request: Request, responder: &Responder) -> Result<Value, Error> {
        match request {
            Request::Plan(only) => self.plan(only).await.map(boxed),
            Request::Apply(request) => {
                // Who has left need not be waited for; what was decided goes on.
                let abandoned = || responder.cancelled().is_cancelled();
                self.apply(PassCause::Asked, None, &request, &abandoned).await.map(boxed)
            }
            Request::Restore(request) => {
                let reply = self.bus.ask::<Bring>(request).deadline(DEADLINE).await?;
                self.settled().await?;
                Ok(boxed(reply))
            }
            Request::Purge(request) => self.purge(request).await.map(boxed),
        }
    }

    /// Of a pass that was due by itself. A refusal: it is due again with the next incarnation.
    pub(crate) async fn due(&self, effect: EffectId) {
        let request = ApplyRequest::default();
        if let Err(refusal) = self.apply(PassCause::Due, Some(effect), &request, &|| false).await {
            tracing::warn!(%refusal, "a pass of retention could not be finished");
            let passed = GcPassed {
                cause: PassCause::Due,
                reason: String::new(),
                effect: Some(effect),
                collected: 0,
                purged: 0,
                freed_bytes: 0,
                held: 0,
                used_bytes: 0,
                findings: vec![format!(
                    "The last pass of retention failed: {refusal}. See: eclosion gc plan"
                )],
            };
            // A journal that takes nothing any more is found by others.
            let _ = self.bus.ask::<Passed>(passed).deadline(DEADLINE).await;
        }
    }

    async fn plan(&self, only: Option<ItemKind>) -> Result<PlanReply, Error> {
        let collect = CollectRequest { only, dry_run: true, ..CollectRequest::default() };
        Ok(self.collect(collect).await?.1.plan)
    }

    /// With a survey that is new enough, which is given back for more of the same.
    async fn collect(&self, mut request: CollectRequest) -> Result<(CollectRequest, CollectReply), Error> {
        let mut tries = 1;
        loop {
            request.survey = Arc::new(self.survey().await?);
            match self.bus.ask::<Collect>(request.clone()).deadline(DEADLINE).await {
                Ok(reply) => return Ok((request, reply)),
                Err(refusal) if refusal.reason == "gc.survey_old" && tries < SURVEYS_MAX => tries += 1,
                Err(refusal) => return Err(refusal),
            }
        }
    }

    async fn apply(
        &self,
        cause: PassCause,
        effect: Option<EffectId>,
        request: &ApplyRequest,
        abandoned: &(dyn Fn() -> bool + Sync),
    ) -> Result<ApplyReply, Error> {
        let items: BTreeSet<Item> = request.items.iter().cloned().collect();
        let template = CollectRequest {
            only: request.only,
            items: Arc::new(items),
            reason: request.reason.clone(),
            ..CollectRequest::default()
        };
        let (_, before) = self.busy().await?;
        let mut last;
        let mut round = 1;
        loop {
            let (request, mut reply) = self.collect(template.clone()).await?;
            let decided = reply.decided;
            while reply.decided > 0 && !abandoned() {
                self.settled().await?;
                reply = match self.bus.ask::<Collect>(request.clone()).deadline(DEADLINE).await {
                    // What is left is planned by the next round, on a new survey.
                    Err(refusal) if refusal.reason == "gc.survey_old" => break,
                    reply => reply?,
                };
            }
            self.settled().await?;
            last = reply;
            if decided == 0 || round == ROUNDS_MAX || abandoned() {
                break;
            }
            round += 1;
        }
        let (_, after) = self.busy().await?;
        let reply = applied(after.since(before), &last.plan);
        self.bus
            .ask::<Passed>(passed(cause, effect, &request.reason, &reply, &last.plan))
            .deadline(DEADLINE)
            .await?;
        Ok(reply)
    }

    async fn purge(&self, request: PurgeRequest) -> Result<ApplyReply, Error> {
        let (_, before) = self.busy().await?;
        loop {
            let decided = self.bus.ask::<Empty>(request.clone()).deadline(DEADLINE).await?;
            self.settled().await?;
            if decided == 0 || request.item.is_some() {
                break;
            }
        }
        let (_, after) = self.busy().await?;
        let tally = after.since(before);
        Ok(ApplyReply {
            collected: 0,
            trashed_bytes: 0,
            purged: tally.purged,
            freed_bytes: tally.freed_bytes,
            failed: tally.failed,
            held: 0,
            findings: Vec::new(),
        })
    }

    async fn busy(&self) -> Result<(u64, Tally), Error> {
        self.bus.ask::<Busy>(BusyRequest {}).deadline(DEADLINE).await
    }

    /// Waits until nothing is on its way, or the hands have said nothing for [`PATIENCE`].
    async fn settled(&self) -> Result<(), Error> {
        let mut reported = self.hands.reported();
        loop {
            reported.mark_unchanged();
            if self.busy().await?.0 == 0 {
                return Ok(());
            }
            match tokio::time::timeout(PATIENCE, reported.changed()).await {
                Ok(Ok(())) => {}
                // Its sender is in the hands that we hold.
                Ok(Err(_)) | Err(_) => return Ok(()),
            }
        }
    }

    async fn survey(&self) -> Result<Survey, Error> {
        let ports = Arc::clone(&self.hands.ports);
        let survey = tokio::task::spawn_blocking(move || ports.survey()).await;
        survey.map_err(|why| Error::internal("gc.survey", why.to_string()))
    }
}

fn applied(tally: Tally, left: &PlanReply) -> ApplyReply {
    ApplyReply {
        collected: tally.collected,
        trashed_bytes: tally.trashed_bytes,
        purged: tally.purged,
        freed_bytes: tally.freed_bytes,
        failed: tally.failed,
        held: left.held.len() as u64,
        findings: left.findings.clone(),
    }
}

fn passed(
    cause: PassCause,
    effect: Option<EffectId>,
    reason: &str,
    reply: &ApplyReply,
    left: &PlanReply,
) -> GcPassed {
    GcPassed {
        cause,
        reason: reason.to_owned(),
        effect,
        collected: reply.collected,
        purged: reply.purged,
        freed_bytes: reply.freed_bytes,
        held: reply.held,
        used_bytes: left.used_bytes,
        findings: reply.findings.clone(),
    }
}

impl Ports {
    /// Rows first: what they do not say yet, the core has seen. Without names no artifact is looked at.
    #[must_use]
    pub fn survey(&self) -> Survey {
        let mut survey =
            Survey { as_of: self.records.written(), disk: self.records.disk(), ..Survey::default() };
        match self.records.runs() {
            Ok(runs) => survey.found.extend(runs),
            Err(why) => survey.unreadable.push(format!("runs ({why})")),
        }
        match self.records.deletions() {
            Ok(records) => survey.records = records,
            Err(why) => survey.unreadable.push(format!("records of deletions ({why})")),
        }
        let names = self.records.names();
        for (kind, stock) in &self.stocks {
            let names = match (kind, &names) {
                (ItemKind::Artifact, names) => names.as_ref().map(Some),
                _ => Ok(None),
            };
            match (names, stock.survey()) {
                (Ok(names), Ok(found)) => {
                    survey.found.extend(found.into_iter().map(|found| named(found, names)))
                }
                (Err(why), _) => survey.unreadable.push(format!("{kind}s ({why})")),
                (_, Err(why)) => survey.unreadable.push(format!("{kind}s ({why})")),
            }
        }
        survey
    }
}

fn named(mut found: Found, names: Option<&BTreeMap<Digest, Vec<RunId>>>) -> Found {
    if let (Some(names), Ok(digest)) = (names, Digest::new(found.item.id.as_str())) {
        found.named_by = names.get(&digest).cloned().unwrap_or_default();
    }
    found
}

/// The name of a thing on disk as that of an item; `None` for what was not made here.
#[must_use]
pub fn item(kind: ItemKind, name: &str) -> Option<Item> {
    Some(Item::new(kind, ItemId::new(name).ok()?))
}
