//! The kernel itself: start it, stop it, look at it.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use eclosion::Places;
use eclosion_client::Client;
use eclosion_schemas::ops::kernel::{Empty, Status, StatusReply, Stop, TrafficCounts, Tree};
use eclosion_schemas::ops::pool;
use eclosion_schemas::{Code, Error};
use serde::Serialize;
use tokio::time::Instant;

use crate::arguments;
use crate::globals::Globals;
use crate::render;
use crate::terminal::{document, print, talk};
use crate::{daemon, exit, session};

/// Long enough for a long journal; what is broken says so at once.
const START: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const WATCH: Duration = Duration::from_secs(1);
/// For a program that embeds its kernel to hear that it is to stop.
const HEARD: Duration = Duration::from_secs(5);
/// Of the log, when the kernel ended before it was ready.
const LOG_TAIL_BYTES: usize = 2_000;

pub(super) async fn up(globals: &Globals, up: &arguments::Up) -> Result<u8, Error> {
    if up.foreground {
        let mut options = globals.options()?;
        options.accept_loss = up.accept_loss;
        daemon::log();
        globals.log();
        daemon::become_kernel();
        return daemon::serve(options).await;
    }
    let (client, started) = start(globals, up.accept_loss).await?;
    let status = client.call::<Status>(Empty {}).await?;
    let socket = globals.socket()?;
    talk(&match started {
        true => format!("the kernel is up, pid {}", status.pid),
        false => format!("the kernel is up already, pid {}", status.pid),
    });
    if globals.json {
        let fields = serde_json::json!({"socket": socket, "pid": status.pid, "started": started});
        document("up", &fields)?;
    } else {
        print(&socket.display().to_string())?;
    }
    Ok(exit::OK)
}

/// A client of a kernel in the background, started now if there is none.
pub(super) async fn start(globals: &Globals, accept_loss: bool) -> Result<(Client, bool), Error> {
    let places = globals.places()?;
    match session::connect(&places.socket).await {
        Ok(client) => return Ok((client, false)),
        Err(refusal) if refusal.reason != "kernel.unreachable" => return Err(refusal),
        Err(_) => {}
    }
    places.make()?;
    let mut child = spawn(globals, &places, accept_loss)?;
    Ok((ready(&places, &mut child).await?, true))
}

fn spawn(globals: &Globals, places: &Places, accept_loss: bool) -> Result<Child, Error> {
    let path = daemon::log_file(places);
    let failed = |what: &Path, why: std::io::Error| {
        Error::new(Code::Unavailable, "up.start", format!("{}: {why}", what.display()))
            .help("eclosion doctor")
    };
    std::fs::create_dir_all(places.logs()).map_err(|why| failed(&places.logs(), why))?;
    let log = OpenOptions::new().create(true).append(true).open(&path).map_err(|why| failed(&path, why))?;
    let binary = std::env::current_exe().map_err(|why| failed(Path::new("/proc/self/exe"), why))?;
    let mut command = Command::new(&binary);
    // For whoever looks at the list of processes.
    command.args(["up", "--foreground", "--json", "--instance", &places.instance]);
    globals.hand_on(&mut command);
    if accept_loss {
        command.arg("--accept-loss");
    }
    // A group of its own: Ctrl-C at this terminal is not meant for it.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).current_dir("/");
    command.spawn().map_err(|why| failed(&binary, why))
}

async fn ready(places: &Places, child: &mut Child) -> Result<Client, Error> {
    let deadline = Instant::now() + START;
    loop {
        if let Ok(client) = session::connect(&places.socket).await
            && let Ok(status) = client.call::<Status>(Empty {}).await
            && status.state != "starting"
        {
            return Ok(client);
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(refusal(places, child).unwrap_or_else(|| ended(places, status)));
        }
        if Instant::now() >= deadline {
            let text = format!("the kernel (pid {}) did not get ready in time", child.id());
            return Err(Error::new(Code::Deadline, "up.ready", text)
                .help(format!("less {}", daemon::log_file(places).display())));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The error that it ended with, as it printed it. A kernel prints nothing else. Its help repeats the flag that we gave
/// it; whoever reports it here repeats those that the user gave.
fn refusal(places: &Places, child: &mut Child) -> Option<Error> {
    const BYTES_MAX: u64 = 64 * 1024;
    let mut said = String::new();
    child.stdout.take()?.take(BYTES_MAX).read_to_string(&mut said).ok()?;
    let mut error: Error = serde_json::from_str(said.lines().last()?).ok()?;
    let ours = format!("eclosion --instance {} ", places.instance);
    error.help = error.help.map(|help| help.replace(&ours, "eclosion "));
    Some(error)
}

/// It did not say why. Its last words are in its log.
fn ended(places: &Places, status: std::process::ExitStatus) -> Error {
    let path = daemon::log_file(places);
    let code = match status.code() {
        Some(4) => Code::Conflict,
        Some(8) => Code::Denied,
        Some(10) => Code::DataLoss,
        _ => Code::Unavailable,
    };
    let mut tail = Vec::new();
    let read = std::fs::File::open(&path).and_then(|mut file| file.read_to_end(&mut tail));
    let tail = &tail[tail.len().saturating_sub(LOG_TAIL_BYTES)..];
    let mut error = Error::new(code, "up.ended", format!("the kernel ended before it was ready: {status}"))
        .help(format!("less {}", path.display()));
    if read.is_ok() {
        let text = String::from_utf8_lossy(tail).into_owned();
        error.causes = text.lines().rev().take(6).map(str::to_owned).collect();
        error.causes.reverse();
    }
    error
}

pub(super) async fn down(globals: &Globals, down: &arguments::Down) -> Result<u8, Error> {
    let socket = globals.socket()?;
    let client = match session::connect(&socket).await {
        Err(why) if why.reason == "kernel.silent" => {
            return Err(match session::listener(&socket).await {
                Some(pid) => why.help(format!("kill -9 {pid}; the next `eclosion up` goes on with its runs")),
                None => why,
            });
        }
        connected => connected?,
    };
    let status = client.call::<Status>(Empty {}).await?;
    // A journal that is read-only concludes nothing any more.
    let left = match down.now || status.state == "read_only" {
        true => 0,
        false => drain(&client, Duration::from_secs(down.timeout)).await,
    };
    if left > 0 {
        talk(&format!("{left} attempts were not finished in time; the next kernel tries them again"));
    }
    client.call::<Stop>(Empty {}).await?;
    // A program that embeds its kernel may live on without it.
    let is_ours = is_this_binary(status.pid);
    let deadline = Instant::now() + if is_ours { START } else { HEARD };
    // The socket's file goes last; a connection may end earlier.
    while socket.exists() && session::connect(&socket).await.is_ok() || is_ours && alive(status.pid) {
        if Instant::now() >= deadline {
            return Err(still_there(&client, status.pid, is_ours).await);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    talk("the kernel is down; unfinished runs go on at its next start");
    if globals.json {
        document("down", &serde_json::json!({"pid": status.pid, "unfinished": left}))?;
    }
    Ok(exit::OK)
}

/// Until no worker has an attempt in hand, or the time is up. Gives how many have. A pool that does not answer is no
/// reason not to stop its kernel.
async fn drain(client: &Client, patience: Duration) -> usize {
    let begun = Instant::now();
    let reason = "the kernel stops".to_owned();
    let request = pool::DrainRequest { reason, ends_with_kernel: true, ..pool::DrainRequest::default() };
    if client.call::<pool::Drain>(request).await.is_err() {
        return 0;
    }
    loop {
        let Ok(pool) = client.call::<pool::Status>(pool::StatusRequest {}).await else { return 0 };
        let in_hand = pool.workers.iter().filter(|worker| worker.task.is_some()).count();
        if in_hand == 0 || begun.elapsed() >= patience {
            return in_hand;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Whether the kernel is a process of ours, which ends when it is told to.
fn is_this_binary(pid: u32) -> bool {
    let of = |link: &str| std::fs::read_link(link).ok();
    match (of(&format!("/proc/{pid}/exe")), of("/proc/self/exe")) {
        // Replaced by a newer one it is shown as deleted, and is ours all the same.
        (Some(its), Some(own)) => its.file_name().zip(own.file_name()).is_some_and(|(its, own)| {
            its.to_string_lossy().trim_end_matches(" (deleted)")
                == own.to_string_lossy().trim_end_matches(" (deleted)")
        }),
        _ => false,
    }
}

/// It was told to stop and is there all the same. What it had drained for that serves again.
async fn still_there(client: &Client, pid: u32, is_ours: bool) -> Error {
    let resume = pool::ResumeRequest {
        reason: "the kernel did not stop".to_owned(),
        ..pool::ResumeRequest::default()
    };
    // One that does not answer has nothing that could be resumed.
    let _ = client.call::<pool::Resume>(resume).await;
    let kill = format!("kill {pid} ends it; the next kernel there goes on with its runs");
    if is_ours {
        return Error::new(
            Code::Deadline,
            "down.deadline",
            format!("the kernel, pid {pid}, did not end in time"),
        )
        .help(kill);
    }
    let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let text = format!(
        "the kernel is part of the program {} (pid {pid}), which was told and did not stop it: it does not wait for `Kernel::stopped()`",
        program.trim()
    );
    Error::new(Code::Deadline, "down.unheard", text).help(kill)
}

/// A zombie that nobody waited for does not count: it holds nothing any more.
fn alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

pub(super) async fn status(globals: &Globals) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let status = client.call::<Status>(Empty {}).await?;
    let socket = globals.socket()?.display().to_string();
    if globals.json {
        document("status", &Reached { status: &status, socket: &socket })?;
    } else {
        print(&shown(&status, socket))?;
        status.findings.iter().for_each(|finding| talk(&format!("finding: {finding}")));
    }
    Ok(exit::OK)
}

/// A kernel, and where it was reached.
#[derive(Serialize)]
struct Reached<'a> {
    #[serde(flatten)]
    status: &'a StatusReply,
    socket: &'a str,
}

fn shown(status: &StatusReply, socket: String) -> String {
    let synced = match status.appended == status.synced {
        true => format!("{}, all of it on disk", status.appended),
        false => {
            format!("{} appended, {} written, {} on disk", status.appended, status.written, status.synced)
        }
    };
    render::pairs(&[
        ("kernel", format!("{}, pid {}", status.state, status.pid)),
        ("instance", status.instance.clone()),
        ("version", status.version.clone()),
        ("up", render::duration(status.uptime_ms)),
        ("epoch", status.epoch.to_string()),
        ("journal", synced),
        ("memory", render::bytes(status.rss_bytes)),
        ("clients", clients(&status.traffic)),
        ("state", status.state_dir.clone()),
        ("socket", socket),
    ])
}

fn clients(traffic: &TrafficCounts) -> String {
    let TrafficCounts { connections, streams, credit } = traffic;
    format!("{connections} connected, {streams} open calls and subscriptions, {credit} items granted to them")
}

pub(super) async fn tree(globals: &Globals, tree: &arguments::Tree) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    loop {
        let reply = client.call::<Tree>(Empty {}).await?;
        if globals.json {
            document("tree", &reply)?;
        } else {
            print(&render::tree::full(&reply.actors, crate::terminal::width()))?;
        }
        if !tree.watch {
            return Ok(exit::OK);
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH) => {}
            why = client.closed() => return Err(why),
        }
        if !globals.json {
            print("")?;
        }
    }
}
