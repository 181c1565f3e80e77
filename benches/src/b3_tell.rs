//! B3: an in-process tell through a bounded mailbox.
//!
//! Floor: a bounded tokio mpsc. Peer: ractor's cast (unbounded). A sample is a thousand messages sent in a row and
//! handled to the last.

use std::sync::Arc;

use eclosion_bus::{Address, Bus, Mailbox, MailboxOptions, Taken};
use eclosion_schemas::Error;
use eclosion_schemas::operation::{Operation, Table};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Notify, mpsc};

use crate::Failure;
use crate::load::{Load, Sum};
use crate::measure::{ROUNDS, Samples, runtime, timed};
use crate::report::{Report, Role};

const SAMPLES: usize = 40;
const TELLS: u32 = 1_000;
/// The load that ends a sample.
const LAST: u64 = u64::MAX;

pub(crate) fn run() -> Result<Report, Failure> {
    let rows = runtime()?.block_on(async { tokio::spawn(measured()).await })??;
    let rows = rows.into_iter().map(Samples::row).collect();
    let budget = "≤ 0.6 × ractor cast a message";
    Ok(Report::new("b3", "in-process tell", budget, rows).ratio("eclosion tell", "ractor cast", 0.6))
}

async fn measured() -> Result<[Samples; 3], Error> {
    let done = Arc::new(Notify::new());
    let channel = channel(Arc::clone(&done));
    let spawned = Actor::spawn(None, Counting(Arc::clone(&done)), ()).await;
    let (actor, _) = spawned.map_err(|why| Error::internal("bench.peer", why.to_string()))?;
    let bus = Bus::new(Table::default());
    let mailbox = bus.open(Address::new(Sum::ADDRESS)?, MailboxOptions::default())?;
    tokio::spawn(serve(mailbox, Arc::clone(&done)));
    let mut floor = Samples::of(Role::Floor, "tokio mpsc");
    let mut peer = Samples::of(Role::Peer, "ractor cast");
    let mut us = Samples::of(Role::Us, "eclosion tell");
    for _ in 0..ROUNDS {
        floor.begin_round();
        for _ in 0..SAMPLES {
            timed(&mut floor, TELLS, sent_and_done(&done, |load| channel.try_send(load).is_ok())).await;
        }
        peer.begin_round();
        for _ in 0..SAMPLES {
            timed(&mut peer, TELLS, sent_and_done(&done, |load| actor.cast(Cast(load)).is_ok())).await;
        }
        us.begin_round();
        for _ in 0..SAMPLES {
            timed(&mut us, TELLS, sent_and_done(&done, |load| bus.tell::<Sum>(load).is_ok())).await;
        }
    }
    actor.stop(None);
    Ok([floor, peer, us])
}

async fn sent_and_done(done: &Notify, send: impl Fn(Load) -> bool) {
    for n in 1..u64::from(TELLS) {
        assert!(send(Load::new(n)));
    }
    assert!(send(Load([LAST, 0, 0, 0, 0, 0, 0, 0])));
    done.notified().await;
}

fn handle(load: &Load, done: &Notify) {
    if std::hint::black_box(load.sum()) == LAST {
        done.notify_one();
    }
}

fn channel(done: Arc<Notify>) -> mpsc::Sender<Load> {
    let (sender, mut receiver) = mpsc::channel::<Load>(4096);
    tokio::spawn(async move {
        while let Some(load) = receiver.recv().await {
            handle(&load, &done);
        }
    });
    sender
}

struct Counting(Arc<Notify>);

struct Cast(Load);

impl Actor for Counting {
    type Msg = Cast;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Cast>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<Cast>, cast: Cast, (): &mut ()) -> Result<(), ActorProcessingErr> {
        handle(&cast.0, &self.0);
        Ok(())
    }
}

async fn serve(mailbox: Mailbox, done: Arc<Notify>) {
    loop {
        match mailbox.take().await {
            Taken::Message(message) => {
                if let Some(load) = message.request::<Sum>() {
                    handle(load, &done);
                }
                drop(message.finish());
            }
            Taken::Control(_) => {}
            Taken::Closed => return,
        }
    }
}
