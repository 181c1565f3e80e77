//! Tables of cases over the stale manager; random ones in [`random`], records of deletions in [`records`], the way into the
//! trash and back in [`trash`]: a world of one core, a journal, foreign records, and a disk that is a set of names.

use std::collections::BTreeMap;

use eclosion_kernel::engine::{Engine, Step};
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::journal::{Append, Journal};
use eclosion_schemas::flow::{EnvironmentSpec, FlowSpec};
use eclosion_schemas::ops::gc::PlanItem;
use eclosion_schemas::view::{RunState, RunView};
use eclosion_schemas::{Attempt, Epoch, Fence, Part, Payload, TaskRef};

use super::*;
use crate::options::Limits;
use crate::survey::{Disk, Found};

mod random;
mod records;
mod trash;

const MINUTE: u64 = 60_000;
const NEVER: Limits = Limits { age_ms: u64::MAX, count_max: u64::MAX, bytes_max: u64::MAX };

fn options() -> RetentionOptions {
    RetentionOptions {
        interval_ms: 0,
        quota_bytes: 1_000_000,
        disk_free_min_bytes: 0,
        trash_grace_ms: 10 * MINUTE,
        runs: NEVER,
        logs: NEVER,
        environments: NEVER,
        record_age_ms: u64::MAX,
        record_count_max: u64::MAX,
        unnamed_ms: MINUTE,
        leftover_ms: MINUTE,
        origins: BTreeMap::new(),
    }
}

fn output(digest: &str) -> Payload {
    let part =
        Part { digest: Some(digest.parse().unwrap()), bytes: 1, codec: "bytes".into(), ..Part::default() };
    Payload { parts: vec![part], ..Payload::default() }
}

struct World {
    journal: Journal,
    engine: Engine<Stale>,
    options: RetentionOptions,
    now: Timestamp,
    survey: Survey,
}

impl World {
    fn new(options: RetentionOptions) -> Self {
        let journal = Journal::new(MemoryStore::default().open(), None);
        let engine = Engine::new(Stale { options: options.clone() });
        Self { journal, engine, options, now: Timestamp(100 * MINUTE), survey: Survey::default() }
    }

    fn send(&mut self, command: &Command) -> Step<Effect> {
        let reads = Reads::new(self.journal.epoch(), 0);
        self.engine.handle(&self.journal, &reads, command, None, self.now)
    }

    fn foreign(&mut self, event: impl Event) {
        let append =
            Append { events: vec![event.into()], at: self.now, cause: None, folded: Seq(0), folds: &[] };
        self.journal.append(&append).unwrap();
        self.fold();
    }

    fn fold(&mut self) -> Step<Effect> {
        self.engine.fold_new(&self.journal, &Reads::new(self.journal.epoch(), 0), self.now)
    }

    /// A run that begins, and one that has ended and is in the survey.
    fn begin(&mut self, run: &str) {
        let flow = FlowSpec {
            schema: String::new(),
            name: run.into(),
            description: String::new(),
            code: "/".into(),
            code_hash: String::new(),
            source: None,
            environment: EnvironmentSpec::default(),
            parameters: BTreeMap::new(),
            tasks: BTreeMap::new(),
            cache: None,
            result: None,
        };
        self.foreign(RunStarted {
            run: run.parse().unwrap(),
            flow,
            parameters: BTreeMap::new(),
            seed: 0,
            content: run.into(),
            environment: "e".parse().unwrap(),
            tenant: "t".parse().unwrap(),
            idem: None,
            no_cache: false,
            rerun_of: None,
            trace: None,
        });
    }

    fn end(&mut self, run: &str) {
        let (state, error, summary) = (RunState::Succeeded, None, None);
        self.foreign(RunFinished { run: run.parse().unwrap(), state, error, summary });
    }

    fn reuse(&mut self, run: &str, digest: &str) {
        self.foreign(StepReused {
            run: run.parse().unwrap(),
            task: "a".parse().unwrap(),
            output: output(digest),
            from: TaskRef { run: "r0".parse().unwrap(), task: "a".parse().unwrap() },
            is_taken: false,
            cache: None,
        });
    }

    fn commit(&mut self, run: &str, digest: &str) {
        self.foreign(StepCommitted {
            run: run.parse().unwrap(),
            task: "a".parse().unwrap(),
            attempt: Attempt(1),
            fence: Fence { epoch: Epoch(1), counter: 1 },
            worker: "w".parse().unwrap(),
            output: output(digest),
            lease: None,
            cache: None,
            unkept: None,
        });
    }

    /// Puts something on the disk, last used so many minutes ago.
    fn put(&mut self, item: &str, bytes: u64, minutes: u64) -> &mut Found {
        let used = Timestamp(self.now.0 - minutes * MINUTE);
        let item: Item = item.parse().unwrap();
        let mut found = Found::new(item.clone(), bytes, used);
        if item.kind == ItemKind::Run {
            found.run = Some(Box::new(CollectedRun { started_seq: Seq(1), view: view(item.id.as_str()) }));
        }
        self.survey.found.push(found);
        self.survey.found.last_mut().unwrap()
    }

    fn plan(&mut self) -> PlanReply {
        let request =
            CollectRequest { survey: self.survey.clone().into(), dry_run: true, ..Default::default() };
        self.collect(request).plan
    }

    fn collect(&mut self, request: CollectRequest) -> CollectReply {
        let reply = self.send(&Command::Collect(request)).reply.unwrap().unwrap();
        *reply.downcast().unwrap()
    }

    fn apply(&mut self) -> CollectReply {
        self.collect(CollectRequest { survey: self.survey.clone().into(), ..Default::default() })
    }

    /// Does what is owed, as the hands would.
    fn perform(&mut self) {
        self.perform_some(usize::MAX);
    }

    /// What came of the first effect.
    fn moved(&mut self, item: &str, moved: Moved) {
        let (effect, item) = (*self.engine.outstanding().keys().next().unwrap(), item.parse().unwrap());
        let outcome = Outcome::Moved { moved, erased: Vec::new() };
        self.send(&Command::Done(vec![Done { effect, item, outcome }]));
    }

    fn perform_some(&mut self, count: usize) {
        let owed: Vec<_> = self.engine.outstanding().clone().into_iter().take(count).collect();
        for (effect, work) in owed {
            let (item, outcome) = match work {
                Effect::Pass => continue,
                Effect::Trash { item, .. } => {
                    self.survey.found.retain(|found| found.item != item);
                    (item, Outcome::Moved { moved: Moved::Trashed, erased: Vec::new() })
                }
                Effect::Restore { item, .. } => (item, Outcome::Restored { error: None }),
                Effect::Purge { item, .. } => {
                    (item, Outcome::Moved { moved: Moved::Purged { bytes: 1 }, erased: Vec::new() })
                }
            };
            self.send(&Command::Done(vec![Done { effect, item, outcome }]));
        }
    }

    fn pin(&mut self, run: &str) {
        self.foreign(ArtifactPinned {
            run: run.parse().unwrap(),
            task: "a".parse().unwrap(),
            holder: "ada".into(),
            reason: String::new(),
        });
    }

    fn restore(&mut self, item: &str) -> Result<Vec<Item>, Error> {
        let request = RestoreRequest { item: item.parse().unwrap(), reason: String::new() };
        let reply = self.send(&Command::Restore(request)).reply.unwrap()?;
        Ok(reply.downcast::<RestoreReply>().unwrap().restored)
    }

    fn purge(&mut self, item: Option<&str>) -> Result<u64, Error> {
        let item = item.map(|item| item.parse().unwrap());
        let reply =
            self.send(&Command::Purge(PurgeRequest { item, reason: String::new() })).reply.unwrap()?;
        Ok(*reply.downcast::<u64>().unwrap())
    }

    fn trashed(&self) -> Vec<String> {
        self.engine.state().trashed.iter().map(|(_, item)| item.to_string()).collect()
    }

    fn replayed(&self) -> String {
        let mut again = Engine::new(Stale { options: self.options.clone() });
        again.recover(&self.journal).unwrap();
        again.digest()
    }
}

fn view(run: &str) -> RunView {
    RunView {
        run: run.parse().unwrap(),
        flow: "f".into(),
        state: RunState::Succeeded,
        tenant: "t".parse().unwrap(),
        seed: 0,
        content: String::new(),
        parameters: BTreeMap::new(),
        started_at: Timestamp(1),
        finished_at: None,
        counts: BTreeMap::new(),
        error: None,
        result: None,
        result_bytes: None,
        cache: None,
        rerun_of: None,
        seq: Seq(1),
    }
}

fn named(items: &[PlanItem]) -> Vec<(String, Rule)> {
    items.iter().map(|planned| (planned.item.to_string(), planned.rule)).collect()
}

#[test]
fn each_limit_hits_the_longest_unused() {
    let limits = |age_ms, count_max, bytes_max| Limits { age_ms, count_max, bytes_max };
    for (name, logs, expected) in [
        ("none", NEVER, vec![]),
        ("age", limits(30 * MINUTE, 9, 999), vec![("log/w-1", Rule::Age)]),
        ("count", limits(u64::MAX, 1, 999), vec![("log/w-1", Rule::Count), ("log/w-2", Rule::Count)]),
        ("bytes", limits(u64::MAX, 9, 20), vec![("log/w-1", Rule::Bytes)]),
    ] {
        let mut world = World::new(RetentionOptions { logs, ..options() });
        world.put("log/w-3", 10, 10);
        world.put("log/w-1", 10, 40);
        world.put("log/w-2", 10, 20);
        let expected: Vec<_> = expected.into_iter().map(|(item, rule)| (item.to_owned(), rule)).collect();
        assert_eq!(named(&world.plan().items), expected, "{name}");
    }
}

#[test]
fn what_a_run_names_goes_with_the_last_run_that_names_it() {
    let runs = Limits { count_max: 1, ..NEVER };
    let mut world = World::new(RetentionOptions { runs, ..options() });
    world.put("run/old", 1, 50);
    world.put("run/new", 1, 10);
    world.put("artifact/only", 5, 50).named_by = vec!["old".parse().unwrap()];
    world.put("artifact/both", 5, 50).named_by = vec!["old".parse().unwrap(), "new".parse().unwrap()];
    world.put("artifact/none", 5, 50);
    world.put("artifact/fresh", 5, 0);
    let items = named(&world.plan().items);
    let expected =
        [("run/old", Rule::Count), ("artifact/none", Rule::Unnamed), ("artifact/only", Rule::Unnamed)];
    assert_eq!(items, expected.map(|(item, rule)| (item.to_owned(), rule)));
}

#[test]
fn an_object_does_not_go_without_its_runs_whoever_asks_for_it() {
    let runs = Limits { count_max: 0, ..NEVER };
    for (asked, expected) in [
        (&["artifact/d"][..], 0),
        (&["artifact/d", "run/old"], 1),
        (&["artifact/d", "run/old", "run/new"], 3),
        (&["log/w-1"], 1),
    ] {
        let mut world = World::new(RetentionOptions { runs, logs: runs, ..options() });
        world.put("run/old", 1, 50);
        world.put("run/new", 1, 50);
        world.put("artifact/d", 5, 50).named_by = vec!["old".parse().unwrap(), "new".parse().unwrap()];
        world.put("log/w-1", 5, 50).named_by = vec!["old".parse().unwrap()];
        let items: BTreeSet<Item> = asked.iter().map(|item| item.parse().unwrap()).collect();
        let (survey, items) = (world.survey.clone().into(), items.into());
        let reply = world.collect(CollectRequest { survey, items, ..Default::default() });
        assert_eq!(reply.decided, expected, "{asked:?}");
    }
}

#[test]
fn what_is_held_is_shown_with_its_holder_and_stays() {
    let all = Limits { age_ms: 0, ..NEVER };
    let mut world = World::new(RetentionOptions { runs: all, logs: all, environments: all, ..options() });
    world.begin("live");
    world.foreign(WorkerRequested { worker: "w-1".parse().unwrap(), environment: "e".parse().unwrap() });
    let (environment, python) = ("e".parse().unwrap(), "/cache/env/bin/python".into());
    world.foreign(EnvironmentReady { environment, python });
    world.pin("pinned");
    world.foreign(ArtifactTagged {
        path: "f/a".into(),
        tag: "best".into(),
        run: "tagged".parse().unwrap(),
        task: "a".parse().unwrap(),
        reason: String::new(),
    });
    for item in ["run/live", "run/pinned", "run/tagged", "log/w-1", "scratch/w-1", "environment/env"] {
        world.put(item, 1, 90);
    }
    world.survey.found.last_mut().unwrap().path = "/cache/env".into();
    world.put("log/w-9", 1, 90).named_by = vec!["live".parse().unwrap()];
    let plan = world.plan();
    assert_eq!(named(&plan.items), []);
    let held: BTreeMap<_, _> =
        plan.held.into_iter().map(|planned| (planned.item.to_string(), planned.held_by.join("; "))).collect();
    let expected = [
        ("environment/env", "unfinished run live; worker w-1"),
        ("log/w-1", "worker w-1 is alive"),
        ("log/w-9", "unfinished run live"),
        ("run/live", "it is unfinished"),
        ("run/pinned", "pin of ada on a"),
        ("run/tagged", "tag f/a@best"),
        ("scratch/w-1", "worker w-1 is alive"),
    ];
    assert_eq!(held, expected.map(|(item, by)| (item.to_owned(), by.to_owned())).into());
    assert_eq!(world.apply().decided, 0);
}

#[test]
fn under_the_quota_the_trash_goes_first_and_runs_last() {
    let mut world = World::new(RetentionOptions { quota_bytes: 100, ..options() });
    world.put("artifact/gone", 30, 50);
    assert_eq!(world.apply().decided, 1);
    world.perform();
    assert_eq!(world.trashed(), ["artifact/gone"]);
    world.put("log/w-1", 40, 30);
    world.put("run/old", 1, 50);
    world.put("run/new", 1, 20);
    world.put("artifact/old", 60, 50).named_by = vec!["old".parse().unwrap()];
    world.put("artifact/new", 20, 20).named_by = vec!["new".parse().unwrap()];
    // 152 of 100: the trash gives 30, the log 40; runs stay.
    let expected = [("artifact/gone", Rule::Quota), ("log/w-1", Rule::Quota)];
    assert_eq!(named(&world.plan().items), expected.map(|(item, rule)| (item.to_owned(), rule)));
    world.begin("old");
    let finding = {
        world.put("artifact/huge", 500, 50).named_by = vec!["old".parse().unwrap()];
        world.plan().findings.join(" ")
    };
    assert!(finding.contains("is exceeded by") && finding.contains("unfinished run old"), "{finding}");
}

#[test]
fn a_disk_that_others_fill_takes_the_trash_and_nothing_else() {
    let mut world = World::new(RetentionOptions { disk_free_min_bytes: 1 << 30, ..options() });
    world.put("artifact/gone", 30, 50);
    world.apply();
    world.perform();
    world.put("log/w-1", 40, 30);
    world.survey.disk = Some(Disk { free_bytes: 1 << 20, total_bytes: 1 << 40 });
    let plan = world.plan();
    assert_eq!(named(&plan.items), [("artifact/gone".to_owned(), Rule::Quota)]);
    assert!(plan.findings.iter().any(|finding| finding.contains("nearly full")), "{:?}", plan.findings);
}

#[test]
fn what_is_named_after_the_survey_is_not_collected() {
    let mut world = World::new(options());
    world.put("artifact/d", 5, 50);
    world.begin("live");
    world.commit("live", "d");
    assert_eq!(world.apply().decided, 0);
}

#[test]
fn a_pass_is_due_after_its_interval_and_until_it_is_recorded() {
    let mut world = World::new(RetentionOptions { interval_ms: 5 * MINUTE, ..options() });
    world.fold();
    assert!(world.engine.outstanding().is_empty(), "not in the first minute");
    world.now = world.now.plus_ms(MINUTE);
    let step = world.fold();
    let [(effect, Effect::Pass)] = step.effects.as_slice() else { panic!("{:?}", step.effects) };
    let passed = GcPassed {
        cause: eclosion_schemas::ops::gc::PassCause::Due,
        reason: String::new(),
        effect: Some(*effect),
        collected: 0,
        purged: 0,
        freed_bytes: 0,
        held: 0,
        used_bytes: 0,
        findings: vec!["found".into()],
    };
    world.send(&Command::Passed(passed));
    assert!(world.engine.outstanding().is_empty());
    assert_eq!(world.engine.state().findings(), ["found"]);
    assert_eq!(world.engine.wake_at(), Some(world.now.plus_ms(5 * MINUTE)));
}
