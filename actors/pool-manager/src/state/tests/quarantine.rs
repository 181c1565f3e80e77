//! What has killed three workers is let in nowhere, until somebody says so.

use eclosion_schemas::ops::pool::{QuarantineReply, QuarantinedTask, ReleaseRequest};
use eclosion_schemas::ops::task::{Argument, Limits};

use super::*;

const DEATH: Death = Death::Killed { signal: 11, sender: None };

fn world() -> World {
    let mut world = World::new(PoolOptions::new(2));
    for run in ["r", "s"] {
        world.run(run, "t", "e");
    }
    world
}

impl World {
    /// As the DAG tracker says it: one wish for each attempt.
    fn try_it(&mut self, run: &str, attempt: u32, change: impl FnOnce(&mut Execute)) -> Wish {
        let mut wish = self.wish(run, "load");
        wish.execute.attempt = Attempt(attempt);
        change(&mut wish.execute);
        self.dispatch(&wish);
        self.bring_up();
        wish
    }

    fn die(&mut self, death: Death) {
        let (worker, ..) = self.executing().pop().unwrap();
        self.down(&worker, death);
    }

    fn kill_three(&mut self) {
        for attempt in 1..=3 {
            self.try_it("r", attempt, |_| ());
            self.die(DEATH);
        }
    }

    fn quarantined(&mut self) -> Vec<QuarantinedTask> {
        let reply = self.send(&Command::Quarantine).reply.unwrap().unwrap();
        reply.downcast::<QuarantineReply>().unwrap().tasks
    }

    fn refusals(&self) -> Vec<AttemptRefused> {
        let records = self.journal.after(Seq(0), &[AttemptRefused::KIND]).records;
        records.iter().map(|record| AttemptRefused::clone(&record.event().unwrap())).collect()
    }
}

#[test]
fn three_dead_workers_quarantine_a_task_and_its_equal_in_another_run_is_refused() {
    let mut world = world();
    world.kill_three();
    let [task] = &world.quarantined()[..] else { panic!("one is quarantined") };
    assert_eq!((task.function.as_str(), task.certificates.len()), ("steps:load", 3));
    let wish = world.try_it("s", 1, |execute| execute.seed = 99);
    assert!(world.executing().is_empty());
    let [refused] = &world.refusals()[..] else { panic!("one is refused") };
    assert_eq!((refused.wish, refused.error.reason.as_str()), (wish.id, "task.quarantined"));
    assert_eq!(refused.error.causes.len(), 3);
    assert!(
        refused.error.help.as_ref().is_some_and(|help| help.contains("eclosion pool quarantine release"))
    );
    world.check();
}

#[test]
fn what_differs_in_what_it_computes_or_may_use_is_let_in() {
    type Change = fn(&mut Execute);
    let changes: [(&str, Change); 6] = [
        ("function", |execute| execute.function = "steps:save".into()),
        ("code", |execute| execute.code_hash = "mended".into()),
        ("argument", |execute| {
            execute.arguments.insert("x".into(), Argument::Value { payload: Payload::of(&1) });
        }),
        ("lease", |execute| execute.lease = [("cpu".into(), 1)].into()),
        ("limits", |execute| execute.limits = Some(Limits { processes: Some(9), ..Limits::default() })),
        ("open files", |execute| execute.limits = Some(Limits { open_files: Some(99), ..Limits::default() })),
    ];
    for (what, change) in changes {
        let mut world = world();
        world.kill_three();
        world.try_it("s", 1, change);
        assert_eq!((world.executing().len(), world.refusals().len()), (1, 0), "another {what}");
    }
}

#[test]
fn wishes_that_wait_already_are_refused_as_well() {
    let mut world = World::new(PoolOptions::new(1));
    for run in ["r", "s"] {
        world.run(run, "t", "e");
    }
    world.try_it("r", 1, |_| ());
    let mut behind = world.wish("s", "load");
    behind.execute.attempt = Attempt(1);
    for attempt in 2..=3 {
        world.die(DEATH);
        world.try_it("r", attempt, |_| ());
    }
    world.dispatch(&behind);
    world.die(DEATH);
    world.bring_up();
    assert_eq!(world.refusals().len(), 1);
    assert_eq!((world.refusals()[0].wish, world.executing().len()), (behind.id, 0));
    world.check();
}

#[test]
fn quarantine_outlives_the_kernel_and_ends_by_release_alone() {
    let mut world = world();
    world.kill_three();
    world.finish("r");
    let mut world = world.restart();
    let content = world.quarantined()[0].content.clone();
    let release = |content: &str, dry_run| {
        Command::Release(ReleaseRequest { content: content.into(), reason: "mended".into(), dry_run })
    };
    for unknown in ["", "zz"] {
        assert!(world.send(&release(unknown, false)).reply.unwrap().is_err(), "{unknown:?}");
    }
    world.send(&release(&content[..8], true));
    assert_eq!(world.quarantined().len(), 1, "a dry run releases nothing");
    world.send(&release(&content[..8], false));
    assert_eq!(world.quarantined().len(), 0);
    world.try_it("s", 1, |_| ());
    assert_eq!((world.executing().len(), world.refusals().len()), (1, 0));
    world.check();
}

#[test]
fn only_deaths_that_the_task_is_to_blame_for_count() {
    // Wanted: its worker was told to end.
    let mut world = world();
    for attempt in 1..=4 {
        world.try_it("r", attempt, |_| ());
        let (worker, ..) = world.executing().pop().unwrap();
        let request =
            pool::WorkerActRequest { worker: worker.clone(), reason: String::new(), dry_run: false };
        world.send(&Command::Kill(request));
        world.down(&worker, Death::Killed { signal: 9, sender: Some("eclosion".into()) });
    }
    assert_eq!(world.quarantined(), []);
    world.check();

    // Over: its time was up, and the worker died of the cancelling.
    let mut world = self::world();
    for attempt in 1..=4 {
        world.try_it("r", attempt, |_| ());
        let one = world.executing().pop().unwrap();
        world.fail(&one, false);
        world.down(&one.0, DEATH);
    }
    assert_eq!(world.quarantined(), []);

    // Committed in between.
    let mut world = self::world();
    for attempt in 1..=2 {
        world.try_it("r", attempt, |_| ());
        world.die(DEATH);
    }
    world.try_it("r", 3, |_| ());
    let one = world.executing().pop().unwrap();
    world.commit(&one);
    let wish = world.wish("r", "load");
    assert!(!world.engine.state().blame.is_suspect(&wish.execute));
    world.check();
}
