//! P5: accepted = handled + dropped + expired + cancelled + dead-lettered + queued + in hand, whatever happens in
//! whatever order; and nobody who asked is left without an outcome (P3).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::time::Duration;

use eclosion_bus::{AskFuture, InHand, Responder, WhenFull};
use proptest::prelude::*;
use support::*;

#[derive(Debug, Clone, Copy)]
enum Step {
    Tell,
    Ask { deadline_ms: u64 },
    Take,
    Finish(usize),
    Panic(usize),
    Reply(usize),
    DropResponder(usize),
    Withdraw(usize),
    Sweep { after_ms: u64 },
    Advance { ms: u64 },
    Replay(usize),
    Close,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let any = 0..8_usize;
    prop_oneof![
        4 => Just(Step::Tell),
        6 => (1..50_u64).prop_map(|deadline_ms| Step::Ask { deadline_ms }),
        8 => Just(Step::Take),
        4 => any.clone().prop_map(Step::Finish),
        4 => any.clone().prop_map(Step::Panic),
        3 => any.clone().prop_map(Step::Reply),
        1 => any.clone().prop_map(Step::DropResponder),
        3 => any.clone().prop_map(Step::Withdraw),
        2 => (0..30_u64).prop_map(|after_ms| Step::Sweep { after_ms }),
        2 => (0..30_u64).prop_map(|ms| Step::Advance { ms }),
        1 => any.prop_map(Step::Replay),
        1 => Just(Step::Close),
        1 => Just(Step::Reopen),
    ]
}

struct World {
    fixture: Fixture,
    when_full: WhenFull,
    in_hand: Vec<InHand>,
    responders: Vec<Responder>,
    asks: Vec<AskFuture<Double>>,
    /// Those who replay stay, so that nothing is withdrawn.
    replayed: Vec<eclosion_bus::Pending>,
    /// Counted by the test itself: what was not refused.
    accepted: u64,
    refused: u64,
    handled: u64,
}

/// One of them, if there is any.
fn pick<T>(from: &mut Vec<T>, n: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(n % from.len()))
}

impl World {
    fn new(when_full: WhenFull) -> Self {
        let fixture = fixture_of(6, when_full);
        let (in_hand, responders, asks) = (Vec::new(), Vec::new(), Vec::new());
        let replayed = Vec::new();
        Self { fixture, when_full, in_hand, responders, asks, replayed, accepted: 0, refused: 0, handled: 0 }
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::Tell => match self.fixture.bus.tell::<Double>(Note(1)) {
                Ok(()) => self.accepted += 1,
                Err(_) => self.refused += 1,
            },
            Step::Ask { deadline_ms } => self.ask(deadline_ms),
            Step::Take => {
                if let Some(eclosion_bus::Taken::Message(message)) = self.fixture.mailbox.try_take() {
                    assert!(message.deliveries <= 2, "redelivered more than once");
                    self.in_hand.push(message);
                }
            }
            Step::Finish(n) => {
                let finished = pick(&mut self.in_hand, n).map(InHand::finish);
                self.handled += u64::from(finished.is_some());
                self.responders.extend(finished);
            }
            Step::Panic(n) => drop(pick(&mut self.in_hand, n)),
            Step::Reply(n) => {
                if let Some(responder) = pick(&mut self.responders, n) {
                    responder.reply(Ok(Box::new(2_u64)));
                }
            }
            Step::DropResponder(n) => drop(pick(&mut self.responders, n)),
            Step::Withdraw(n) => drop(pick(&mut self.asks, n)),
            Step::Sweep { after_ms } => self.fixture.advance_and_sweep(Duration::from_millis(after_ms)),
            Step::Advance { ms } => self.fixture.clock.advance(Duration::from_millis(ms)),
            Step::Replay(n) => self.replay(n),
            Step::Close => drop(self.fixture.bus.close(&address())),
            Step::Reopen => self.reopen(),
        }
    }

    fn ask(&mut self, deadline_ms: u64) {
        let before = self.fixture.statistics().accepted;
        let ask = self.fixture.bus.ask::<Double>(Note(1)).deadline(Duration::from_millis(deadline_ms));
        let mut ask = std::future::IntoFuture::into_future(ask);
        if self.fixture.statistics().accepted > before {
            self.accepted += 1;
            self.asks.push(ask);
        } else {
            assert!(now(&mut ask).unwrap().is_err(), "refused and without a word");
            self.refused += 1;
        }
    }

    fn replay(&mut self, n: usize) {
        let letters = self.fixture.bus.dead_letters();
        if let Some(letter) = letters.get(n % letters.len().max(1)) {
            let replayed = self.fixture.bus.replay_dead_letter(letter.id);
            self.accepted += u64::from(replayed.is_ok());
            self.replayed.extend(replayed);
        }
    }

    /// The old mailbox is checked for the last time; what is still in hand belongs to it.
    fn reopen(&mut self) {
        let options =
            eclosion_bus::MailboxOptions { capacity_data: 6, capacity_control: 4, when_full: self.when_full };
        if let Ok(mailbox) = self.fixture.bus.open(address(), options) {
            self.in_hand.clear();
            self.check();
            self.fixture.mailbox = mailbox;
            (self.accepted, self.handled) = (0, 0);
        }
    }

    fn check(&self) {
        let statistics = self.fixture.statistics();
        assert!(statistics.balances(), "{statistics:?}");
        assert_eq!(statistics.accepted, self.accepted);
        assert_eq!(statistics.handled, self.handled);
        assert_eq!(statistics.in_hand, self.in_hand.len() as u64);
        assert!(statistics.queued + statistics.in_hand <= 6, "{statistics:?}");
    }

    /// Everybody lets go; then every ask has its outcome.
    fn end(mut self) {
        self.in_hand.clear();
        self.responders.clear();
        self.check();
        self.fixture.advance_and_sweep(Duration::from_secs(1));
        assert_eq!(self.asks.iter_mut().filter_map(now).count(), self.asks.len(), "an ask hangs");
        self.asks.clear();
        self.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_without_being_counted(
        steps in proptest::collection::vec(step(), 1..120),
        drop_oldest in any::<bool>(),
    ) {
        let when_full = if drop_oldest { WhenFull::DropOldest } else { WhenFull::Refuse };
        let mut world = World::new(when_full);
        for step in steps {
            world.perform(step);
            world.check();
        }
        world.end();
    }
}

/// The same from several threads: readings always balance, also between transitions.
#[test]
fn a_reading_balances_while_threads_race() {
    let fixture = fixture_of(64, WhenFull::Refuse);
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let bus = fixture.bus.clone();
                scope.spawn(move || {
                    for n in 0..20_000 {
                        let ask = bus.ask::<Double>(Note(n)).deadline(Duration::from_secs(1));
                        drop(std::future::IntoFuture::into_future(ask));
                        let _ = bus.tell::<Double>(Note(n));
                    }
                })
            })
            .collect();
        let mut taken = 0_u64;
        while !senders.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            if let Some(message) = fixture.take() {
                taken += 1;
                // Some are given back, the rest is finished.
                if taken.is_multiple_of(7) { drop(message) } else { drop(message.finish()) }
            }
            assert!(fixture.statistics().balances());
        }
    });
    assert!(fixture.statistics().balances());
}
