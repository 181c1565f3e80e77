//! Runs and tasks as text: their state, why they wait, how they died.

use eclosion_schemas::certificate::DeathCertificate;
use eclosion_schemas::pending::{Holder, PendingReason};
use eclosion_schemas::view::{CacheCounts, CacheState, RunView, TaskState, TaskView};

use super::{bytes, duration, error, now, pairs, table, word};

/// Of a dead worker's output; the rest is in its logs.
const LAST_LINES_MAX: usize = 10;

/// `3 succeeded, 2 running`, in the order of a task's life.
pub(crate) fn counts(run: &RunView) -> String {
    let counts = run.counts.iter().filter(|(_, count)| **count > 0);
    counts.map(|(state, count)| format!("{count} {}", word(state))).collect::<Vec<_>>().join(", ")
}

/// The same for a row of a list, with how many of them were not computed.
pub(crate) fn counts_with_reused(run: &RunView) -> String {
    let CacheCounts { hits, taken, .. } = run.cache.unwrap_or_default();
    let cached = (hits > 0).then(|| format!("{hits} from the cache"));
    let taken = (taken > 0).then(|| format!("{taken} taken over"));
    [Some(counts(run)), cached, taken].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// How many results were not computed; nothing, where none was to be used again.
pub(crate) fn reused(run: &RunView) -> Option<String> {
    let CacheCounts { hits, misses, taken } = run.cache.unwrap_or_default();
    let cached = (hits + misses > 0).then(|| format!("cache: {hits} hit, {misses} missed"));
    let source = run.rerun_of.as_ref().map(|run| format!("{taken} taken over from run {run}"));
    let said: Vec<_> = cached.into_iter().chain(source).collect();
    (!said.is_empty()).then(|| said.join("; "))
}

/// The head of a run.
pub(crate) fn head(run: &RunView) -> String {
    let took = run.finished_at.unwrap_or_else(now).since_ms(run.started_at);
    let parameters = run.parameters.iter().map(|(name, value)| format!("{name}={value}"));
    let mut head = vec![
        ("run", run.run.to_string()),
        ("flow", run.flow.clone()),
        ("state", word(&run.state)),
        ("took", duration(took)),
        ("tasks", counts(run)),
        ("with", parameters.collect::<Vec<_>>().join(" ")),
    ];
    head.extend(reused(run).map(|reused| ("reused", reused)));
    pairs(&head)
}

/// A row for each task.
pub(crate) fn tasks(tasks: &[TaskView]) -> String {
    let rows = tasks.iter().map(|task| {
        let note =
            task.pending.first().map(pending).or_else(|| task.error.as_ref().map(|why| why.message.clone()));
        let note = note.or_else(|| from_earlier(task));
        vec![
            task.task.to_string(),
            word(&task.state),
            task.attempt.to_string(),
            took(task).unwrap_or_default(),
            task.worker.as_ref().map_or_else(String::new, ToString::to_string),
            note.unwrap_or_default(),
        ]
    });
    table(&["task", "state", "attempt", "took", "worker", "note"], rows)
}

/// Whose output a task was given, if it was not computed.
fn from_earlier(task: &TaskView) -> Option<String> {
    let cache = task.cache.as_ref()?;
    let from = cache.from.as_ref()?;
    match cache.state {
        CacheState::Hit => Some(format!("found in the cache: {from}")),
        CacheState::Taken => Some(format!("taken over from {from}")),
        _ => None,
    }
}

/// How long the last attempt has taken.
pub(crate) fn took(task: &TaskView) -> Option<String> {
    let started = task.started_at?;
    Some(duration(task.ended_at.unwrap_or_else(now).since_ms(started)))
}

/// What a task has gone through that somebody should know of: each death, and its error unless it came out well.
pub(crate) fn trouble(task: &TaskView) -> Vec<String> {
    let mut lines: Vec<String> = task.certificates.iter().flat_map(certificate).collect();
    if let Some(why) = &task.error
        && task.state != TaskState::Succeeded
    {
        let mut text = error::text(why);
        text.insert_str(0, &format!("{}: ", task.task));
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}

/// One death: what ended it, what it was computing, and its last words.
pub(crate) fn certificate(dead: &DeathCertificate) -> Vec<String> {
    let doing = match (&dead.task, dead.attempt) {
        (Some(task), Some(attempt)) => format!(", computing {task}, attempt {attempt}"),
        (Some(task), None) => format!(", computing {task}"),
        _ => String::new(),
    };
    let peak =
        dead.peak_rss_bytes.map_or_else(String::new, |peak| format!(", at most {} of memory", bytes(peak)));
    let mut lines = vec![format!("worker {} (pid {}) {}{doing}{peak}", dead.worker, dead.pid, dead.death)];
    let cut = dead.last_lines.len().saturating_sub(LAST_LINES_MAX);
    lines.extend(dead.last_lines.iter().skip(cut).map(|line| format!("  | {line}")));
    lines
}

/// Why it waits, naming who holds what it needs.
pub(crate) fn pending(reason: &PendingReason) -> String {
    match reason {
        PendingReason::Upstream { tasks } => {
            let names: Vec<_> = tasks.iter().map(ToString::to_string).collect();
            format!("waits for {}", names.join(", "))
        }
        PendingReason::Environment { environment, doing } => {
            let id: String = environment.as_str().chars().take(12).collect();
            format!("waits for environment {id}: {doing}")
        }
        PendingReason::Worker { busy, max, ahead } => {
            let are_ahead = if *ahead == 1 { "task is ahead" } else { "tasks are ahead" };
            format!("waits for a worker: {} of {max} busy, {ahead} {are_ahead}", busy.len())
        }
        PendingReason::Drained { reason } => format!("waits: the pool is {reason}"),
        PendingReason::Resource { resource, needs, free, capacity, holders } => {
            let amount = |count: u64| amount(resource, count);
            let holders: Vec<_> =
                holders.iter().map(|holder| format!("{holder} holds {}", amount(holder.amount))).collect();
            let held = if holders.is_empty() { String::new() } else { format!("; {}", holders.join(", ")) };
            let (needs, free, capacity) = (amount(*needs), amount(*free), amount(*capacity));
            format!("waits for {resource}: needs {needs}, {free} of {capacity} are free{held}")
        }
        PendingReason::Lock { lock, shared, holders } => {
            let how = if *shared { " to share it" } else { "" };
            format!("waits for lock {lock}{how}{}", held_by(holders))
        }
        PendingReason::Rate { rate, limit, needs, free, until } => {
            let left = duration(until.since_ms(now()));
            format!("waits {left} for rate {rate} ({limit}): needs {needs}, {free} can be had now")
        }
        PendingReason::Backoff { until, failures, last_error } => {
            let left = duration(until.since_ms(now()));
            format!("failed {failures} times, tries again in {left}: {last_error}")
        }
        PendingReason::Adoption { worker } => {
            format!("waits for worker {worker} to say whether it still computes it")
        }
    }
}

/// The same with the command that shows more, or ends it.
pub(crate) fn pending_and_next(reason: &PendingReason) -> String {
    let next = match reason {
        PendingReason::Drained { .. } => "; it goes on with: eclosion pool resume",
        PendingReason::Worker { .. } => "; see: eclosion pool",
        PendingReason::Environment { .. } => "; see: eclosion pool",
        PendingReason::Resource { .. } | PendingReason::Lock { .. } | PendingReason::Rate { .. } => {
            "; see: eclosion arb ls"
        }
        PendingReason::Upstream { .. } | PendingReason::Backoff { .. } | PendingReason::Adoption { .. } => "",
    };
    format!("{}{next}", pending(reason))
}

fn held_by(holders: &[Holder]) -> String {
    let names: Vec<_> = holders
        .iter()
        .map(|holder| {
            let worker = holder.worker.as_ref().map(|worker| format!(" on {worker}")).unwrap_or_default();
            format!("{holder}{worker} since {}", duration(now().since_ms(holder.since)))
        })
        .collect();
    if names.is_empty() { String::new() } else { format!("; held by {}", names.join(", ")) }
}

/// `cpu` is counted in thousandths of a core, `memory` in bytes.
pub(crate) fn amount(resource: &str, count: u64) -> String {
    match resource {
        "cpu" => format!("{}", count as f64 / 1000.0),
        // Nobody counts that many of anything else.
        _ if resource == "memory" || count >= 1 << 20 => bytes(count),
        _ => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use eclosion_schemas::certificate::Death;
    use eclosion_schemas::{Attempt, TaskRef, Timestamp};

    use super::*;

    #[test]
    fn a_certificate_names_signal_task_attempt_and_last_words() {
        let dead = DeathCertificate {
            worker: "w-1-2".parse().unwrap(),
            pid: 4242,
            death: Death::Killed { signal: 9, sender: None },
            at: Timestamp(0),
            task: Some(TaskRef::new("7k2m4q9d".parse().unwrap(), "train[1]".parse().unwrap())),
            attempt: Some(Attempt(2)),
            peak_rss_bytes: Some(3 << 20),
            free_memory_bytes: None,
            last_lines: (0..12).map(|n| format!("epoch {n}")).collect(),
        };
        let lines = certificate(&dead);
        assert_eq!(
            lines[0],
            "worker w-1-2 (pid 4242) killed by SIGKILL, sender unknown, computing 7k2m4q9d/train[1], attempt 2, \
             at most 3.0 MiB of memory"
        );
        assert_eq!((lines.len(), lines[1].as_str(), lines[10].as_str()), (11, "  | epoch 2", "  | epoch 11"));
    }

    #[test]
    fn a_task_that_waits_names_who_holds_what_it_needs() {
        let reason = PendingReason::Resource {
            resource: "cpu".into(),
            needs: 1500,
            free: 500,
            capacity: 2000,
            holders: Vec::new(),
        };
        assert_eq!(pending(&reason), "waits for cpu: needs 1.5, 0.5 of 2 are free");
    }
}
