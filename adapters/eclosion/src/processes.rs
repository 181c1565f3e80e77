//! `kernel.processes`: the kernel, its keeper, zygotes, workers, and what those started.

use std::collections::{BTreeMap, BTreeSet};

use eclosion_schemas::ops::kernel::{ProcessRow, ProcessesReply};
use eclosion_schemas::{Code, Error, ServiceName, WorkerId};
use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// What the kernel knows of its processes.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) keeper: Option<u32>,
    /// By their pids, as are services.
    pub(crate) workers: BTreeMap<u32, WorkerId>,
    pub(crate) services: BTreeMap<u32, ServiceName>,
}

/// A command line is shown up to here.
const COMMAND_CHARS_MAX: usize = 120;

/// # Errors
/// `unavailable` where processes cannot be looked at.
pub(crate) async fn list(known: Known) -> Result<ProcessesReply, Error> {
    let processes = tokio::task::spawn_blocking(move || look(std::process::id(), &known))
        .await
        .map_err(|_| unavailable("the look at processes was cut short"))??;
    Ok(ProcessesReply { processes })
}

fn look(kernel: u32, known: &Known) -> Result<Vec<ProcessRow>, Error> {
    let mut system = System::new().map_err(|why| unavailable(&why.to_string()))?;
    let wanted = ProcessRefreshKind::nothing()
        .with_memory()
        .with_cpu()
        .with_cmd(UpdateKind::OnlyIfNotSet)
        .without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, wanted);
    let mut children = BTreeMap::<u32, BTreeSet<u32>>::new();
    #[expect(clippy::iter_over_hash_type, reason = "what it fills is ordered")]
    for (pid, process) in system.processes() {
        if let Some(parent) = process.parent() {
            children.entry(parent.as_u32()).or_default().insert(pid.as_u32());
        }
    }
    let mut rows = Vec::new();
    let mut waiting: Vec<u32> = known.keeper.into_iter().chain([kernel]).collect();
    let mut seen = BTreeSet::new();
    while let Some(pid) = waiting.pop() {
        // The keeper is the kernel's child as long as both live, and nobody's afterwards.
        let Some(process) = system.process(Pid::from_u32(pid)).filter(|_| seen.insert(pid)) else { continue };
        rows.push(row(pid, process, kernel, known));
        waiting.extend(children.get(&pid).into_iter().flatten().rev());
    }
    Ok(rows)
}

fn row(pid: u32, process: &Process, kernel: u32, known: &Known) -> ProcessRow {
    let words: Vec<_> = process.cmd().iter().map(|word| word.to_string_lossy()).collect();
    let kind = if pid == kernel {
        "kernel"
    } else if Some(pid) == known.keeper {
        "keeper"
    } else if known.services.contains_key(&pid) {
        "service"
    } else if known.workers.contains_key(&pid) {
        "worker"
    } else if words.iter().any(|word| word == "eclosion.zygote") {
        "zygote"
    } else {
        "child"
    };
    let command = match words.is_empty() {
        true => process.name().to_string_lossy().into_owned(),
        false => words.join(" "),
    };
    let age_s = process.run_time();
    let cpu_permille = process.accumulated_cpu_time() / age_s.max(1);
    ProcessRow {
        pid,
        parent: process.parent().map_or(0, Pid::as_u32),
        kind: kind.into(),
        worker: known.workers.get(&pid).cloned(),
        service: known.services.get(&pid).cloned(),
        command: command.chars().take(COMMAND_CHARS_MAX).collect(),
        rss_bytes: process.memory(),
        cpu_permille: u32::try_from(cpu_permille).unwrap_or(u32::MAX),
        age_s,
    }
}

fn unavailable(why: &str) -> Error {
    Error::new(Code::Unavailable, "processes.look", why)
}
