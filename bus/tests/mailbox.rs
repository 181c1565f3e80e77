//! P2 and P5 at the mailbox: lanes, bounds, redelivery, closing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::future::IntoFuture;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eclosion_bus::{Address, Control, Gate, MailboxOptions, Quantiles, Refused, Taken, WhenFull};
use eclosion_schemas::Code;
use support::*;

#[test]
fn what_is_queued_waits_for_the_next_incarnation() {
    let fixture = fixture();
    let next = fixture.mailbox.clone();
    fixture.tell(1);
    drop(fixture.mailbox);
    assert!(matches!(next.try_take(), Some(Taken::Message(message)) if note(&message) == 1));
}

#[test]
fn a_request_is_given_to_its_own_operation_alone() {
    let fixture = fixture();
    fixture.tell(1);
    let message = fixture.take().unwrap();
    // Both have requests of one type.
    assert_eq!((message.request::<Double>(), message.request::<Count>()), (Some(&Note(1)), None));
}

#[test]
fn control_is_taken_before_data_that_came_earlier() {
    let fixture = fixture_of(2, WhenFull::Refuse);
    fixture.tell(1);
    fixture.tell(2);
    assert!(matches!(fixture.bus.tell::<Double>(Note(3)), Err(Refused::Full(Note(3)))));
    // The data lane is full, the control lane does not care.
    fixture.bus.control(&address(), Control::Stop { now: true }).unwrap();
    assert!(matches!(fixture.mailbox.try_take(), Some(Taken::Control(Control::Stop { now: true }))));
    assert_eq!(note(&fixture.take().unwrap()), 1);
}

#[test]
fn the_control_lane_is_bounded_too() {
    let fixture = fixture();
    for _ in 0..4 {
        fixture.bus.control(&address(), Control::Stop { now: false }).unwrap();
    }
    let refused = fixture.bus.control(&address(), Control::Stop { now: true });
    assert!(matches!(refused, Err(Refused::Full(Control::Stop { now: true }))));
    assert_eq!(fixture.statistics().control_queued, 4);
}

#[test]
fn a_taker_may_wait_for_control_alone() {
    let fixture = fixture();
    fixture.tell(1);
    let mut waiting = Box::pin(fixture.mailbox.take_control());
    assert!(now(&mut waiting).is_none());
    fixture.bus.control(&address(), Control::Stop { now: false }).unwrap();
    assert!(matches!(now(&mut waiting), Some(Taken::Control(Control::Stop { .. }))));
    assert_eq!(fixture.statistics().queued, 1);
}

#[test]
fn a_paused_mailbox_accepts_and_gives_control_alone_to_this_taker_and_the_next() {
    let fixture = fixture();
    let next = fixture.mailbox.clone();
    assert_eq!(fixture.bus.gate(&address(), Gate::Paused), Some(Gate::Open));
    fixture.tell(1);
    assert!(fixture.mailbox.try_take().is_none() && next.try_take().is_none());
    let mut waiting = Box::pin(next.take());
    assert!(now(&mut waiting).is_none());
    assert_eq!(fixture.bus.gate(&address(), Gate::Open), Some(Gate::Paused));
    assert!(matches!(now(&mut waiting), Some(Taken::Message(message)) if note(&message) == 1));
}

#[test]
fn a_draining_mailbox_hands_back_what_is_new_and_gives_what_waits() {
    let fixture = fixture();
    fixture.tell(1);
    let _ = fixture.bus.gate(&address(), Gate::Draining);
    assert!(matches!(fixture.bus.tell::<Double>(Note(2)), Err(Refused::Draining(Note(2)))));
    assert_eq!(note(&fixture.take().unwrap()), 1);
    let statistics = fixture.statistics();
    assert_eq!((statistics.refused, statistics.gate), (1, Gate::Draining));
    assert!(statistics.balances());
}

#[test]
fn an_address_that_nobody_serves_has_no_gate() {
    let fixture = fixture();
    assert_eq!(fixture.bus.gate(&Address::new("/nobody").unwrap(), Gate::Paused), None);
}

#[test]
fn what_is_looked_at_tells_how_long_messages_waited_and_were_handled() {
    let fixture = fixture();
    assert_eq!(fixture.statistics().wait, None);
    let asked = fixture.bus.ask::<Double>(Note(1));
    let mut asked = Box::pin(asked.into_future());
    assert!(now(&mut asked).is_none());
    fixture.clock.advance(Duration::from_millis(8));
    let message = fixture.take().unwrap();
    fixture.clock.advance(Duration::from_millis(2));
    message.finish().reply(Ok(Box::new(2_u64)));
    assert!(fixture.mailbox.try_take().is_none());
    let statistics = fixture.statistics();
    let near = |found: Option<Quantiles>, ms: f64| {
        found.is_some_and(|found| (found.p50.as_secs_f64() * 1e3 / ms - 1.0).abs() < 0.13)
    };
    assert!(near(statistics.wait, 8.0) && near(statistics.handling, 2.0), "{statistics:?}");
}

#[test]
fn the_sweep_sees_how_much_comes_and_how_busy_the_taker_is() {
    let fixture = fixture();
    let sweep = || {
        fixture.clock.advance(Duration::from_millis(50));
        fixture.bus.sweep(fixture.clock.now());
    };
    (0..40).for_each(|_| sweep());
    (0..3).for_each(|note| fixture.tell(note));
    let in_hand = fixture.take().unwrap();
    (0..40).for_each(|_| sweep());
    let statistics = fixture.statistics();
    assert_eq!(statistics.busy_permille, 1000);
    assert!(statistics.in_hand_for.is_some_and(|held| held >= Duration::from_millis(1900)));
    drop(in_hand.finish());
    (0..40).for_each(|_| sweep());
    let statistics = fixture.statistics();
    assert_eq!((statistics.busy_permille, statistics.in_hand_for, statistics.accepted_per_s), (0, None, 0));
}

#[test]
fn what_is_in_hand_keeps_its_place_in_the_capacity() {
    let fixture = fixture_of(1, WhenFull::Refuse);
    fixture.tell(1);
    let in_hand = fixture.take().unwrap();
    assert!(matches!(fixture.bus.tell::<Double>(Note(2)), Err(Refused::Full(Note(2)))));
    drop(in_hand.finish());
    fixture.tell(3);
    let statistics = fixture.statistics();
    assert_eq!((statistics.accepted, statistics.refused, statistics.handled), (2, 1, 1));
}

#[tokio::test]
async fn a_mailbox_that_drops_the_oldest_tells_its_asker() {
    let fixture = fixture_of(1, WhenFull::DropOldest);
    let oldest = fixture.ask(1);
    fixture.tell(2);
    assert_eq!(ready(oldest).unwrap_err().code, Code::Exhausted);
    assert_eq!(note(&fixture.take().unwrap()), 2);
    assert_eq!(fixture.statistics().dropped, 1);
    assert!(fixture.statistics().balances());
}

#[tokio::test]
async fn a_message_comes_back_once_after_a_panic_and_then_is_dead() {
    let fixture = fixture();
    let ask = fixture.ask(1);
    fixture.tell(2);
    for deliveries in [1, 2] {
        let in_hand = fixture.take().unwrap();
        // At its old place: before the message that came later.
        assert_eq!((note(&in_hand), in_hand.deliveries), (1, deliveries));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _held = in_hand;
            panic!("as a handler does");
        }));
        assert!(panicked.is_err());
    }
    let error = ready(ask).unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable, "actor.died"));
    assert!(error.message.contains("its handler panicked"), "{error}");
    assert_eq!(note(&fixture.take().unwrap()), 2);
    let statistics = fixture.statistics();
    assert_eq!((statistics.redelivered, statistics.dead_lettered), (2, 1));
    assert_eq!(fixture.bus.dead_letters()[0].deliveries, 2);
}

#[tokio::test]
async fn a_dead_letter_carries_the_text_of_whoever_died() {
    let fixture = fixture();
    let ask = fixture.ask(1);
    fixture.take().unwrap().died("index out of bounds");
    fixture.take().unwrap().died("index out of bounds");
    assert!(ready(ask).unwrap_err().message.contains("index out of bounds"));
    assert_eq!(fixture.bus.dead_letters()[0].why, "index out of bounds");
}

#[test]
fn several_in_hand_come_back_in_their_old_order() {
    let fixture = fixture();
    (1..=4).for_each(|n| fixture.tell(n));
    let (first, second, third) = (fixture.take().unwrap(), fixture.take().unwrap(), fixture.take().unwrap());
    drop(second);
    drop(first);
    drop(third);
    let order: Vec<_> = std::iter::from_fn(|| {
        fixture.take().map(|message| {
            let n = note(&message);
            drop(message.finish());
            n
        })
    })
    .collect();
    assert_eq!(order, [1, 2, 3, 4]);
}

#[tokio::test]
async fn closing_turns_what_is_queued_into_dead_letters() {
    let fixture = fixture();
    let answered = fixture.ask(1);
    let queued = fixture.ask(2);
    fixture.tell(3);
    let in_hand = fixture.take().unwrap();
    assert!(fixture.bus.close(&address()));
    assert!(!fixture.bus.close(&address()));
    assert_eq!(ready(queued).unwrap_err().code, Code::NoResponders);
    assert_eq!(fixture.bus.dead_letters().len(), 2);
    assert!(matches!(fixture.mailbox.take().await, Taken::Closed));
    // What was in hand may still be answered.
    in_hand.finish().reply(Ok(Box::new(2_u64)));
    assert_eq!(ready(answered), Ok(2));
    assert!(fixture.statistics().balances());
    assert!(matches!(fixture.bus.tell::<Double>(Note(4)), Err(Refused::Closed(Note(4)))));
}

#[test]
fn what_comes_back_after_closing_is_dead_at_once() {
    let fixture = fixture();
    fixture.tell(1);
    let in_hand = fixture.take().unwrap();
    assert!(fixture.bus.close(&address()));
    drop(in_hand);
    assert_eq!(fixture.bus.dead_letters().len(), 1);
    assert!(fixture.statistics().balances());
}

#[test]
fn an_address_is_open_once_at_a_time() {
    let fixture = fixture();
    let again = fixture.bus.open(address(), MailboxOptions::default());
    assert_eq!(again.unwrap_err().code, Code::AlreadyExists);
    assert_eq!(fixture.bus.addresses(), [address()]);
    assert!(fixture.bus.close(&address()));
    assert!(fixture.bus.open(address(), MailboxOptions::default()).is_ok());
}

#[test]
fn a_dead_letter_is_replayed_or_dropped() {
    let fixture = fixture_of(2, WhenFull::Refuse);
    for n in [1, 2] {
        fixture.tell(n);
        fixture.take().unwrap().died("first");
        fixture.take().unwrap().died("second");
    }
    let ids: Vec<_> = fixture.bus.dead_letters().iter().map(|letter| letter.id).collect();
    let replayed = fixture.bus.replay_dead_letter(ids[0]).unwrap();
    let again = fixture.take().unwrap();
    assert_eq!((note(&again), again.deliveries), (1, 1));
    fixture.tell(3);
    // Full: it stays where it is.
    assert_eq!(fixture.bus.replay_dead_letter(ids[1]).unwrap_err().code, Code::Exhausted);
    fixture.bus.drop_dead_letter(ids[1]).unwrap();
    assert_eq!(fixture.bus.drop_dead_letter(ids[1]).unwrap_err().code, Code::NotFound);
    assert!(fixture.bus.dead_letters().is_empty());
    drop(again.finish());
    drop(replayed);
    assert!(fixture.statistics().balances());
}

#[tokio::test]
async fn a_replay_that_dies_again_is_told_with_what_its_actor_has_died_of() {
    let fixture = fixture();
    fixture.tell(1);
    fixture.take().unwrap().died("first");
    fixture.take().unwrap().died("second");
    let id = fixture.bus.dead_letters()[0].id;
    let mut replayed = fixture.bus.replay_dead_letter(id).unwrap();
    fixture.take().unwrap().died("its handler panicked");
    fixture.bus.note_death(address().as_str(), "no guest called Hal");
    fixture.take().unwrap().died("its handler panicked");
    let Some(eclosion_bus::Item::Reply(Err(error))) = replayed.next().await else { panic!("no end") };
    assert!(error.message.ends_with("its handler panicked, as before: no guest called Hal"), "{error}");
    assert!(error.help.is_some_and(|help| help.starts_with("eclosion dead ls")));
    assert!(fixture.bus.dead_letters()[0].why.contains("no guest called Hal"));
}

#[test]
fn the_list_of_dead_letters_is_bounded() {
    let fixture = fixture_of(8, WhenFull::Refuse);
    for n in 0..1030 {
        fixture.tell(n);
        fixture.take().unwrap().died("first");
        fixture.take().unwrap().died("second");
    }
    assert_eq!(fixture.bus.dead_letters().len(), 1024);
    assert_eq!(fixture.bus.dead_letters_forgotten(), 6);
}

#[test]
fn the_age_of_the_oldest_message_is_told() {
    let fixture = fixture();
    fixture.tell(1);
    fixture.clock.advance(Duration::from_secs(3));
    fixture.tell(2);
    assert_eq!(fixture.statistics().oldest_age, Some(Duration::from_secs(3)));
    let in_hand = fixture.take().unwrap();
    assert_eq!(fixture.statistics().current, Some("test.double"));
    drop(in_hand.finish());
    assert_eq!(fixture.statistics().current, None);
}

#[tokio::test]
async fn a_ping_passes_all_that_is_queued() {
    let fixture = fixture();
    fixture.tell(1);
    let answering = async {
        match fixture.mailbox.take().await {
            Taken::Control(Control::Ping(probe)) => probe.answer(),
            other => panic!("{other:?}"),
        }
    };
    let address = address();
    let (pinged, ()) = tokio::join!(fixture.bus.ping(&address), answering);
    pinged.unwrap();
}

#[tokio::test]
async fn a_probe_that_is_dropped_says_so() {
    let fixture = fixture();
    let address = address();
    let dropping = async { drop(fixture.mailbox.take().await) };
    let (pinged, ()) = tokio::join!(fixture.bus.ping(&address), dropping);
    assert_eq!(pinged.unwrap_err().reason, "actor.died");
}

#[tokio::test(flavor = "current_thread")]
async fn a_taker_that_always_finds_a_message_lets_its_neighbors_run() {
    let fixture = fixture_of(4096, WhenFull::Refuse);
    let neighbor_ran = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&neighbor_ran);
    let neighbor = tokio::spawn(async move { seen.store(true, Ordering::Relaxed) });
    let mut taken = 0;
    while !neighbor_ran.load(Ordering::Relaxed) {
        fixture.tell(1);
        if let Taken::Message(message) = fixture.mailbox.take().await {
            drop(message.finish());
        }
        taken += 1;
        assert!(taken < 1000, "the neighbor starves");
    }
    neighbor.await.unwrap();
}
