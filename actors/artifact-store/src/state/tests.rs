use std::sync::Arc;

use eclosion_kernel::engine::Engine;
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::journal::{Append, Journal, JournalStore, Reader};
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::ops::artifact::{PinReply, PinsReply, TagReply, TagView, TagsReply, UntagReply};
use eclosion_schemas::view::RunState;
use eclosion_schemas::{Attempt, Epoch, Fence, Part, Payload, Seq};
use serde_json::json;

use super::*;
use crate::files::ResolveRequest;

/// The core over a journal in memory, with its projection, written at once.
struct World {
    journal: Journal,
    store: MemoryStore,
    reader: Arc<dyn Reader>,
    engine: Engine<Artifacts>,
}

impl World {
    fn new() -> Self {
        let store = MemoryStore::default();
        let reader = store.reader();
        let journal = Journal::new(store.open(), Some(Arc::clone(&reader)));
        Self { journal, store, reader, engine: Engine::new(Artifacts) }
    }

    fn append(&mut self, event: AnyEvent) -> Seq {
        let append =
            Append { events: vec![event], at: Timestamp(5), cause: None, folded: Seq(0), folds: &[] };
        let records = self.journal.append(&append).unwrap();
        let mut rows = Vec::new();
        records.iter().for_each(|record| crate::project(record, &mut rows));
        self.store.append(&records, &rows).unwrap();
        self.journal.mark_written(records[0].seq);
        records[0].seq
    }

    /// The records of others that the engine folded on the way were written when they were appended.
    fn write(&mut self, records: &[Arc<Record>]) {
        let own: Vec<_> =
            records.iter().filter(|record| Artifacts::DECIDES.contains(&&*record.kind)).cloned().collect();
        let Some(last) = own.last() else { return };
        let mut rows = Vec::new();
        own.iter().for_each(|record| crate::project(record, &mut rows));
        self.store.append(&own, &rows).unwrap();
        self.journal.mark_written(last.seq);
    }

    fn tag(&mut self, name: &str, tag: &str) -> Result<TagReply, Error> {
        self.ask(&Command::Tag(TagRequest { name: name.into(), tag: tag.into(), reason: String::new() }))
    }

    fn tags(&mut self, prefix: &str, history: bool, limit: u32) -> (Vec<(String, Option<String>)>, bool) {
        let request = TagsRequest { prefix: prefix.into(), history, limit };
        let reply: TagsReply = self.ask(&Command::Tags(request)).unwrap();
        let shown = |tag: TagView| (format!("{}@{}", tag.path, tag.tag), tag.artifact);
        (reply.tags.into_iter().map(shown).collect(), reply.more)
    }

    fn pin(&mut self, name: &str, holder: &str) -> Result<PinReply, Error> {
        self.ask(&Command::Pin(pin_of(name, holder)))
    }

    fn unpin(&mut self, name: &str, holder: &str) -> Result<PinReply, Error> {
        self.ask(&Command::Unpin(pin_of(name, holder)))
    }

    fn page(&mut self, before: Option<Seq>) -> PageReply {
        self.ask(&Command::Page(PageRequest { before })).unwrap()
    }

    fn ask<T: 'static>(&mut self, command: &Command) -> Result<T, Error> {
        let mut reads = Reads::new(Epoch(1), 0);
        for query in Artifacts.queries(command) {
            let rows = match &query {
                Query::Get { table, key } => {
                    self.reader.get(table, key)?.map(|value| (key.clone(), value)).into_iter().collect()
                }
                Query::Scan { table, prefix, newest_first, limit } => {
                    self.reader.scan(table, prefix, *newest_first, *limit)?
                }
            };
            reads.insert(query, rows);
        }
        let step = self.engine.handle(&self.journal, &reads, command, None, Timestamp(9));
        self.write(&step.records);
        let reply = step.reply.unwrap();
        reply.map(|reply| *reply.downcast().unwrap())
    }

    fn get(&mut self, name: &str) -> Result<GetReply, Error> {
        self.ask(&Command::Get(GetRequest { name: name.into() }))
    }

    fn resolve(&mut self, name: &str) -> Vec<String> {
        self.ask::<ResolveReply>(&Command::Resolve(ResolveRequest { name: name.into() })).unwrap().names
    }
}

fn pin_of(name: &str, holder: &str) -> PinRequest {
    PinRequest { name: name.into(), holder: holder.into(), reason: "served".into() }
}

fn flow() -> FlowSpec {
    serde_json::from_value(json!({
        "schema": "eclosion/flow/v1", "name": "automl", "tasks": {
            "load": {"run": "m:load", "with": {"path": "${param.data}", "note": "costs $${load}"}},
            "train": {"run": "m:train", "each": ["a", "b"], "with": {"t": "${load}", "m": "${item}"}},
            "select": {"run": "m:select", "with": {"models": {"all": ["${train}"]}}},
            "report": {"run": "m:report", "with": {"best": "${select}"}, "after": ["load"]},
        }
    }))
    .unwrap()
}

fn started(run: &str) -> AnyEvent {
    let started: RunStarted = serde_json::from_value(json!({
        "run": run, "flow": flow(), "parameters": {}, "seed": 1, "content": "c", "environment": "e", "tenant": "t",
    }))
    .unwrap();
    started.into()
}

fn committed(run: &str, task: &str, output: Payload) -> AnyEvent {
    let committed = StepCommitted {
        run: run.parse().unwrap(),
        task: task.parse().unwrap(),
        attempt: Attempt(1),
        fence: Fence::default(),
        worker: "w-1-1".parse().unwrap(),
        output,
        lease: None,
        cache: None,
        unkept: None,
    };
    committed.into()
}

fn finished(run: &str, state: RunState) -> AnyEvent {
    let finished: RunFinished = serde_json::from_value(json!({"run": run, "state": state})).unwrap();
    finished.into()
}

fn staged(digest: char) -> Payload {
    let part = Part {
        digest: Some(digest.to_string().repeat(64).parse().unwrap()),
        bytes: 100_000,
        codec: "npy".into(),
        ..Part::default()
    };
    Payload { body: vec![0xd6, 1, 0, 0, 0, 0].into(), parts: vec![part] }
}

fn names(artifacts: &[ArtifactView]) -> Vec<&str> {
    artifacts.iter().map(|artifact| artifact.name.as_str()).collect()
}

fn whole_run(world: &mut World, run: &str) {
    world.append(started(run));
    for task in ["load", "train[0]", "train[1]", "select", "report"] {
        world.append(committed(run, task, Payload::of(&task)));
    }
}

#[test]
fn a_committed_output_is_found_by_its_name_with_its_value() {
    let mut world = World::new();
    world.append(started("r1"));
    let seq = world.append(committed("r1", "load", Payload::of(&7)));
    let found = world.get("r1/load").unwrap();
    assert_eq!(
        (found.artifact.seq, found.artifact.codec.as_str(), found.artifact.bytes),
        (seq, "msgpack", 1)
    );
    assert_eq!((found.artifact.digest, found.payload), (None, Payload::of(&7)));
}

#[test]
fn a_value_that_is_one_file_is_shown_as_that_file() {
    let mut world = World::new();
    world.append(started("r1"));
    world.append(committed("r1", "load", staged('a')));
    let shown = world.get("r1/load").unwrap().artifact;
    assert_eq!((shown.bytes, shown.codec.as_str()), (100_000, "npy"));
    assert_eq!(shown.digest.unwrap().as_str(), "a".repeat(64));
}

#[test]
fn a_digest_leads_to_the_name_that_it_has() {
    let mut world = World::new();
    world.append(started("r1"));
    world.append(committed("r1", "load", staged('a')));
    assert_eq!(world.resolve(&"a".repeat(64)), ["r1/load"]);
    assert!(world.resolve(&"b".repeat(64)).is_empty());
    let objects: ObjectsReply = world.ask(&Command::Objects(ObjectsRequest { shard: 0xaa })).unwrap();
    assert_eq!(objects.objects, [("a".repeat(64).parse().unwrap(), 100_000)]);
}

#[test]
fn versions_are_the_runs_of_a_flow_in_their_order() {
    let mut world = World::new();
    for run in ["zz", "aa", "mm"] {
        world.append(started(run));
    }
    assert_eq!(world.resolve("automl/report"), ["zz/report", "aa/report", "mm/report"]);
    assert_eq!(world.resolve("automl/train[1]"), ["zz/train[1]", "aa/train[1]", "mm/train[1]"]);
    assert!(world.resolve("automl/nobody").is_empty() && world.resolve("auto/report").is_empty());
}

#[test]
fn what_is_not_committed_yet_is_told_apart_from_what_will_never_be() {
    let mut world = World::new();
    world.append(started("r1"));
    let pending = world.get("r1/report").unwrap_err();
    assert_eq!((pending.code, pending.reason.as_str()), (Code::Precondition, "artifact.pending"));
    world.append(finished("r1", RunState::Failed));
    assert_eq!(world.get("r1/report").unwrap_err().reason, "artifact.unknown");
    assert_eq!(world.get("").unwrap_err().code, Code::NotFound);
}

#[test]
fn lists_by_run_and_prefix_and_says_what_it_cut() {
    let mut world = World::new();
    whole_run(&mut world, "r1");
    whole_run(&mut world, "r2");
    let mut list = |run: Option<&str>, prefix: &str, limit| {
        let run = run.map(|run| run.parse().unwrap());
        let request = ListRequest { run, prefix: prefix.into(), limit };
        let reply: ListReply = world.ask(&Command::List(request)).unwrap();
        (names(&reply.artifacts).join(" "), reply.cut)
    };
    assert_eq!(list(Some("r1"), "train", 99), ("r1/train[0] r1/train[1]".into(), 0));
    assert_eq!(list(Some("r1"), "r1/train[1]", 99), ("r1/train[1]".into(), 0));
    assert_eq!(list(None, "r2/", 2), ("r2/load r2/report".into(), 3));
    assert_eq!(list(None, "", 0), (String::new(), 10));
    assert_eq!(list(Some("r"), "", 9), (String::new(), 0));
}

#[test]
fn lineage_goes_both_ways_nearest_first_and_through_fan_outs() {
    let mut world = World::new();
    whole_run(&mut world, "r1");
    whole_run(&mut world, "r2");
    let mut of = |name: &str| {
        let request = GetRequest { name: name.into() };
        let reply: LineageReply = world.ask(&Command::Lineage(request)).unwrap();
        (names(&reply.inputs).join(" "), names(&reply.outputs).join(" "))
    };
    let all_after_load = "r1/report r1/train[0] r1/train[1] r1/select";
    assert_eq!(of("r1/load"), (String::new(), all_after_load.into()));
    assert_eq!(of("r1/train[1]"), ("r1/load".into(), "r1/select r1/report".into()));
    assert_eq!(of("r1/report"), ("r1/load r1/select r1/train[0] r1/train[1]".into(), String::new()));
    let request = GetRequest { name: "r1/nobody".into() };
    assert!(world.ask::<LineageReply>(&Command::Lineage(request)).is_err());
}

#[test]
fn a_replay_gives_the_same_state_as_life_did_and_memory_forgets_finished_runs() {
    let mut world = World::new();
    whole_run(&mut world, "r1");
    let _ = world.get("r1/load");
    whole_run(&mut world, "r2");
    world.append(finished("r1", RunState::Succeeded));
    world.engine.fold_new(&world.journal, &Reads::default(), Timestamp(9));
    let mut again = Engine::new(Artifacts);
    again.recover(&world.journal).unwrap();
    assert_eq!(again.digest(), world.engine.digest());
    assert_eq!(world.engine.state().live.keys().map(RunId::as_str).collect::<Vec<_>>(), ["r2"]);
    assert_eq!(world.get("r1/report").unwrap().payload, Payload::of(&"report"));
}

#[test]
fn rows_follow_from_the_stored_bytes_alone() {
    let mut world = World::new();
    whole_run(&mut world, "r1");
    let mut typed = Vec::new();
    for record in world.journal.after(Seq(0), Artifacts::FOLDS).records {
        crate::project(&record, &mut typed);
    }
    let mut decoded = Vec::new();
    world
        .reader
        .read(Seq(0), &[], &mut |record| {
            crate::project(&record, &mut decoded);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(typed, decoded);
    assert!(typed.len() > 10);
}

#[test]
fn a_tag_moves_and_its_history_stays() {
    let mut world = World::new();
    whole_run(&mut world, "r1");
    whole_run(&mut world, "r2");
    let tagged = world.tag("r1/report", "production").unwrap();
    assert_eq!((tagged.path.as_str(), tagged.artifact.as_str()), ("automl/report", "r1/report"));
    world.tag("r1/train[1]", "best").unwrap();
    assert_eq!(world.resolve("automl/report@production"), ["r1/report"]);
    world.tag("r2/report", "production").unwrap();
    assert_eq!(world.resolve("automl/report@production"), ["r2/report"]);
    let now = [("automl/report@production", "r2/report"), ("automl/train[1]@best", "r1/train[1]")];
    let now = now.map(|(tag, artifact)| (tag.to_owned(), Some(artifact.to_owned())));
    assert_eq!(world.tags("", false, 9), (now.to_vec(), false));
    assert_eq!(world.tags("automl/", false, 1), (now[..1].to_vec(), true));
    let (path, tag) = ("automl/report".to_owned(), "production".to_owned());
    let untag = Command::Untag(UntagRequest { path, tag, reason: String::new() });
    world.ask::<UntagReply>(&untag).unwrap();
    assert!(world.resolve("automl/report@production").is_empty());
    assert_eq!(world.ask::<UntagReply>(&untag).unwrap_err().reason, "artifact.tag");
    let led = world.tags("automl/report", true, 9).0.into_iter().map(|(_, artifact)| artifact);
    assert_eq!(led.collect::<Vec<_>>(), [Some("r1/report".to_owned()), Some("r2/report".into()), None]);
}

#[test]
fn labels_that_are_no_names_are_refused_and_so_is_what_is_not_there() {
    let mut world = World::new();
    whole_run(&mut world, "r1");
    for tag in ["", "3", "a b", "a/b", "a@b", "-x", &"x".repeat(65)] {
        assert_eq!(world.tag("r1/report", tag).unwrap_err().code, Code::Invalid, "{tag}");
    }
    for holder in ["", "a b", &"x".repeat(65)] {
        assert_eq!(world.pin("r1/report", holder).unwrap_err().code, Code::Invalid, "{holder}");
    }
    assert_eq!(world.tag("r1/nobody", "x").unwrap_err().reason, "artifact.pending");
    assert_eq!(world.pin("r9/report", "x").unwrap_err().code, Code::NotFound);
}

#[test]
fn an_artifact_is_held_until_its_last_holder_lets_go() {
    let mut world = World::new();
    whole_run(&mut world, "r1");
    assert_eq!(world.pin("r1/report", "alice").unwrap().holders, ["alice"]);
    assert_eq!(world.pin("r1/report", "alice").unwrap().holders, ["alice"], "the same again");
    assert_eq!(world.pin("r1/report", "Bob").unwrap().holders, ["Bob", "alice"]);
    assert_eq!(world.unpin("r1/report", "alice").unwrap().holders, ["Bob"]);
    assert_eq!(world.unpin("r1/report", "alice").unwrap().holders, ["Bob"], "gone already");
    assert!(world.engine.state().is_pinned("r1/report") && !world.engine.state().is_pinned("r1/load"));
    let pins: PinsReply = world.ask(&Command::Pins(PinsRequest { prefix: "r1/".into(), limit: 9 })).unwrap();
    assert_eq!((pins.pins[0].holder.as_str(), pins.pins[0].since, pins.more), ("Bob", Timestamp(9), false));
    let mut again = Engine::new(Artifacts);
    again.recover(&world.journal).unwrap();
    assert_eq!(again.digest(), world.engine.digest());
    world.unpin("r1/report", "Bob").unwrap();
    assert!(!world.engine.state().is_pinned("r1/report"));
}

#[test]
fn pages_go_back_through_all_artifacts_once_each_newest_first() {
    let mut world = World::new();
    let mut all = Vec::new();
    for run in 0..70 {
        let run = format!("r{run}");
        whole_run(&mut world, &run);
        all.extend(["load", "train[0]", "train[1]", "select", "report"].map(|task| format!("{run}/{task}")));
        // Records of others lie between, more than a page looks over.
        for _ in 0..if run == "r35" { 10_000 } else { 9 } {
            world.append(finished("r0", RunState::Succeeded));
        }
    }
    let (mut found, mut before) = (Vec::new(), None);
    loop {
        let page = world.page(before);
        found.extend(page.names);
        match page.before {
            Some(next) => before = Some(next),
            None => break,
        }
    }
    all.reverse();
    assert_eq!(found, all);
}

#[test]
fn a_small_value_lies_in_the_row_of_its_artifact_and_a_larger_one_beside_it() {
    for (bytes, rows) in [(10, 2), (5_000, 3)] {
        let mut world = World::new();
        world.append(started("r1"));
        let output = Payload::of(&"x".repeat(bytes));
        let event = committed("r1", "load", output.clone());
        let append =
            Append { events: vec![event], at: Timestamp(5), cause: None, folded: Seq(0), folds: &[] };
        let record = world.journal.append(&append).unwrap().remove(0);
        let mut changes = Vec::new();
        crate::project(&record, &mut changes);
        assert_eq!(changes.len(), rows);
        world.store.append(&[record], &changes).unwrap();
        assert_eq!(world.get("r1/load").unwrap().payload, output);
    }
}
