//! What each command does: asks a kernel and shows what it answers. One file per family.

mod arb;
mod artifact;
mod cache;
mod calls;
mod config;
mod doctor;
mod follow;
mod gc;
mod kernel;
mod operate;
mod operation;
mod pool;
mod rerun;
mod result;
mod run;
mod runs;
mod schedule;
mod service;

use clap::CommandFactory;
use eclosion_schemas::Error;
use eclosion_schemas::ops::actor;

use crate::arguments::{Arguments, Command, Runs};
use crate::globals::Globals;
use crate::{exit, terminal};

/// Performs a command; the number is what the process ends with.
pub(crate) async fn perform(arguments: Arguments) -> Result<u8, Error> {
    let Arguments { flags, command } = arguments;
    // Not before: `config`, `doctor` and `completion` work where it is wrong.
    let globals = || Globals::read(&flags);
    match command {
        Command::Run(run) => run::run(&globals()?, run).await,
        Command::Rerun(rerun) => rerun::rerun(&globals()?, rerun).await,
        Command::Attach(attach) => run::attach(&globals()?, attach).await,
        Command::Validate(flow) => runs::validate(&globals()?, &flow).await,
        Command::Up(up) => kernel::up(&globals()?, &up).await,
        Command::Down(down) => kernel::down(&globals()?, &down).await,
        Command::Status => kernel::status(&globals()?).await,
        Command::Tree(tree) => kernel::tree(&globals()?, &tree).await,
        Command::Ps => operate::processes(&globals()?).await,
        Command::Events(events) => operate::events(&globals()?, events).await,
        Command::Restart(on) => operate::act::<actor::Restart>(&globals()?, on).await,
        Command::Kill(on) => operate::act::<actor::Kill>(&globals()?, on).await,
        Command::Pause(on) => operate::act::<actor::Pause>(&globals()?, on).await,
        Command::Resume(on) => operate::act::<actor::Resume>(&globals()?, on).await,
        Command::Drain(drain) => operate::drain(&globals()?, drain).await,
        Command::Dead(dead) => operate::dead(&globals()?, dead).await,
        Command::Audit(audit) => operate::audit(&globals()?, audit).await,
        Command::Runs(Runs::Ls { state, limit }) => runs::list(&globals()?, state, limit).await,
        Command::Runs(Runs::Show { run }) => runs::show(&globals()?, run).await,
        Command::Runs(Runs::Cancel { run, reason }) => runs::cancel(&globals()?, run, reason).await,
        Command::Logs(logs) => runs::logs(&globals()?, logs).await,
        Command::Why(why) => runs::why(&globals()?, why).await,
        Command::Schedule(schedule) => schedule::perform(&globals()?, schedule).await,
        Command::Artifact(artifact) => artifact::perform(&globals()?, artifact).await,
        Command::Cache(cache) => cache::perform(&globals()?, cache).await,
        Command::Arb(arb) => arb::perform(&globals()?, arb).await,
        Command::Service(service) => service::perform(&globals()?, service).await,
        Command::Gc(gc) => gc::perform(&globals()?, gc).await,
        Command::Pool { act } => pool::perform(&globals()?, act).await,
        Command::Describe(describe) => operation::describe(&globals()?, describe).await,
        Command::Call(call) => operation::call(&globals()?, call).await,
        Command::Sub(sub) => operation::subscribe(&globals()?, sub).await,
        Command::Config(config) => config::perform(&flags, &config),
        Command::Doctor => doctor::doctor(&flags).await,
        Command::Completion { shell } => completion(shell),
    }
}

fn completion(shell: clap_complete::Shell) -> Result<u8, Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "eclosion", &mut script);
    terminal::print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(exit::OK)
}
