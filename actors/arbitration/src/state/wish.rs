//! Who wishes for what, and who holds it: a task of a run, or a client.

use eclosion_schemas::LeaseKey;
use eclosion_schemas::flow::Priority;
use eclosion_schemas::view::ClientView;

use super::*;

/// What tells one wish from another; of a lease, which wish it answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WishId {
    Task(EffectId),
    Client(LeaseKey),
}

#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) id: WishId,
    pub(crate) whose: Claimant,
    pub(crate) tenant: Tenant,
    pub(crate) priority: Priority,
    pub(crate) amounts: BTreeMap<String, u64>,
    pub(crate) since: Timestamp,
}

#[derive(Debug, Clone)]
pub(crate) enum Claimant {
    Task(TaskRef),
    Client(Client),
}

/// A client that waits.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) purpose: String,
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) bound: bool,
}

impl Client {
    /// As it is once the lease is granted.
    pub(crate) fn view(&self, now: Timestamp) -> ClientView {
        ClientView {
            name: self.name.clone(),
            purpose: self.purpose.clone(),
            until: self.ttl_ms.map(|ttl_ms| now.plus_ms(ttl_ms)),
            bound: self.bound,
        }
    }
}

impl From<AcquireRequest> for Wish {
    fn from(request: AcquireRequest) -> Self {
        let AcquireRequest { wish, task, tenant, priority, amounts, since } = request;
        let (id, whose) = (WishId::Task(wish), Claimant::Task(task));
        Self { id, whose, tenant, priority, amounts, since }
    }
}

impl Wish {
    pub(crate) fn task(&self) -> Option<&TaskRef> {
        match &self.whose {
            Claimant::Task(task) => Some(task),
            Claimant::Client(_) => None,
        }
    }

    /// What grants it.
    pub(super) fn granted(&self, lease: LeaseId, now: Timestamp) -> AnyEvent {
        let (tenant, amounts) = (self.tenant.clone(), self.amounts.clone());
        match (&self.id, &self.whose) {
            (WishId::Task(wish), Claimant::Task(task)) => {
                LeaseGranted { lease, task: task.clone(), tenant, amounts, wish: *wish }.into()
            }
            (WishId::Client(key), Claimant::Client(client)) => {
                LeaseTaken { lease, key: key.clone(), tenant, amounts, client: client.view(now) }.into()
            }
            _ => unreachable!("a wish is made with an id of its own kind"),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) holder: LeaseHolder,
    pub(crate) tenant: Tenant,
    pub(crate) amounts: BTreeMap<String, u64>,
    pub(crate) since: Timestamp,
    pub(crate) wish: WishId,
}

#[derive(Debug, Clone)]
pub(crate) enum LeaseHolder {
    Task { task: TaskRef, held_by: Option<(Fence, WorkerId)> },
    Client(ClientView),
}

impl Lease {
    pub(crate) fn task(&self) -> Option<&TaskRef> {
        match &self.holder {
            LeaseHolder::Task { task, .. } => Some(task),
            LeaseHolder::Client(_) => None,
        }
    }

    pub(crate) fn client(&self) -> Option<&ClientView> {
        match &self.holder {
            LeaseHolder::Client(client) => Some(client),
            LeaseHolder::Task { .. } => None,
        }
    }

    /// The attempt that uses it.
    pub(crate) fn held_by(&self) -> Option<&(Fence, WorkerId)> {
        match &self.holder {
            LeaseHolder::Task { held_by, .. } => held_by.as_ref(),
            LeaseHolder::Client(_) => None,
        }
    }
}
