//! Runs that exist: list, show, cancel, what they printed, and why they wait or failed. And whether a flow could run.

use eclosion_schemas::ops::log::{Read, ReadRequest};
use eclosion_schemas::ops::run::{
    Cancel, CancelRequest, Get, List, ListRequest, RunRequest, Validate, ValidateRequest, Why, WhyRequest,
};
use eclosion_schemas::ops::{arbitration, pool};
use eclosion_schemas::view::{RunState, TaskState, TaskView};
use eclosion_schemas::{Error, RunId};

use super::calls;
use super::run::check_again;
use crate::arguments;
use crate::globals::Globals;
use crate::render::{self, table};
use crate::terminal::{document, print, print_advice, talk};
use crate::{exit, session};

/// Checks by the kernel's own rules; one is started here for the purpose if none listens.
pub(super) async fn validate(globals: &Globals, flow: &arguments::Flow) -> Result<u8, Error> {
    let request =
        super::run::request(globals, flow).await.map_err(|why| check_again(why, &flow.flow, &flow.set))?;
    let session = session::attach_or_start(globals).await?;
    let checked =
        session.client.call::<Validate>(ValidateRequest { flow: request.flow, set: request.set }).await;
    if let Some(kernel) = session.kernel {
        kernel.shutdown().await;
    }
    let plan = checked.map_err(|why| check_again(why, &flow.flow, &flow.set))?;
    if globals.json {
        document("plan", &plan)?;
        return Ok(exit::OK);
    }
    let rows = plan.tasks.iter().map(|task| {
        let instances =
            task.instances.map_or_else(|| "when it is known".to_owned(), |count| count.to_string());
        vec![task.task.clone(), task.function.clone(), instances, task.needs.join(" ")]
    });
    print(&table(&["task", "function", "instances", "needs"], rows))?;
    talk(&format!("{} can run: eclosion run {}", flow.flow, flow.flow));
    Ok(exit::OK)
}

pub(super) async fn list(globals: &Globals, state: Option<RunState>, limit: u32) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let list = client.call::<List>(ListRequest { state, limit }).await?;
    if globals.json {
        document("runs", &list)?;
        return Ok(exit::OK);
    }
    if list.runs.is_empty() {
        talk("there is no such run; start one: eclosion run FLOW.toml");
        return Ok(exit::OK);
    }
    let now = render::now();
    let rows = list.runs.iter().map(|run| {
        let started = format!("{} ago", render::duration(now.since_ms(run.started_at)));
        let took = render::duration(run.finished_at.unwrap_or(now).since_ms(run.started_at));
        vec![
            run.run.to_string(),
            run.flow.clone(),
            render::word(&run.state),
            started,
            took,
            render::run::counts_with_reused(run),
        ]
    });
    print(&table(&["run", "flow", "state", "started", "took", "tasks"], rows))?;
    if list.cut > 0 {
        talk(&format!(
            "{} more were cut: eclosion runs ls --limit {}",
            list.cut,
            u64::from(limit) + list.cut
        ));
    }
    Ok(exit::OK)
}

pub(super) async fn show(globals: &Globals, run: RunId) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let found = client.call::<Get>(RunRequest { run }).await?;
    if globals.json {
        document("run-tasks", &found)?;
        return Ok(exit::OK);
    }
    print(&render::run::head(&found.run))?;
    print(&render::run::tasks(&found.tasks))?;
    if let Some(error) = &found.run.error {
        talk(&render::error::text(error));
    }
    Ok(exit::OK)
}

pub(super) async fn cancel(globals: &Globals, run: RunId, reason: String) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let reply = client.call::<Cancel>(CancelRequest { run: run.clone(), reason }).await?;
    if globals.json {
        document("cancel", &serde_json::json!({"run": run, "state": reply.state}))?;
    } else if reply.state.is_final() {
        let ended = render::word(&reply.state);
        talk(&format!("run {run} has finished already ({ended}); there is nothing to cancel"));
    } else {
        talk(&format!("run {run} is {}; nothing of it commits any more", render::word(&reply.state)));
    }
    Ok(exit::OK)
}

pub(super) async fn logs(globals: &Globals, logs: arguments::Logs) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let request = ReadRequest { run: logs.run, task: logs.task, attempt: None, follow: logs.follow };
    let is_one = request.task.is_some() || calls::is_call(request.run.as_str());
    let mut lines = client.stream::<Read>(request).await?;
    while let Some(line) = lines.next().await {
        let line = line?;
        match (globals.json, is_one) {
            (true, _) => document("line", &line)?,
            (false, true) => print(&line.text)?,
            (false, false) => print(&format!("{}#{} {}", line.task, line.attempt, line.text))?,
        }
    }
    if lines.reply().await?.lines == 0 && !globals.json {
        talk("nothing was printed");
    }
    Ok(exit::OK)
}

pub(super) async fn why(globals: &Globals, why: arguments::Why) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    if calls::is_call(why.run.as_str()) {
        return calls::why(globals, &client, why.run.as_str()).await;
    }
    let mut reply = client.call::<Why>(WhyRequest { run: why.run, task: why.task }).await?;
    if reply.tasks.iter().any(|task| task.state == TaskState::Ready) {
        let arbitration = client.call::<arbitration::Status>(arbitration::StatusRequest {}).await?;
        add_reasons(&mut reply.tasks, arbitration.waiting);
        let pool = client.call::<pool::Status>(pool::StatusRequest {}).await?;
        add_reasons(&mut reply.tasks, pool.pending);
    }
    if globals.json {
        document("why", &reply)?;
        return Ok(exit::OK);
    }
    if reply.findings.is_empty() {
        print("nothing waits and nothing failed")?;
    }
    reply.findings.iter().try_for_each(|finding| print_advice(finding))?;
    for task in &reply.tasks {
        render::run::trouble(task).iter().try_for_each(|line| print_advice(&format!("  {line}")))?;
        let waits = task.pending.iter().filter(|_| task.state == TaskState::Ready);
        let mut waits = waits.map(render::run::pending_and_next);
        waits.try_for_each(|line| print_advice(&format!("  {}: {line}", task.task)))?;
    }
    Ok(exit::OK)
}

/// The DAG tracker knows that a task is ready; what it waits for is arbitration's to say, and the pool's.
fn add_reasons(tasks: &mut [TaskView], waiting: Vec<arbitration::Waiting>) {
    for waiting in waiting {
        let Some(wished) = waiting.task else { continue };
        let of_wish = |task: &&mut TaskView| task.run == wished.run && task.task == wished.task;
        if let Some(task) = tasks.iter_mut().find(of_wish) {
            task.pending.extend(waiting.reasons);
        }
    }
}
