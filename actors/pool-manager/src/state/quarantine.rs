//! Tasks that kill their workers, and what is equal to them.
//!
//! The rule:
//!
//! 1. A task has a budget of [`STRIKES_MAX`] workers. A worker counts that died while the task was the first in its
//!    hand, unless the death was wanted (drained, recycled, killed by an operator, stopped with its kernel). With the
//!    last, the DAG tracker, which folds the same deaths, fails the task with `task.quarantined` and its certificates.
//! 2. In the same step its *content* is quarantined (the event `task.quarantined`). Content is the hash of what is
//!    computed and of what it may use: function, hash of its code, environment, arguments (large ones by their digests),
//!    lease, limits. Neither run, seed nor attempt: an equal task of another run is equal. Changed code, another argument
//!    or a larger lease is not.
//! 3. While a content is quarantined, a wish for it is refused (`attempt.refused` with reason `task.quarantined` and the
//!    certificates): it fails its task and costs no worker.
//! 4. That ends by `pool.release` alone, and outlives any restart. Of more than [`QUARANTINED_MAX`] the oldest goes.
//!
//! A content is hashed for attempts that repeat a task and, while something is quarantined, for wishes of the same
//! function: a first attempt pays nothing. Calls are not quarantined: whoever makes one is told of the death himself.

use eclosion_schemas::Code;
use eclosion_schemas::ops::pool::{QuarantineReply, QuarantinedTask, ReleaseReply, ReleaseRequest, Wish};
use eclosion_schemas::ops::task::Argument;

use super::*;

/// Workers that a task may kill; the DAG tracker counts as many (P-EXEC-5).
pub(crate) const STRIKES_MAX: usize = 3;
const QUARANTINED_MAX: usize = 256;

/// Who has killed how many, and who is not let in any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blame {
    /// Tasks of unfinished runs that have lost workers.
    strikes: BTreeMap<TaskRef, Strikes>,
    /// Of these, those whose budget is spent and that are not quarantined yet.
    spent: BTreeSet<TaskRef>,
    by_function: BTreeMap<String, BTreeMap<String, QuarantinedTask>>,
    /// How many there have been: raised, wishes that wait are looked at again.
    pub(super) count: u64,
}

#[derive(Debug, Clone, Default)]
struct Strikes {
    certificates: Vec<DeathCertificate>,
    content: Option<String>,
}

impl Blame {
    /// Whether attempts of this task say what they compute.
    pub(super) fn is_suspect(&self, execute: &Execute) -> bool {
        !self.strikes.is_empty()
            && self.strikes.contains_key(&TaskRef::new(execute.run.clone(), execute.task.clone()))
    }

    pub(super) fn lost(&mut self, computing: &Computing, certificate: &DeathCertificate) {
        if computing.over {
            return;
        }
        let strikes = self.strikes.entry(computing.task.clone()).or_default();
        strikes.certificates.push(certificate.clone());
        if computing.content.is_some() {
            strikes.content.clone_from(&computing.content);
        }
        if strikes.certificates.len() >= STRIKES_MAX {
            self.spent.insert(computing.task.clone());
        }
    }

    pub(super) fn committed(&mut self, run: &RunId, task: &TaskId) {
        if !self.strikes.is_empty() {
            self.strikes.remove(&TaskRef::new(run.clone(), task.clone()));
        }
    }

    /// One that is spent stays until it is quarantined.
    pub(super) fn run_finished(&mut self, run: &RunId) {
        let Self { strikes, spent, .. } = self;
        strikes.retain(|task, _| task.run != *run || spent.contains(task));
    }

    /// What is to be quarantined now. Without a content, of a journal that is older than this, nothing can be.
    pub(super) fn due(&self) -> impl Iterator<Item = TaskQuarantined> {
        self.spent.iter().filter_map(|task| {
            let strikes = self.strikes.get(task)?;
            let (content, function) = strikes.content.as_ref()?.split_once(' ')?;
            Some(TaskQuarantined {
                content: content.into(),
                function: function.into(),
                run: task.run.clone(),
                task: task.task.clone(),
                certificates: strikes.certificates.clone(),
            })
        })
    }

    pub(super) fn quarantined(&mut self, event: &TaskQuarantined, at: Timestamp) {
        let task = TaskRef::new(event.run.clone(), event.task.clone());
        self.count += 1;
        self.spent.remove(&task);
        self.strikes.remove(&task);
        if self.len() >= QUARANTINED_MAX
            && let Some(oldest) = self.all().min_by_key(|task| task.since).map(|task| task.content.clone())
        {
            self.released(&oldest);
        }
        let quarantined = QuarantinedTask {
            content: event.content.clone(),
            function: event.function.clone(),
            run: event.run.clone(),
            task: event.task.clone(),
            since: at,
            certificates: event.certificates.clone(),
        };
        let contents = self.by_function.entry(event.function.clone()).or_default();
        contents.insert(event.content.clone(), quarantined);
    }

    pub(super) fn released(&mut self, content: &str) {
        self.by_function.retain(|_, contents| {
            contents.remove(content);
            !contents.is_empty()
        });
    }

    /// The answer to a wish that is equal to something quarantined.
    pub(super) fn refuse(&self, wish: &Wish) -> Option<AttemptRefused> {
        let contents = self.by_function.get(&wish.execute.function)?;
        let error = refusal(contents.get(&content_of(wish))?);
        let (run, task) = (wish.execute.run.clone(), wish.execute.task.clone());
        Some(AttemptRefused { run, task, wish: wish.id, error })
    }

    pub(crate) fn len(&self) -> usize {
        self.by_function.values().map(BTreeMap::len).sum()
    }

    pub(super) fn list(&self) -> QuarantineReply {
        let mut tasks: Vec<_> = self.all().cloned().collect();
        tasks.sort_by(|a, b| (a.since, &a.content).cmp(&(b.since, &b.content)));
        QuarantineReply { tasks }
    }

    fn all(&self) -> impl Iterator<Item = &QuarantinedTask> {
        self.by_function.values().flat_map(BTreeMap::values)
    }
}

pub(super) fn release(state: &State, request: &ReleaseRequest) -> Result<Decision, Error> {
    let meant: Vec<_> = state.blame.all().filter(|task| task.content.starts_with(&request.content)).collect();
    let (content, dry_run) = (&request.content, request.dry_run);
    let task = match &meant[..] {
        [task] if !content.is_empty() => QuarantinedTask::clone(task),
        [] => {
            let message = format!("nothing is quarantined whose content begins with `{content}`");
            return Err(Error::not_found("quarantine.unknown", message).help("eclosion pool quarantine ls"));
        }
        several => {
            let message = format!("`{content}` means {} quarantined tasks", several.len());
            return Err(Error::invalid("quarantine.ambiguous", message)
                .help("write more of its content: eclosion pool quarantine ls"));
        }
    };
    let event = TaskReleased { content: task.content.clone(), reason: request.reason.clone() };
    let reply = Decision::reply(ReleaseReply { task, dry_run });
    Ok(if dry_run { reply } else { reply.event(event) })
}

/// What is computed, as a name: the hash, a blank, the function.
pub(super) fn content_and_function(wish: &Wish) -> String {
    format!("{} {}", content_of(wish), wish.execute.function)
}

fn content_of(wish: &Wish) -> String {
    let execute = &wish.execute;
    let mut hash = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(b"quarantine/v1");
    part(execute.function.as_bytes());
    // A root without a hash is known by its path alone.
    part(if execute.code_hash.is_empty() { &execute.code } else { &execute.code_hash }.as_bytes());
    part(wish.environment.as_str().as_bytes());
    for (name, argument) in &execute.arguments {
        part(name.as_bytes());
        let payloads = match argument {
            Argument::Value { payload } => std::slice::from_ref(payload),
            Argument::List { payloads } => &payloads[..],
        };
        for payload in payloads {
            part(&payload.body);
            for piece in &payload.parts {
                part(piece.digest.as_ref().map_or(&b""[..], |digest| digest.as_str().as_bytes()));
            }
        }
    }
    for (resource, amount) in &execute.lease {
        part(resource.as_bytes());
        part(&amount.to_le_bytes());
    }
    part(format!("{:?}", execute.limits).as_bytes());
    hash.finalize().to_hex()[..32].to_owned()
}

fn refusal(task: &QuarantinedTask) -> Error {
    let message = format!(
        "an equal task ({} of run {}) has killed {} workers; it is refused until it is released",
        task.task,
        task.run,
        task.certificates.len()
    );
    let short: String = task.content.chars().take(12).collect();
    let error = Error::new(Code::Unavailable, "task.quarantined", message)
        .help(format!("eclosion why {}; then eclosion pool quarantine release {short}", task.run));
    let deaths =
        task.certificates.iter().map(|certificate| format!("{} {}", certificate.worker, certificate.death));
    deaths.fold(error, Error::cause)
}
