//! A follower of the Rust client at the real binary: the kernel is killed under it, and it goes on with the next one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::Duration;

use eclosion_client::{Client, ConnectOptions, Follow};
use eclosion_schemas::client::Client as _;
use eclosion_schemas::ops::kernel::{Delivery, Empty, Status};
use eclosion_schemas::ops::run::{Cancel, CancelRequest, Start, StartRequest};
use serde_json::Value;
use tempfile::TempDir;

use binary::eclosion;

const PATIENCE: Duration = Duration::from_secs(30);

struct House(TempDir);

impl House {
    fn say(&self, words: &[&str]) -> Output {
        eclosion(self.0.path(), words).output().unwrap()
    }

    fn up(&self) {
        let up = self.say(&["up"]);
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.say(&["down"]);
    }
}

/// A run that no worker can finish soon: its environment's interpreter does not exist.
fn request() -> StartRequest {
    let flow = serde_json::json!({
        "schema": "eclosion/flow/v1", "name": "followed", "code": "/",
        "environment": {"python": "/nowhere/python"}, "tasks": {"t": {"run": "steps:t"}},
    });
    StartRequest { new: true, ..serde_json::from_value(serde_json::json!({ "flow": flow })).unwrap() }
}

#[tokio::test]
async fn a_follower_goes_on_with_the_next_kernel_behind_a_reset() {
    let house = House(tempfile::tempdir().unwrap());
    let socket = house.0.path().join("run/default.sock");
    house.up();
    let client = Client::connect(&socket).await.unwrap();
    let run = client.call::<Start>(request()).await.unwrap().run;
    let subject = format!("run/{run}/state");

    let mut follow = Follow::new(&socket, ConnectOptions::default(), "run/**", PATIENCE);
    let mut next = async || tokio::time::timeout(PATIENCE, follow.next()).await.unwrap().unwrap();
    for lives in 1..=3 {
        let mut resets = 0;
        loop {
            match next().await {
                Delivery::Reset { .. } => resets += 1,
                Delivery::Snapshot { subject: told, epoch, .. }
                | Delivery::Change { subject: told, epoch, .. }
                    if told == subject && epoch.0 == lives =>
                {
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(resets, u32::from(lives > 1));
        let pid = Client::connect(&socket).await.unwrap().call::<Status>(Empty {}).await.unwrap().pid;
        assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
        house.up();
    }
}

/// What a client folds of its deliveries: the last state of each subject, as of the last reset.
#[derive(Default)]
struct Folded {
    states: BTreeMap<String, Value>,
    snapshots: u32,
}

impl Folded {
    fn hear(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Reset { .. } => self.states.clear(),
            Delivery::Snapshot { subject, value, .. } | Delivery::Change { subject, value, .. } => {
                self.states.insert(subject, value);
            }
            Delivery::SnapshotEnd {} => self.snapshots += 1,
            Delivery::Gap { .. } => unreachable!("it keeps up"),
            Delivery::Acknowledged { .. } => {}
        }
    }
}

/// What a subscriber that has just come is shown.
async fn shown(client: &Client) -> BTreeMap<String, Value> {
    let (mut follow, mut folded) = (client.follow("run/*/state", PATIENCE), Folded::default());
    while folded.snapshots == 0 {
        folded.hear(follow.next().await.unwrap());
    }
    folded.states
}

#[tokio::test]
async fn a_client_that_was_away_while_the_kernel_was_killed_converges_in_one_snapshot() {
    let house = House(tempfile::tempdir().unwrap());
    let socket = house.0.path().join("run/default.sock");
    house.up();
    let client = Client::connect(&socket).await.unwrap();
    let mut follow = client.follow("run/*/state", PATIENCE);
    let mut folded = Folded::default();
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(client.call::<Start>(request()).await.unwrap().run);
    }
    while folded.states.len() < 3 || folded.snapshots == 0 {
        folded.hear(follow.next().await.unwrap());
    }
    assert_eq!(folded.snapshots, 1);

    // Nobody hears what happens from here on until the next kernel: one run ends, another begins, the kernel is killed.
    let reason = "it is enough".to_owned();
    client.call::<Cancel>(CancelRequest { run: runs[0].clone(), reason }).await.unwrap();
    runs.push(client.call::<Start>(request()).await.unwrap().run);
    let pid = client.call::<Status>(Empty {}).await.unwrap().pid;
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    assert_eq!(client.closed().await.reason, "connection.closed");
    house.up();

    let again = Client::connect(&socket).await.unwrap();
    let converged = async {
        // What is shown later than what was folded is a delivery that is still to come.
        while folded.snapshots < 2 || folded.states != shown(&again).await {
            folded.hear(follow.next().await.unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, converged).await.unwrap();
    assert_eq!(
        (folded.snapshots, folded.states.len()),
        (2, runs.len()),
        "one snapshot for each kernel, and no more"
    );
}
