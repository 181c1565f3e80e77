//! Leases of clients.
//!
//! ```text
//! wish ──its turn──► lease.taken ──renew──► lease.renewed
//!   └─ not asked about any more: forgotten    └─ given back, taken away, its time over, its session over ──► lease.released
//! ```
//!
//! A bound lease ends `grace_ms` after nobody attends it any more. Who attends is volatile: the desk says it again to each
//! incarnation, and nobody attends when a kernel begins, so that its clients have the grace to come back.
//! A wish that its client's desk does not ask about for [`FORGOTTEN_MS`] is dropped: it holds nothing.

use std::collections::VecDeque;

use eclosion_schemas::ops::lease::{
    Held, ReleaseReply, ReleaseRequest as GiveBack, RenewReply, RenewRequest, TTL_MS_MAX,
};
use eclosion_schemas::view::ClientView;
use eclosion_schemas::{LeaseKey, suggest};

use super::*;
use crate::desk::{Leave, Look, LookReply, WishReply, WishRequest};

/// Of clients together.
pub(crate) const WAITING_MAX: usize = 1_024;
pub(crate) const HELD_MAX: usize = 4_096;
/// See the head of this file.
pub(crate) const FORGOTTEN_MS: u64 = 10_000;
const PURPOSE_BYTES_MAX: usize = 256;
const KEYS_MAX: usize = 64;
/// Ends that are remembered, for those who ask what became of their lease.
const ENDED_MAX: usize = 256;

/// What follows from the records.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientLeases {
    /// Those that end by time.
    until: BTreeSet<(Timestamp, LeaseId)>,
    /// Those that end with their session.
    bound: BTreeSet<LeaseId>,
    count: usize,
    ended: VecDeque<(LeaseId, String)>,
}

/// What only this incarnation knows.
#[derive(Debug, Default)]
pub(super) struct Attendance {
    attended: BTreeSet<LeaseId>,
    left: BTreeMap<LeaseId, Timestamp>,
    /// When each wish was asked about last.
    asked: BTreeMap<LeaseKey, Timestamp>,
}

impl ClientLeases {
    pub(super) fn taken(&mut self, lease: &LeaseId, client: &ClientView) {
        self.count += 1;
        if client.bound {
            self.bound.insert(lease.clone());
        }
        if let Some(until) = client.until {
            self.until.insert((until, lease.clone()));
        }
    }

    pub(super) fn renewed(&mut self, lease: &LeaseId, before: Option<Timestamp>, until: Timestamp) {
        if let Some(before) = before {
            self.until.remove(&(before, lease.clone()));
        }
        self.until.insert((until, lease.clone()));
    }

    pub(super) fn freed(&mut self, lease: &LeaseId, client: &ClientView) {
        self.count -= 1;
        self.bound.remove(lease);
        if let Some(until) = client.until {
            self.until.remove(&(until, lease.clone()));
        }
    }

    pub(super) fn ended(&mut self, lease: &LeaseId, reason: &str) {
        if self.ended.len() >= ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back((lease.clone(), reason.to_owned()));
    }
}

/// # Errors
/// `invalid` for a wish that is none, `exhausted` for one that can never be granted or has no place, `conflict` for a key
/// that holds something else, `not_found` for a lease that cannot be taken up again.
pub(super) fn wish(
    options: &ArbitrationOptions,
    state: &State,
    queue: &mut Queue,
    reads: &Reads,
    request: &WishRequest,
    now: Timestamp,
) -> Result<Decision, Error> {
    let key = match &request.key {
        Some(key) => key.clone(),
        None => generated(reads),
    };
    let id = WishId::Client(key.clone());
    if let Some(again) = &request.again {
        let (held, _) = of_client(state, again)?;
        if held.wish != id {
            return Err(of_another(again));
        }
    }
    if let Some((lease, held)) = find(state, &id) {
        if held.amounts != request.amounts {
            let text = format!("{key} names a claim to something else, which is held as {lease}");
            return Err(Error::new(Code::Conflict, "lease.key", text).help("use a key of its own for each"));
        }
        queue.attendance.attend(lease);
        return Ok(Decision::reply(WishReply::Held(held_as(lease, &key, held))));
    }
    if !queue.contains(&id) {
        check(options, request)?;
        admit(options, state, queue, &request.tenant, now)?;
        admit_client(state, queue, now)?;
        queue.insert(new_wish(id.clone(), request, now), options.aging_ms);
    }
    queue.attendance.asked.insert(key.clone(), now);
    let wish = queue.get(&id);
    let reasons = wish.map(|wish| crate::view::reasons(options, state, wish, now)).unwrap_or_default();
    Ok(Decision::reply(WishReply::Waiting { key, reasons }))
}

fn generated(reads: &Reads) -> LeaseKey {
    let text = format!("k-{}-{:016x}", reads.epoch(), reads.entropy());
    LeaseKey::new(text).unwrap_or_else(|_| unreachable!("a letter and two numbers"))
}

fn new_wish(id: WishId, request: &WishRequest, now: Timestamp) -> Wish {
    let WishRequest { name, purpose, ttl_ms, bound, .. } = request.clone();
    Wish {
        id,
        whose: Claimant::Client(Client { name, purpose, ttl_ms, bound }),
        tenant: request.tenant.clone(),
        priority: request.priority,
        amounts: request.amounts.clone(),
        since: now,
    }
}

fn check(options: &ArbitrationOptions, request: &WishRequest) -> Result<(), Error> {
    let invalid =
        |text: String| Err(Error::invalid("lease.request", text).help("eclosion describe lease.acquire"));
    if request.amounts.is_empty() || request.amounts.len() > KEYS_MAX {
        return invalid(format!("a lease is of 1 to {KEYS_MAX} locks, resources and rates"));
    }
    if request.purpose.len() > PURPOSE_BYTES_MAX {
        return invalid(format!("a purpose has at most {PURPOSE_BYTES_MAX} bytes"));
    }
    check_ttl(request.ttl_ms)?;
    if request.ttl_ms.is_none() && !request.bound {
        return invalid("a lease that no session holds needs ttl_ms".into());
    }
    match impossible(options, &request.amounts) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn check_ttl(ttl_ms: Option<u64>) -> Result<(), Error> {
    if ttl_ms.is_none_or(|ttl_ms| (1..=TTL_MS_MAX).contains(&ttl_ms)) {
        return Ok(());
    }
    Err(Error::invalid("lease.ttl", format!("ttl_ms is 1 to {TTL_MS_MAX}")))
}

fn admit_client(state: &State, queue: &Queue, now: Timestamp) -> Result<(), Error> {
    let (waiting, held) = (queue.attendance.asked.len(), state.clients.count);
    if waiting < WAITING_MAX && held < HELD_MAX {
        return Ok(());
    }
    let text = format!(
        "clients hold {held} leases and wait for {waiting}; the most are {HELD_MAX} and {WAITING_MAX}"
    );
    let after_ms = queue.pace.place_in_ms(state.freed, now);
    Err(Error::new(Code::Exhausted, "lease.places", text).retry(Retry::After { after_ms }))
}

fn find<'a>(state: &'a State, wish: &WishId) -> Option<(&'a LeaseId, &'a Lease)> {
    let id = state.by_wish.get(wish)?;
    Some((id, state.leases.get(id)?))
}

fn held_as(lease: &LeaseId, key: &LeaseKey, held: &Lease) -> Held {
    Held {
        lease: lease.clone(),
        key: key.clone(),
        fence: fence_of(lease),
        since: held.since,
        until: held.client().and_then(|client| client.until),
    }
}

/// Leases are numbered as they are granted, in each life of the kernel and from one to the next.
fn fence_of(lease: &LeaseId) -> Fence {
    let mut numbers = lease.as_str().split('-').skip(1).map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(epoch)), Some(Ok(counter))) => {
            Fence { epoch: Epoch(u32::try_from(epoch).unwrap_or(u32::MAX)), counter }
        }
        _ => Fence::default(),
    }
}

/// How it stands with a lease that somebody attends.
pub(super) fn look(state: &State, queue: &mut Queue, request: &Look) -> Decision {
    let id = WishId::Client(request.key.clone());
    let reply = match find(state, &id).filter(|(lease, _)| **lease == request.lease) {
        Some((lease, held)) => {
            queue.attendance.attend(lease);
            LookReply::Held(held_as(lease, &request.key, held))
        }
        None => {
            let ended = state.clients.ended.iter().find(|(lease, _)| *lease == request.lease);
            LookReply::Over(ended.map_or_else(|| "it is over".to_owned(), |(_, reason)| reason.clone()))
        }
    };
    Decision::reply(reply)
}

/// Its desk waits for it no more, or its session is over.
pub(super) fn leave(state: &State, queue: &mut Queue, request: &Leave, now: Timestamp) -> Decision {
    let id = WishId::Client(request.key.clone());
    queue.remove(&id);
    let decision = Decision::reply(());
    match find(state, &id) {
        Some((lease, _)) if request.gives_back => {
            let reason = "who asked for it had left".to_owned();
            decision.event(LeaseReleased { lease: lease.clone(), reason })
        }
        Some((lease, held)) if held.client().is_some_and(|client| client.bound) => {
            queue.attendance.attended.remove(lease);
            queue.attendance.left.insert(lease.clone(), now);
            decision
        }
        _ => decision,
    }
}

/// # Errors
/// `not_found` for what has ended, `precondition` for what does not end by time.
pub(super) fn renew(state: &State, request: &RenewRequest, now: Timestamp) -> Result<Decision, Error> {
    check_ttl(Some(request.ttl_ms))?;
    let (_, client) = of_client(state, &request.lease)?;
    let Some(before) = client.until else {
        let text = format!("{} ends with its session, not by time", request.lease);
        return Err(Error::new(Code::Precondition, "lease.ttl", text));
    };
    let until = now.plus_ms(request.ttl_ms);
    let decision = Decision::reply(RenewReply { until: until.max(before) });
    let renewed = LeaseRenewed { lease: request.lease.clone(), until };
    Ok(if until > before { decision.event(renewed) } else { decision })
}

/// # Errors
/// `not_found` for what has ended, `denied` for another's key.
pub(super) fn give_back(state: &State, queue: &Queue, request: &GiveBack) -> Result<Decision, Error> {
    let (lease, client) = of_client(state, &request.lease)?;
    if let Some(key) = &request.key
        && lease.wish != WishId::Client(key.clone())
    {
        return Err(of_another(&request.lease).help("eclosion arb release LEASE --reason TEXT"));
    }
    let shares = |wish: &&Wish| wish.amounts.keys().any(|key| lease.amounts.contains_key(key));
    let decision = Decision::reply(ReleaseReply {
        lease: request.lease.clone(),
        holder: client.to_string(),
        waiting: queue.by_age().filter(shares).count() as u64,
        done: !request.dry_run,
    });
    if request.dry_run {
        return Ok(decision);
    }
    let reason = match (&request.key, request.reason.as_str()) {
        (Some(_), "") => "its holder gave it back".to_owned(),
        (None, "") => "an operator took it away".to_owned(),
        (Some(_), reason) => reason.to_owned(),
        (None, reason) => format!("an operator took it away: {reason}"),
    };
    Ok(decision.event(LeaseReleased { lease: request.lease.clone(), reason }))
}

fn of_client<'a>(state: &'a State, lease: &LeaseId) -> Result<(&'a Lease, &'a ClientView), Error> {
    let Some(found) = state.leases.get(lease) else {
        let ended = state.clients.ended.iter().find(|(ended, _)| ended == lease);
        let text = match ended {
            Some((_, reason)) => format!("lease {lease} is over: {reason}"),
            None => format!("there is no lease {lease}"),
        };
        let held = state.leases.keys().map(LeaseId::as_str);
        let meant = suggest::nearest(lease.as_str(), held).filter(|_| ended.is_none());
        let help = meant.map_or_else(|| "eclosion arb ls".into(), |meant| format!("did you mean {meant}?"));
        return Err(Error::not_found("lease.over", text).help(help));
    };
    match (found.client(), found.task()) {
        (Some(client), _) => Ok((found, client)),
        (None, task) => {
            let run = task.map(|task| task.run.to_string()).unwrap_or_default();
            let text = format!("lease {lease} is a task's, and ends with its attempt");
            Err(Error::new(Code::Precondition, "lease.task", text).help(format!("eclosion cancel {run}")))
        }
    }
}

fn of_another(lease: &LeaseId) -> Error {
    Error::new(Code::Denied, "lease.key", format!("{lease} is held under another key"))
}

impl Attendance {
    fn attend(&mut self, lease: &LeaseId) {
        self.left.remove(lease);
        self.attended.insert(lease.clone());
    }

    /// It is granted, or taken back.
    pub(super) fn answered(&mut self, wish: &WishId) {
        if let WishId::Client(key) = wish {
            self.asked.remove(key);
        }
    }

    /// Wishes that nobody asks about any more.
    pub(super) fn forgotten(&self, now: Timestamp) -> Vec<WishId> {
        let late = self.asked.iter().filter(|(_, at)| now.since_ms(**at) >= FORGOTTEN_MS);
        late.map(|(key, _)| WishId::Client(key.clone())).collect()
    }
}

/// Leases that end now by themselves.
pub(super) fn due(
    options: &ArbitrationOptions,
    state: &State,
    attendance: &mut Attendance,
    now: Timestamp,
) -> Vec<AnyEvent> {
    let ends = |lease: &LeaseId, reason: &str| LeaseReleased { lease: lease.clone(), reason: reason.into() };
    let by_time = state.clients.until.iter().take_while(|(until, _)| *until <= now);
    let mut events: Vec<_> = by_time.map(|(_, lease)| ends(lease, "its time was over")).collect();
    let bound = &state.clients.bound;
    attendance.attended.retain(|lease| bound.contains(lease));
    attendance.left.retain(|lease, _| bound.contains(lease));
    for lease in bound.iter().filter(|lease| !attendance.attended.contains(*lease)) {
        let left = *attendance.left.entry(lease.clone()).or_insert(now);
        let is_named = events.iter().any(|event: &LeaseReleased| event.lease == *lease);
        if now.since_ms(left) >= options.lease_grace_ms && !is_named {
            events.push(ends(lease, "the session that held it was over"));
        }
    }
    events.into_iter().map(Into::into).collect()
}

/// When one of them ends next by itself, or a wish is forgotten.
pub(super) fn wake_at(
    options: &ArbitrationOptions,
    state: &State,
    attendance: &Attendance,
) -> Option<Timestamp> {
    let until = state.clients.until.first().map(|(until, _)| *until);
    let left = attendance.left.values().min().map(|left| left.plus_ms(options.lease_grace_ms));
    let asked = attendance.asked.values().min().map(|asked| asked.plus_ms(FORGOTTEN_MS));
    [until, left, asked].into_iter().flatten().min()
}
