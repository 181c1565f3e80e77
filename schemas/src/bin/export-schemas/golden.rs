//! Golden frames: bytes that every implementation must read alike.
//!
//! `NAME.hex` holds whole frames; `NAME.json` says what they are, or, for `refused-NAME`, the `reason` with which a
//! receiver must refuse them. A golden frame never changes once released; only new ones are added.

use std::fmt::Write;

use bytes::BytesMut;
use eclosion_schemas::codec::{self, json as lines};
use eclosion_schemas::error::{RemoteException, RemoteFrame};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::frame::{Envelope, Flags, Frame, FrameError, FrameType, Limits, StreamId, WireCodec};
use eclosion_schemas::ops::{arena, artifact, kernel, pool, run, task};
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{
    Attempt, Code, EffectId, Epoch, Error, Fence, Part, Payload, Retry, Role, RunId, Segment, Seq, Stage,
    WorkerId,
};
use serde_json::{Value, json};

use crate::Files;
use crate::api::sorted;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const WORKER: StreamId = StreamId(7);
const KERNEL: StreamId = StreamId(4);
/// Small, so that three fragments are short enough to be read by a person.
const FRAGMENT_BYTES: usize = 24;

pub(crate) fn files() -> std::result::Result<Files, String> {
    build().map_err(|why| format!("golden frames: {why}"))
}

fn build() -> Result<Files> {
    let mut files = Files::new();
    for (name, frames) in accepted()? {
        let mut bytes = BytesMut::new();
        frames.iter().try_for_each(|frame| frame.encode(&mut bytes))?;
        let shown = frames.iter().map(show).collect::<Result<Vec<Value>>>()?;
        add(&mut files, name, &bytes, &json!({"frames": shown}))?;
    }
    for (name, bytes, reason) in refused()? {
        add(&mut files, &format!("refused-{name}"), &bytes, &json!({"refused": reason}))?;
    }
    Ok(files)
}

fn add(files: &mut Files, name: &str, bytes: &[u8], shown: &Value) -> Result<()> {
    let mut hex = String::new();
    for row in bytes.chunks(32) {
        row.iter().try_for_each(|byte| write!(hex, "{byte:02x}"))?;
        hex.push('\n');
    }
    files.insert(format!("schemas/golden/{name}.hex").into(), hex);
    let text = serde_json::to_string_pretty(&sorted(shown.clone()))? + "\n";
    files.insert(format!("schemas/golden/{name}.json").into(), text);
    Ok(())
}

/// The numbers and words of a frame; a body in msgpack also as a value.
fn show(frame: &Frame) -> Result<Value> {
    let flags =
        [(Flags::END, "END"), (Flags::MORE, "MORE"), (Flags::IGNORE, "IGNORE"), (Flags::URGENT, "URGENT")];
    let flags: Vec<&str> =
        flags.iter().filter(|(flag, _)| frame.flags.contains(*flag)).map(|(_, name)| *name).collect();
    let mut body = String::new();
    frame.body.iter().try_for_each(|byte| write!(body, "{byte:02x}"))?;
    let whole = frame.codec == WireCodec::Msgpack && codec::scan(&frame.body).is_ok();
    let value = if whole { Some(lines::from_msgpack(&frame.body)?) } else { None };
    Ok(json!({
        "type": u8::from(frame.kind),
        "flags": flags,
        "codec": u8::from(frame.codec),
        "stream": frame.stream,
        "descriptors": frame.descriptors,
        "envelope": frame.envelope,
        "body_hex": body,
        "value": value,
    }))
}

fn accepted() -> Result<Vec<(&'static str, Vec<Frame>)>> {
    let mut all = connection()?;
    all.extend(calls()?);
    all.extend(worker()?);
    all.extend(errors());
    all.extend(odd()?);
    Ok(all)
}

fn connection() -> Result<Vec<(&'static str, Vec<Frame>)>> {
    let zero = StreamId::CONNECTION;
    let hello = |client: &str, role| Envelope {
        client: Some(client.into()),
        api: Some(1),
        role: Some(role),
        ..Envelope::default()
    };
    let welcome = Envelope {
        server: Some("eclosion/0.1.0".into()),
        instance: Some("default".into()),
        epoch: Some(Epoch(3)),
        api: Some(1),
        api_compatible: Some(1),
        features: Some(vec!["ndjson".into()]),
        role: Some(Role::Operate),
        limits: Some(Limits::DEFAULT),
        describe_hash: Some("5f1d".into()),
        ..Envelope::default()
    };
    let resume = Envelope { role: Some(Role::Worker), resume: Some(vec![KERNEL]), ..welcome.clone() };
    let born = pool::WorkerUpRequest {
        worker: worker_id()?,
        pid: 4242,
        start_ticks: 123_456_789,
        boot_id: "2f9c".into(),
        attempts: Vec::new(),
        attached: None,
    };
    let survivor = pool::WorkerUpRequest { attempts: vec![fence()], ..born.clone() };
    let pong = Envelope { running: Some(fence()), gil_lag_ms: Some(12), ..Envelope::default() };
    let goaway = Envelope { reason: Some("kernel.stopping".into()), ..Envelope::default() };
    let python = || hello("eclosion-python/0.1.0", Role::Worker);
    let bare = |kind| Frame::new(kind, zero);
    Ok(vec![
        (
            "hello-client",
            vec![bare(FrameType::Hello).with_envelope(hello("eclosion-cli/0.1.0", Role::Operate))],
        ),
        ("hello-worker", vec![bare(FrameType::Hello).with_envelope(python()).msgpack(&born)?]),
        ("hello-worker-running", vec![bare(FrameType::Hello).with_envelope(python()).msgpack(&survivor)?]),
        ("welcome-client", vec![bare(FrameType::Welcome).with_envelope(welcome)]),
        ("welcome-worker-resume", vec![bare(FrameType::Welcome).with_envelope(resume)]),
        ("ping", vec![bare(FrameType::Ping)]),
        ("pong-client", vec![bare(FrameType::Pong)]),
        ("pong-worker", vec![bare(FrameType::Pong).with_envelope(pong)]),
        ("goaway", vec![bare(FrameType::Goaway).with_envelope(goaway)]),
    ])
}

fn calls() -> Result<Vec<(&'static str, Vec<Frame>)>> {
    let mut start = Frame::call(WORKER, "run.get", &run::RunRequest { run: run_id()? })?;
    start.envelope.deadline_ms = Some(30_000);
    start.envelope.idem = Some("7d0e".into());
    start.envelope.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    start.envelope.cause = Some(EffectId { seq: Seq(41), n: 2 });
    let subscribe = kernel::SubscribeRequest {
        filter: "run/7k2m4q9d/**".into(),
        on_full: kernel::OnFull::Gap,
        start: None,
    };
    let mut call = Frame::call(WORKER, "bus.subscribe", &subscribe)?;
    call.envelope.credit = Some(64);
    let subject = || "run/7k2m4q9d/state".to_owned();
    let at = |seq| (Epoch(3), Seq(seq));
    let (epoch, seq) = at(40);
    let acknowledged = kernel::Delivery::Acknowledged { epoch, seq };
    let value = json!({"state": "running"});
    let snapshot = kernel::Delivery::Snapshot { subject: subject(), epoch, seq, value };
    let (epoch, seq) = at(44);
    let change =
        kernel::Delivery::Change { subject: subject(), epoch, seq, value: json!({"state": "succeeded"}) };
    let end = kernel::Delivery::SnapshotEnd {};
    let items = [acknowledged, snapshot, end, change, kernel::Delivery::Gap { dropped: 9 }];
    let mut subscription = vec![call];
    for item in &items {
        subscription.push(Frame::data(WORKER, item)?);
    }
    let mut publication =
        Frame::new(FrameType::Pub, StreamId::CONNECTION).msgpack(&json!({"level": 0.5, "unit": null}))?;
    publication.envelope.subject = Some("app/gauge".into());
    let credit = Envelope { credit: Some(128), ..Envelope::default() };
    let arguments = Payload::of(&json!({"text": "a body that is longer than two fragments of it"}));
    let function = "steps:load".to_owned();
    let environment = EnvironmentSpec::default();
    let request = pool::CallRequest {
        timeout_ms: None,
        limits: None,
        function,
        code: "/flow".into(),
        code_hash: String::new(),
        environment,
        arguments,
        with: std::collections::BTreeMap::new(),
    };
    let large = Frame::call(WORKER, "pool.call", &request)?;
    let mut timed = Frame::call(WORKER, "kernel.ping", &kernel::Empty {})?;
    timed.envelope.timings = Some(true);
    let stage = |name: &str, took_ns| Stage { name: name.into(), took_ns };
    let stages = vec![stage("queued", 5_200), stage("handled", 900), stage("answered", 400)];
    let told = Envelope { stages: Some(stages), ..Envelope::default() };
    let told = Frame::data(WORKER, &kernel::Empty {})?.with_envelope(told).end();
    Ok(vec![
        ("call-timed", vec![timed, told]),
        ("call", vec![start]),
        ("subscription", subscription),
        ("pub", vec![publication]),
        ("credit", vec![Frame::new(FrameType::Credit, WORKER).with_envelope(credit)]),
        ("cancel-call", vec![Frame::new(FrameType::Cancel, WORKER)]),
        ("call-fragments", large.fragments(FRAGMENT_BYTES * 4).collect()),
        (
            "data-json",
            vec![Frame::new(FrameType::Data, WORKER).with_body(WireCodec::Json, &b"{\"a\":1}"[..]).end()],
        ),
    ])
}

fn worker() -> Result<Vec<(&'static str, Vec<Frame>)>> {
    let list = task::Argument::List { payloads: vec![Payload::of(&1), Payload::of(&"two")].into() };
    let table = Payload { body: PART_ZERO.to_vec().into(), parts: vec![stored()?] };
    let execute = task::Execute {
        run: run_id()?,
        task: "train[0]".parse()?,
        attempt: Attempt(1),
        fence: fence(),
        function: "steps:train".into(),
        code: "/home/ada/flow".into(),
        code_hash: "ab12".into(),
        arguments: [
            ("table".to_owned(), task::Argument::Value { payload: table }),
            ("others".to_owned(), list),
        ]
        .into(),
        seed: u64::MAX,
        idempotency_key: "7k2m4q9d/train[0]".into(),
        timeout_ms: Some(120_000),
        lease: [("cpu".to_owned(), 1), ("memory".to_owned(), 1 << 30)].into(),
        limits: task::Limits { processes: Some(4), open_files: Some(256), file_bytes: None }.any(),
        trace: None,
        timings: false,
        keeps: false,
    };
    let progress = TaskReport::Progress { done: 3.0, total: Some(10.0), text: "fold 3".into() };
    let metric = TaskReport::Metric { name: "loss".into(), value: 0.25, step: Some(-1) };
    let shard = Part { data: Some(vec![1, 2, 3].into()), bytes: 3, codec: "bytes".into(), ..Part::default() };
    let tokens =
        [(0, Payload::of(&"Hel")), (1, Payload { body: PART_ZERO.to_vec().into(), parts: vec![shard] })];
    let items = tokens.map(|(index, payload)| TaskReport::Item { index, payload });
    let streaming = Frame::call(KERNEL, task::EXECUTE, &execute)?;
    let streaming = streaming.with_envelope(Envelope {
        method: Some(task::EXECUTE.into()),
        credit: Some(2),
        ..Envelope::default()
    });
    let granted = Envelope { credit: Some(4), ..Envelope::default() };
    let granted = Frame::new(FrameType::Credit, KERNEL).with_envelope(granted);
    let made = Part { stage: Some(5), bytes: 4096, codec: "npy".into(), ..Part::default() };
    let output = Payload { body: PART_ZERO.to_vec().into(), parts: vec![made] };
    let timed = Frame::call(KERNEL, task::EXECUTE, &task::Execute { timings: true, ..execute.clone() })?;
    let ran = [1_790_000_000_000_000_000, 1_790_000_000_002_500_000];
    let ran = Envelope { stdout: Some([0, 0]), stderr: Some([0, 0]), ran: Some(ran), ..Envelope::default() };
    let ran = Frame::data(KERNEL, &Payload::of(&1))?.with_envelope(ran).end();
    let ranges = || Envelope { stdout: Some([0, 120]), stderr: Some([7, 7]), ..Envelope::default() };
    let rung = |rung| {
        Frame::new(FrameType::Cancel, KERNEL)
            .with_flags(Flags::URGENT)
            .with_envelope(Envelope { rung: Some(rung), ..Envelope::default() })
    };
    let report = |report: &TaskReport| Frame::data(KERNEL, report);
    let reply = Frame::data(KERNEL, &output)?.with_envelope(ranges()).end();
    let stage = Frame::call(WORKER, artifact::STAGE, &artifact::StageRequest { bytes: 4096, fence: None })?;
    let staged = Frame::data(WORKER, &artifact::StageReply { stage: 5 })?.with_descriptors(1).end();
    let digest = "c0".repeat(32).parse()?;
    let open = Frame::call(WORKER, artifact::OPEN, &artifact::OpenRequest { digest })?;
    let opened = Frame::data(WORKER, &artifact::OpenReply { bytes: 4096 })?.with_descriptors(1).end();
    Ok(vec![
        ("call-execute", vec![Frame::call(KERNEL, task::EXECUTE, &execute)?]),
        ("call-execute-timed", vec![timed, ran]),
        ("data-reports", vec![report(&progress)?, report(&metric)?]),
        ("call-execute-stream", vec![streaming, granted]),
        ("data-items", vec![report(&items[0])?, report(&items[1])?]),
        ("data-end", vec![reply.clone()]),
        ("data-end-fragments", reply.fragments(FRAGMENT_BYTES).collect()),
        ("cancel-rungs", vec![rung(1), rung(2)]),
        ("call-stage", vec![stage]),
        ("arena-worker", lending()?),
        ("arena-client", attaching()?),
        ("reply-stage", vec![staged]),
        ("call-open", vec![open]),
        ("reply-open", vec![opened]),
    ])
}

/// The msgpack extension that stands for part 0.
const PART_ZERO: [u8; 6] = [0xd6, 1, 0, 0, 0, 0];

/// A place to write, mapped, and named in the outcome of a call.
fn lending() -> Result<Vec<Frame>> {
    let request = arena::LendRequest { bytes: 8 << 20, fence: Fence::of_call(7) };
    let segment = large();
    let part = Part { segment: Some(segment), bytes: 8 << 20, codec: "npy".into(), ..Part::default() };
    let output = Payload { body: PART_ZERO.to_vec().into(), parts: vec![part] };
    Ok(vec![
        Frame::call(WORKER, arena::LEND, &request)?,
        Frame::data(WORKER, &arena::LendReply { segment, gone: vec![2] })?.with_descriptors(1).end(),
        Frame::call(StreamId(5), arena::MAPPED, &arena::MappedRequest { arena: 3 })?,
        Frame::data(StreamId(5), &kernel::Empty {})?.end(),
        Frame::data(KERNEL, &output)?.end(),
    ])
}

/// Where it is, by descriptor and by name; and that it was read.
fn attaching() -> Result<Vec<Frame>> {
    let hello = Frame::new(FrameType::Hello, StreamId::CONNECTION).with_envelope(Envelope {
        client: Some("eclosion-python/0.1.0".into()),
        api: Some(1),
        features: Some(vec![arena::TAKES_SEALED.into()]),
        ..Envelope::default()
    });
    let request = arena::AttachRequest { arena: 3 };
    let named = arena::AttachReply { bytes: 16 << 20, name: Some("ecl.5f1d03ab.2.9c41e07b".into()) };
    let cancelled = arena::ReleaseRequest { stream: Some(1), keep: vec![large()], segments: Vec::new() };
    let read = arena::ReleaseRequest { segments: vec![large()], ..arena::ReleaseRequest::default() };
    Ok(vec![
        hello,
        Frame::call(StreamId(3), arena::ATTACH, &request)?,
        Frame::data(StreamId(3), &arena::AttachReply { bytes: 16 << 20, name: None })?
            .with_descriptors(1)
            .end(),
        Frame::call(StreamId(5), arena::ATTACH, &request)?,
        Frame::data(StreamId(5), &named)?.end(),
        Frame::call(StreamId(7), arena::RELEASE, &read)?,
        Frame::data(StreamId(7), &kernel::Empty {})?.end(),
        Frame::call(StreamId(9), arena::RELEASE, &cancelled)?,
    ])
}

fn large() -> Segment {
    Segment { arena: 3, offset: 64, length: 8 << 20, generation: 12 }
}

fn errors() -> Vec<(&'static str, Vec<Frame>)> {
    let frame = RemoteFrame {
        file: "/home/ada/flow/steps.py".into(),
        line: 12,
        function: "train".into(),
        source: "raise ValueError(\"no rows\")".into(),
        user: true,
    };
    let exception = |kind: &str, text: &str, cause| RemoteException {
        lang: "python".into(),
        kind: kind.into(),
        text: text.into(),
        frames: vec![frame.clone()],
        notes: vec!["while reading rows".into()],
        cause,
        truncated: false,
    };
    let cause = exception("builtins.KeyError", "'rows'", None);
    let remote = exception("builtins.ValueError", "no rows", Some(Box::new(cause)));
    let mut raised = Error::new(Code::Internal, "task.raised", "ValueError: no rows");
    raised.remote = Some(Box::new(remote));
    let envelope = Envelope {
        reason: Some("task.raised".into()),
        stdout: Some([0, 120]),
        stderr: Some([7, 90]),
        ..Envelope::default()
    };
    let busy = Error::new(Code::Exhausted, "worker.queue", "4 attempts are queued already")
        .retry(Retry::After { after_ms: 250 })
        .help("send one attempt at a time")
        .cause("queue full");
    let fatal = Error::from(FrameError::Version { found: 2 });
    vec![
        ("error-raised", vec![Frame::error(KERNEL, &raised).with_envelope(envelope)]),
        ("error-busy", vec![Frame::error(KERNEL, &busy)]),
        ("error-connection", vec![Frame::error(StreamId::CONNECTION, &fatal)]),
    ]
}

/// What a receiver must bear although it does not know it.
fn odd() -> Result<Vec<(&'static str, Vec<Frame>)>> {
    let unknown = Frame::new(FrameType::Other(200), WORKER).with_flags(Flags::IGNORE);
    let asking = Frame::new(FrameType::Other(201), WORKER);
    let later =
        Frame::new(FrameType::Data, WORKER).with_flags(Flags(0x40)).with_body(WireCodec::Other(99), vec![1]);
    Ok(vec![("unknown-type", vec![unknown, asking]), ("unknown-codec-and-flag", vec![later])])
}

fn refused() -> Result<Vec<(&'static str, Vec<u8>, &'static str)>> {
    let mut ping = BytesMut::new();
    Frame::new(FrameType::Ping, StreamId::CONNECTION).encode(&mut ping)?;
    let with = |at: usize, byte: u8| {
        let mut bytes = ping.to_vec();
        bytes[at] = byte;
        bytes
    };
    let enveloped = |envelope: Vec<u8>| {
        let mut bytes = with(3, u8::try_from(12 + envelope.len()).unwrap_or_default());
        bytes[13] = u8::try_from(envelope.len()).unwrap_or_default();
        [bytes, envelope].concat()
    };
    let mut deep = b"\x81\xa1x".to_vec();
    deep.resize(deep.len() + 32, 0x91);
    deep.push(0xc0);
    Ok(vec![
        ("version", with(4, 2), "frame.version"),
        ("reserved", with(15, 1), "frame.reserved"),
        ("short", with(3, 11), "frame.short"),
        ("envelope-over-frame", with(13, 1), "frame.short"),
        ("size", with(0, 1), "frame.size"),
        ("envelope-size", with(12, 0xff), "frame.envelope_size"),
        ("envelope-nesting", enveloped(deep), "frame.envelope"),
        ("envelope-trailing", enveloped(vec![0x80, 0xc0]), "frame.envelope"),
        ("envelope-shape", enveloped(b"\x81\xa6method\x05".to_vec()), "frame.envelope"),
    ])
}

fn fence() -> Fence {
    Fence { epoch: Epoch(3), counter: 17 }
}

fn run_id() -> Result<RunId> {
    Ok("7k2m4q9d".parse::<RunId>()?)
}

fn worker_id() -> Result<WorkerId> {
    Ok("w-3-1".parse::<WorkerId>()?)
}

fn stored() -> Result<Part> {
    let digest = Some("c0".repeat(32).parse()?);
    Ok(Part { digest, bytes: 4096, codec: "npy".into(), ..Part::default() })
}
