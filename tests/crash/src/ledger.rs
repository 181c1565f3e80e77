//! The workers' own ledgers, as the rounds read them: one file a process, one line an event.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use eclosion_schemas::RunId;
use serde::Deserialize;

use crate::failure::Failure;
use crate::watch;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Line {
    pub(crate) event: String,
    pub(crate) run: String,
    pub(crate) task: String,
    pub(crate) attempt: u32,
    pub(crate) pid: u32,
    /// Of a call: what its caller named it.
    #[serde(default)]
    pub(crate) label: String,
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

    /// Waits until a call has so many lines of an event, and gives the last of them.
    pub(crate) async fn of_call(&self, label: &str, event: &str, times: usize) -> Result<Line, Failure> {
        let is_one = |line: &Line| line.event == event && line.label == label;
        watch::until(&self.0, &format!("call {label} has {times} times {event}"), || {
            let lines: Vec<_> = self.lines().into_iter().filter(is_one).collect();
            (lines.len() >= times).then(|| lines.last().cloned())?
        })
        .await
    }

    /// Waits until there are as many lines of an event.
    pub(crate) async fn count(&self, event: &str, times: usize) -> Result<(), Failure> {
        let found = || self.lines().iter().filter(|line| line.event == event).count() >= times;
        watch::until(&self.0, &format!("{times} times {event}"), || found().then_some(())).await
    }
}

/// Which tasks of one name have ended, read on as the ledgers grow: a crowd is over before it was read again and again.
#[derive(Debug)]
pub(crate) struct Ends {
    ledger: PathBuf,
    prefix: String,
    run: String,
    /// How far each file was read: whole lines.
    read: BTreeMap<PathBuf, u64>,
    ended: BTreeSet<String>,
}

impl Ends {
    pub(crate) fn of(ledger: &Ledger, run: &RunId, task: &str) -> Self {
        Self {
            ledger: ledger.0.clone(),
            prefix: format!("{task}["),
            run: run.to_string(),
            read: BTreeMap::new(),
            ended: BTreeSet::new(),
        }
    }

    /// Waits until so many have ended, and gives how many have.
    pub(crate) async fn reach(&mut self, wanted: usize) -> Result<usize, Failure> {
        let directory = self.ledger.clone();
        watch::until(&directory, &format!("{wanted} of the crowd have ended"), || {
            self.read_on();
            (self.ended.len() >= wanted).then_some(self.ended.len())
        })
        .await
    }

    fn read_on(&mut self) {
        for path in fs::read_dir(&self.ledger).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let from = self.read.entry(path.clone()).or_default();
            let new = read_from(&path, *from).unwrap_or_default();
            let whole = &new[..new.rfind('\n').map_or(0, |end| end + 1)];
            *from += whole.len() as u64;
            let lines = whole.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
            let ends = lines.filter(|line| line.event == "end" && line.run == self.run);
            self.ended.extend(ends.map(|line| line.task).filter(|task| task.starts_with(&self.prefix)));
        }
    }
}

fn read_from(path: &Path, offset: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}
