//! An operator: makes schedules, pauses and triggers them, pins and tags artifacts, plans and applies retention, brings
//! items back and purges the trash, each with a record of the act. He asks again until he is answered.

use eclosion_artifact_store::{Artifacts, Command as ArtifactCommand};
use eclosion_audit::{Audit, Command as AuditCommand};
use eclosion_dag_tracker::Flow;
use eclosion_kernel::journal::Mark;
use eclosion_scheduler::{Command as ScheduleCommand, Scheduler};
use eclosion_schemas::ops::artifact::{PinRequest, TagRequest};
use eclosion_schemas::ops::audit::{Act, BeginReply, EndRequest};
use eclosion_schemas::ops::gc::{PurgeRequest, RestoreRequest};
use eclosion_schemas::ops::schedule::{ActRequest, NameRequest, SetRequest, TriggerRequest};
use eclosion_schemas::schedule::{Action, Misfire, Overlap, ScheduleSpec, ScheduleView, Trigger};
use eclosion_schemas::{Error, Role, ScheduleName, Timestamp};
use eclosion_stale_manager::state::CollectReply;
use eclosion_stale_manager::{Command as StaleCommand, Stale};

use crate::jobs::QUICK;
use crate::kernel::{Answer, ReplyTo, is_final};
use crate::mutants::Mutant;
use crate::rng::Rng;
use crate::world::{Event, FAULTS_UNTIL_US, Party, Who, World};

const PATIENCE_US: u64 = 700_000;
/// Schedules that he has.
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

#[derive(Debug, Default)]
pub(crate) struct Operator {
    wishes: Vec<Wish>,
}

/// Something he wants, and how far it has come.
#[derive(Debug)]
pub(crate) struct Wish {
    kind: Kind,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    /// The act is recorded under this id, and done now.
    Acting(u64),
    /// What came of it is to be recorded.
    Ending(u64),
    Done,
}

#[derive(Debug, Clone)]
enum Kind {
    Set {
        name: usize,
        spec: Box<ScheduleSpec>,
    },
    Pause(usize),
    Resume(usize),
    Trigger(usize),
    Remove(usize),
    /// No tick is live any more, and none will be.
    Quiet(usize),
    Pin(u64),
    Unpin(u64),
    Tag(u64),
    /// Plans, and applies what was shown.
    Collect,
    Restore(u64),
    Purge,
}

impl Operator {
    pub(crate) fn is_satisfied(&self) -> bool {
        let is_over = |wish: &Wish| wish.stage == Stage::Done || !matches!(wish.kind, Kind::Quiet(_));
        self.wishes.iter().all(is_over)
    }
}

fn name(index: usize) -> ScheduleName {
    ScheduleName::new(NAMES[index % NAMES.len()]).unwrap()
}

/// # Errors
/// A flow that the DAG tracker would refuse: a mistake of this generator.
fn spec(rng: &mut Rng) -> Result<ScheduleSpec, Error> {
    let every_ms = rng.range(2, 12) * 100;
    let trigger = Trigger::Every { every_ms, anchor: Timestamp(rng.range(0, 100)) };
    let action = match rng.per_mille(300) {
        true => Action::Call {
            operation: "sim.call".into(),
            request: serde_json::Value::Null,
            deadline_ms: 10_000,
        },
        false => {
            let flow = Flow::new("tick").code("/flow").task("t0", QUICK).retries(1).build()?;
            Action::Run { flow: Box::new(flow), set: Default::default(), tenant: None }
        }
    };
    let mut spec = ScheduleSpec::new(trigger, action);
    spec.misfire = Some(match rng.range(0, 3) {
        0 => Misfire::Skip {},
        1 => Misfire::RunOnce {},
        _ => Misfire::RunAll { max: 3 },
    });
    spec.overlap = Some(match rng.range(0, 4) {
        0 => Overlap::Skip {},
        1 => Overlap::Queue { max: 2 },
        2 => Overlap::Allow { max: 2 },
        _ => Overlap::CancelPrevious {},
    });
    spec.grace_ms = Some(rng.range(50, 1_500));
    spec.jitter_ms = if rng.per_mille(300) { rng.range(1, 150) } else { 0 };
    Ok(spec)
}

impl World {
    pub(crate) fn plan_operator(&mut self) {
        let schedules = usize::try_from(self.rng.range(0, 3)).unwrap();
        for index in 0..schedules {
            let spec = Box::new(spec(&mut self.rng).unwrap());
            self.wish(0, FAULTS_UNTIL_US / 2, Kind::Set { name: index, spec });
            self.wish_at(FAULTS_UNTIL_US + 2_000_000, Kind::Quiet(index));
        }
        for _ in 0..self.rng.range(0, 4) * u64::from(schedules > 0) {
            let name = usize::try_from(self.rng.range(0, schedules as u64)).unwrap();
            let kind = match self.rng.range(0, 6) {
                0 => Kind::Pause(name),
                1 => Kind::Resume(name),
                2 | 3 => Kind::Trigger(name),
                4 => Kind::Remove(name),
                _ => Kind::Set { name, spec: Box::new(spec(&mut self.rng).unwrap()) },
            };
            self.wish(500_000, FAULTS_UNTIL_US, kind);
        }
        for _ in 0..self.rng.range(0, 8) {
            let which = self.rng.next();
            let kind = match self.rng.range(0, 8) {
                0..3 => Kind::Pin(which),
                3 => Kind::Unpin(which),
                4 => Kind::Tag(which),
                5 => Kind::Restore(which),
                6 => Kind::Purge,
                _ => Kind::Collect,
            };
            self.wish(500_000, FAULTS_UNTIL_US, kind);
        }
    }

    fn wish(&mut self, from_us: u64, until_us: u64, kind: Kind) {
        let at_us = self.rng.range(from_us, until_us);
        self.wish_at(at_us, kind);
    }

    fn wish_at(&mut self, at_us: u64, kind: Kind) {
        self.operator.wishes.push(Wish { kind, stage: Stage::Asked });
        let number = self.operator.wishes.len() - 1;
        self.after(at_us, Event::Operator(number));
    }

    /// He asks, for the first time or again.
    pub(crate) fn operate(&mut self, number: usize) {
        let Wish { kind, stage } = &self.operator.wishes[number];
        let (kind, stage) = (kind.clone(), *stage);
        if stage == Stage::Done || (!self.has_faults() && !matches!(kind, Kind::Quiet(_))) {
            return;
        }
        self.after(PATIENCE_US, Event::Operator(number));
        match (stage, kind) {
            (Stage::Ending(id), _) => {
                self.ask_audit(number, AuditCommand::End(EndRequest { id, error: None }));
            }
            (Stage::Acting(_), Kind::Collect) => {
                if let Some(request) = self.plan_request() {
                    self.ask_stale(number, StaleCommand::Collect(request));
                }
            }
            (_, Kind::Collect) => {
                let act = Act {
                    action: "gc.apply".into(),
                    target: "/stale".into(),
                    reason: String::new(),
                    caller: None,
                    blast: String::new(),
                };
                self.ask_audit(number, AuditCommand::Begin(act));
            }
            (_, Kind::Restore(which)) => {
                let items = self.trashed_items();
                if let Some(item) = pick(&items, which) {
                    let request = RestoreRequest { item, reason: "needed".into() };
                    self.ask_stale(number, StaleCommand::Restore(request));
                }
            }
            (_, Kind::Purge) => {
                let request = PurgeRequest { item: None, reason: "the disk is needed".into() };
                self.ask_stale(number, StaleCommand::Purge(request));
            }
            (_, Kind::Pin(which) | Kind::Unpin(which) | Kind::Tag(which)) => self.label(number, which),
            (Stage::Asked, Kind::Quiet(index)) => {
                self.ask_schedule(number, command(&Kind::Pause(index), number));
            }
            (_, kind) => self.ask_schedule(number, command(&kind, number)),
        }
    }

    fn label(&mut self, number: usize, which: u64) {
        let Some(task) = pick(&self.known_artifacts(), which) else { return };
        let (name, holder, reason) = (task.to_string(), "ada".to_owned(), String::new());
        let command = match self.operator.wishes[number].kind {
            Kind::Pin(_) => ArtifactCommand::Pin(PinRequest { name, holder, reason }),
            Kind::Unpin(_) => ArtifactCommand::Unpin(PinRequest { name, holder, reason }),
            _ => ArtifactCommand::Tag(TagRequest { name, tag: "best".into(), reason }),
        };
        let delay_us = self.in_order(Party::Operator, Party::Actor(Who::Artifacts));
        self.mail::<Artifacts>(delay_us, command, None, ReplyTo::Wish(number), Some(Mark::Synced));
    }

    fn ask_schedule(&mut self, number: usize, command: ScheduleCommand) {
        let delay_us = self.in_order(Party::Operator, Party::Actor(Who::Scheduler));
        self.mail::<Scheduler>(delay_us, command, None, ReplyTo::Wish(number), Some(Mark::Synced));
    }

    fn ask_stale(&mut self, number: usize, command: StaleCommand) {
        let delay_us = self.in_order(Party::Operator, Party::Actor(Who::Stale));
        self.mail::<Stale>(delay_us, command, None, ReplyTo::Wish(number), Some(Mark::Synced));
    }

    fn ask_audit(&mut self, number: usize, command: AuditCommand) {
        let delay_us = self.in_order(Party::Operator, Party::Actor(Who::Audit));
        self.mail::<Audit>(delay_us, command, None, ReplyTo::Wish(number), Some(Mark::Synced));
    }

    pub(crate) fn wish_answered(&mut self, number: usize, answer: Answer) {
        let wish = &self.operator.wishes[number];
        let next = match (wish.stage, &wish.kind, answer) {
            (Stage::Done, ..) => return,
            (Stage::Asked, Kind::Quiet(_), Ok(_)) => {
                self.after(0, Event::Operator(number));
                Stage::Acting(0)
            }
            (_, Kind::Quiet(_), Ok(reply)) => {
                let Ok(view) = reply.downcast::<ScheduleView>() else { return };
                if view.live.is_empty() { Stage::Done } else { Stage::Acting(0) }
            }
            (_, _, Err(refusal)) if is_final(refusal.code) => Stage::Done,
            (_, _, Err(_)) => return,
            (Stage::Asked, Kind::Collect, Ok(reply)) => {
                let Ok(reply) = reply.downcast::<BeginReply>() else { return };
                self.after(0, Event::Operator(number));
                Stage::Acting(reply.id)
            }
            (Stage::Acting(id), Kind::Collect, Ok(reply)) => {
                let Ok(reply) = reply.downcast::<CollectReply>() else { return };
                self.apply(&reply);
                self.after(0, Event::Operator(number));
                Stage::Ending(id)
            }
            _ => Stage::Done,
        };
        self.operator.wishes[number].stage = next;
    }

    /// Half of what the plan has shown, and nothing else.
    fn apply(&mut self, shown: &CollectReply) {
        let shown: Vec<_> = shown.plan.items.iter().map(|planned| planned.item.clone()).collect();
        let items: Vec<_> = shown.into_iter().step_by(2).collect();
        if items.is_empty() {
            return;
        }
        self.checks.applied.push(items.iter().cloned().collect());
        let reason = format!("apply {}", self.checks.applied.len() - 1);
        let named = if self.has(Mutant::CollectUnplanned) { Vec::new() } else { items };
        self.gc(named, &reason);
    }
}

fn pick<T: Clone>(all: &[T], which: u64) -> Option<T> {
    let index = which.checked_rem(all.len() as u64)?;
    all.get(usize::try_from(index).ok()?).cloned()
}

fn act(index: usize) -> ActRequest {
    ActRequest { name: name(index), reason: String::new() }
}

fn command(kind: &Kind, number: usize) -> ScheduleCommand {
    match kind {
        Kind::Set { name: index, spec } => {
            let request = SetRequest { name: name(*index), spec: spec.as_ref().clone(), replace: true };
            ScheduleCommand::Set(Box::new(request), Role::Operate)
        }
        Kind::Pause(index) => ScheduleCommand::Pause(act(*index)),
        Kind::Resume(index) => ScheduleCommand::Resume(act(*index)),
        Kind::Remove(index) => ScheduleCommand::Remove(act(*index)),
        Kind::Trigger(index) => ScheduleCommand::Trigger(TriggerRequest {
            name: name(*index),
            idem: Some(format!("wish-{number}")),
            reason: String::new(),
        }),
        Kind::Quiet(index) => ScheduleCommand::Get(NameRequest { name: name(*index) }),
        _ => ScheduleCommand::List(eclosion_schemas::ops::schedule::ListRequest { state: None, limit: 10 }),
    }
}
