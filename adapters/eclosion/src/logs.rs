//! The actor `/logs`: reads what the attempts of a run printed.
//!
//! What an attempt printed is known to the byte once it has ended (`output.rs`). To one who follows, `logs/tails.rs`
//! shows before that what is certain to be a running attempt's; its end goes on from there, so that no line comes twice
//! and none is left out.

mod tails;

use std::collections::BTreeSet;
use std::time::Duration;

use eclosion_bus::{Bus, InHand, Responder};
use eclosion_kernel::Handler;
use eclosion_schemas::ops::log::{Line, Read, ReadReply, ReadRequest};
use eclosion_schemas::ops::run::{Get, GetReply, RunRequest};
use eclosion_schemas::suggest::{nearest, shell_word};
use eclosion_schemas::view::TaskState;
use eclosion_schemas::{Attempt, CallId, Error, TaskId, WorkerId};

use self::tails::Tails;
use crate::output::{OutputFiles, Part, Stream, read_lines};
use crate::workers::calls::call_run;

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
            let reading =
                Reading { bus, files, request, seen: BTreeSet::new(), tails: Tails::default(), lines: 0 };
            let outcome = reading.run(&responder).await;
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

/// A task by its own name, or by that of the fan-out it is an instance of.
fn is_meant(task: &TaskId, asked: &TaskId) -> bool {
    task == asked || task.is_instance_of(asked)
}

struct Reading {
    bus: Bus,
    files: OutputFiles,
    request: ReadRequest,
    /// The attempts whose output was sent to its end.
    seen: BTreeSet<(TaskId, Attempt)>,
    tails: Tails,
    lines: u64,
}

impl Reading {
    async fn run(mut self, responder: &Responder) -> Result<ReadReply, Error> {
        if self.request.run.as_str().starts_with(CallId::PREFIX) {
            return self.of_call(responder).await;
        }
        loop {
            let run = self.bus.ask::<Get>(RunRequest { run: self.request.run.clone() }).await?;
            self.check_task(&run)?;
            let is_last = run.run.state.is_final() || !self.request.follow;
            if !is_last {
                self.tails.look(&self.bus, &self.files, &run.tasks).await;
            }
            for printed in self.find(&run)? {
                if printed.ended || is_last {
                    self.send_all(&printed, responder).await?;
                } else {
                    self.send_certain(&printed, responder).await?;
                }
            }
            if is_last {
                self.send_left(responder).await?;
                return Ok(ReadReply { lines: self.lines });
            }
            tokio::time::sleep(FOLLOW).await;
        }
    }

    /// What a call printed, once it is over; before that nobody knows where it ends.
    async fn of_call(mut self, responder: &Responder) -> Result<ReadReply, Error> {
        let unreadable = |why| unreadable("the output files", &why);
        let (call, of_calls) = (self.request.run.as_str().to_owned(), call_run());
        for worker in self.files.workers().map_err(unreadable)? {
            for part in self.files.parts(&worker).map_err(unreadable)? {
                if part.run == of_calls && part.task.as_str() == call {
                    self.send_all(&Printed { part, worker: worker.clone(), ended: true }, responder).await?;
                }
            }
        }
        if self.seen.is_empty() {
            let text = format!("nothing is recorded that {call} printed; of a call it is, once it is over");
            return Err(Error::not_found("log.call", text).help(format!("eclosion why {call}")));
        }
        Ok(ReadReply { lines: self.lines })
    }

    fn check_task(&self, run: &GetReply) -> Result<(), Error> {
        let Some(task) = &self.request.task else { return Ok(()) };
        if run.tasks.iter().any(|view| is_meant(&view.task, task)) {
            return Ok(());
        }
        let known = run.tasks.iter().map(|view| view.task.as_str());
        let run = &self.request.run;
        let help = match nearest(task.as_str(), known) {
            Some(meant) => format!("did you mean `{meant}`? eclosion logs {run} {}", shell_word(meant)),
            None => format!("eclosion runs show {run}"),
        };
        Err(Error::not_found("run.task", format!("run {run} has no task `{task}`")).help(help))
    }

    fn find(&self, run: &GetReply) -> Result<Vec<Printed>, Error> {
        let unreadable = |why| unreadable("the output files", &why);
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
                let rest =
                    |stream| (self.files.recorded_to(&worker, stream), self.files.length(&worker, stream));
                let (stdout, stderr) = (rest(Stream::Stdout), rest(Stream::Stderr));
                let part = Part { run: task.run.clone(), task: task.task.clone(), attempt, stdout, stderr };
                found.push(Printed { part, worker, ended });
            }
        }
        let wanted = |printed: &Printed| {
            self.request.task.as_ref().is_none_or(|task| is_meant(&printed.part.task, task))
                && self.request.attempt.is_none_or(|attempt| attempt == printed.part.attempt)
                && !self.seen.contains(&(printed.part.task.clone(), printed.part.attempt))
        };
        found.retain(wanted);
        found.sort_by(|a, b| (&a.part.task, a.part.attempt).cmp(&(&b.part.task, b.part.attempt)));
        Ok(found)
    }

    /// What an attempt printed, from where it was sent to its end.
    async fn send_all(&mut self, printed: &Printed, responder: &Responder) -> Result<(), Error> {
        let about = (printed.part.task.clone(), printed.part.attempt);
        if !self.seen.insert(about.clone()) {
            return Ok(());
        }
        let tail = self.tails.remove(&about);
        for stream in Stream::BOTH {
            let (from, to) = stream.range(&printed.part);
            let from = tail.as_ref().and_then(|tail| tail.sent(stream)).map_or(from, |sent| sent.max(from));
            self.send_range(&about, &printed.worker, stream, (from, to), responder).await?;
        }
        Ok(())
    }

    /// The whole lines that are certain to be a running attempt's.
    async fn send_certain(&mut self, printed: &Printed, responder: &Responder) -> Result<(), Error> {
        let about = (printed.part.task.clone(), printed.part.attempt);
        for stream in Stream::BOTH {
            let (begin, _) = stream.range(&printed.part);
            while let Some(lines) = self.tails.advance(&self.files, &about, stream, begin)? {
                self.send_lines(&about, stream, lines, responder).await?;
            }
        }
        Ok(())
    }

    /// Of an attempt that the run did not wait for (it was cancelled), what is certain and had no end yet.
    async fn send_left(&mut self, responder: &Responder) -> Result<(), Error> {
        for (about, tail) in std::mem::take(&mut self.tails).into_all() {
            for stream in Stream::BOTH {
                let Some(sent) = tail.sent(stream) else { continue };
                let range = (sent, tail.certain(stream));
                self.send_range(&about, &tail.worker, stream, range, responder).await?;
            }
        }
        Ok(())
    }

    async fn send_range(
        &mut self,
        about: &(TaskId, Attempt),
        worker: &WorkerId,
        stream: Stream,
        (from, to): (u64, u64),
        responder: &Responder,
    ) -> Result<(), Error> {
        let path = self.files.path(worker, stream);
        let lines = read_lines(&path, from, to).map_err(|why| unreadable(&path.to_string_lossy(), &why))?;
        self.send_lines(about, stream, lines, responder).await
    }

    async fn send_lines(
        &mut self,
        (task, attempt): &(TaskId, Attempt),
        stream: Stream,
        lines: Vec<String>,
        responder: &Responder,
    ) -> Result<(), Error> {
        for text in lines {
            let line = Line { task: task.clone(), attempt: *attempt, stream: stream.name().into(), text };
            responder.item(Box::new(line)).await?;
            self.lines += 1;
        }
        Ok(())
    }
}

fn unreadable(what: &str, why: &std::io::Error) -> Error {
    Error::new(eclosion_schemas::Code::Unavailable, "log.unreadable", format!("{what}: {why}"))
}
