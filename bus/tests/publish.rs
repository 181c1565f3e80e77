//! P-ORD-3 and P5 for publications: one cut between snapshot and changes, and a policy for whoever is slow.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use eclosion_bus::publish::OnFull;
use eclosion_bus::{Bus, Delivery, Filter, Publication, Subject, Subscription};
use eclosion_schemas::Code;
use eclosion_schemas::ids::{Epoch, Seq};
use eclosion_schemas::operation::Table;
use eclosion_schemas::ops::kernel::Delivery as WireDelivery;
use serde::Serialize;
use support::{now, ready};

fn bus() -> Bus {
    Bus::new(Table::default())
}

fn subject(text: &str) -> Subject {
    Subject::new(text).unwrap()
}

fn publication(seq: u64) -> Publication {
    Publication::new(Epoch(1), Seq(seq), seq)
}

fn subscribe(bus: &Bus, filter: &str, on_full: OnFull, capacity: usize) -> Subscription {
    let mut subscription = bus.subscribe(Filter::new(filter).unwrap(), on_full, capacity);
    assert!(matches!(ready(subscription.next()), Some(Delivery::Acknowledged { .. })));
    subscription
}

/// About one subject.
fn publish(bus: &Bus, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        bus.publish(&subject("x"), publication(seq));
    }
}

/// Everything that is there, in short: `s3` a snapshot, `|` its end, `c4` a change, `-2` a gap, `!` a reset, `.` the end.
fn drain(subscription: &mut Subscription) -> String {
    let mut words = Vec::new();
    while let Some(delivery) = now(&mut Box::pin(subscription.next())) {
        words.push(match &delivery {
            None => ".".to_owned(),
            Some(Delivery::Acknowledged { seq, .. }) => format!("a{seq}"),
            Some(Delivery::Snapshot(event)) => format!("s{}", event.value::<u64>().unwrap()),
            Some(Delivery::SnapshotEnd) => "|".to_owned(),
            Some(Delivery::Change(event)) => format!("c{}", event.value::<u64>().unwrap()),
            Some(Delivery::Gap { dropped }) => format!("-{dropped}"),
            Some(Delivery::Reset { .. }) => "!".to_owned(),
        });
        if delivery.is_none() {
            break;
        }
    }
    words.join(" ")
}

#[test]
fn a_subscription_opens_with_its_position_and_the_states() {
    let bus = bus();
    bus.retain(&subject("run/a/state"), publication(3)).unwrap();
    bus.retain(&subject("run/b/state"), publication(4)).unwrap();
    bus.publish(&subject("run/a/log"), publication(5));
    let mut subscription = bus.subscribe(Filter::new("run/*/state").unwrap(), OnFull::Gap, 8);
    assert_eq!(bus.retain(&subject("run/a/state"), publication(6)), Ok(1));
    bus.publish(&subject("run/a/log"), publication(7));
    assert_eq!(drain(&mut subscription), "a5 s3 s4 | c6");
}

#[test]
fn an_older_state_does_not_replace_a_newer_one() {
    let bus = bus();
    bus.retain(&subject("x"), publication(5)).unwrap();
    assert_eq!(bus.retain(&subject("x"), publication(4)), Ok(0));
    assert_eq!(drain(&mut subscribe(&bus, "x", OnFull::Gap, 8)), "s5 |");
    assert_eq!(bus.forget(&Filter::new("**").unwrap()), 1);
    assert_eq!(drain(&mut subscribe(&bus, "x", OnFull::Gap, 8)), "|");
}

#[test]
fn who_is_slow_hears_how_many_were_dropped() {
    let bus = bus();
    let mut slow = subscribe(&bus, "**", OnFull::Gap, 2);
    publish(&bus, 1..=5);
    assert_eq!(drain(&mut slow), "| -3 c4 c5");
}

#[test]
fn latest_keeps_the_newest_of_each_subject() {
    let bus = bus();
    let mut slow = subscribe(&bus, "**", OnFull::Latest, 2);
    for (name, seq) in [("x", 1), ("y", 2), ("x", 3), ("x", 4), ("y", 5), ("x", 6)] {
        bus.publish(&subject(name), publication(seq));
    }
    assert_eq!(drain(&mut slow), "| c5 c6");
    for (name, seq) in [("x", 7), ("y", 8), ("z", 9)] {
        bus.publish(&subject(name), publication(seq));
    }
    // More subjects than places: now something is missed, and said so.
    assert_eq!(drain(&mut slow), "-1 c8 c9");
}

#[test]
fn close_ends_the_subscription_of_who_is_slow() {
    let bus = bus();
    let mut slow = subscribe(&bus, "**", OnFull::Close, 2);
    publish(&bus, 1..=4);
    assert_eq!(drain(&mut slow), "| c1 c2 .");
    assert_eq!(slow.why_ended().unwrap().code, Code::SlowConsumer);
}

#[tokio::test]
async fn block_makes_a_patient_publisher_wait() {
    let bus = bus();
    let mut slow = subscribe(&bus, "**", OnFull::Block, 1);
    bus.publish_patiently(&subject("x"), publication(1)).await;
    let waiting = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish_patiently(&subject("x"), publication(2)).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(drain(&mut slow), "| c1");
    assert_eq!(waiting.await.unwrap(), 1);
    assert_eq!(drain(&mut slow), "c2");
}

#[tokio::test]
async fn a_patient_publisher_is_let_go_when_the_subscriber_leaves() {
    let bus = bus();
    let slow = subscribe(&bus, "**", OnFull::Block, 1);
    bus.publish(&subject("x"), publication(1));
    let waiting = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish_patiently(&subject("x"), publication(2)).await }
    });
    tokio::task::yield_now().await;
    drop(slow);
    waiting.await.unwrap();
}

#[test]
fn a_publisher_that_may_not_wait_leaves_a_gap_instead_of_blocking() {
    let bus = bus();
    let mut slow = subscribe(&bus, "**", OnFull::Block, 1);
    publish(&bus, 1..=3);
    assert_eq!(drain(&mut slow), "| -2 c3");
}

#[test]
fn who_has_left_receives_nothing() {
    let bus = bus();
    let subscription = subscribe(&bus, "**", OnFull::Gap, 8);
    assert_eq!(bus.publish(&subject("x"), publication(1)), 1);
    drop(subscription);
    assert_eq!(bus.publish(&subject("x"), publication(2)), 0);
}

#[test]
fn a_subscription_ends_with_its_bus() {
    let bus = bus();
    let mut subscription = subscribe(&bus, "**", OnFull::Gap, 8);
    drop(bus);
    assert_eq!(drain(&mut subscription), "| .");
    assert!(subscription.why_ended().is_none());
}

/// A value that counts how often it is encoded.
struct Counted(Arc<std::sync::atomic::AtomicU32>);

impl Serialize for Counted {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        serializer.serialize_str("value")
    }
}

#[test]
fn a_change_is_encoded_once_for_all_receivers_and_as_declared() {
    let bus = bus();
    let mut subscriptions: Vec<_> = (0..3).map(|_| subscribe(&bus, "**", OnFull::Gap, 8)).collect();
    let count = Arc::default();
    bus.publish(&subject("x"), Publication::new(Epoch(1), Seq(9), Counted(Arc::clone(&count))));
    for subscription in &mut subscriptions {
        assert!(matches!(ready(subscription.next()), Some(Delivery::SnapshotEnd)));
        let bytes = ready(subscription.next()).unwrap().encoded().unwrap();
        let wire: WireDelivery = rmp_serde::from_slice(&bytes).unwrap();
        let value = serde_json::json!("value");
        assert_eq!(wire, WireDelivery::Change { subject: "x".into(), epoch: Epoch(1), seq: Seq(9), value });
    }
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn every_delivery_reads_back_as_declared() {
    let bus = bus();
    bus.retain(&subject("x"), publication(1)).unwrap();
    let mut subscription = bus.subscribe(Filter::new("**").unwrap(), OnFull::Gap, 1);
    publish(&bus, 2..=3);
    for _ in 0..5 {
        let delivery = ready(subscription.next()).unwrap();
        let wire: WireDelivery = rmp_serde::from_slice(&delivery.encoded().unwrap()).unwrap();
        assert_eq!(wire, delivery.to_wire().unwrap());
    }
}

/// A publisher counts a state up without a pause; whoever subscribes in between must see its snapshot continued by the
/// next number, with neither a gap nor a repetition.
#[test]
fn subscribing_while_states_change_misses_and_repeats_nothing() {
    const FOLLOWERS: usize = 3;
    const SUBSCRIPTIONS: usize = 2_000;
    let bus = bus();
    bus.retain(&subject("run/a/state"), publication(0)).unwrap();
    std::thread::scope(|scope| {
        let follow = || (0..SUBSCRIPTIONS).for_each(|_| follow(&bus));
        let followers: Vec<_> = (0..FOLLOWERS).map(|_| scope.spawn(follow)).collect();
        for seq in 1.. {
            bus.retain(&subject("run/a/state"), publication(seq)).unwrap();
            if followers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
    });
}

/// Subscribes and follows two changes.
fn follow(bus: &Bus) {
    let mut subscription = bus.subscribe(Filter::new("run/*/state").unwrap(), OnFull::Close, 1 << 16);
    let Some(Delivery::Acknowledged { seq, .. }) = ready(subscription.next()) else {
        panic!("not acknowledged")
    };
    let Some(Delivery::Snapshot(state)) = ready(subscription.next()) else { panic!("no snapshot") };
    let mut last = *state.value::<u64>().unwrap();
    assert_eq!(seq, Seq(last), "the acknowledgement and the snapshot are one cut");
    assert!(matches!(ready(subscription.next()), Some(Delivery::SnapshotEnd)));
    let mut changes = 0;
    while changes < 2 {
        match now(&mut Box::pin(subscription.next())) {
            Some(Some(Delivery::Change(event))) => {
                assert_eq!(*event.value::<u64>().unwrap(), last + 1);
                last += 1;
                changes += 1;
            }
            Some(other) => panic!("{other:?}"),
            None => std::thread::yield_now(),
        }
    }
}

fn resume(bus: &Bus, filter: &str, cursor: (u32, u64)) -> String {
    let start = Some((Epoch(cursor.0), Seq(cursor.1)));
    drain(&mut bus.subscribe_from(Filter::new(filter).unwrap(), OnFull::Gap, 8, start))
}

#[test]
fn a_cursor_goes_on_with_what_came_since_and_repeats_its_own_position() {
    let bus = bus();
    let epoch = publication(1).epoch.0;
    bus.retain(&subject("x"), publication(1)).unwrap();
    publish(&bus, 2..=4);
    bus.publish(&subject("other"), publication(5));
    assert_eq!(resume(&bus, "x", (epoch, 3)), "a3 c3 c4");
    assert_eq!(resume(&bus, "x", (epoch, 5)), "a5");
    assert_eq!(resume(&bus, "**", (epoch, 5)), "a5 c5");
    // Two actors publish each when it is ready: what is older by its position may come later.
    publish(&bus, 8..=8);
    publish(&bus, 6..=6);
    assert_eq!(resume(&bus, "x", (epoch, 8)), "a8 c8 c6");
}

#[test]
fn a_cursor_that_cannot_be_gone_on_from_is_reset_to_a_snapshot() {
    let bus = bus();
    let epoch = publication(1).epoch.0;
    assert_eq!(resume(&bus, "x", (epoch, 1)), "a0 ! |");
    bus.retain(&subject("x"), publication(1)).unwrap();
    for cursor in [(epoch + 1, 1), (epoch - 1, 1), (epoch, 2)] {
        assert_eq!(resume(&bus, "x", cursor), "a1 ! s1 |", "{cursor:?}");
    }
    let kept = eclosion_bus::TAIL_MAX as u64;
    publish(&bus, 2..=1 + kept);
    assert_eq!(resume(&bus, "y", (epoch, 2)), "a2");
    assert_eq!(resume(&bus, "x", (epoch, 1)), format!("a{} ! s1 |", 1 + kept));
}

#[test]
fn a_large_value_is_gone_with_its_last_receiver_and_who_missed_it_begins_anew() {
    let bus = bus();
    let epoch = publication(1).epoch.0;
    let frame = Arc::new(vec![0_u8; 8]);
    let mut viewer = subscribe(&bus, "frames/*", OnFull::Gap, 8);
    publish(&bus, 1..=1);
    let large = Publication::new(Epoch(1), Seq(2), Arc::clone(&frame)).weighing(8 << 20);
    bus.publish(&subject("frames/a"), large);
    publish(&bus, 3..=3);
    assert!(matches!(ready(viewer.next()), Some(Delivery::SnapshotEnd)));
    let Some(Delivery::Change(received)) = ready(viewer.next()) else { panic!("the frame is next") };
    assert_eq!(Arc::strong_count(&frame), 2, "held by who received it");
    drop(received);
    assert_eq!(Arc::strong_count(&frame), 1, "and by nobody else");
    // Who looks at something else goes on as ever; who would have to hear it again cannot.
    assert_eq!(resume(&bus, "x", (epoch, 1)), "a1 c1 c3");
    assert_eq!(resume(&bus, "frames/*", (epoch, 1)), "a3 ! |");
    assert_eq!(resume(&bus, "frames/*", (epoch, 3)), "a3");
}
