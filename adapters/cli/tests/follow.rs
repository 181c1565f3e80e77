//! A follower of the Rust client at the real binary: the kernel is killed under it, and it goes on with the next one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::process::{Command, Output};
use std::time::Duration;

use eclosion_client::{Client, ConnectOptions, Follow};
use eclosion_schemas::ops::kernel::{Delivery, Empty, Status};
use eclosion_schemas::ops::run::{Start, StartRequest};
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
