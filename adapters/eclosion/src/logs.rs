//! The actor `/logs`: reads what the attempts of a run printed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use eclosion_bus::{Bus, InHand, Responder};
use eclosion_kernel::Handler;
use eclosion_schemas::ops::log::{Line, Read, ReadReply, ReadRequest};
use eclosion_schemas::ops::run::{Get, GetReply, RunRequest};
use eclosion_schemas::view::TaskState;
use eclosion_schemas::{Attempt, Error, TaskId, WorkerId};

use crate::output::{OutputFiles, Part, Stream, read_lines};

/// Between two looks at the files of a run that is followed.
const FOLLOW: Duration = Duration::from_millis(200);

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Logs {
    pub(crate) bus: std::sync::Arc<std::sync::OnceLock<Bus>>,
    pub(crate) files: OutputFiles,
}

impl Handler for Logs {
    async fn handle(&mut self, message: InHand) {
        let (request, bus) = (message.request::<Read>().cloned(), self.bus.get().cloned());
        let operation = message.operation;
        let responder = message.finish();
        let (Some(request), Some(bus)) = (request, bus) else {
            let refusal = Error::new(
                eclosion_schemas::Code::Unimplemented,
                "operation.address",
                format!("/logs does not serve {operation}"),
            );
            return responder.reply(Err(refusal));
        };
        let files = self.files.clone();
        // A reader that is slow or follows must not keep the next one waiting; it ends with its asker.
        tokio::spawn(async move {
            let outcome =
                Reading { bus, files, request, seen: BTreeSet::new(), lines: 0 }.run(&responder).await;
            responder.reply(outcome.map(|reply| Box::new(reply) as Box<dyn std::any::Any + Send>));
        });
    }
}

/// One attempt's output so far: its worker, whether it ended, and where it lies.
struct Printed {
    part: Part,
    worker: WorkerId,
    ended: bool,
}

struct Reading {
    bus: Bus,
    files: OutputFiles,
    request: ReadRequest,
    /// Up to where each attempt's streams were sent, for those that are still running.
    seen: BTreeSet<(TaskId, Attempt)>,
    lines: u64,
}

impl Reading {
    async fn run(mut self, responder: &Responder) -> Result<ReadReply, Error> {
        loop {
            let run = self.bus.ask::<Get>(RunRequest { run: self.request.run.clone() }).await?;
            let over = run.run.state.is_final() || !self.request.follow;
            for printed in self.find(&run)? {
                // An attempt that still runs is shown as far as it has come only to one who does not follow.
                if printed.ended || !self.request.follow || run.run.state.is_final() {
                    self.send(&printed, responder).await?;
                }
            }
            if over {
                return Ok(ReadReply { lines: self.lines });
            }
            tokio::time::sleep(FOLLOW).await;
        }
    }

    fn find(&self, run: &GetReply) -> Result<Vec<Printed>, Error> {
        let unreadable = |why: std::io::Error| {
            Error::new(
                eclosion_schemas::Code::Unavailable,
                "log.unreadable",
                format!("the output files: {why}"),
            )
        };
        let mut found = Vec::new();
        for worker in self.files.workers().map_err(unreadable)? {
            for part in self.files.parts(&worker).map_err(unreadable)? {
                if part.run == self.request.run {
                    found.push(Printed { part, worker: worker.clone(), ended: true });
                }
            }
        }
        for task in &run.tasks {
            let lost = task
                .certificates
                .iter()
                .filter_map(|death| Some((death.worker.clone(), death.attempt?, true)));
            let running = task.worker.clone().filter(|_| task.state == TaskState::Running);
            let running = running.map(|worker| (worker, task.attempt, false));
            for (worker, attempt, ended) in lost.chain(running) {
                let end =
                    |stream| std::fs::metadata(self.files.path(&worker, stream)).map_or(0, |file| file.len());
                let rest = |stream| (self.files.recorded_to(&worker, stream), end(stream));
                let (stdout, stderr) = (rest(Stream::Stdout), rest(Stream::Stderr));
                let part = Part { run: task.run.clone(), task: task.task.clone(), attempt, stdout, stderr };
                found.push(Printed { part, worker, ended });
            }
        }
        let wanted = |printed: &Printed| {
            self.request.task.as_ref().is_none_or(|task| *task == printed.part.task)
                && self.request.attempt.is_none_or(|attempt| attempt == printed.part.attempt)
                && !self.seen.contains(&(printed.part.task.clone(), printed.part.attempt))
        };
        found.retain(wanted);
        found.sort_by(|a, b| (&a.part.task, a.part.attempt).cmp(&(&b.part.task, b.part.attempt)));
        Ok(found)
    }

    async fn send(&mut self, printed: &Printed, responder: &Responder) -> Result<(), Error> {
        for stream in Stream::BOTH {
            let path: PathBuf = self.files.path(&printed.worker, stream);
            let (from, to) = stream.range(&printed.part);
            let lines = read_lines(&path, from, to).map_err(|why| {
                Error::new(
                    eclosion_schemas::Code::Unavailable,
                    "log.unreadable",
                    format!("{}: {why}", path.display()),
                )
            })?;
            for text in lines {
                let Part { task, attempt, .. } = &printed.part;
                let line = Line { task: task.clone(), attempt: *attempt, stream: stream.name().into(), text };
                responder.item(Box::new(line)).await?;
                self.lines += 1;
            }
        }
        self.seen.insert((printed.part.task.clone(), printed.part.attempt));
        Ok(())
    }
}
