//! B2: an in-process ask with deadline, trace context and statistics.
//!
//! Floor: a tokio mpsc with a oneshot in each message (no deadline, no trace, no counters). Peer: ractor's call with
//! the same time-out. A sample is eight asks in a row, each awaited before the next.

use std::time::Duration;

use eclosion_bus::{Address, Bus, Mailbox, MailboxOptions, Taken, TraceContext};
use eclosion_schemas::operation::{Operation, Table};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::{mpsc, oneshot};

use crate::Failure;
use crate::load::{Load, Sum};
use crate::measure::{ROUNDS, Samples, runtime, timed};
use crate::report::{Report, Role};

const SAMPLES: u64 = 2_000;
const ASKS: u32 = 8;
const TIMEOUT: Duration = Duration::from_secs(10);
const TRACE: TraceContext = TraceContext { trace_id: [7; 16], span_id: [7; 8], flags: 1 };

pub(crate) fn run() -> Result<Report, Failure> {
    let (floor, peer, us) = runtime()?.block_on(async { tokio::spawn(measured()).await })??;
    let budget = "p50 ≤ 0.8 × ractor call with the same time-out, ≤ 1.6 × mpsc + oneshot";
    let rows = vec![floor.row(), peer.row(), us.row()];
    Ok(Report::new("b2", "in-process ask", budget, rows)
        .ratio("eclosion ask", "ractor call, time-out", 0.8)
        .ratio("eclosion ask", "tokio mpsc + oneshot", 1.6))
}

async fn measured() -> Result<(Samples, Samples, Samples), eclosion_schemas::Error> {
    let channel = channel();
    let (actor, _) = Actor::spawn(None, Summing, ()).await.map_err(peer_failed)?;
    let bus = Bus::new(Table::default());
    let mailbox = bus.open(Address::new(Sum::ADDRESS)?, MailboxOptions::default())?;
    tokio::spawn(serve(mailbox));
    let mut floor = Samples::of(Role::Floor, "tokio mpsc + oneshot");
    let mut peer = Samples::of(Role::Peer, "ractor call, time-out");
    let mut us = Samples::of(Role::Us, "eclosion ask");
    for _ in 0..ROUNDS {
        floor.begin_round();
        for n in 0..SAMPLES {
            timed(&mut floor, ASKS, ask_channel(&channel, n)).await;
        }
        peer.begin_round();
        for n in 0..SAMPLES {
            timed(&mut peer, ASKS, ask_ractor(&actor, n)).await;
        }
        us.begin_round();
        for n in 0..SAMPLES {
            timed(&mut us, ASKS, ask_bus(&bus, n)).await;
        }
    }
    actor.stop(None);
    Ok((floor, peer, us))
}

fn peer_failed(why: ractor::SpawnErr) -> eclosion_schemas::Error {
    eclosion_schemas::Error::internal("bench.peer", why.to_string())
}

type Channel = mpsc::Sender<(Load, oneshot::Sender<u64>)>;

fn channel() -> Channel {
    let (sender, mut receiver) = mpsc::channel::<(Load, oneshot::Sender<u64>)>(4096);
    tokio::spawn(async move {
        while let Some((load, answer)) = receiver.recv().await {
            let _ = answer.send(load.sum());
        }
    });
    sender
}

async fn ask_channel(channel: &Channel, n: u64) {
    for _ in 0..ASKS {
        let (answer, answered) = oneshot::channel();
        let sent = channel.send((Load::new(n), answer)).await.is_ok();
        assert!(sent && answered.await == Ok(n.wrapping_mul(8)));
    }
}

struct Summing;

struct SumMessage(Load, RpcReplyPort<u64>);

impl Actor for Summing {
    type Msg = SumMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<SumMessage>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<SumMessage>,
        SumMessage(load, port): SumMessage,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        port.send(load.sum())?;
        Ok(())
    }
}

async fn ask_ractor(actor: &ActorRef<SumMessage>, n: u64) {
    for _ in 0..ASKS {
        let reply = actor.call(|port| SumMessage(Load::new(n), port), Some(TIMEOUT)).await;
        assert!(matches!(reply, Ok(ractor::rpc::CallResult::Success(sum)) if sum == n.wrapping_mul(8)));
    }
}

async fn serve(mailbox: Mailbox) {
    loop {
        match mailbox.take().await {
            Taken::Message(message) => {
                let sum = message.request::<Sum>().map_or(0, Load::sum);
                message.finish().reply(Ok(Box::new(sum)));
            }
            Taken::Control(_) => {}
            Taken::Closed => return,
        }
    }
}

async fn ask_bus(bus: &Bus, n: u64) {
    for _ in 0..ASKS {
        let reply = bus.ask::<Sum>(Load::new(n)).deadline(TIMEOUT).trace(TRACE).await;
        assert!(reply == Ok(n.wrapping_mul(8)));
    }
}
