//! `rerun`: a finished run once more, of which only that is computed which has to be.
//!
//! The flow is read again from where the run's own came from, so that an edit is seen; one that came from no file is run
//! as it was recorded. What is taken over and what computed is the DAG tracker's to say: here it is asked and shown.
//! The new run is followed as any other.

use eclosion_client::Client;
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::ops::rerun::{Recorded, Rerun, RerunFate, RerunReply, RerunRequest, RerunStep};
use eclosion_schemas::ops::run::RunRequest;
use eclosion_schemas::{Error, RunId};

use super::{kernel, run};
use crate::daemon::Signals;
use crate::globals::Globals;
use crate::render::table;
use crate::session::{self, Session};
use crate::terminal::{document, print, talk};
use crate::{arguments, exit, values};

pub(super) async fn rerun(globals: &Globals, rerun: arguments::rerun::Rerun) -> Result<u8, Error> {
    if rerun.detach {
        return detached(globals, &rerun).await;
    }
    let session = session::attach_or_start(globals).await?;
    let outcome = match rerun.dry_run {
        true => previewed(globals, &session.client, &rerun).await,
        false => followed(globals, &session, rerun).await,
    };
    if let Some(kernel) = &session.kernel {
        run::shut_down(kernel).await?;
    }
    outcome
}

/// Only a kernel in the background outlives this process.
async fn detached(globals: &Globals, rerun: &arguments::rerun::Rerun) -> Result<u8, Error> {
    let client = match globals.names_a_running_kernel() {
        true => session::attach(globals).await?,
        false => kernel::start(globals, false).await?.0,
    };
    let reply = asked(globals, &client, rerun).await?;
    if globals.json {
        document("rerun", &reply)?;
        return Ok(exit::OK);
    }
    if let Some(run) = &reply.run {
        print(run.as_str())?;
        talk(&format!("{}; follow it: eclosion attach {run}", summary(&rerun.run, &reply)));
    }
    Ok(exit::OK)
}

async fn previewed(globals: &Globals, client: &Client, rerun: &arguments::rerun::Rerun) -> Result<u8, Error> {
    let reply = asked(globals, client, rerun).await?;
    if globals.json {
        document("rerun", &reply)?;
        return Ok(exit::OK);
    }
    print(&table(&["task", "result", "why"], reply.steps.iter().map(|step| row(&rerun.run, step))))?;
    talk(&format!("nothing was started; without --dry-run, {}", summary(&rerun.run, &reply)));
    Ok(exit::OK)
}

async fn followed(globals: &Globals, session: &Session, rerun: arguments::rerun::Rerun) -> Result<u8, Error> {
    let mut signals = Signals::new()?;
    let reply = asked(globals, &session.client, &rerun).await?;
    let Some(new) = &reply.run else {
        return Err(Error::internal("run.rerun", "the kernel started no run and gave no reason"));
    };
    run::show_tree(globals, session).await?;
    talk(&format!("run {new}: {}", summary(&rerun.run, &reply)));
    run::watched(globals, session, new, rerun.out, &mut signals).await
}

async fn asked(
    globals: &Globals,
    client: &Client,
    rerun: &arguments::rerun::Rerun,
) -> Result<RerunReply, Error> {
    let directory = std::env::current_dir().unwrap_or_default();
    let request = RerunRequest {
        run: rerun.run.clone(),
        from: rerun.from.clone(),
        flow: flow_now(globals, client, &rerun.run).await?,
        set: values::parameters(&rerun.set, &directory)?,
        keep: rerun.keep,
        dry_run: rerun.dry_run,
        idem: None,
    };
    client.call::<Rerun>(request).await
}

/// The flow as its file has it now; none, if it came from no file.
async fn flow_now(globals: &Globals, client: &Client, run: &RunId) -> Result<Option<FlowSpec>, Error> {
    let recorded = client.call::<Recorded>(RunRequest { run: run.clone() }).await?;
    match recorded.flow.source {
        Some(source) => {
            run::flow(globals, &source).await.map(Some).map_err(|why| run::check_again(why, &source, &[]))
        }
        None => Ok(None),
    }
}

fn row(old: &RunId, step: &RerunStep) -> Vec<String> {
    let result = match step.fate {
        RerunFate::Taken => format!("reused from {old}"),
        RerunFate::Partly => format!("{} reused from {old}, others computed", step.taken),
        RerunFate::Computed => "computed".to_owned(),
    };
    vec![step.task.clone(), result, step.why.clone()]
}

fn summary(old: &RunId, reply: &RerunReply) -> String {
    let count = |is_it: fn(RerunFate) -> bool| reply.steps.iter().filter(|step| is_it(step.fate)).count();
    let taken = count(|fate| fate != RerunFate::Computed);
    let all = reply.steps.len();
    format!("results of {taken} of {all} tasks are taken over from run {old}")
}
