//! Leases of this program: for a time, or for as long as a command runs.
//!
//! ```text
//! hold: wait ─► run the command ─┬─ it ends ──► give back, exit as it did
//!                                ├─ the kernel is gone ──► the same key at the next kernel, within PATIENCE ─► go on
//!                                ├─ told to end (SIGTERM, SIGHUP) ──► so is the command
//!                                └─ the lease is over, or another's ──► kill the command and what it has started
//! ```

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use eclosion_client::Client;
use eclosion_client::call::Streaming;
use eclosion_schemas::ops::lease::{
    Acquire, Held, Hold, Release, ReleaseRequest, Renew, RenewRequest, Request, Standing,
};
use eclosion_schemas::suggest::shell_word;
use eclosion_schemas::{Code, Error, LeaseId, LeaseKey};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::Instant;

use crate::arguments::arb;
use crate::exit;
use crate::globals::Globals;
use crate::render;
use crate::session;
use crate::terminal::{document, print, talk};

/// For who says nothing about how long to wait.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// Beyond the time to wait, so that it is the kernel that says who holds it.
const SPARE: Duration = Duration::from_secs(10);
/// How long a kernel that is gone is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

fn request(arguments: &arb::Acquire, key: Option<LeaseKey>) -> Result<Request, Error> {
    Ok(Request {
        locks: arguments.locks.clone(),
        resources: counted(&arguments.resource)?,
        rates: counted(&arguments.rate)?,
        ttl_ms: arguments.ttl,
        wait_ms: arguments.wait,
        purpose: arguments.purpose.clone(),
        key,
        ..Request::default()
    })
}

fn counted(amounts: &[(String, u64)]) -> Result<BTreeMap<String, u64>, Error> {
    let mut counted = BTreeMap::new();
    for (name, amount) in amounts {
        if counted.insert(name.clone(), *amount).is_some() {
            let text = format!("`{name}` is named twice");
            return Err(Error::invalid("lease.request", text).help("eclosion arb acquire --help"));
        }
    }
    Ok(counted)
}

pub(super) async fn acquire(
    globals: &Globals,
    client: &Client,
    arguments: arb::Acquire,
) -> Result<u8, Error> {
    if arguments.ttl.is_none() {
        let what = arguments.locks.join(" ");
        let text = "a lease that no command holds needs an end";
        return Err(Error::invalid("lease.ttl", text).help(format!(
            "eclosion arb acquire {what} --ttl 10m, or for as long as a command runs: eclosion arb acquire {what} -- COMMAND"
        )));
    }
    let wait = arguments.wait.map_or(FOREVER, |wait_ms| Duration::from_millis(wait_ms) + SPARE);
    let held = client.call::<Acquire>(request(&arguments, None)?).deadline(wait).await?;
    if globals.json {
        document("lease", &held)?;
        return Ok(exit::OK);
    }
    print(held.lease.as_str())?;
    let ends = held.until.map(|until| render::duration(until.since_ms(render::now())));
    talk(&format!(
        "it ends in {}; before: eclosion arb release {} --key {}",
        ends.unwrap_or_default(),
        held.lease,
        held.key
    ));
    Ok(exit::OK)
}

pub(super) async fn renew(
    globals: &Globals,
    client: &Client,
    lease: LeaseId,
    ttl_ms: u64,
) -> Result<u8, Error> {
    let renewed = client.call::<Renew>(RenewRequest { lease: lease.clone(), ttl_ms }).await?;
    if globals.json {
        document("lease-renewed", &renewed)?;
    } else {
        talk(&format!("{lease} ends in {}", render::duration(renewed.until.since_ms(render::now()))));
    }
    Ok(exit::OK)
}

pub(super) async fn release(
    globals: &Globals,
    client: &Client,
    request: ReleaseRequest,
) -> Result<u8, Error> {
    let reply = client.call::<Release>(request).await?;
    if globals.json {
        document("lease-released", &reply)?;
        return Ok(exit::OK);
    }
    let (would, lose) = if reply.done { ("", "lost") } else { ("would ", "lose") };
    talk(&format!(
        "{} {would}{lose} {}; {} wait for something of it",
        reply.holder, reply.lease, reply.waiting
    ));
    Ok(exit::OK)
}

/// What a shell ends with that has found no program.
const SHELL_NOT_FOUND: u8 = 127;

/// Takes it, runs the command, gives it back.
pub(super) async fn hold(globals: &Globals, client: Client, arguments: arb::Acquire) -> Result<u8, Error> {
    let mut holding = Holding::begin(client, request(&arguments, None)?).await?;
    // Not while it waits, which they end; and before there is a command that would be left alone.
    let mut told = Told::listen()?;
    let mut child = match spawn(&arguments.command, &holding.held) {
        Ok(child) => child,
        Err(why) => {
            holding.give_back().await?;
            return Err(why);
        }
    };
    let ended = loop {
        tokio::select! {
            ended = child.wait() => break ended.map_err(|why| not_run(&arguments.command, &why))?,
            lost = holding.lost(globals, &arguments) => match lost {
                Ok(()) => {}
                Err(why) => {
                    kill(&mut child).await;
                    return Err(why);
                }
            },
            // It ends as it likes, and the lease with it.
            signal = told.next() => pass_on(&child, signal),
        }
    };
    holding.give_back().await?;
    let code = code_of(ended);
    if code == SHELL_NOT_FOUND {
        let program = arguments.command.first().map(String::as_str).unwrap_or_default();
        talk(&format!("{program} ended with 127, which shells say where there is no such program"));
    }
    Ok(code)
}

struct Holding {
    client: Client,
    /// None while it is looked for at another kernel.
    stream: Option<Streaming<Hold>>,
    held: Held,
}

impl Holding {
    async fn begin(client: Client, request: Request) -> Result<Self, Error> {
        let mut stream = client.stream::<Hold>(request).await?;
        let mut told = false;
        while let Some(item) = stream.next().await {
            match item? {
                Standing { held: Some(held), .. } => return Ok(Self { client, stream: Some(stream), held }),
                Standing { reasons, .. } if !told => {
                    told = true;
                    reasons.iter().for_each(|reason| talk(&render::run::pending(reason)));
                }
                Standing { .. } => {}
            }
        }
        Err(stream.reply().await.err().unwrap_or_else(|| Error::internal("lease.hold", "it never began")))
    }

    /// At a kernel that is there within the patience, and is not about to go.
    async fn begin_anew(globals: &Globals, request: Request) -> Result<Self, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            let client = session::connect_until(&globals.socket()?, until).await?;
            match Self::begin(client, request.clone()).await {
                Err(why) if why.code == Code::Unavailable && Instant::now() < until => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Returns once it was taken up again at another kernel. Cancel-safe.
    ///
    /// # Errors
    /// The lease is over.
    async fn lost(&mut self, globals: &Globals, arguments: &arb::Acquire) -> Result<(), Error> {
        if let Some(stream) = &mut self.stream {
            while let Some(Ok(_)) = stream.next().await {}
        }
        let over = |reason: String| {
            let text = format!("lease {} is over: {reason}; the command was killed", self.held.lease);
            Error::new(Code::Conflict, "lease.lost", text).help("eclosion arb ls")
        };
        if let Some(stream) = self.stream.take() {
            match stream.reply().await {
                Ok(ended) => return Err(over(ended.reason)),
                Err(why) if why.code == Code::Unavailable || why.code == Code::Unknown => {}
                Err(why) => return Err(why),
            }
        }
        let request = request(arguments, Some(self.held.key.clone()))?;
        let again = Request { again: Some(self.held.lease.clone()), ..request };
        *self = Self::begin_anew(globals, again).await.map_err(|why| match why.reason.as_str() {
            "lease.over" => over("it ended while no kernel was there".into()),
            _ => why,
        })?;
        Ok(())
    }

    async fn give_back(self) -> Result<(), Error> {
        let (lease, key) = (self.held.lease, Some(self.held.key));
        let request = ReleaseRequest { lease, reason: String::new(), key, dry_run: false };
        match self.client.call::<Release>(request).await {
            // It was over in the same moment.
            Err(why) if why.reason == "lease.over" => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

fn spawn(command: &[String], held: &Held) -> Result<Child, Error> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| Error::invalid("lease.command", "no command"))?;
    Command::new(program)
        .args(arguments)
        .env("ECLOSION_LEASE", held.lease.as_str())
        .env("ECLOSION_LEASE_FENCE", held.fence.to_string())
        .kill_on_drop(true)
        .spawn()
        .map_err(|why| not_run(command, &why))
}

/// What this program is told by others; Ctrl-C of a terminal the command has as well.
struct Told {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
}

impl Told {
    fn listen() -> Result<Self, Error> {
        let listen =
            |kind| unix::signal(kind).map_err(|why| Error::internal("lease.signals", why.to_string()));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// None for what the command has been told already.
    async fn next(&mut self) -> Option<Signal> {
        tokio::select! {
            _ = self.interrupt.recv() => None,
            _ = self.terminate.recv() => Some(Signal::TERM),
            _ = self.hang_up.recv() => Some(Signal::HUP),
        }
    }
}

fn pass_on(child: &Child, signal: Option<Signal>) {
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let (Some(pid), Some(signal)) = (pid, signal)
        && let Err(why) = rustix::process::kill_process(pid, signal)
    {
        talk(&format!("the command could not be told to end: {why}"));
    }
}

/// With all that it has started: whoever has the lease next must be alone.
async fn kill(child: &mut Child) {
    if let Some(pid) = child.id() {
        eclosion::kill_tree(pid);
    }
    if let Err(why) = child.kill().await {
        talk(&format!("the command could not be killed: {why}"));
    }
}

fn not_run(command: &[String], why: &std::io::Error) -> Error {
    let program = command.first().map(String::as_str).unwrap_or_default();
    let text = format!("the command cannot be run: {program}: {why}; the lease was given back");
    Error::invalid("lease.command", text)
        .help(format!("command -v {} says whether it is there", shell_word(program)))
}

/// As shells say it.
fn code_of(ended: ExitStatus) -> u8 {
    let code = ended.code().or_else(|| ended.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED)
}
