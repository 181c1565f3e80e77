//! Any operation by its name, and subscriptions: what a new client is written against.

use std::io::Read;
use std::time::{Duration, Instant};

use eclosion_client::CallOptions;
use eclosion_schemas::codec::{self, json};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::kernel::{Delivery, Describe, DescribeRequest};
use eclosion_schemas::ops::pool;
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{Code, Error, Payload, Stage, Timed};
use serde_json::{Value, json};

use crate::arguments;
use crate::globals::Globals;
use crate::render::{shown, table};
use crate::terminal::{document, print, talk};
use crate::{exit, session};

/// Their items and replies are values of Python's, which a person wants to read and not to decode.
const CALL: &str = pool::Call::NAME;
const STREAM: &str = pool::Stream::NAME;

pub(super) async fn describe(globals: &Globals, describe: arguments::Describe) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let reply = client.call::<Describe>(DescribeRequest { name: describe.operation.clone() }).await?;
    if globals.json {
        document("describe", &reply)?;
    } else if describe.operation.is_some() {
        for operation in &reply.operations {
            print(&pretty(operation))?;
        }
    } else {
        let text = |operation: &Value, key: &str| operation[key].as_str().unwrap_or_default().to_owned();
        let rows =
            reply.operations.iter().map(|one| vec![text(one, "name"), text(one, "role"), text(one, "doc")]);
        print(&table(&["operation", "role", "what it does"], rows))?;
        let options: Vec<_> = reply.call_options.iter().map(|option| option.name.as_str()).collect();
        talk(&format!("beside its request, each call takes: {}", options.join(", ")));
        talk("one of them, with an example: eclosion describe run.start");
    }
    Ok(exit::OK)
}

pub(super) async fn call(globals: &Globals, call: arguments::Call) -> Result<u8, Error> {
    let text = match call.request.as_str() {
        "-" => from_stdin()?,
        text => text.to_owned(),
    };
    let request = json::to_msgpack(text.as_bytes()).map_err(|why| {
        Error::invalid("call.json", format!("the request is no JSON that can be sent: {why}"))
            .help(format!("eclosion describe {}", call.operation))
    })?;
    let client = session::attach(globals).await?;
    let deadline = Some(Duration::from_secs(call.deadline.max(1)));
    let options =
        CallOptions { deadline, idem: call.idem.clone(), timings: call.timings, ..CallOptions::default() };
    let began = Instant::now();
    let mut exchange = client.open(&call.operation, request.into(), options).await?;
    let is_python = [CALL, STREAM].contains(&call.operation.as_str());
    while let Some(item) = exchange.next().await {
        match codec::decode::<TaskReport>(&item) {
            Ok(report) if is_python && !globals.json => said(&report)?,
            _ => {
                let item = json::from_msgpack(&item)?;
                match globals.json {
                    true => document("item", &json!({"operation": call.operation, "item": item}))?,
                    false => print(&item.to_string())?,
                }
            }
        }
    }
    let Timed { outcome, stages } = exchange.timed().await;
    let total = began.elapsed();
    if call.timings && !globals.json {
        told(&stages, total);
    }
    let reply = outcome?;
    match (codec::decode::<Payload>(&reply), globals.json) {
        (Ok(payload), false) if is_python => print(&pretty(&shown(&payload)))?,
        (_, json) => {
            let reply = json::from_msgpack(&reply)?;
            match json {
                true => document("reply", &document_of(&call, reply, &stages, total))?,
                false => print(&pretty(&reply))?,
            }
        }
    }
    Ok(exit::OK)
}

fn document_of(call: &arguments::Call, reply: Value, stages: &[Stage], total: Duration) -> Value {
    let mut document = json!({"operation": call.operation, "reply": reply});
    if call.timings {
        document["timings"] = json!({"stages": stages, "total_ns": nanoseconds(total)});
    }
    document
}

/// Where the time went, also of a call that failed; `total` is as it was seen from here.
fn told(stages: &[Stage], total: Duration) {
    let row = |name: &str, ns: u64| talk(&format!("{name:>9} {:>12.1} µs", ns as f64 / 1e3));
    stages.iter().for_each(|stage| row(&stage.name, stage.took_ns));
    row("total", nanoseconds(total));
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What a Python function says while it runs: what it yields is data, the rest is talk.
fn said(report: &TaskReport) -> Result<(), Error> {
    match report {
        TaskReport::Item { payload, .. } => return print(&shown(payload).to_string()),
        TaskReport::Progress { done, total: Some(total), text } if *total > 0.0 => {
            talk(&format!("{:.0}% {text}", done / total * 100.0));
        }
        TaskReport::Progress { done, text, .. } => talk(&format!("{done} {text}")),
        TaskReport::Metric { name, value, .. } => talk(&format!("{name} {value}")),
    }
    Ok(())
}

/// No longer than what a frame may carry.
fn from_stdin() -> Result<String, Error> {
    const BYTES_MAX: u64 = 16 << 20;
    let mut text = String::new();
    std::io::stdin().lock().take(BYTES_MAX).read_to_string(&mut text).map_err(|why| {
        Error::new(Code::Invalid, "call.stdin", format!("stdin cannot be read as text: {why}"))
    })?;
    Ok(text)
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

pub(super) async fn subscribe(globals: &Globals, sub: arguments::Sub) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let mut subscription = client.subscribe(sub.filter).await?;
    while let Some(delivery) = subscription.next().await {
        let delivery = delivery?;
        if globals.json {
            document("delivery", &delivery)?;
            continue;
        }
        match delivery {
            Delivery::Snapshot { subject, value, .. } | Delivery::Change { subject, value, .. } => {
                print(&format!("{subject} {value}"))?;
            }
            Delivery::Gap { dropped } => {
                talk(&format!("{dropped} were dropped here, because this reader is slow"))
            }
            Delivery::Acknowledged { seq, .. } => talk(&format!("subscribed as of record {seq}")),
            Delivery::Reset { why } => talk(&format!("begun anew: {why}")),
            Delivery::SnapshotEnd {} => {}
        }
    }
    Ok(exit::OK)
}
