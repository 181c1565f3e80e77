//! A house whose flows are started, looked at until they are as wanted, and ended.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::House;

const PATIENCE: Duration = Duration::from_secs(90);

impl House {
    /// With flow files of these names and tables, in which `HERE` is its directory.
    pub(crate) fn with(steps: &str, flows: &[(&str, &str)]) -> Self {
        let house = Self::new(steps);
        for (name, tasks) in flows {
            house.flow(name, &tasks.replace("HERE", &house.path("")));
        }
        house
    }

    pub(crate) fn start(&self, flow: &str) -> String {
        self.json(&["run", flow, "--detach"])["run"].as_str().unwrap().to_owned()
    }

    /// Asks again until it is as wanted.
    pub(crate) fn until(&self, words: &[&str], what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.json(words);
            if wanted(&found) {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {found:#}");
        }
    }

    pub(crate) fn ended(&self, run: &str) -> Value {
        let is_over = |found: &Value| !["running", "cancelling"].contains(&text(&found["run"]["state"]));
        self.until(&["runs", "show", run], "the run's end", is_over)
    }

    pub(crate) fn worker_of(&self, began: &str) -> String {
        let begun = Instant::now();
        while fs::read_to_string(self.path(began)).is_ok_and(|pid| pid.is_empty())
            || !Path::new(&self.path(began)).exists()
        {
            assert!(begun.elapsed() < PATIENCE, "{began} did not begin");
            std::thread::yield_now();
        }
        let is_busy = |pool: &Value| workers(pool).iter().any(|worker| worker["state"] == "busy");
        let pool = self.until(&["pool"], "a busy worker", is_busy);
        let busy = workers(&pool).iter().find(|worker| worker["state"] == "busy").unwrap();
        text(&busy["worker"]).to_owned()
    }
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(crate) fn workers(pool: &Value) -> &[Value] {
    pool["workers"].as_array().unwrap()
}
