//! Why a run or a task waits or failed: findings, each a sentence, with the next command where there is one (P4).
//!
//! What a ready task waits for (a worker, an environment, a resource) is known to the pool manager and arbitration;
//! whoever asks for all of it puts their reasons beside these.

use std::borrow::Cow;

use eclosion_kernel::core::Reads;
use eclosion_schemas::events::{MissCause, Unkept};
use eclosion_schemas::ops::cache::{ExplainReply, ExplainRequest};
use eclosion_schemas::ops::run::{WhyReply, WhyRequest};
use eclosion_schemas::suggest::{hint, shell_word};
use eclosion_schemas::view::{CacheState, CacheView, RunState, TaskState, TaskView};
use eclosion_schemas::{Error, RunId, TaskId};
use serde_json::Value;

use crate::plan::Plan;
use crate::rows;
use crate::state::{QUARANTINED, Run, State};
use crate::view::{no_run, task_at, tasks};

/// Tasks of one kind that are named one by one.
const NAMED_MAX: usize = 5;
/// A longer command helps nobody.
const COMMAND_BYTES_MAX: usize = 1024;

pub(crate) fn why(state: &State, reads: &Reads, request: &WhyRequest) -> Result<WhyReply, Error> {
    let run = found(state, reads, &request.run)?;
    match &request.task {
        Some(task) => why_task(&run, task),
        None => Ok(why_run(&run)),
    }
}

/// In memory, or as its rows have it.
fn found<'a>(state: &'a State, reads: &Reads, run: &RunId) -> Result<Cow<'a, Run>, Error> {
    let older = || rows::restored(reads, run).ok_or_else(|| no_run(state, reads, run)).map(Cow::Owned);
    state.run(run).map_or_else(older, |run| Ok(Cow::Borrowed(run)))
}

/// A step that succeeded, and that nobody will find again.
fn unkept_finding(run: &Run, task: &TaskView) -> Option<String> {
    let id = &task.task;
    let why = match task.cache.as_ref()?.unkept? {
        Unkept::CodeChanged => "the code changed while it ran",
        Unkept::CodeUnseen => "its code could not be read when it was done",
    };
    let next = match run_command(&run.plan) {
        Some(command) => format!("Run it again: {command}"),
        None => "See what is kept: eclosion cache ls".to_owned(),
    };
    Some(format!("The result of `{id}` is not kept: {why}. {next}"))
}

fn why_task(run: &Run, task: &TaskId) -> Result<WhyReply, Error> {
    let views = match run.slot(task).and_then(|slot| task_at(run, slot)) {
        Some(view) => vec![view],
        None => instances_of(run, task)?,
    };
    let said = views.iter().flat_map(|view| task_findings(view).into_iter().chain(unkept_finding(run, view)));
    Ok(WhyReply { findings: said.collect(), tasks: views })
}

/// The name of a fan-out stands for all that it has become.
fn instances_of(run: &Run, task: &TaskId) -> Result<Vec<TaskView>, Error> {
    let instances: Vec<_> = tasks(run).into_iter().filter(|view| view.task.is_instance_of(task)).collect();
    if instances.is_empty() {
        let known = run.groups.iter().flat_map(|group| &group.instances).map(|instance| instance.id.as_str());
        let unknown = Error::not_found("run.task", format!("run {} has no task `{task}`", run.id));
        return Err(unknown.help(hint(task.as_str(), known)));
    }
    Ok(instances)
}

fn why_run(run: &Run) -> WhyReply {
    let tasks = tasks(run);
    let mut findings = vec![run_finding(run)];
    for state in [TaskState::Failed, TaskState::Backoff, TaskState::Running, TaskState::Ready] {
        let of_state: Vec<_> = tasks.iter().filter(|task| task.state == state).collect();
        findings.extend(of_state.iter().take(NAMED_MAX).flat_map(|task| task_findings(task)));
        if of_state.len() > NAMED_MAX {
            let more = match of_state.len() - NAMED_MAX {
                1 => "1 more task is".to_owned(),
                more => format!("{more} more tasks are"),
            };
            findings.push(format!("{more} {}.", in_words(state)));
        }
    }
    let explained = |task: &TaskView| !matches!(task.state, TaskState::Succeeded | TaskState::Waiting);
    WhyReply { findings, tasks: tasks.into_iter().filter(explained).collect() }
}

fn run_finding(run: &Run) -> String {
    let id = &run.id;
    let count = |state| run.counts.get(&state).copied().unwrap_or_default();
    match run.state {
        RunState::Running => format!(
            "Run {id} is running; succeeded {} of {}, running {}, ready {}. Follow it: eclosion attach {id}",
            count(TaskState::Succeeded),
            run.instances(),
            count(TaskState::Running),
            count(TaskState::Ready),
        ),
        RunState::Cancelling => {
            format!(
                "Run {id} is being cancelled and waits for {} to stop.",
                counted(count(TaskState::Running), "worker")
            )
        }
        RunState::Succeeded => {
            format!("Run {id} has succeeded. See its outputs: eclosion artifact ls --run {id}")
        }
        RunState::Failed | RunState::Cancelled => {
            let error =
                run.error.as_ref().map(|error| error.message.as_str()).unwrap_or("no reason was recorded");
            let outcome = if run.state == RunState::Failed { "failed" } else { "was cancelled" };
            format!("Run {id} {outcome}: {error}. {}", again(run))
        }
    }
}

/// The commands that compute what is missing, and all of it: a finished run attaches nobody.
fn again(run: &Run) -> String {
    // What is equal to it is refused until somebody lets it go.
    let is_quarantined = run.error.as_ref().is_some_and(|error| error.reason == QUARANTINED);
    let missing = match is_quarantined {
        true => {
            format!("Release it: eclosion pool quarantine ls. Then run it again: eclosion rerun {}", run.id)
        }
        false => format!("Run what failed again: eclosion rerun {}", run.id),
    };
    match run_command(&run.plan) {
        Some(command) => format!("{missing}. Run it again: {command}"),
        None => format!("{missing}. See what it ran: eclosion runs show {}", run.id),
    }
}

/// What starts the same flow with the same parameters, if it came from a file and the command is one for people.
fn run_command(plan: &Plan) -> Option<String> {
    let set = plan.set.iter().filter_map(|name| {
        let value = match plan.parameters.get(name)? {
            // What would be read as something else is quoted as JSON is.
            Value::String(text) if serde_json::from_str::<Value>(text).is_err() => text.clone(),
            value => value.to_string(),
        };
        Some(format!(" --set {}", shell_word(&format!("{name}={value}"))))
    });
    let command = plan.source.as_ref().map(|source| {
        let set: String = set.collect();
        format!("eclosion run {}{set}", shell_word(source))
    });
    command.filter(|command| command.len() <= COMMAND_BYTES_MAX)
}

fn task_findings(task: &TaskView) -> Vec<String> {
    let (id, run) = (&task.task, &task.run);
    let error = task.error.as_ref();
    let message = error.map(|error| error.message.as_str()).unwrap_or("no reason was recorded");
    let mut findings = vec![match task.state {
        TaskState::Waiting => format!("`{id}` waits for tasks that it needs: {}.", upstream(task)),
        TaskState::Ready => {
            format!(
                "`{id}` is ready and waits for its turn. See who has what: eclosion pool, eclosion arb ls"
            )
        }
        TaskState::Running => {
            let worker = task.worker.as_ref().map(ToString::to_string).unwrap_or_default();
            format!(
                "`{id}` is running on {worker}, attempt {}. Read along: eclosion logs {run} {id} --follow",
                task.attempt
            )
        }
        TaskState::Backoff => {
            format!(
                "`{id}` failed {} and waits before the next attempt: {message}. Read on: eclosion logs {run} {id}",
                counted(task.failures, "time")
            )
        }
        TaskState::Succeeded if task.attempt.0 == 0 => format!("`{id}` has succeeded without an attempt."),
        TaskState::Succeeded => format!("`{id}` has succeeded in attempt {}.", task.attempt),
        TaskState::Failed if task.attempt.0 == 0 => format!("`{id}` never started: {message}."),
        TaskState::Failed => format!(
            "`{id}` failed after {}: {message}. Read on: eclosion logs {run} {id}",
            counted(task.attempt.0, "attempt")
        ),
        TaskState::Cancelled => format!("`{id}` was stopped because the run was cancelled."),
        TaskState::Skipped => {
            format!("`{id}` never started, because a task that it needs failed or the run was cancelled.")
        }
    }];
    for certificate in &task.certificates {
        let last =
            certificate.last_lines.last().map(|line| format!(" Its last line: {line}")).unwrap_or_default();
        findings.push(format!(
            "Worker {} died while computing `{id}`: {}.{last}",
            certificate.worker, certificate.death
        ));
    }
    findings.extend(cache_finding(task));
    findings.extend(error.and_then(|error| error.help.clone()).map(|help| format!("What to do: {help}")));
    findings
}

/// Whether a step's result was used again, and if not, why.
pub(crate) fn explain(state: &State, reads: &Reads, request: &ExplainRequest) -> Result<ExplainReply, Error> {
    let run = found(state, reads, &request.run)?;
    let task = why_task(&run, &request.task)?.tasks.into_iter().next();
    let finding = task.as_ref().and_then(cache_finding).unwrap_or_else(|| {
        let name = &request.task;
        format!("`{name}` is computed every time: it has no `cache`. Write cache = \"v1\" in its task, or @task(cache=\"v1\").")
    });
    let unkept = task.as_ref().and_then(|task| unkept_finding(&run, task));
    let findings = std::iter::once(finding).chain(unkept).collect();
    Ok(ExplainReply { cache: task.and_then(|task| task.cache), findings })
}

/// `None` for a step that no earlier result was to be used for.
fn cache_finding(task: &TaskView) -> Option<String> {
    let CacheView { state, from, causes, .. } = task.cache.as_ref()?;
    let id = &task.task;
    let from = from.as_ref().map(ToString::to_string);
    let of = from.clone().unwrap_or_default();
    Some(match state {
        CacheState::Waiting => format!("`{id}` is looked for in the cache once it is ready."),
        CacheState::Hit => {
            format!(
                "The result of `{id}` is that of {of}, found in the cache: function, code, environment, arguments and version are the same."
            )
        }
        CacheState::Taken => format!("The result of `{id}` was taken over from {of}."),
        CacheState::Refreshed => format!("`{id}` was to be computed: nothing was looked for in the cache."),
        CacheState::Unhashed => {
            format!(
                "`{id}` is computed: its flow names no hash of its code. Start it by its file: eclosion run FLOW"
            )
        }
        CacheState::Miss => {
            let nearest = from.map(|from| format!(" since {from}")).unwrap_or_default();
            let causes: Vec<_> = causes.iter().map(cause).collect();
            format!("`{id}` is computed: {}{nearest}.", causes.join(", "))
        }
    })
}

fn cause(cause: &MissCause) -> String {
    match cause {
        MissCause::NoEntry => "nothing of this function is kept in the cache".into(),
        MissCause::Version { was } => format!("its cache version changed (it was `{was}`)"),
        MissCause::Code => "its code changed".into(),
        MissCause::Environment => "its environment changed".into(),
        MissCause::Argument { name } => format!("argument `{name}` changed"),
        MissCause::Seed => "the seed changed".into(),
        MissCause::Collected => "its output is not stored any more".into(),
        MissCause::NotCommitted => "the repeated run has no stored result of it".into(),
    }
}

fn upstream(task: &TaskView) -> String {
    let reasons = task.pending.iter().filter_map(|reason| match reason {
        eclosion_schemas::pending::PendingReason::Upstream { tasks } => Some(tasks),
        _ => None,
    });
    reasons.flatten().map(|task| format!("`{task}`")).collect::<Vec<_>>().join(", ")
}

fn counted(count: u32, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

fn in_words(state: TaskState) -> &'static str {
    match state {
        TaskState::Waiting => "waiting",
        TaskState::Ready => "ready",
        TaskState::Running => "running",
        TaskState::Backoff => "waiting after a failure",
        TaskState::Succeeded => "done",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
        TaskState::Skipped => "skipped",
    }
}
