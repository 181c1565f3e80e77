//! `/arbitration/leases`: where clients and services ask for leases, and wait. `lease.acquire`, `lease.hold`,
//! `lease.release`.
//!
//! ```text
//! wish ─► waiting ──woken by a change, or after LOOK──► wish again … held ─┬─ acquire: the reply
//!            └─ its asker leaves: leave                                    └─ hold: look again … over: the reply
//!                                                                                └─ its asker leaves: leave
//! ```
//!
//! A plain actor beside the journaled one, because a pure core cannot wait. It decides nothing and keeps nothing: each
//! request is a task of its own that asks `/arbitration`, which knows by its repeated asking that somebody is there, also
//! after a restart of either. Whatever ends such a task, its asker's session among it, is told as a leave.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eclosion_bus::{Bus, InHand, Responder};
use eclosion_kernel::Handler;
use eclosion_schemas::error::{Code, Error, Retry};
use eclosion_schemas::flow::Priority;
use eclosion_schemas::operation::{Durability, NoItem, Operation, Role, Value};
use eclosion_schemas::ops::arbitration::{ADDRESS, LOCK_WHOLE, Scarce};
use eclosion_schemas::ops::lease::{
    Acquire, Ended, Held, Hold, Release, ReleaseReply, ReleaseRequest, Request, Standing,
};
use eclosion_schemas::pending::PendingReason;
use eclosion_schemas::{LeaseId, LeaseKey, Tenant};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::state::client::FORGOTTEN_MS;

pub use eclosion_schemas::ops::lease::DESK;

/// Requests that wait or hold together.
const PLACES: usize = 2_048;
/// Between two looks without a change.
const LOOK: Duration = Duration::from_millis(FORGOTTEN_MS / 5);
const DEADLINE: Duration = Duration::from_secs(10);
/// As a flow's tasks may name and ask for.
const NAME_BYTES_MAX: usize = 32;
const AMOUNT_MAX: u64 = 1 << 50;
/// Before the caller's deadline, so that it hears who holds what it waits for.
const SPARE: Duration = Duration::from_millis(200);

/// A client's wish, made again for as long as it waits. Between the two actors of this crate, as all of these.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeskWish;
/// How it stands with a lease; who asks attends it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeskLook;
/// Nobody waits for it or attends it any more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeskLeave;
/// Gives a lease back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GiveBack;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WishRequest {
    /// One is made where there is none.
    pub key: Option<LeaseKey>,
    pub name: String,
    pub purpose: String,
    pub amounts: BTreeMap<String, u64>,
    pub tenant: Tenant,
    pub priority: Priority,
    pub ttl_ms: Option<u64>,
    pub bound: bool,
    /// This one and no other.
    pub again: Option<LeaseId>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub enum WishReply {
    Waiting { key: LeaseKey, reasons: Vec<PendingReason> },
    Held(Held),
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Look {
    pub lease: LeaseId,
    pub key: LeaseKey,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub enum LookReply {
    Held(Held),
    Over(String),
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Leave {
    pub key: LeaseKey,
    /// What was granted meanwhile was never told to anybody.
    pub gives_back: bool,
}

macro_rules! internal {
    ($name:ident, $request:ty, $reply:ty, $wire:literal, $doc:literal, $example:expr) => {
        impl Operation for $name {
            type Request = $request;
            type Reply = $reply;
            type Item = NoItem;
            const NAME: &'static str = $wire;
            const ADDRESS: &'static str = ADDRESS;
            const ROLE: Role = Role::Service;
            const DURABILITY: Durability = Durability::Power;
            const DOC: &'static str = $doc;

            fn example() -> $request {
                $example
            }
        }
    };
}

internal!(DeskWish, WishRequest, WishReply, "lease.wish", "Wishes for a client's lease.", example_wish());
internal!(
    DeskLook,
    Look,
    LookReply,
    "lease.look",
    "Looks after a client's lease.",
    Look { lease: Release::example().lease, key: example_key() }
);
internal!(
    DeskLeave,
    Leave,
    (),
    "lease.leave",
    "Leaves a client's wish or lease.",
    Leave { key: example_key(), gives_back: false }
);
internal!(
    GiveBack,
    ReleaseRequest,
    ReleaseReply,
    "lease.give_back",
    "Gives a client's lease back.",
    Release::example()
);

fn example_key() -> LeaseKey {
    LeaseKey::new("k-1").unwrap_or_else(|_| unreachable!("a well-formed id"))
}

fn example_wish() -> WishRequest {
    WishRequest {
        key: None,
        name: "client".into(),
        purpose: String::new(),
        amounts: BTreeMap::from([("lock:db".to_owned(), LOCK_WHOLE)]),
        tenant: default_tenant(),
        priority: Priority::Normal,
        ttl_ms: None,
        bound: true,
        again: None,
    }
}

fn default_tenant() -> Tenant {
    Tenant::new("default").unwrap_or_else(|_| unreachable!("a well-formed id"))
}

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Desk {
    bus: Arc<OnceLock<Bus>>,
    changes: Arc<watch::Sender<u64>>,
    places: Arc<Semaphore>,
}

enum Asked {
    Acquire(Request),
    Hold(Request),
    Release(ReleaseRequest),
}

impl Desk {
    pub(crate) fn new(bus: Arc<OnceLock<Bus>>, changes: Arc<watch::Sender<u64>>) -> Self {
        Self { bus, changes, places: Arc::new(Semaphore::new(PLACES)) }
    }
}

impl Handler for Desk {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is no core: who waits must not keep the next request waiting; places bound them"
    )]
    async fn handle(&mut self, message: InHand) {
        let asked = if let Some(request) = message.request::<Acquire>() {
            Some(Asked::Acquire(request.clone()))
        } else if let Some(request) = message.request::<Hold>() {
            Some(Asked::Hold(request.clone()))
        } else {
            message.request::<Release>().cloned().map(Asked::Release)
        };
        let (operation, context) = (message.operation, message.context.clone());
        let responder = message.finish();
        let (Some(asked), Some(bus)) = (asked, self.bus.get().cloned()) else {
            let text = format!("{DESK} does not serve {operation}");
            return responder.reply(Err(Error::new(Code::Unimplemented, "operation.address", text)));
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return responder.reply(Err(full()));
        };
        let visitor = Visitor {
            caller: context.caller.as_deref().unwrap_or("the kernel's own program").to_owned(),
            idem: context.idem,
            until: context.deadline.into(),
            changes: self.changes.subscribe(),
            bus,
            responder,
            _place: place,
        };
        tokio::spawn(visitor.serve(asked));
    }
}

fn full() -> Error {
    let text = format!("{PLACES} clients hold leases or wait for them, the most that there may be");
    Error::new(Code::Exhausted, "lease.places", text).retry(Retry::After { after_ms: 1_000 })
}

/// One request, until it is answered or its asker has left.
struct Visitor {
    caller: String,
    idem: Option<String>,
    until: Instant,
    changes: watch::Receiver<u64>,
    bus: Bus,
    responder: Responder,
    _place: OwnedSemaphorePermit,
}

impl Visitor {
    async fn serve(mut self, asked: Asked) {
        let outcome = match asked {
            Asked::Acquire(request) => self.acquire(request).await.map(boxed),
            Asked::Hold(request) => self.hold(request).await.map(boxed),
            Asked::Release(request) => self.bus.ask::<GiveBack>(request).deadline(DEADLINE).await.map(boxed),
        };
        self.responder.reply(outcome);
    }

    async fn acquire(&mut self, request: Request) -> Result<Held, Error> {
        let wait = request.wait_ms.map(Duration::from_millis);
        let wish = self.wish(request, false)?;
        self.wait(wish, wait).await
    }

    async fn hold(&mut self, request: Request) -> Result<Ended, Error> {
        let wait = request.wait_ms.map(Duration::from_millis);
        let wish = self.wish(request, true)?;
        let held = self.wait(wish, wait).await?;
        let ended = self.attend(&held).await;
        if ended.is_err() {
            self.leave(held.key, false).await;
        }
        ended
    }

    /// From now to the end of the lease, or of who holds it.
    async fn attend(&mut self, held: &Held) -> Result<Ended, Error> {
        self.responder.item(Box::new(Standing { held: Some(held.clone()), reasons: Vec::new() })).await?;
        loop {
            self.changes.mark_unchanged();
            let look = Look { lease: held.lease.clone(), key: held.key.clone() };
            match self.bus.ask::<DeskLook>(look).deadline(DEADLINE).await {
                Ok(LookReply::Over(reason)) => return Ok(Ended { lease: held.lease.clone(), reason }),
                // Arbitration may be between two lives: it is looked at again.
                Ok(LookReply::Held(_)) | Err(_) => self.change(LOOK).await?,
            }
        }
    }

    /// Until it is held.
    ///
    /// # Errors
    /// `exhausted` with who holds it once the time to wait is over; whatever refuses the wish.
    async fn wait(&mut self, mut wish: WishRequest, wait: Option<Duration>) -> Result<Held, Error> {
        let deadline = self.until.checked_sub(SPARE).unwrap_or(self.until);
        let until = wait.map_or(deadline, |wait| deadline.min(Instant::now() + wait));
        let mut told = Vec::new();
        // What is free is granted between the first answer and the second: who is told to wait then, waits.
        let mut settled = false;
        loop {
            self.changes.mark_unchanged();
            let is_last = settled && Instant::now() >= until;
            let (key, reasons) = match self.bus.ask::<DeskWish>(wish.clone()).deadline(DEADLINE).await? {
                WishReply::Held(held) => return Ok(held),
                WishReply::Waiting { key, reasons } => (key, reasons),
            };
            wish.key = Some(key.clone());
            if is_last {
                self.leave(key, true).await;
                return Err(taken(&reasons));
            }
            if settled && reasons != told && self.responder.wants_items() {
                // A reader who is slow is told less often.
                let standing = Standing { held: None, reasons: reasons.clone() };
                let _ = self.responder.try_item(Box::new(standing));
                told = reasons;
            }
            let left = until.saturating_duration_since(Instant::now());
            if let Err(gone) = self.change(if settled { left.min(LOOK) } else { Duration::ZERO }).await {
                self.leave(key, true).await;
                return Err(gone);
            }
            settled = true;
        }
    }

    /// # Errors
    /// `cancelled` once nobody waits for an answer any more.
    async fn change(&mut self, at_most: Duration) -> Result<(), Error> {
        tokio::select! {
            () = self.responder.cancelled().cancelled() => {
                Err(Error::new(Code::Cancelled, "lease.left", "who asked for it has left"))
            }
            // The other end is as lasting as the kernel.
            _ = self.changes.changed() => Ok(()),
            () = tokio::time::sleep(at_most) => Ok(()),
        }
    }

    /// Should it not arrive, the wish is forgotten, and a lease ends by its own rules.
    async fn leave(&self, key: LeaseKey, gives_back: bool) {
        if let Err(error) = self.bus.ask::<DeskLeave>(Leave { key, gives_back }).deadline(DEADLINE).await {
            tracing::debug!(%error, "a client's leave was not heard");
        }
    }

    fn wish(&self, request: Request, bound: bool) -> Result<WishRequest, Error> {
        let idem = self.idem.as_deref().and_then(|idem| LeaseKey::new(idem).ok());
        Ok(WishRequest {
            amounts: amounts(&request)?,
            key: request.key.or(idem),
            name: self.caller.clone(),
            purpose: request.purpose,
            tenant: request.tenant.unwrap_or_else(default_tenant),
            priority: request.priority.unwrap_or_default(),
            ttl_ms: request.ttl_ms,
            bound,
            again: request.again,
        })
    }
}

fn boxed<T: Send + 'static>(reply: T) -> Value {
    Box::new(reply)
}

/// What is asked for, as arbitration's keys have it.
fn amounts(request: &Request) -> Result<BTreeMap<String, u64>, Error> {
    let mut amounts = request.resources.clone();
    let twice = |name: &str| Error::invalid("lease.request", format!("`{name}` is named twice"));
    for lock in &request.locks {
        let (name, parts) = match lock.strip_suffix(":shared") {
            Some(name) => (name, 1),
            None => (lock.as_str(), LOCK_WHOLE),
        };
        if amounts.insert(Scarce::Lock(name).to_string(), parts).is_some() {
            return Err(twice(name));
        }
    }
    for (rate, tokens) in &request.rates {
        amounts.insert(Scarce::Rate(rate).to_string(), *tokens);
    }
    let is_name = |key: &String| {
        let (Scarce::Lock(name) | Scarce::Rate(name) | Scarce::Resource(name)) = Scarce::of(key);
        let rest = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        first && name.len() <= NAME_BYTES_MAX && name.bytes().all(rest)
    };
    if let Some(bad) = amounts.keys().find(|key| !is_name(key)) {
        let shown: String = bad.chars().take(NAME_BYTES_MAX).collect();
        return Err(Error::invalid("lease.request", format!("`{shown}` is no name")).help(format!(
            "a name has at most {NAME_BYTES_MAX} of A-Z a-z 0-9 _ - and begins with a letter or _"
        )));
    }
    if let Some((key, amount)) = amounts.iter().find(|(_, amount)| !(1..=AMOUNT_MAX).contains(*amount)) {
        return Err(Error::invalid("lease.request", format!("{amount} is no amount of `{key}`")));
    }
    Ok(amounts)
}

/// Not granted in time.
fn taken(reasons: &[PendingReason]) -> Error {
    let holders: Vec<_> = reasons
        .iter()
        .filter_map(|reason| match reason {
            PendingReason::Resource { holders, .. } | PendingReason::Lock { holders, .. } => Some(holders),
            _ => None,
        })
        .flatten()
        .map(|holder| format!("{} ({holder})", holder.lease))
        .collect();
    let text = match holders.as_slice() {
        [] => "it was not this client's turn within the time to wait".to_owned(),
        holders => format!("still held by {} after the time to wait", holders.join(", ")),
    };
    let error = Error::new(Code::Exhausted, "lease.held", text).retry(Retry::After { after_ms: 1_000 });
    error.help("eclosion arb ls")
}
