//! Leases of clients: how they begin, wait among tasks, and end.

use eclosion_schemas::error::Retry;
use eclosion_schemas::ops::lease::{Held, ReleaseReply, TTL_MS_MAX};

use super::*;
use crate::desk::{Leave, Look, LookReply, WishReply};
use crate::options::LEASE_GRACE_MS;
use crate::state::client::{FORGOTTEN_MS, HELD_MAX, WAITING_MAX};

fn request(key: &str, lock: &str) -> WishRequest {
    WishRequest {
        key: Some(key.parse().unwrap()),
        name: format!("{key} (pid 7)"),
        purpose: "migration".into(),
        amounts: BTreeMap::from([(format!("lock:{lock}"), LOCK_WHOLE)]),
        tenant: "light".parse().unwrap(),
        priority: Priority::Normal,
        ttl_ms: None,
        bound: true,
        again: None,
    }
}

fn for_a_minute(key: &str, lock: &str) -> WishRequest {
    WishRequest { ttl_ms: Some(60_000), bound: false, ..request(key, lock) }
}

impl World {
    fn try_wish(&mut self, request: &WishRequest) -> Result<WishReply, Error> {
        Ok(*self.send(&Command::Wish(request.clone())).reply.unwrap()?.downcast().unwrap())
    }

    fn wish(&mut self, request: &WishRequest) -> Option<Held> {
        match self.try_wish(request).unwrap() {
            WishReply::Held(held) => Some(held),
            WishReply::Waiting { .. } => None,
        }
    }

    /// As a client asks: the first answer comes before it is settled who is granted what.
    fn take(&mut self, request: &WishRequest) -> Option<Held> {
        self.wish(request);
        self.wish(request)
    }

    fn leave(&mut self, key: &str, gives_back: bool) {
        self.send(&Command::Leave(Leave { key: key.parse().unwrap(), gives_back }));
    }

    fn look(&mut self, held: &Held) -> LookReply {
        let look = Look { lease: held.lease.clone(), key: held.key.clone() };
        *self.send(&Command::Look(look)).reply.unwrap().unwrap().downcast().unwrap()
    }

    fn over(&mut self, held: &Held) -> Option<String> {
        match self.look(held) {
            LookReply::Held(_) => None,
            LookReply::Over(reason) => Some(reason),
        }
    }

    fn give_back(&mut self, held: &Held, key: Option<&str>) -> Result<ReleaseReply, Error> {
        let request = GiveBack {
            lease: held.lease.clone(),
            reason: String::new(),
            key: key.map(|key| key.parse().unwrap()),
            dry_run: false,
        };
        Ok(*self.send(&Command::GiveBack(request)).reply.unwrap()?.downcast().unwrap())
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.engine.fold_new(&self.journal, &Reads::new(self.journal.epoch(), 0), self.now);
    }

    /// The next incarnation: what was only volatile is gone.
    fn restart(&mut self) {
        self.engine = Engine::new(self.engine.core().clone());
        self.engine.recover(&self.journal).unwrap();
        self.pass(0);
    }
}

#[test]
fn a_client_holds_a_lock_that_tasks_and_clients_wait_for_and_each_is_told_for_whom() {
    let mut world = World::with_runs();
    let held = world.take(&request("ada", "db")).unwrap();
    let task = world.acquire_all("a", &[("lock:db", LOCK_WHOLE)]);
    assert!(world.wish(&request("bob", "db")).is_none());
    let status = world.status();
    let holders = &status.locks[0].holders;
    assert_eq!(holders[0].to_string(), "ada (pid 7): migration");
    assert_eq!((status.waiting.len(), status.leases[0].client.is_some()), (2, true));
    assert!(
        matches!(&status.waiting[1].reasons[0], PendingReason::Lock { holders, .. } if holders.len() == 1)
    );
    world.give_back(&held, Some("ada")).unwrap();
    // The task was first in the line.
    assert!(world.lease(&task).is_some() && world.wish(&request("bob", "db")).is_none());
    let fence = world.start(&task);
    world.commit(&task, fence);
    let second = world.wish(&request("bob", "db")).unwrap();
    assert!(second.fence > held.fence);
    world.check();
}

#[test]
fn waiters_of_all_kinds_are_served_by_class_and_by_who_came_first() {
    let mut world = World::with_runs();
    let held = world.take(&request("first", "db")).unwrap();
    for key in ["one", "two"] {
        world.wish(&request(key, "db"));
        world.now = world.now.plus_ms(1);
    }
    let urgent = WishRequest { priority: Priority::Interactive, ..request("urgent", "db") };
    world.wish(&urgent);
    let mut served = Vec::new();
    let mut holder = held;
    for _ in 0..3 {
        world.give_back(&holder, None).unwrap();
        let got = [request("one", "db"), request("two", "db"), urgent.clone()];
        let (key, next) = got
            .iter()
            .filter(|request| !served.contains(&request.key))
            .find_map(|request| Some((request.key.clone(), world.wish(request)?)))
            .unwrap();
        served.push(key);
        holder = next;
    }
    let served: Vec<_> = served.into_iter().map(|key| key.unwrap().to_string()).collect();
    assert_eq!(served, ["urgent", "one", "two"]);
    world.check();
}

#[test]
fn a_lease_ends_with_its_time_unless_it_is_renewed() {
    let mut world = World::with_runs();
    let held = world.take(&for_a_minute("ada", "db")).unwrap();
    world.pass(50_000);
    let renew = |lease: &LeaseId, ttl_ms| Command::Renew(RenewRequest { lease: lease.clone(), ttl_ms });
    assert!(world.send(&renew(&held.lease, 60_000)).reply.unwrap().is_ok());
    world.restart();
    world.pass(59_999);
    assert_eq!(world.over(&held), None);
    assert_eq!(world.engine.wake_at(), Some(world.now.plus_ms(1)));
    world.pass(1);
    assert_eq!(world.over(&held).as_deref(), Some("its time was over"));
    let refusal = world.send(&renew(&held.lease, 60_000)).reply.unwrap().unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::NotFound, "lease.over"));
    assert!(refusal.message.contains("its time was over"), "{refusal}");
    world.check();
}

#[test]
fn a_bound_lease_ends_a_grace_after_its_session_and_goes_on_with_one_that_comes_back() {
    let mut world = World::with_runs();
    let held = world.take(&request("ada", "db")).unwrap();
    world.pass(100 * LEASE_GRACE_MS);
    assert_eq!(world.over(&held), None, "it is attended, however long");
    world.leave("ada", false);
    world.pass(LEASE_GRACE_MS - 1);
    assert_eq!(world.wish(&request("ada", "db")).unwrap().lease, held.lease, "it has come back in time");
    world.pass(100 * LEASE_GRACE_MS);
    world.leave("ada", false);
    world.pass(LEASE_GRACE_MS);
    assert_eq!(world.over(&held).as_deref(), Some("the session that held it was over"));
    world.check();
}

#[test]
fn a_lease_survives_its_kernel_and_ends_a_grace_after_if_nobody_takes_it_up() {
    let mut world = World::with_runs();
    let kept = world.take(&request("ada", "db")).unwrap();
    let left = world.take(&request("bob", "index")).unwrap();
    world.restart();
    world.pass(LEASE_GRACE_MS - 1);
    assert_eq!(world.wish(&request("ada", "db")).unwrap(), kept);
    world.pass(1);
    assert_eq!(world.over(&kept), None);
    assert!(world.over(&left).is_some());
    world.check();
}

#[test]
fn what_is_taken_up_again_is_that_lease_and_no_other() {
    let mut world = World::with_runs();
    let held = world.take(&request("a", "db")).unwrap();
    let again = WishRequest { again: Some(held.lease.clone()), ..request("a", "db") };
    assert_eq!(world.wish(&again), Some(held.clone()));
    let other = WishRequest { again: Some(held.lease.clone()), ..request("b", "db") };
    assert_eq!(world.try_wish(&other).unwrap_err().reason, "lease.key");

    // Who comes back late, when it was given back meanwhile, gets nothing that nobody would give back.
    world.leave("a", true);
    let late = world.try_wish(&again).unwrap_err();
    assert_eq!((late.code, late.reason.as_str()), (Code::NotFound, "lease.over"));
    assert!(world.take(&request("b", "db")).is_some());
}

#[test]
fn a_wish_that_nobody_asks_about_is_forgotten_and_what_was_granted_to_nobody_is_given_back() {
    let mut world = World::with_runs();
    let held = world.take(&request("ada", "db")).unwrap();
    world.wish(&request("bob", "db"));
    world.pass(FORGOTTEN_MS);
    assert!(world.engine.volatile().is_empty());
    world.wish(&for_a_minute("eve", "db"));
    world.give_back(&held, Some("ada")).unwrap();
    // It was granted before its asker had left, and never told.
    world.leave("eve", true);
    assert!(world.status().leases.is_empty());
    world.check();
}

#[test]
fn the_same_key_is_the_same_claim_and_no_other() {
    let mut world = World::with_runs();
    let held = world.take(&for_a_minute("ada", "db")).unwrap();
    assert_eq!(world.take(&for_a_minute("ada", "db")), Some(held.clone()));
    assert_eq!(world.try_wish(&for_a_minute("ada", "index")).unwrap_err().reason, "lease.key");
    assert_eq!(world.give_back(&held, Some("bob")).unwrap_err().code, Code::Denied);
    assert_eq!(world.status().leases.len(), 1);
    world.check();
}

#[test]
fn an_operator_takes_a_clients_lease_away_but_not_a_tasks() {
    let mut world = World::with_runs();
    let held = world.take(&request("ada", "db")).unwrap();
    world.acquire("a", 1_000, 0);
    let of_task = world.status().leases.into_iter().find(|lease| lease.task.is_some()).unwrap();
    assert!(world.give_back(&held, None).unwrap().done);
    assert_eq!(world.over(&held).as_deref(), Some("an operator took it away"));
    let refusal = world.give_back(&Held { lease: of_task.lease, ..held }, None).unwrap_err();
    assert_eq!((refusal.reason.as_str(), refusal.help.as_deref()), ("lease.task", Some("eclosion cancel a")));
    world.check();
}

#[test]
fn what_is_no_lease_is_refused_before_anybody_waits() {
    let mut world = World::with_runs();
    let ask = |change: fn(&mut WishRequest)| {
        let mut request = request("ada", "db");
        change(&mut request);
        request
    };
    for (request, reason) in [
        (ask(|request| request.amounts.clear()), "lease.request"),
        (ask(|request| request.bound = false), "lease.request"),
        (ask(|request| request.purpose = "x".repeat(257)), "lease.request"),
        (ask(|request| request.ttl_ms = Some(0)), "lease.ttl"),
        (ask(|request| request.ttl_ms = Some(TTL_MS_MAX + 1)), "lease.ttl"),
        (ask(|request| request.amounts = [("cpu".into(), 5_000)].into()), "arbitration.impossible"),
        (ask(|request| request.amounts = [("rate:api".into(), 1)].into()), "arbitration.impossible"),
    ] {
        assert_eq!(world.try_wish(&request).unwrap_err().reason, reason);
    }
    assert!(world.engine.volatile().is_empty() && world.engine.wake_at().is_none());
}

#[test]
fn places_of_clients_are_bounded_and_who_is_refused_is_told_when_to_come_again() {
    let mut world = World::with_runs();
    world.take(&request("first", "db"));
    for n in 0..WAITING_MAX {
        world.wish(&request(&format!("k{n}"), "db"));
    }
    let refusal = world.try_wish(&request("last", "db")).unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Exhausted, "lease.places"));
    assert!(matches!(refusal.retry, Retry::After { .. }));
    assert!(world.engine.volatile().len() == WAITING_MAX && WAITING_MAX < HELD_MAX);
}
