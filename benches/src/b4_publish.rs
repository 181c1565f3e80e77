//! B4: publish to eight subscribers, with filters.
//!
//! Floor: a tokio broadcast, which has neither subjects nor filters nor policies, and clones the value for each. A
//! sample is 256 publications about sixteen subjects, received by all eight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use eclosion_bus::{Bus, Delivery, Filter, Publication, Subject, Subscription};
use eclosion_schemas::Error;
use eclosion_schemas::ids::{Epoch, Seq};
use eclosion_schemas::operation::Table;
use eclosion_schemas::ops::kernel::OnFull;
use tokio::sync::{Notify, broadcast};

use crate::Failure;
use crate::load::Load;
use crate::measure::{ROUNDS, Samples, runtime, timed};
use crate::report::{Report, Role};

const SAMPLES: usize = 40;
const PUBLICATIONS: u32 = 256;
const SUBSCRIBERS: u32 = 8;
const FILTERS: [&str; SUBSCRIBERS as usize] = [
    "**",
    "run/**",
    "run/*/task/**",
    "run/*/task/*/state",
    "run/**",
    "**",
    "run/7k2m4q9d/**",
    "run/7k2m4q9d/task/**",
];

pub(crate) fn run() -> Result<Report, Failure> {
    let rows = runtime()?.block_on(async { tokio::spawn(measured()).await })??;
    let rows = rows.into_iter().map(Samples::row).collect();
    let budget = "≤ 3 × tokio broadcast a delivery";
    Ok(Report::new("b4", "publish to 8 subscribers, a delivery", budget, rows).ratio(
        "eclosion publish, filters on",
        "tokio broadcast",
        3.0,
    ))
}

/// Counts deliveries until all are there.
#[derive(Debug, Default)]
struct Audience {
    received: AtomicU32,
    complete: Notify,
}

impl Audience {
    fn receive(&self, load: &Load) {
        std::hint::black_box(load.sum());
        if self.received.fetch_add(1, Ordering::Relaxed) + 1 == PUBLICATIONS * SUBSCRIBERS {
            self.received.store(0, Ordering::Relaxed);
            self.complete.notify_one();
        }
    }
}

async fn measured() -> Result<[Samples; 2], Error> {
    let audience = Arc::new(Audience::default());
    let channel = broadcast::Sender::new(4096);
    let bus = Bus::new(Table::default());
    for filter in FILTERS {
        tokio::spawn(listen_channel(channel.subscribe(), Arc::clone(&audience)));
        let subscription = bus.subscribe(Filter::new(filter)?, OnFull::Gap, 4096);
        tokio::spawn(listen_bus(subscription, Arc::clone(&audience)));
    }
    let subjects: Vec<_> = (0..16)
        .map(|n| Subject::new(format!("run/7k2m4q9d/task/train[{n}]/state")))
        .collect::<Result<_, _>>()?;
    let mut floor = Samples::of(Role::Floor, "tokio broadcast");
    let mut us = Samples::of(Role::Us, "eclosion publish, filters on");
    for _ in 0..ROUNDS {
        floor.begin_round();
        for _ in 0..SAMPLES {
            timed(&mut floor, PUBLICATIONS * SUBSCRIBERS, publish_channel(&channel, &audience)).await;
        }
        us.begin_round();
        for _ in 0..SAMPLES {
            timed(&mut us, PUBLICATIONS * SUBSCRIBERS, publish_bus(&bus, &subjects, &audience)).await;
        }
    }
    Ok([floor, us])
}

async fn publish_channel(channel: &broadcast::Sender<Load>, audience: &Audience) {
    for n in 0..u64::from(PUBLICATIONS) {
        assert!(channel.send(Load::new(n)).is_ok());
    }
    audience.complete.notified().await;
}

async fn publish_bus(bus: &Bus, subjects: &[Subject], audience: &Audience) {
    for (n, subject) in (0..u64::from(PUBLICATIONS)).zip(subjects.iter().cycle()) {
        bus.publish(subject, Publication::new(Epoch(1), Seq(n), Load::new(n)));
    }
    audience.complete.notified().await;
}

async fn listen_channel(mut receiver: broadcast::Receiver<Load>, audience: Arc<Audience>) {
    while let Ok(load) = receiver.recv().await {
        audience.receive(&load);
    }
}

async fn listen_bus(mut subscription: Subscription, audience: Arc<Audience>) {
    while let Some(delivery) = subscription.next().await {
        if let Delivery::Change(event) = delivery
            && let Some(load) = event.value::<Load>()
        {
            audience.receive(load);
        }
    }
}
