//! The workers' own ledgers, as the rounds read them: one file a process, one line an event.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::Failure;
use crate::watch;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Line {
    pub(crate) event: String,
    pub(crate) task: String,
    pub(crate) attempt: u32,
    pub(crate) pid: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Ledger(PathBuf);

impl Ledger {
    pub(crate) fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Of each process in order, one process after the other.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let files = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        let read = |text: String| {
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>()
        };
        texts.flat_map(read).collect()
    }

    /// What this process has in hand: the last thing that it began, if that is a task of the second layer.
    pub(crate) async fn has_started(&self, pid: u32) -> Result<Line, Failure> {
        watch::until(&self.0, "the busy worker starts its task", || {
            let last = self.lines().into_iter().rfind(|line| line.pid == pid)?;
            (last.event == "start" && last.task.starts_with("second")).then_some(last)
        })
        .await
    }

    /// Waits until there are as many lines of an event.
    pub(crate) async fn count(&self, event: &str, times: usize) -> Result<(), Failure> {
        let found = || self.lines().iter().filter(|line| line.event == event).count() >= times;
        watch::until(&self.0, &format!("{times} times {event}"), || found().then_some(())).await
    }
}
