//! What was let out is performed: ports of the machine, asks of other actors, answers to whoever waits.

use eclosion_scheduler::state::{Answer as TickAnswer, Answered};
use eclosion_schemas::ops::run::{CancelRequest, StartReply, StartRequest};
use eclosion_schemas::ops::{pool, task};
use eclosion_schemas::schedule::Action;

use super::*;

impl World {
    /// Performs what has been let out. Performing may let out more.
    pub(super) fn release_all(&mut self) {
        loop {
            let Some(kernel) = &self.kernel else { return };
            let released =
                std::mem::take(&mut *kernel.released.lock().unwrap_or_else(PoisonError::into_inner));
            if released.is_empty() {
                return;
            }
            for released in released {
                match released {
                    Released::Effects(effects) => self.perform(effects),
                    Released::Answer(to, answer, seq) => self.answer(to, answer, seq),
                    Released::Shown(seq) => self.shown(seq),
                }
            }
        }
    }

    pub(super) fn perform(&mut self, effects: Effects) {
        match effects {
            Effects::None => {}
            Effects::Pool(effects) => {
                effects.into_iter().for_each(|(id, effect)| self.perform_pool(id, effect))
            }
            Effects::Dag(effects) => {
                effects.into_iter().for_each(|(id, effect)| self.perform_dag(id, effect))
            }
            Effects::Scheduler(effects) => {
                effects.into_iter().for_each(|(id, effect)| self.perform_scheduler(id, effect));
            }
            Effects::Stale(effects) => {
                effects.into_iter().for_each(|(id, effect)| self.perform_stale(id, effect));
            }
        }
    }

    pub(super) fn perform_dag(&mut self, id: EffectId, effect: eclosion_dag_tracker::Effect) {
        use eclosion_dag_tracker::Effect;
        use eclosion_pool_manager::Command;
        let command = match &effect {
            Effect::Dispatch(wish) => {
                let mut wish = (**wish).clone();
                if self.has(Mutant::ForgetWish) {
                    wish.id.n = wish.id.n.wrapping_add(u32::try_from(self.rng.range(0, 1 << 20)).unwrap());
                }
                Command::Dispatch(pool::DispatchRequest { wishes: vec![wish] })
            }
            Effect::Withdraw { wishes } => {
                Command::Withdraw(pool::WithdrawRequest { wishes: wishes.clone() })
            }
            Effect::Look(_) => return self.look_for(id, effect),
        };
        self.ask::<Pool>(Who::Dag, id, command, Effects::Dag(vec![(id, effect)]));
    }

    pub(super) fn perform_pool(&mut self, id: EffectId, effect: eclosion_pool_manager::Effect) {
        use eclosion_arbitration::Command;
        use eclosion_pool_manager::Effect;
        match &effect {
            Effect::Build { environment, spec } => self.build(environment, spec),
            Effect::Launch { worker, environment, .. } => self.launch(worker, environment),
            Effect::Execute { worker, task, fence } => {
                let body = self.kernel.as_ref().and_then(|kernel| kernel.bodies.take(*fence));
                if let Some(body) = body {
                    return self.execute(worker, body);
                }
                let request =
                    task::BodyRequest { run: task.run.clone(), task: task.task.clone(), fence: *fence };
                let reply_to = ReplyTo::Body(id, worker.clone(), *fence);
                self.remember_ask(Who::Pool, id, Effects::Pool(vec![(id, effect)]));
                let delay_us = self.hop_us();
                self.mail::<DagTracker>(
                    delay_us,
                    eclosion_dag_tracker::Command::Body(request),
                    Some(id),
                    reply_to,
                    None,
                );
            }
            Effect::Cancel { worker, fence } => self.cancel(worker, *fence),
            Effect::Stop { worker } => self.stop(worker),
            Effect::Kill { worker, .. } => self.kill(worker),
            Effect::Acquire(request) => {
                let command = Command::Acquire(request.clone());
                self.ask::<Arbitration>(Who::Pool, id, command, Effects::Pool(vec![(id, effect)]));
            }
            Effect::Release(request) => {
                let command = Command::Release(request.clone());
                self.ask::<Arbitration>(Who::Pool, id, command, Effects::Pool(vec![(id, effect)]));
            }
        }
    }

    /// A tick starts a run or calls something, under its own name as the key.
    fn perform_scheduler(&mut self, id: EffectId, effect: eclosion_scheduler::Effect) {
        use eclosion_dag_tracker::Command;
        use eclosion_scheduler::Effect;
        let effects = Effects::Scheduler(vec![(id, effect.clone())]);
        match effect {
            Effect::Start { key, spec, .. } => match &spec.action {
                Action::Run { flow, set, tenant } => {
                    let idem = if self.has(Mutant::TickWithoutKey) {
                        format!("{key}:{}", self.rng.next())
                    } else {
                        key
                    };
                    let (flow, set, tenant) = (flow.as_ref().clone(), set.clone(), tenant.clone());
                    let idem = Some(idem);
                    let request = StartRequest { flow, set, tenant, new: true, idem, no_cache: false };
                    let command = Command::Start(Box::new(request), None);
                    self.ask_with::<DagTracker>((Who::Scheduler, id), command, effects, ReplyTo::Tick(id));
                }
                Action::Call { .. } => {
                    self.remember_ask(Who::Scheduler, id, effects);
                    self.check_call(&key);
                    let takes_us = self.rng.range(100, 400_000);
                    self.soon(takes_us, KernelEvent::Called(id));
                }
            },
            Effect::Cancel { run, .. } => {
                let command = Command::Cancel(CancelRequest { run, reason: "a later tick".into() });
                self.ask::<DagTracker>(Who::Scheduler, id, command, effects);
            }
        }
    }

    pub(super) fn call_answered(&mut self, id: EffectId) {
        let outcome = match self.rng.per_mille(100) {
            true => Err(Error::internal("sim.call", "it was refused")),
            false => Ok(TickAnswer::Reply(serde_json::Value::Null)),
        };
        self.tick_answered(id, outcome);
    }

    fn tick_answered(&mut self, id: EffectId, outcome: Result<TickAnswer, Error>) {
        let owed = self.kernel.as_mut().and_then(|kernel| kernel.asks.remove(&(Who::Scheduler, id)));
        let Some(Effects::Scheduler(effects)) = owed else { return };
        for (_, effect) in effects {
            if let eclosion_scheduler::Effect::Start { name, n, key, .. } = effect {
                let answered = Answered { name, n, key, outcome: outcome.clone() };
                self.own::<Scheduler>(eclosion_scheduler::Command::Answered(Box::new(answered)));
            }
        }
    }

    pub(super) fn remember_ask(&mut self, who: Who, id: EffectId, effects: Effects) {
        if let Some(kernel) = &mut self.kernel {
            kernel.asks.insert((who, id), effects);
        }
    }

    pub(super) fn ask<C: Simulated>(&mut self, by: Who, id: EffectId, command: C::Command, effects: Effects)
    where
        C::Command: Clone,
    {
        self.ask_with::<C>((by, id), command, effects, ReplyTo::Effect(by, id));
    }

    /// Each ask is a task of its own, so two of one actor may overtake each other; now and then one comes twice.
    fn ask_with<C: Simulated>(
        &mut self,
        (by, id): (Who, EffectId),
        command: C::Command,
        effects: Effects,
        reply_to: ReplyTo,
    ) where
        C::Command: Clone,
    {
        self.remember_ask(by, id, effects);
        let twice = self.has_faults() && self.rng.per_mille(30);
        for _ in 0..=u8::from(twice) {
            let delay_us = self.hop_us();
            let extra_us = if twice { self.rng.range(0, 300_000) } else { 0 };
            self.mail::<C>(delay_us + extra_us, command.clone(), Some(id), reply_to.clone(), None);
        }
    }

    pub(crate) fn mail<C: Simulated>(
        &mut self,
        delay_us: u64,
        command: C::Command,
        cause: Option<EffectId>,
        reply_to: ReplyTo,
        mark: Option<Mark>,
    ) {
        let mail = Mail::<C> { command, cause, reply_to, mark, deliveries: 0 };
        self.soon(delay_us, KernelEvent::Arrive(Box::new(mail)));
    }

    /// Messages of one pair arrive in the order in which they were sent.
    pub(crate) fn in_order(&mut self, from: Party, to: Party) -> u64 {
        let (now_us, hop_us) = (self.now_us, self.hop_us());
        let Some(kernel) = &mut self.kernel else { return hop_us };
        let last = kernel.arrivals.entry((from, to)).or_default();
        *last = (now_us + hop_us).max(*last + 1);
        *last - now_us
    }

    pub(super) fn answer(&mut self, to: ReplyTo, answer: Answer, depends_on: Seq) {
        use ReplyTo::{Cancel, Look, Start, Wish};
        if let (Start(_) | Cancel(_) | Look(_) | Wish(_), Ok(_)) = (&to, &answer) {
            self.shown(depends_on);
        }
        let delay_us = self.hop_us();
        self.soon(delay_us, KernelEvent::Answered(to, answer));
    }

    pub(super) fn answered(&mut self, to: ReplyTo, answer: Answer) {
        match to {
            ReplyTo::Effect(who, id) => self.ask_answered(who, id, &answer),
            ReplyTo::Body(id, worker, fence) => {
                let owed =
                    self.kernel.as_ref().is_some_and(|kernel| kernel.asks.contains_key(&(Who::Pool, id)));
                self.ask_answered(Who::Pool, id, &answer);
                if !owed {
                    return;
                }
                let body = answer.ok().and_then(|reply| reply.downcast::<task::BodyReply>().ok());
                match body.map(|reply| reply.execute) {
                    Some(Some(execute)) => self.execute(&worker, execute),
                    Some(None) => self.cancel(&worker, fence),
                    None => {}
                }
            }
            ReplyTo::Tick(id) => match answer {
                Err(refusal) if !is_final(refusal.code) => {
                    self.ask_answered(Who::Scheduler, id, &Err(refusal))
                }
                Err(refusal) => self.tick_answered(id, Err(refusal)),
                Ok(reply) => {
                    let reply = reply.downcast::<StartReply>().unwrap();
                    self.tick_answered(id, Ok(TickAnswer::Run(reply.run)));
                }
            },
            ReplyTo::Found(id) => self.found(id, answer),
            ReplyTo::Recalled(id, recalling) => self.recalled(id, *recalling, answer),
            ReplyTo::Pass(pass) => self.pass_answered(pass, answer),
            ReplyTo::Moved(done) => self.moved_answered(done, &answer),
            ReplyTo::Wish(wish) => self.wish_answered(wish, answer),
            ReplyTo::Report(ticket) => self.report_answered(ticket, answer),
            ReplyTo::Start(job) => self.start_answered(job, answer),
            ReplyTo::Cancel(job) => self.cancel_answered(job, &answer),
            ReplyTo::Look(job) => self.look_answered(job, answer),
        }
    }

    pub(super) fn ask_answered(&mut self, who: Who, id: EffectId, answer: &Answer) {
        let Some(kernel) = &mut self.kernel else { return };
        match answer {
            Err(refusal) if !is_final(refusal.code) => {
                let delay_us = self.rng.range(20_000, 200_000);
                self.soon(delay_us, KernelEvent::AskAgain(who, id));
            }
            _ => drop(kernel.asks.remove(&(who, id))),
        }
    }

    /// What was asked of an incarnation that is gone.
    pub(super) fn perform_again(&mut self, target: Who) {
        let Some(kernel) = &mut self.kernel else { return };
        if !kernel.performing {
            return;
        }
        owed_to::<Pool>(kernel, target);
        owed_to::<DagTracker>(kernel, target);
        owed_to::<Scheduler>(kernel, target);
        self.release_all();
    }
}

/// Lets out again what an actor asks of `target`.
fn owed_to<C: Simulated>(kernel: &mut Kernel, target: Who) {
    let Some(engine) = &C::seat(kernel).engine else { return };
    let owed = engine.outstanding().iter().filter(|(_, effect)| C::asks(effect, target));
    let owed: Vec<_> = owed.map(|(id, effect)| (*id, effect.clone())).collect();
    if !owed.is_empty() {
        let mut released = kernel.released.lock().unwrap_or_else(PoisonError::into_inner);
        released.push(Released::Effects(C::effects(owed)));
    }
}

/// As the kernel's asks see it: repeating would give the same.
pub(crate) fn is_final(code: Code) -> bool {
    use Code::{Cancelled, Deadline, Exhausted, NoResponders, Unavailable, Unknown};
    !matches!(code, Unavailable | Deadline | Exhausted | NoResponders | Unknown | Cancelled)
}
