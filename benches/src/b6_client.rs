//! B6: a call of an attached Rust client, through frames, session, bus and mailbox, to an actor and back.
//!
//! Floors: 64 bytes sent forth and back over a tokio Unix socket, and the same as length-prefixed frames with 64 of
//! them under way. Kernel and client each have a runtime of one thread, and each pair stands on the same cores as its
//! floor, because where two threads stand moves a socket's time by four. A sample of one call is eight in a row; of
//! pipelined calls, 64 tasks with 16 each.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use eclosion_bus::{Address, Bus, Mailbox, MailboxOptions, Taken};
use eclosion_client::Client;
use eclosion_ipc::{ListenOptions, Listener, Session, Welcome};
use eclosion_schemas::frame::Limits;
use eclosion_schemas::operation::{Operation, Spec, Table};
use eclosion_schemas::{Epoch, Error};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::Failure;
use crate::load::{Load, Sum};
use crate::measure::{ROUNDS, Samples, timed};
use crate::report::{Report, Role, Row};

const SAMPLES: u64 = 50;
const CALLS: u32 = 8;
const PIPELINED_SAMPLES: u64 = 20;
const INFLIGHT: u32 = 64;
const CALLS_EACH: u32 = 16;
/// Length and 64 bytes.
const FRAME_BYTES: usize = 68;

pub(crate) fn run() -> Result<Report, Failure> {
    let one = placed(
        0,
        0,
        [
            "tokio ping-pong, one core",
            "framed echo, 64 in flight",
            "client call, one core",
            "64 client calls",
        ],
    )?;
    let mut rows = one;
    let has_two = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    if has_two {
        let names = [
            "tokio ping-pong, two cores",
            "framed echo, two cores",
            "client call, two cores",
            "64 client calls, two cores",
        ];
        rows.extend(placed(0, 1, names)?);
    }
    let budget = "p50 ≤ 1.3 × raw tokio ping-pong; 64 in flight ≥ 0.4 × framed echo";
    let report = Report::new("b6", "call of an attached client, 64 B", budget, rows)
        .ratio("client call, one core", "tokio ping-pong, one core", 1.3)
        .ratio("64 client calls", "framed echo, 64 in flight", 2.5);
    Ok(if has_two {
        report.ratio("client call, two cores", "tokio ping-pong, two cores", 1.3)
    } else {
        report
    })
}

/// The four figures with the kernel's thread on one core and the client's on another, or the same.
fn placed(kernel: usize, client: usize, names: [&'static str; 4]) -> Result<Vec<Row>, Failure> {
    let directory = tempfile::tempdir()?;
    let paths = Paths::new(directory.path());
    let serving = pinned(kernel)?;
    serving.block_on(async { serve(&paths) })?;
    let calling = pinned(client)?;
    let rows = calling.block_on(async move { tokio::spawn(measured(paths, names)).await })??;
    Ok(rows)
}

fn pinned(core: usize) -> Result<Runtime, Failure> {
    let pin = move || {
        let mut cores = CpuSet::new();
        cores.set(core);
        // Without leave to pin, floor and ours are unpinned alike.
        let _ = sched_setaffinity(None, &cores);
    };
    Ok(Builder::new_multi_thread().worker_threads(1).on_thread_start(pin).enable_all().build()?)
}

struct Paths {
    raw: PathBuf,
    framed: PathBuf,
    kernel: PathBuf,
}

impl Paths {
    fn new(directory: &Path) -> Self {
        let path = |name: &str| directory.join("run").join(name);
        Self { raw: path("raw"), framed: path("framed"), kernel: path("kernel") }
    }
}

fn serve(paths: &Paths) -> Result<(), Failure> {
    // It makes the directory of all three.
    let listener = Listener::bind(ListenOptions::new(&paths.kernel))?;
    let mut table = Table::default();
    table.declare(Spec::of::<Sum>())?;
    let bus = Bus::new(table);
    tokio::spawn(sum(bus.open(Address::new(Sum::ADDRESS)?, MailboxOptions::default())?));
    tokio::spawn(attend(listener, bus));
    tokio::spawn(echo(UnixListener::bind(&paths.raw)?));
    tokio::spawn(echo_frames(UnixListener::bind(&paths.framed)?));
    Ok(())
}

async fn attend(listener: Listener, bus: Bus) {
    let welcome = Arc::new(Welcome {
        server: "bench".into(),
        instance: "bench".into(),
        epoch: Epoch(1),
        describe_hash: String::new(),
        features: Vec::new(),
        limits: Limits::DEFAULT,
    });
    loop {
        let accepted = listener.accept().await;
        if let Ok(session) = Session::new(accepted, bus.clone(), Arc::clone(&welcome), std::future::pending())
        {
            tokio::spawn(session.run());
        }
    }
}

async fn sum(mailbox: Mailbox) {
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

async fn echo(listener: UnixListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept().await?;
    let mut bytes = [0; 64];
    loop {
        stream.read_exact(&mut bytes).await?;
        stream.write_all(&bytes).await?;
    }
}

async fn echo_frames(listener: UnixListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept().await?;
    let mut buffer = vec![0; 64 * 1024];
    let mut held = 0;
    loop {
        let read = stream.read(&mut buffer[held..]).await?;
        if read == 0 {
            return Ok(());
        }
        held += read;
        let mut whole = 0;
        while let Some(length) = buffer[whole..held].first_chunk::<4>() {
            let end = whole + 4 + u32::from_be_bytes(*length) as usize;
            if end > held {
                break;
            }
            whole = end;
        }
        stream.write_all(&buffer[..whole]).await?;
        buffer.copy_within(whole..held, 0);
        held -= whole;
    }
}

async fn measured(paths: Paths, names: [&'static str; 4]) -> Result<Vec<Row>, Error> {
    let failed = |why: std::io::Error| Error::internal("bench.socket", why.to_string());
    let mut raw = UnixStream::connect(&paths.raw).await.map_err(failed)?;
    let mut framed = UnixStream::connect(&paths.framed).await.map_err(failed)?;
    let client = Client::connect(&paths.kernel).await?;
    let [raw_name, framed_name, call_name, calls_name] = names;
    let mut floor = Samples::of(Role::Floor, raw_name);
    let mut floor_framed = Samples::of(Role::Floor, framed_name);
    let mut us = Samples::of(Role::Us, call_name);
    let mut us_pipelined = Samples::of(Role::Us, calls_name);
    for _ in 0..ROUNDS {
        floor.begin_round();
        for _ in 0..SAMPLES {
            timed(&mut floor, CALLS, async { ping_pong(&mut raw).await.unwrap_or(()) }).await;
        }
        us.begin_round();
        for n in 0..SAMPLES {
            timed(&mut us, CALLS, call(&client, n, CALLS)).await;
        }
        floor_framed.begin_round();
        for _ in 0..PIPELINED_SAMPLES {
            let operations = INFLIGHT * CALLS_EACH;
            timed(&mut floor_framed, operations, async { frames(&mut framed).await.unwrap_or(()) }).await;
        }
        us_pipelined.begin_round();
        for n in 0..PIPELINED_SAMPLES {
            pipelined(&mut us_pipelined, &client, n).await;
        }
    }
    Ok(vec![floor.row(), us.row(), floor_framed.row(), us_pipelined.row()])
}

async fn ping_pong(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut bytes = [7; 64];
    for _ in 0..CALLS {
        stream.write_all(&bytes).await?;
        stream.read_exact(&mut bytes).await?;
    }
    Ok(())
}

/// Keeps 64 under way: what has come back is sent again, as often as each of ours calls.
async fn frames(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut frame = [7; FRAME_BYTES];
    frame[..4].copy_from_slice(&64_u32.to_be_bytes());
    stream.write_all(&frame.repeat(INFLIGHT as usize)).await?;
    let total = INFLIGHT as usize * CALLS_EACH as usize;
    let (mut sent, mut received, mut bytes) = (INFLIGHT as usize, 0, vec![0; 64 * 1024]);
    while received < total * FRAME_BYTES {
        received += stream.read(&mut bytes).await?;
        let due = (received / FRAME_BYTES + INFLIGHT as usize).min(total);
        stream.write_all(&frame.repeat(due - sent)).await?;
        sent = due;
    }
    Ok(())
}

async fn call(client: &Client, n: u64, calls: u32) {
    for _ in 0..calls {
        let reply = client.call::<Sum>(Load::new(n)).await;
        assert!(reply == Ok(n.wrapping_mul(8)));
    }
}

async fn pipelined(samples: &mut Samples, client: &Client, n: u64) {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..INFLIGHT {
        let client = client.clone();
        tasks.spawn(async move { call(&client, n, CALLS_EACH).await });
    }
    while let Some(done) = tasks.join_next().await {
        assert!(done.is_ok());
    }
    samples.add(start.elapsed(), INFLIGHT * CALLS_EACH);
}
