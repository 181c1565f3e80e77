//! `run` and `attach`: start or find a run, follow it to its end, show what came of it.
//!
//! Without a daemon the kernel is in this process, and stays until the run has ended and nobody else's run does. One
//! Ctrl-C leaves: the run goes on, in the daemon or at the next start. A second one, within [`SECOND_THOUGHT`],
//! cancels it. Bars, findings and certificates go to stderr; the result alone goes to stdout.

use std::path::{Path, PathBuf};
use std::time::Duration;

use eclosion::Kernel;
use eclosion_client::Client;
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::ops::kernel::{Empty, Tree};
use eclosion_schemas::ops::run::{
    Cancel, CancelRequest, GetReply, List, ListRequest, Start, StartRequest, Why, WhyRequest,
};
use eclosion_schemas::suggest::shell_word;
use eclosion_schemas::view::{RunState, TaskState};
use eclosion_schemas::{Code, Error, RunId};
use serde_json::json;

use super::follow::follow;
use super::{kernel, result};
use crate::arguments;
use crate::daemon::{Ended, Signals};
use crate::globals::Globals;
use crate::render::progress::{Progress, Voice};
use crate::render::{self, duration, word};
use crate::session::{self, Session};
use crate::terminal::{self, document, print, talk};
use crate::{daemon, exit, values};

/// Between the first Ctrl-C and leaving.
const SECOND_THOUGHT: Duration = Duration::from_secs(2);
/// Before it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Of the screen, for the run below the tree.
const RUN_LINES: usize = 6;
const FLOW_IN_PYTHON: &str = "a flow is a function under `@flow` that calls functions under `@task`:
  from eclosion import flow, task

  @task
  def double(x: int) -> int:
      return 2 * x

  @flow
  def main(x: int = 1):
      return double(x)";

/// How following ended.
enum Followed {
    Over(Box<GetReply>),
    /// The run goes on; the number is what we end with.
    Left(u8),
}

pub(super) async fn run(globals: &Globals, arguments: arguments::Run) -> Result<u8, Error> {
    let flow = arguments.flow.flow.clone();
    let set = arguments.flow.set.clone();
    submitted(globals, arguments).await.map_err(|why| check_again(why, &flow, &set))
}

/// What refuses a flow ends with the command that checks it once it is mended.
pub(super) fn check_again(why: Error, flow: &str, set: &[String]) -> Error {
    let why = as_typed(without_flows(why, flow), set);
    match why.reason.starts_with("flow.") {
        true => why.next(&format!("eclosion validate {}", shell_word(flow))),
        false => why,
    }
}

/// The shortest flow, for a Python file that has none.
fn without_flows(why: Error, flow: &str) -> Error {
    let is_without = why.causes.iter().any(|cause| cause.trim_end().ends_with("flows in it: none"));
    match why.reason == "flow.python" && is_without {
        true => why.help(format!("{FLOW_IN_PYTHON}\nthen: eclosion validate {}", shell_word(flow))),
        false => why,
    }
}

/// A parameter that was meant, as it is typed: `--set` with the value that was given.
fn as_typed(mut why: Error, set: &[String]) -> Error {
    let refused = set.iter().filter_map(|pair| pair.split_once('=')).find(|(name, _)| {
        why.reason == "flow.parameter" && why.message == format!("the flow has no parameter `{name}`")
    });
    let help = why.help.as_deref().and_then(|help| help.strip_prefix("did you mean `")?.strip_suffix("`?"));
    if let (Some((_, value)), Some(meant)) = (refused, help) {
        let pair = shell_word(&format!("{meant}={value}"));
        why.help = Some(format!("did you mean `{meant}`? Write --set {pair}."));
    }
    why
}

async fn submitted(globals: &Globals, arguments: arguments::Run) -> Result<u8, Error> {
    let mut request = request(globals, &arguments.flow).await?;
    request.new = arguments.new;
    request.no_cache = arguments.no_cache;
    if arguments.detach {
        return detached(globals, request).await;
    }
    let session = session::attach_or_start(globals).await?;
    let outcome = started(globals, &session, request, arguments.out).await;
    if let Some(kernel) = &session.kernel {
        shut_down(kernel).await?;
    }
    outcome
}

/// Ends the kernel in this process; whoever does not want to wait for what is in hand says so by a signal.
pub(super) async fn shut_down(kernel: &Kernel) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let ending = kernel.shutdown();
    tokio::pin!(ending);
    tokio::select! {
        () = &mut ending => return Ok(()),
        () = tokio::time::sleep(PATIENCE) => talk("waiting for what is in hand; Ctrl-C leaves at once"),
        _ = signals.next() => return Ok(()),
    }
    tokio::select! {
        () = &mut ending => {}
        _ = signals.next() => talk("left; what was not finished goes on at the next start"),
    }
    Ok(())
}

/// The flow as it is submitted.
pub(super) async fn request(globals: &Globals, flow: &arguments::Flow) -> Result<StartRequest, Error> {
    let directory = std::env::current_dir().unwrap_or_default();
    let set = values::parameters(&flow.set, &directory)?;
    let flow = self::flow(globals, &flow.flow).await?;
    Ok(StartRequest { flow, set, tenant: None, new: false, idem: None, no_cache: false })
}

/// The flow that is named, as its file has it now.
pub(super) async fn flow(globals: &Globals, named: &str) -> Result<FlowSpec, Error> {
    let python_path = match named.contains(".py:") {
        true => eclosion::flow_file::python_path(&globals.places()?.cache).await?,
        false => Vec::new(),
    };
    eclosion::flow_file::read(named, &python_path).await
}

/// Only a kernel in the background outlives this process.
async fn detached(globals: &Globals, request: StartRequest) -> Result<u8, Error> {
    let client = match globals.names_a_running_kernel() {
        true => session::attach(globals).await?,
        false => kernel::start(globals, false).await?.0,
    };
    let reply = client.call::<Start>(request).await?;
    if globals.json {
        document("started", &reply)?;
    } else {
        print(reply.run.as_str())?;
        talk(&format!("follow it: eclosion attach {}", reply.run));
    }
    Ok(exit::OK)
}

async fn started(
    globals: &Globals,
    session: &Session,
    request: StartRequest,
    out: Option<PathBuf>,
) -> Result<u8, Error> {
    let mut signals = Signals::new()?;
    let flow = request.flow.name.clone();
    // Before the tree: who mistyped a parameter reads that, and nothing else.
    let reply = session.client.call::<Start>(request).await?;
    show_tree(globals, session).await?;
    talk(&match reply.attached {
        true => {
            format!("run {} of {flow} is under way already; following it (--new starts another)", reply.run)
        }
        false => format!("run {} of {flow}", reply.run),
    });
    if let Some(equal) = &reply.equal {
        talk(&format!(
            "run {equal} had the same content and has succeeded; its result: eclosion runs show {equal}"
        ));
    }
    watched(globals, session, &reply.run, out, &mut signals).await
}

pub(super) async fn attach(globals: &Globals, attach: arguments::Attach) -> Result<u8, Error> {
    let session = Session { client: session::attach(globals).await?, kernel: None };
    let mut signals = Signals::new()?;
    watched(globals, &session, &attach.run, attach.out, &mut signals).await
}

/// What runs here, before anything else takes time.
pub(super) async fn show_tree(globals: &Globals, session: &Session) -> Result<(), Error> {
    let tree = session.client.call::<Tree>(Empty {}).await?;
    let summary = render::tree::summary(&tree.actors);
    match &session.kernel {
        Some(kernel) => {
            let log = daemon::log_file(kernel.places());
            let instance = &kernel.places().instance;
            talk(&format!("a kernel of {instance} in this process: {summary}; its log in {}", log.display()));
            let small = render::tree::small(&tree.actors);
            if terminal::height().is_some_and(|height| small.lines().count() + RUN_LINES <= height) {
                talk(&small);
            }
        }
        None => talk(&format!("the kernel on {}: {summary}", globals.socket()?.display())),
    }
    Ok(())
}

/// Follows, and then shows how it ended.
pub(super) async fn watched(
    globals: &Globals,
    session: &Session,
    run: &RunId,
    out: Option<PathBuf>,
    signals: &mut Signals,
) -> Result<u8, Error> {
    let mut progress = Progress::new(terminal::draws());
    let voice = progress.voice();
    let followed = follow_or_leave(session, run, &mut progress, &voice, signals).await;
    progress.end();
    let (found, is_cancelled_here) = match followed? {
        (Followed::Left(code), _) => return Ok(code),
        (Followed::Over(found), is_cancelled_here) => (found, is_cancelled_here),
    };
    let code = match outcome(globals, &session.client, &found, out).await {
        // Who stopped reading still learns by the exit code how it ended.
        Err(why) if why.reason == exit::OUTPUT_CLOSED => match found.run.state {
            RunState::Succeeded => exit::OK,
            _ => exit::FAILED,
        },
        shown => shown?,
    };
    if let Some(kernel) = &session.kernel {
        if code != exit::OK {
            talk("the kernel in this process ends with the run; for more of it start one: eclosion up");
        }
        stay(&session.client, kernel, signals).await?;
    }
    Ok(if is_cancelled_here { exit::INTERRUPTED } else { code })
}

async fn follow_or_leave(
    session: &Session,
    run: &RunId,
    progress: &mut Progress,
    voice: &Voice,
    signals: &mut Signals,
) -> Result<(Followed, bool), Error> {
    let over = |found| Followed::Over(Box::new(found));
    let following = follow(&session.client, run, progress);
    tokio::pin!(following);
    let ended = tokio::select! {
        found = &mut following => return Ok((over(found.map_err(|why| goes_on(why, run))?), false)),
        ended = signals.next() => ended,
        code = kernel_ends(session.kernel.as_ref(), voice) => return Ok((Followed::Left(code), false)),
    };
    let goes_on = match &session.kernel {
        Some(_) => format!("run {run} goes on at the next start (eclosion up)"),
        None => format!("run {run} goes on: eclosion attach {run}"),
    };
    if ended == Ended::Terminated {
        voice.say(&goes_on);
        return Ok((Followed::Left(exit::TERMINATED), false));
    }
    voice.say(&format!("leaving: {goes_on}. Ctrl-C again cancels it"));
    tokio::select! {
        found = &mut following => return Ok((over(found?), false)),
        _ = signals.next() => {}
        () = tokio::time::sleep(SECOND_THOUGHT) => return Ok((Followed::Left(exit::INTERRUPTED), false)),
    }
    voice.say(&format!("cancelling run {run}"));
    let request = CancelRequest { run: run.clone(), reason: "Ctrl-C".into() };
    session.client.call::<Cancel>(request).await?;
    tokio::select! {
        found = &mut following => Ok((over(found?), true)),
        _ = signals.next() => Ok((Followed::Left(exit::INTERRUPTED), true)),
    }
}

/// A kernel that is gone takes no run with it.
fn goes_on(mut why: Error, run: &RunId) -> Error {
    if matches!(why.code, Code::Unavailable | Code::Unknown) {
        why.help =
            Some(format!("the run goes on when the kernel does: eclosion up, then eclosion attach {run}"));
    }
    why
}

/// Somebody stopped the kernel in this process, or its supervision has given up.
async fn kernel_ends(kernel: Option<&Kernel>, voice: &Voice) -> u8 {
    let Some(kernel) = kernel else { return std::future::pending().await };
    tokio::select! {
        // A kernel that has given up has stopped as well.
        biased;
        why = kernel.escalated() => {
            voice.say(&format!("the kernel gave up: {why}"));
            exit::INTERNAL
        }
        _ = kernel.stopped() => {
            voice.say("somebody stopped the kernel; unfinished runs go on at its next start");
            exit::UNREACHABLE
        }
    }
}

/// Shows how a run ended.
async fn outcome(
    globals: &Globals,
    client: &Client,
    found: &GetReply,
    out: Option<PathBuf>,
) -> Result<u8, Error> {
    let run = &found.run;
    let took = duration(run.finished_at.unwrap_or_else(render::now).since_ms(run.started_at));
    if run.state != RunState::Succeeded {
        return failed(globals, client, found, &took).await;
    }
    let out = out.unwrap_or_else(|| Path::new("eclosion-out").join(run.run.as_str()));
    let fetched = result::of_run(client, found, &out).await?;
    let reused = render::run::reused(run).map(|reused| format!("; {reused}")).unwrap_or_default();
    talk(&format!("run {} succeeded in {took}{reused}", run.run));
    let Some(fetched) = fetched else { return Ok(exit::OK) };
    if globals.json {
        let (result, files) = (&fetched.value, &fetched.files);
        document(
            "run",
            &json!({"run": run.run, "state": run.state, "flow": run.flow, "took_ms": took_ms(found),
            "tasks": run.counts, "cache": run.cache, "result": result, "files": files}),
        )?;
        return Ok(exit::OK);
    }
    print(&render::value::text(&fetched.value, &fetched.order))?;
    Ok(exit::OK)
}

fn took_ms(found: &GetReply) -> Option<u64> {
    found.run.finished_at.map(|end| end.since_ms(found.run.started_at))
}

/// What went wrong, in the user's own terms, and what to do next.
async fn failed(globals: &Globals, client: &Client, found: &GetReply, took: &str) -> Result<u8, Error> {
    let run = &found.run;
    let why = client.call::<Why>(WhyRequest { run: run.run.clone(), task: None }).await?;
    talk(&format!("run {} {} after {took}: {}", run.run, word(&run.state), render::run::counts(run)));
    let failed: Vec<_> = found.tasks.iter().filter(|task| task.state == TaskState::Failed).collect();
    failed.iter().flat_map(|task| render::run::trouble(task)).for_each(|line| talk(&line));
    if let Some(error) = run.error.as_ref().filter(|_| failed.is_empty()) {
        talk(&format!("error: {}", render::error::text(error)));
    }
    // The help of an error stands below it already.
    let helps: Vec<_> = failed.iter().filter_map(|task| task.error.as_ref()?.help.as_deref()).collect();
    let is_new = |finding: &&String| !helps.iter().any(|help| finding.ends_with(help));
    why.findings.iter().filter(is_new).for_each(|finding| talk(finding));
    if globals.json {
        document(
            "run",
            &json!({"run": run.run, "state": run.state, "flow": run.flow, "took_ms": took_ms(found),
            "tasks": run.counts, "cache": run.cache, "error": run.error, "failed": failed, "findings": why.findings}),
        )?;
    }
    Ok(exit::FAILED)
}

/// The kernel in this process goes on for others that follow unfinished runs through it.
async fn stay(client: &Client, kernel: &Kernel, signals: &mut Signals) -> Result<(), Error> {
    let mut is_said = false;
    while others_follow(client).await? {
        if !is_said {
            talk("staying, as others follow their runs through this kernel; Ctrl-C ends it");
            is_said = true;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            _ = signals.next() => return Ok(()),
            _ = kernel.stopped() => return Ok(()),
        }
    }
    Ok(())
}

async fn others_follow(client: &Client) -> Result<bool, Error> {
    let tree = client.call::<Tree>(Empty {}).await?;
    let sessions = tree.actors.iter().filter(|row| row.address.starts_with("/sessions/")).count();
    if sessions <= 1 {
        return Ok(false);
    }
    let running = client.call::<List>(ListRequest { state: Some(RunState::Running), limit: 1 }).await?;
    Ok(!running.runs.is_empty())
}
