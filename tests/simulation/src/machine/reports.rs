//! What holders and the builder tell the actors, until they are answered.

use eclosion_dag_tracker::{Command as DagCommand, DagTracker};
use eclosion_kernel::journal::Mark;
use eclosion_pool_manager::Command as PoolCommand;
use eclosion_schemas::ops::pool;
use eclosion_schemas::ops::task::{CodeSeen, CommitReply, CommitRequest, FailRequest};

use super::*;
use crate::kernel::{Answer, KernelEvent, ReplyTo, is_final};
use crate::world::Who;

/// What a holder tells an actor until it is answered.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(super) from: Party,
    pub(super) kind: ReportKind,
}

#[derive(Debug, Clone)]
pub(super) enum ReportKind {
    Up(WorkerId, Vec<Fence>),
    Down(WorkerId, Death),
    Idle(WorkerId, Fence),
    Outcome(WorkerId, Box<Execute>, Outcome, Option<CodeSeen>),
    /// A result that must not count; what is answered is of no interest.
    Lie(Box<CommitRequest>),
    Built(EnvironmentId, Result<String, Error>),
}

/// Reports of holders and of the builder.
impl World {
    pub(super) fn report_after(&mut self, delay_us: u64, report: Report) {
        let Some(kernel) = &mut self.kernel else { return };
        kernel.report_tickets += 1;
        let ticket = kernel.report_tickets;
        kernel.reports.insert(ticket, report);
        if delay_us == 0 {
            self.send_report(ticket);
        } else {
            self.soon(delay_us, KernelEvent::ReportAgain(ticket));
        }
    }

    pub(crate) fn send_report(&mut self, ticket: u64) {
        let Some(Report { from, kind }) =
            self.kernel.as_ref().and_then(|kernel| kernel.reports.get(&ticket)).cloned()
        else {
            return;
        };
        let to = match kind {
            ReportKind::Outcome(..) | ReportKind::Lie(_) => Who::Dag,
            _ => Who::Pool,
        };
        let delay_us = self.in_order(from, Party::Actor(to));
        match &kind {
            ReportKind::Built(environment, Ok(_)) => {
                self.files.put(item(ItemKind::Environment, environment.as_str()), 10_000, Vec::new());
            }
            // The kernel hashes what a worker has left, and names it, before it asks for the commit.
            ReportKind::Outcome(_, execute, Outcome::Commit { version }, _) => {
                self.files.seal(&output_of(execute.task.as_str(), execute.fence, *version));
            }
            _ => {}
        }
        let (reply_to, mark) = (ReplyTo::Report(ticket), Some(Mark::Written));
        match command(kind) {
            Told::Pool(command) => self.mail::<Pool>(delay_us, command, None, reply_to, mark),
            Told::Dag(command) => {
                let command = self.perhaps_accept_stale(command);
                self.mail::<DagTracker>(delay_us, command, None, reply_to, mark);
            }
        }
    }

    pub(crate) fn report_answered(&mut self, ticket: u64, answer: Answer) {
        let Some(kernel) = &mut self.kernel else { return };
        if matches!(&answer, Err(refusal) if !is_final(refusal.code)) {
            return self.soon(50_000, KernelEvent::ReportAgain(ticket));
        }
        let Some(Report { from, kind }) = kernel.reports.remove(&ticket) else { return };
        match kind {
            // It was declared dead: whatever it computes is lost.
            ReportKind::Up(worker, _) if answer.is_err() => {
                let death = Death::Killed { signal: 9, sender: Some("eclosion".into()) };
                self.end_process(&worker, death);
            }
            ReportKind::Outcome(worker, execute, ..) => {
                self.safe(&worker, execute.fence);
                let reply = answer.ok().and_then(|reply| reply.downcast::<CommitReply>().ok());
                if reply.is_none_or(|reply| *reply == CommitReply::Stale) {
                    // It was over before this came, and nobody needed to cancel it.
                    if self.may_cancel(&execute) {
                        self.machine.excuse(Process::task(&execute), execute.fence);
                    }
                    let kind = ReportKind::Idle(worker, execute.fence);
                    self.report_after(0, Report { from, kind });
                }
            }
            _ => {}
        }
    }
}

enum Told {
    Pool(PoolCommand),
    Dag(DagCommand),
}

fn command(kind: ReportKind) -> Told {
    match kind {
        ReportKind::Up(worker, attempts) => Told::Pool(PoolCommand::WorkerUp(pool::WorkerUpRequest {
            worker,
            pid: 4_242,
            start_ticks: 1,
            boot_id: "b".into(),
            attempts,
            attached: None,
        })),
        ReportKind::Down(worker, death) => Told::Pool(PoolCommand::WorkerDown(pool::WorkerDownRequest {
            worker,
            death,
            peak_rss_bytes: None,
            free_memory_bytes: None,
            last_lines: Vec::new(),
            wanted: false,
        })),
        ReportKind::Idle(worker, fence) => {
            Told::Pool(PoolCommand::WorkerIdle(pool::WorkerIdleRequest { worker, fence }))
        }
        ReportKind::Built(environment, built) => {
            let (python, error) = match built {
                Ok(python) => (Some(python), None),
                Err(error) => (None, Some(error)),
            };
            let request = pool::EnvironmentBuiltRequest { environment, python, error };
            Told::Pool(PoolCommand::EnvironmentBuilt(request))
        }
        ReportKind::Lie(request) => Told::Dag(DagCommand::Commit(request)),
        ReportKind::Outcome(worker, execute, Outcome::Commit { version }, code) => {
            let output = output_of(execute.task.as_str(), execute.fence, version);
            Told::Dag(DagCommand::Commit(Box::new(commit(&worker, &execute, execute.fence, output, code))))
        }
        ReportKind::Outcome(worker, execute, Outcome::Fail(error), _) => {
            let Execute { run, task, fence, .. } = *execute;
            Told::Dag(DagCommand::Fail(Box::new(FailRequest { run, task, fence, worker, error })))
        }
    }
}

pub(super) fn commit(
    worker: &WorkerId,
    execute: &Execute,
    fence: Fence,
    output: eclosion_schemas::Payload,
    code: Option<CodeSeen>,
) -> CommitRequest {
    let (run, task) = (execute.run.clone(), execute.task.clone());
    CommitRequest { run, task, fence, worker: worker.clone(), output, code }
}
