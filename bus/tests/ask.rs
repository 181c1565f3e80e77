//! P3: an ask resolves, whoever dies.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use eclosion_bus::{Bus, Call, Context, Item, Refused, TraceContext};
use eclosion_schemas::ids::{EffectId, Seq};
use eclosion_schemas::operation::{Operation, Role, Table};
use eclosion_schemas::{Code, Error};
use support::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn an_ask_is_answered() {
    let fixture = fixture();
    let ask = fixture.ask(21);
    let in_hand = fixture.take().unwrap();
    let doubled = note(&in_hand) * 2;
    in_hand.finish().reply(Ok(Box::new(doubled)));
    assert_eq!(ready(ask), Ok(42));
    assert_eq!(fixture.statistics().handled, 1);
}

#[tokio::test]
async fn an_ask_to_nobody_is_refused_at_once() {
    let bus = Bus::new(Table::default());
    assert_eq!(bus.ask::<Double>(Note(1)).await.unwrap_err().code, Code::NoResponders);
}

#[tokio::test]
async fn what_rides_along_arrives() {
    let fixture = fixture();
    let trace: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let cause = EffectId { seq: Seq(7), n: 1 };
    let ask = fixture.bus.ask::<Double>(Note(1)).deadline(3 * SECOND).trace(trace).cause(cause).idem("key");
    let ask = ask.role(Role::Operate).caller("cli").into_future();
    let in_hand = fixture.take().unwrap();
    let context = &in_hand.context;
    assert_eq!(context.deadline, fixture.clock.now() + 3 * SECOND);
    assert_eq!((context.trace, context.cause), (Some(trace), Some(cause)));
    assert_eq!((context.idem.as_deref(), context.caller.as_deref()), (Some("key"), Some("cli")));
    assert_eq!(context.role, Role::Operate);
    drop(ask);
}

#[tokio::test]
async fn a_responder_that_is_dropped_says_that_its_holder_died() {
    let fixture = fixture();
    let ask = fixture.ask(1);
    drop(fixture.take().unwrap().finish());
    assert_eq!(ready(ask).unwrap_err().reason, "actor.died");
}

#[tokio::test]
async fn the_asker_is_woken_by_the_answer() {
    let fixture = fixture();
    let asking = tokio::spawn(fixture.ask(1));
    tokio::task::yield_now().await;
    fixture.take().unwrap().finish().reply(Err(Error::not_found("test.none", "there is none")));
    assert_eq!(asking.await.unwrap().unwrap_err().reason, "test.none");
}

#[test]
fn dropping_the_future_withdraws_a_queued_message() {
    let fixture = fixture();
    let (kept, dropped) = (fixture.ask(1), fixture.ask(2));
    drop(dropped);
    assert_eq!(note(&fixture.take().unwrap()), 1);
    assert_eq!((fixture.statistics().cancelled, fixture.statistics().queued), (1, 1));
    assert!(fixture.statistics().balances());
    drop(kept);
}

#[tokio::test]
async fn dropping_the_future_trips_the_token_of_one_in_work() {
    let fixture = fixture();
    let ask = fixture.ask(1);
    let in_hand = fixture.take().unwrap();
    let token = in_hand.cancelled().clone();
    let watching = tokio::spawn(async move { token.cancelled().await });
    tokio::task::yield_now().await;
    assert!(!in_hand.cancelled().is_cancelled());
    drop(ask);
    watching.await.unwrap();
    assert!(in_hand.cancelled().is_cancelled());
    let responder = in_hand.finish();
    assert!(!responder.is_awaited());
    responder.reply(Ok(Box::new(2_u64)));
    // What was decided stands.
    assert_eq!(fixture.statistics().handled, 1);
}

#[test]
fn nobody_is_made_to_handle_again_what_its_asker_has_left() {
    let fixture = fixture();
    let ask = fixture.ask(1);
    let in_hand = fixture.take().unwrap();
    drop(ask);
    drop(in_hand);
    let statistics = fixture.statistics();
    assert_eq!((statistics.cancelled, statistics.queued, statistics.redelivered), (1, 0, 0));
    assert!(statistics.balances());
}

#[test]
fn a_message_that_waited_too_long_is_not_handed_out() {
    let fixture = fixture();
    let mut ask = fixture.ask(1);
    fixture.clock.advance(SECOND);
    assert!(fixture.take().is_none());
    assert_eq!(now(&mut ask).unwrap().unwrap_err().code, Code::Deadline);
    assert_eq!(fixture.statistics().expired, 1);
}

#[test]
fn the_sweep_resolves_what_is_queued_in_hand_and_held() {
    let fixture = fixture();
    let (mut held, mut in_hand, mut queued) = (fixture.ask(1), fixture.ask(2), fixture.ask(3));
    let responder = fixture.take().unwrap().finish();
    let holding = fixture.take().unwrap();
    fixture.advance_and_sweep(SECOND / 2);
    assert!(now(&mut held).is_none());
    fixture.advance_and_sweep(SECOND / 2);
    for ask in [&mut held, &mut in_hand, &mut queued] {
        assert_eq!(now(ask).unwrap().unwrap_err().code, Code::Deadline);
    }
    assert!(responder.cancelled().is_cancelled() && holding.cancelled().is_cancelled());
    // A late reply is discarded, a late hand gives nothing back.
    responder.reply(Ok(Box::new(2_u64)));
    drop(holding);
    let statistics = fixture.statistics();
    assert_eq!((statistics.expired, statistics.handled, statistics.queued), (2, 1, 0));
    assert!(statistics.balances());
}

#[test]
fn the_sweep_reaches_asks_whose_address_was_closed() {
    let fixture = fixture();
    let mut ask = fixture.ask(1);
    let responder = fixture.take().unwrap().finish();
    assert!(fixture.bus.close(&address()));
    fixture.advance_and_sweep(SECOND);
    assert_eq!(now(&mut ask).unwrap().unwrap_err().code, Code::Deadline);
    drop(responder);
}

#[test]
fn a_tell_has_a_deadline_only_if_it_is_given_one() {
    let fixture = fixture();
    fixture.tell(1);
    let until = fixture.clock.now() + SECOND;
    fixture.bus.tell_with::<Double>(Double::ADDRESS, Context::until(until), Note(2)).unwrap();
    fixture.advance_and_sweep(Duration::from_secs(3600));
    let late = fixture.bus.tell_with::<Double>(Double::ADDRESS, Context::until(until), Note(3));
    assert!(matches!(late, Err(Refused::Expired(Note(3)))));
    assert_eq!((fixture.statistics().expired, fixture.statistics().queued), (1, 1));
}

#[test]
fn many_asks_in_work_are_all_swept_and_none_is_kept() {
    let fixture = fixture_of(4096, eclosion_bus::WhenFull::Refuse);
    let mut held = Vec::new();
    for n in 0..1000 {
        let ask = fixture.ask(n);
        let responder = fixture.take().unwrap().finish();
        if n % 10 == 0 {
            held.push((ask, responder));
        } else {
            responder.reply(Ok(Box::new(n)));
        }
    }
    fixture.advance_and_sweep(SECOND);
    assert!(held.iter_mut().all(|(ask, _)| now(ask).unwrap().unwrap_err().code == Code::Deadline));
}

#[test]
fn dropping_the_bus_leaves_nobody_waiting() {
    let fixture = fixture();
    let mut ask = fixture.ask(1);
    drop(fixture.bus);
    assert_eq!(now(&mut ask).unwrap().unwrap_err().code, Code::NoResponders);
}

#[tokio::test]
async fn a_reply_of_another_type_is_an_error_and_not_a_panic() {
    let fixture = fixture();
    let ask = fixture.ask(1);
    fixture.take().unwrap().finish().reply(Ok(Box::new("two")));
    assert_eq!(ready(ask).unwrap_err().reason, "reply.type");
}

/// What a transport makes of a frame.
fn call<O: Operation>(fixture: &Fixture, n: u64) -> eclosion_bus::Pending {
    call_with::<O>(fixture, n, None)
}

fn call_with<O: Operation>(fixture: &Fixture, n: u64, credit: Option<u64>) -> eclosion_bus::Pending {
    let spec = Arc::clone(fixture.bus.table().get(O::NAME).unwrap());
    let request = (spec.decode_request)(&rmp_serde::to_vec_named(&Note(n)).unwrap()).unwrap();
    let context = Context::until(fixture.clock.now() + SECOND);
    fixture.bus.call(Call { spec, address: address(), request, context, credit })
}

#[tokio::test]
async fn a_decoded_request_looks_like_a_typed_one() {
    let fixture = fixture();
    let mut pending = call::<Double>(&fixture, 21);
    let in_hand = fixture.take().unwrap();
    assert_eq!(note(&in_hand), 21);
    in_hand.finish().reply(Ok(Box::new(42_u64)));
    let Some(Item::Reply(Ok(reply))) = pending.next().await else { panic!("no reply") };
    assert_eq!(reply.downcast_ref(), Some(&42_u64));
    assert!(pending.next().await.is_none());
}

#[tokio::test]
async fn a_refused_call_says_so_once() {
    let fixture = fixture();
    assert!(fixture.bus.close(&address()));
    let mut pending = call::<Double>(&fixture, 1);
    assert!(
        matches!(pending.next().await, Some(Item::Reply(Err(error))) if error.code == Code::NoResponders)
    );
    assert!(pending.next().await.is_none());
}

#[tokio::test]
async fn items_come_before_the_reply_and_wait_for_credit() {
    let fixture = fixture();
    let mut pending = call::<Count>(&fixture, 100);
    let responder = fixture.take().unwrap().finish();
    let counting = tokio::spawn(async move {
        for n in 0..100_u64 {
            responder.item(Box::new(n)).await.unwrap();
        }
        responder.reply(Ok(Box::new(100_u64)));
    });
    tokio::task::yield_now().await;
    assert!(!counting.is_finished(), "64 items are under way, not 100");
    for n in 0..100_u64 {
        let Some(Item::Item(item)) = pending.next().await else { panic!("no item {n}") };
        assert_eq!(item.downcast_ref(), Some(&n));
    }
    assert!(matches!(pending.next().await, Some(Item::Reply(Ok(_)))));
    counting.await.unwrap();
}

#[tokio::test]
async fn no_item_comes_that_the_asker_has_not_granted() {
    let fixture = fixture();
    let mut pending = call_with::<Count>(&fixture, 100, Some(2));
    let responder = fixture.take().unwrap().finish();
    let mut sent = 0_u64;
    // Cumulative: what comes late or twice changes nothing.
    for (grant, may_have_come) in [(None, 2), (Some(5), 5), (Some(3), 5), (Some(5), 5), (Some(1000), 64)] {
        if let Some(total) = grant {
            pending.grant(total);
        }
        assert_eq!(responder.allowance(), may_have_come);
        while responder.try_item(Box::new(sent)).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, may_have_come);
    }
    let more = tokio::spawn(async move {
        responder.allowance_over(64).await;
        responder.allowance()
    });
    tokio::task::yield_now().await;
    assert!(!more.is_finished(), "64 are under way, whatever was granted");
    assert!(matches!(pending.next().await, Some(Item::Item(_))));
    assert_eq!(more.await.unwrap(), 65);
}

#[tokio::test]
async fn a_stream_ends_when_its_asker_leaves_or_its_deadline_passes() {
    let fixture = fixture();
    for leave in [true, false] {
        let pending = call::<Count>(&fixture, 100);
        let responder = fixture.take().unwrap().finish();
        while responder.try_item(Box::new(1_u64)).is_ok() {}
        let waiting = tokio::spawn(async move { responder.item(Box::new(2_u64)).await });
        tokio::task::yield_now().await;
        if leave {
            drop(pending);
        } else {
            fixture.advance_and_sweep(SECOND);
        }
        assert_eq!(waiting.await.unwrap().unwrap_err().code, Code::Cancelled);
    }
}

#[tokio::test]
async fn a_plain_ask_discards_items() {
    let fixture = fixture();
    let ask = fixture.bus.ask::<Count>(Note(1)).into_future();
    let responder = fixture.take().unwrap().finish();
    for n in 0..200_u64 {
        responder.try_item(Box::new(n)).unwrap();
    }
    responder.reply(Ok(Box::new(200_u64)));
    assert_eq!(ready(ask), Ok(200));
}
