//! The stale manager's hands and its passes, in virtual time: what `hands.rs` and `passes.rs` of that crate do on threads.
//!
//! ```text
//! begin ─► busy? ─► survey ─► collect ─decided─► wait until nothing is on its way ─► collect …  ─nothing─► busy? ─► passed
//! ```
//!
//! The survey, the decisions and the moves are the crate's own code; the steps between them, and everything that may
//! happen in between, are the world's.

use eclosion_schemas::events::GcPassed;
use eclosion_schemas::ops::gc::{Item, PassCause};
use eclosion_stale_manager::state::{CollectReply, CollectRequest, Done, Tally};
use eclosion_stale_manager::{Command, Effect};

use super::*;

/// Rounds of one pass, as in the product.
const ROUNDS_MAX: u32 = 8;
const LOOK_AGAIN_US: u64 = 20_000;

/// One pass on its way.
#[derive(Debug)]
pub(super) struct Passing {
    cause: PassCause,
    effect: Option<EffectId>,
    request: CollectRequest,
    stage: Stage,
    round: u32,
    /// Decided in this round.
    decided: u64,
    before: Tally,
    last: Option<CollectReply>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begins,
    Collects,
    /// Until what was decided has been moved.
    Settles,
    Ends,
    Passed,
}

impl World {
    pub(super) fn perform_stale(&mut self, id: EffectId, effect: Effect) {
        if effect == Effect::Pass {
            return self.pass(PassCause::Due, Some(id), CollectRequest::default());
        }
        let Some(kernel) = &mut self.kernel else { return };
        if kernel.in_hand.insert(id) {
            let takes_us = self.rng.range(50, 30_000);
            self.soon(takes_us, KernelEvent::Move(id, effect));
        }
    }

    pub(super) fn do_move(&mut self, id: EffectId, effect: Effect) {
        let Some(kernel) = &self.kernel else { return };
        if let Some(done) = kernel.ports.perform(id, effect) {
            self.check_move(&done);
            self.checks.counts.moves += 1;
            self.say_moved(done);
        }
    }

    pub(super) fn say_moved(&mut self, done: Done) {
        let delay_us = self.hop_us();
        let command = Command::Done(vec![done.clone()]);
        self.mail::<Stale>(delay_us, command, None, ReplyTo::Moved(done), None);
    }

    pub(super) fn moved_answered(&mut self, done: Done, answer: &Answer) {
        match answer {
            Err(_) => self.soon(100_000, KernelEvent::MovedAgain(done)),
            Ok(_) => {
                if let Some(kernel) = &mut self.kernel {
                    kernel.in_hand.remove(&done.effect);
                }
            }
        }
    }

    /// What an operator asks for; only these items, if any are named.
    pub(crate) fn gc(&mut self, items: Vec<Item>, reason: &str) {
        let items = Arc::new(items.into_iter().collect());
        let request = CollectRequest { items, reason: reason.to_owned(), ..CollectRequest::default() };
        self.pass(PassCause::Asked, None, request);
    }

    /// What there is, as a plan without a deed; the survey of this moment.
    pub(crate) fn plan_request(&self) -> Option<CollectRequest> {
        let survey = Arc::new(self.kernel.as_ref()?.ports.survey());
        Some(CollectRequest { survey, dry_run: true, ..CollectRequest::default() })
    }

    fn pass(&mut self, cause: PassCause, effect: Option<EffectId>, request: CollectRequest) {
        let Some(kernel) = &mut self.kernel else { return };
        let is_under_way = |passing: &Passing| effect.is_some() && passing.effect == effect;
        if kernel.passes.values().any(is_under_way) {
            return;
        }
        kernel.pass_tickets += 1;
        let ticket = kernel.pass_tickets;
        let (before, last, stage) = (Tally::default(), None, Stage::Begins);
        let passing = Passing { cause, effect, request, stage, round: 1, decided: 0, before, last };
        kernel.passes.insert(ticket, passing);
        self.checks.counts.passes += 1;
        self.mail_pass(ticket, Command::Busy);
    }

    fn mail_pass(&mut self, ticket: u64, command: Command) {
        let delay_us = self.hop_us();
        self.mail::<Stale>(delay_us, command, None, ReplyTo::Pass(ticket), Some(Mark::Written));
    }

    /// After a while in which a survey was taken, or something was moved.
    pub(super) fn pass_goes_on(&mut self, ticket: u64) {
        let forgets = self.has(Mutant::SurveyAheadOfRows);
        let Some(kernel) = &mut self.kernel else { return };
        let Some(passing) = kernel.passes.get_mut(&ticket) else { return };
        let command = match passing.stage {
            Stage::Settles => Command::Busy,
            _ => {
                let mut request = passing.request.clone();
                if forgets {
                    let mut survey = (*request.survey).clone();
                    survey.as_of = kernel.journal.marks().appended;
                    request.survey = Arc::new(survey);
                }
                Command::Collect(request)
            }
        };
        self.mail_pass(ticket, command);
    }

    pub(super) fn pass_answered(&mut self, ticket: u64, answer: Answer) {
        let Some(kernel) = &mut self.kernel else { return };
        let Some(mut passing) = kernel.passes.remove(&ticket) else { return };
        match answer {
            Ok(reply) => self.pass_advances(ticket, passing, reply),
            Err(refusal) if refusal.reason == "gc.survey_old" && passing.stage == Stage::Collects => {
                self.survey(ticket, passing);
            }
            // Of one that was due the end is recorded, whatever it was; an operator is told.
            Err(_) if passing.effect.is_some() && passing.stage != Stage::Passed => {
                passing.stage = Stage::Passed;
                let passed = passed(&passing, Tally::default(), vec!["it failed".into()]);
                self.keep_pass(ticket, passing);
                self.mail_pass(ticket, Command::Passed(passed));
            }
            Err(_) => {}
        }
    }

    fn pass_advances(&mut self, ticket: u64, mut passing: Passing, reply: Box<dyn Any + Send>) {
        match passing.stage {
            Stage::Begins => {
                passing.before = reply.downcast::<(u64, Tally)>().unwrap().1;
                self.survey(ticket, passing);
            }
            Stage::Collects => {
                let reply = *reply.downcast::<CollectReply>().unwrap();
                self.check_collected(&passing.request, &reply);
                passing.decided += reply.decided;
                let is_over = reply.decided == 0;
                passing.last = Some(reply);
                passing.stage = if is_over { Stage::Ends } else { Stage::Settles };
                if is_over && passing.decided > 0 && passing.round < ROUNDS_MAX {
                    (passing.round, passing.decided) = (passing.round + 1, 0);
                    return self.survey(ticket, passing);
                }
                self.keep_pass(ticket, passing);
                self.mail_pass(ticket, Command::Busy);
            }
            Stage::Settles => {
                if reply.downcast::<(u64, Tally)>().unwrap().0 == 0 {
                    passing.stage = Stage::Collects;
                }
                self.keep_pass(ticket, passing);
                self.soon(LOOK_AGAIN_US, KernelEvent::Pass(ticket));
            }
            Stage::Ends => {
                let tally = reply.downcast::<(u64, Tally)>().unwrap().1.since(passing.before);
                passing.stage = Stage::Passed;
                let passed = passed(&passing, tally, Vec::new());
                self.keep_pass(ticket, passing);
                self.mail_pass(ticket, Command::Passed(passed));
            }
            Stage::Passed => {}
        }
    }

    /// Taken now, and decided with after a while.
    fn survey(&mut self, ticket: u64, mut passing: Passing) {
        let Some(kernel) = &self.kernel else { return };
        passing.stage = Stage::Collects;
        passing.request.survey = Arc::new(kernel.ports.survey());
        self.keep_pass(ticket, passing);
        let takes_us = self.rng.range(500, 200_000);
        self.soon(takes_us, KernelEvent::Pass(ticket));
    }

    fn keep_pass(&mut self, ticket: u64, passing: Passing) {
        if let Some(kernel) = &mut self.kernel {
            kernel.passes.insert(ticket, passing);
        }
    }
}

fn passed(passing: &Passing, tally: Tally, findings: Vec<String>) -> GcPassed {
    GcPassed {
        cause: passing.cause,
        reason: passing.request.reason.clone(),
        effect: passing.effect,
        collected: tally.collected,
        purged: tally.purged,
        freed_bytes: tally.freed_bytes,
        held: 0,
        used_bytes: passing.last.as_ref().map_or(0, |reply| reply.plan.used_bytes),
        findings,
    }
}
