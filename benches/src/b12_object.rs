//! B12: an array of 100 MiB in the object class: into shared memory, and a task on it.
//!
//! Put: [`Objects::put`], against the floor of a copy into memory that was touched before; both recycle their target. Task:
//! `pool.call` of a function that looks at both ends of the array, against the same call without one.
//!
//! [`Objects::put`]: eclosion_ipc::arena::Objects::put

use std::path::Path;
use std::time::{Duration, Instant};

use eclosion::{Kernel, Options, Places};
use eclosion_ipc::arena::Objects;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{Call, CallRequest};
use eclosion_schemas::{Part, Payload};

use crate::Failure;
use crate::b10_dag::{binary, source};
use crate::measure::{ROUNDS, Samples, runtime};
use crate::report::{Report, Role, Row};

const BYTES: usize = 100 << 20;
const COPIES: usize = 5;
const CALLS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<Report, Failure> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().to_owned();
    let measuring = async move {
        tokio::spawn(async move { measured(&path).await.map_err(|why| why.to_string()) }).await
    };
    let rows = runtime()?.block_on(measuring)??;
    let budget = "put ≤ 1.3 × warm memcpy; task on it ≤ 2 × a task on nothing";
    Ok(Report::new("b12", "100 MiB array, object class", budget, rows)
        .ratio("put into shared memory", "warm memcpy", 1.3)
        .ratio("task on the array", "task on nothing", 2.0))
}

async fn measured(directory: &Path) -> Result<Vec<Row>, Failure> {
    let mut options = Options::new(Places::below(directory, "bench"));
    (options.workers_max, options.keeper_binary) = (1, Some(binary()?));
    let kernel = Kernel::start(options).await?;
    let objects = kernel.objects();
    let array = vec![7_u8; BYTES];
    let mut rows = copies(&array, &objects)?;

    let lease = objects.put(&[&header(), &array]).ok_or("no room for the array")?;
    let part = Part { segment: Some(lease.segment()), codec: "npy".into(), ..Part::default() };
    let mut nothing = Samples::of(Role::Floor, "task on nothing");
    let mut us = Samples::of(Role::Us, "task on the array");
    call(&kernel, Vec::new()).await?;
    call(&kernel, vec![part.clone()]).await?;
    for _ in 0..ROUNDS {
        for (samples, parts) in [(&mut nothing, Vec::new()), (&mut us, vec![part.clone()])] {
            samples.begin_round();
            for _ in 0..CALLS {
                let start = Instant::now();
                call(&kernel, parts.clone()).await?;
                samples.add(start.elapsed(), 1);
            }
        }
    }
    drop(lease);
    kernel.shutdown().await;
    rows.extend([nothing.row(), us.row()]);
    Ok(rows)
}

/// Of the array, in version 1 of numpy's format.
fn header() -> Vec<u8> {
    let mut text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({BYTES},), }}");
    // With the ten bytes before it and the line's end it fills cache lines.
    let width = (text.len() + 11).next_multiple_of(64) - 11;
    text = format!("{text:<width$}\n");
    let length = u16::try_from(text.len()).unwrap_or_default().to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], text.as_bytes()].concat()
}

async fn call(kernel: &Kernel, parts: Vec<Part>) -> Result<(), Failure> {
    // {"value": part 0}, and nothing.
    let body = match parts.is_empty() {
        true => vec![0x80],
        false => [&[0x81, 0xa5][..], b"value", &[0xd6, 1, 0, 0, 0, 0]].concat(),
    };
    let expected = if parts.is_empty() { Payload::of(&()) } else { Payload::of(&(BYTES, 7, 7)) };
    let request = CallRequest {
        timeout_ms: None,
        limits: None,
        function: "calls:ends".into(),
        code: source().to_string_lossy().into_owned(),
        code_hash: String::new(),
        environment: EnvironmentSpec { python: Some(python()?), ..EnvironmentSpec::default() },
        arguments: Payload { body: body.into(), parts },
        with: std::collections::BTreeMap::new(),
    };
    let reply = kernel.bus().ask::<Call>(request).deadline(PATIENCE).await?;
    if reply == expected { Ok(()) } else { Err("another value came back".into()) }
}

/// The interpreter of the Python tests, which has numpy.
fn python() -> Result<String, Failure> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-python/bin/python");
    match made.exists() {
        true => Ok(made.to_string_lossy().into_owned()),
        false => Err("no Python with numpy: `cargo t python` makes one".into()),
    }
}

fn copies(array: &[u8], objects: &Objects) -> Result<Vec<Row>, Failure> {
    let mut floor = Samples::of(Role::Floor, "warm memcpy");
    let mut us = Samples::of(Role::Us, "put into shared memory");
    let mut target = vec![1_u8; BYTES];
    drop(objects.put(&[array]));
    for _ in 0..ROUNDS {
        floor.begin_round();
        for _ in 0..COPIES {
            let start = Instant::now();
            target.copy_from_slice(std::hint::black_box(array));
            floor.add(start.elapsed(), 1);
        }
        std::hint::black_box(&target);
        us.begin_round();
        for _ in 0..COPIES {
            let start = Instant::now();
            let lease = objects.put(&[array]).ok_or("no room for the array")?;
            us.add(start.elapsed(), 1);
            drop(lease);
        }
    }
    Ok(vec![floor.row(), us.row()])
}
