//! How far the output of running attempts was sent, and what more of it is certain to be theirs.
//!
//! A worker's files do not say where an attempt begins; its outcome does. A worker may hold several attempts and begins
//! the next without asking, so what lies behind the last recorded part is taken for an attempt's only if it was there at
//! one look, and at the next the attempt still is the first that its worker was given and has no recorded part. A line
//! is therefore shown between one and two looks late, and an attempt that lives shorter is shown when it ends.

use std::collections::BTreeMap;

use eclosion_bus::Bus;
use eclosion_schemas::ops::pool::{Status, StatusRequest};
use eclosion_schemas::view::{TaskState, TaskView};
use eclosion_schemas::{Attempt, Error, TaskId, WorkerId};

use super::unreadable;
use crate::output::{OutputFiles, Stream, read_whole_lines};

/// What one reader follows: the running attempts, and those that printed, are over and were not let go by their worker.
#[derive(Debug, Default)]
pub(super) struct Tails(BTreeMap<(TaskId, Attempt), Tail>);

#[derive(Debug)]
pub(super) struct Tail {
    pub(super) worker: WorkerId,
    stdout: Place,
    stderr: Place,
}

/// Places in one file, in bytes.
#[derive(Debug, Default)]
struct Place {
    /// Nothing yet: where the attempt begins is not settled.
    sent: Option<u64>,
    /// The attempt's up to here, from where it begins.
    certain: u64,
    /// How long the file was at the last look.
    length: u64,
}

impl Tail {
    pub(super) fn sent(&self, stream: Stream) -> Option<u64> {
        self.place(stream).sent
    }

    pub(super) fn certain(&self, stream: Stream) -> u64 {
        self.place(stream).certain
    }

    fn place(&self, stream: Stream) -> &Place {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn place_mut(&mut self, stream: Stream) -> &mut Place {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

impl Tails {
    /// Looks how long the files are, and makes certain what was there at the last look.
    pub(super) async fn look(&mut self, bus: &Bus, files: &OutputFiles, tasks: &[TaskView]) {
        let of_task = |task: &TaskView| (task.task.clone(), task.attempt);
        let running: BTreeMap<_, _> = tasks
            .iter()
            .filter(|task| task.state == TaskState::Running)
            .filter_map(|task| Some((of_task(task), (task.worker.as_ref()?, task.fence?))))
            .collect();
        self.0.retain(|about, tail| {
            running.contains_key(about) || Stream::BOTH.iter().any(|stream| tail.sent(*stream).is_some())
        });
        if running.is_empty() {
            return;
        }
        // Without an answer nothing more is certain, and all of it comes when the attempts end.
        let Ok(status) = bus.ask::<Status>(StatusRequest {}).await else { return };
        let first: BTreeMap<_, _> =
            status.workers.iter().filter_map(|view| Some((&view.worker, view.fence?))).collect();
        for (about, (worker, fence)) in running {
            if first.get(&worker) != Some(&fence) {
                continue;
            }
            let tail = self.0.entry(about).or_insert_with(|| Tail {
                worker: worker.clone(),
                stdout: Place::default(),
                stderr: Place::default(),
            });
            for stream in Stream::BOTH {
                let length = files.length(worker, stream);
                let place = tail.place_mut(stream);
                (place.certain, place.length) = (place.length, length);
            }
        }
    }

    /// The next lines of an attempt that has no recorded part as yet; `begin` is where the last recorded one
    /// ends, where the attempt's begins if none of it was sent.
    pub(super) fn advance(
        &mut self,
        files: &OutputFiles,
        about: &(TaskId, Attempt),
        stream: Stream,
        begin: u64,
    ) -> Result<Option<Vec<String>>, Error> {
        let Some(tail) = self.0.get_mut(about) else { return Ok(None) };
        let path = files.path(&tail.worker, stream);
        let place = tail.place_mut(stream);
        let from = place.sent.unwrap_or(begin);
        if from >= place.certain {
            return Ok(None);
        }
        let (lines, next) = read_whole_lines(&path, from, place.certain)
            .map_err(|why| unreadable(&path.to_string_lossy(), &why))?;
        place.sent = Some(next);
        Ok((next > from).then_some(lines))
    }

    pub(super) fn remove(&mut self, about: &(TaskId, Attempt)) -> Option<Tail> {
        self.0.remove(about)
    }

    /// What is left at the end of the run.
    pub(super) fn into_all(self) -> impl Iterator<Item = ((TaskId, Attempt), Tail)> {
        self.0.into_iter()
    }
}
