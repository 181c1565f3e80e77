//! Clients: each starts one run, follows it to its end, and may cancel it. They ask again until they are answered.

use eclosion_dag_tracker::{Command, DagTracker};
use eclosion_kernel::journal::Mark;
use eclosion_schemas::RunId;
use eclosion_schemas::ops::run::{CancelRequest, GetReply, RunRequest, StartReply, StartRequest};

use crate::jobs::Job;
use crate::kernel::{Answer, ReplyTo};
use crate::world::{Event, Party, Who, World};

/// An answer that does not come is asked for again after this.
const PATIENCE_US: u64 = 1_000_000;

#[derive(Debug)]
pub(crate) enum ClientEvent {
    Start(usize),
    Cancel(usize),
    Look(usize),
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) jobs: Vec<(Job, Progress)>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub(crate) run: Option<RunId>,
    cancel_acknowledged: bool,
    pub(crate) ended: bool,
}

impl Client {
    pub(crate) fn new(jobs: Vec<Job>) -> Self {
        Self { jobs: jobs.into_iter().map(|job| (job, Progress::default())).collect() }
    }

    pub(crate) fn is_satisfied(&self) -> bool {
        self.jobs.iter().all(|(_, progress)| progress.ended)
    }

    pub(crate) fn started(&self) -> usize {
        self.jobs.iter().filter(|(_, progress)| progress.run.is_some()).count()
    }
}

/// The idempotency key of a job's start.
pub(crate) fn key(job: usize) -> String {
    format!("job-{job}")
}

impl World {
    pub(crate) fn plan_clients(&mut self) {
        let times: Vec<_> = self.client.jobs.iter().map(|(job, _)| (job.at_us, job.cancel_at_us)).collect();
        for (job, (at_us, cancel_at_us)) in times.into_iter().enumerate() {
            self.after(at_us, Event::Client(ClientEvent::Start(job)));
            if let Some(at_us) = cancel_at_us {
                self.after(at_us, Event::Client(ClientEvent::Cancel(job)));
            }
        }
    }

    pub(crate) fn client_event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Start(job) => self.start(job),
            ClientEvent::Cancel(job) => self.ask_to_cancel(job),
            ClientEvent::Look(job) => self.look(job),
        }
    }

    fn start(&mut self, number: usize) {
        let (job, progress) = &self.client.jobs[number];
        if progress.run.is_some() {
            return;
        }
        let request = StartRequest {
            flow: job.flow.clone(),
            set: std::collections::BTreeMap::new(),
            tenant: Some(job.tenant.clone()),
            new: true,
            idem: Some(key(number)),
            no_cache: false,
        };
        self.after(PATIENCE_US, Event::Client(ClientEvent::Start(number)));
        self.ask_dag(number, Command::Start(Box::new(request), None), ReplyTo::Start(number));
    }

    fn ask_dag(&mut self, number: usize, command: Command, reply_to: ReplyTo) {
        let delay_us = self.in_order(Party::Client(number), Party::Actor(Who::Dag));
        self.mail::<DagTracker>(delay_us, command, None, reply_to, Some(Mark::Synced));
    }

    pub(crate) fn start_answered(&mut self, number: usize, answer: Answer) {
        let reply = match answer {
            Ok(reply) => reply.downcast::<StartReply>().unwrap(),
            Err(refusal) if crate::kernel::is_final(refusal.code) => {
                return self.fail(format!("a well-formed flow was refused: {refusal}"));
            }
            Err(_) => return,
        };
        let progress = &mut self.client.jobs[number].1;
        match &progress.run {
            None => {
                progress.run = Some(reply.run.clone());
                self.after(1_000, Event::Client(ClientEvent::Look(number)));
            }
            Some(run) if *run != reply.run => {
                let text = format!("one key, two runs: {run} and {}", reply.run);
                self.fail(text);
            }
            Some(_) => {}
        }
    }

    fn ask_to_cancel(&mut self, number: usize) {
        let progress = self.client.jobs[number].1.clone();
        if progress.cancel_acknowledged || progress.ended {
            return;
        }
        self.after(PATIENCE_US, Event::Client(ClientEvent::Cancel(number)));
        if let Some(run) = progress.run {
            let request = CancelRequest { run, reason: "not needed".into() };
            self.ask_dag(number, Command::Cancel(request), ReplyTo::Cancel(number));
        }
    }

    pub(crate) fn cancel_answered(&mut self, number: usize, answer: &Answer) {
        if answer.is_ok() {
            self.client.jobs[number].1.cancel_acknowledged = true;
            if let Some(run) = self.client.jobs[number].1.run.clone() {
                self.checks.cancelled.insert(run);
            }
        }
    }

    fn look(&mut self, number: usize) {
        let progress = &self.client.jobs[number].1;
        if let (Some(run), false) = (progress.run.clone(), progress.ended) {
            let after_us = self.rng.range(200_000, 700_000);
            self.after(after_us, Event::Client(ClientEvent::Look(number)));
            self.ask_dag(number, Command::Get(RunRequest { run }), ReplyTo::Look(number));
        }
    }

    pub(crate) fn look_answered(&mut self, number: usize, answer: Answer) {
        match answer {
            Ok(reply) => {
                let reply = reply.downcast::<GetReply>().unwrap();
                self.client.jobs[number].1.ended |= reply.run.state.is_final();
            }
            // It was over, and nobody has asked for it since.
            Err(refusal)
                if refusal.reason == "run.collected"
                    || refusal.reason == "run.unknown" && self.is_forgotten(number) =>
            {
                self.client.jobs[number].1.ended = true;
            }
            Err(refusal) if crate::kernel::is_final(refusal.code) => {
                self.fail(format!("a run that was acknowledged is not known: {refusal}"));
            }
            Err(_) => {}
        }
    }

    fn is_forgotten(&self, number: usize) -> bool {
        self.client.jobs[number].1.run.as_ref().is_some_and(|run| self.checks.is_forgotten(run))
    }
}
