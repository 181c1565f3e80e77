//! The way to a kernel: one that listens, or one inside this process.
//!
//! `run` needs no daemon. Whoever comes first takes the lock of the state directory, serves the socket and so becomes
//! the kernel that later ones attach to; the lock decides, so two that start at once still end as one.

use std::path::Path;
use std::time::Duration;

use eclosion::Kernel;
use eclosion_client::Client;
use eclosion_schemas::{Code, Error};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::daemon;
use crate::globals::Globals;
use crate::telemetry;

/// A kernel that has the lock and does not listen yet gets this long.
const STARTING: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A client and, if nobody listened, the kernel that it is a client of.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) kernel: Option<Kernel>,
}

/// A client whose calls belong to this command.
pub(crate) async fn connect(socket: impl AsRef<Path>) -> Result<Client, Error> {
    Client::connect_with(socket, telemetry::connect_options()).await
}

/// A client of the kernel that listens.
pub(crate) async fn attach(globals: &Globals) -> Result<Client, Error> {
    connect(globals.socket()?).await
}

/// The process that listens there, by what the system knows of it: one that hangs cannot be asked.
pub(crate) async fn listener(socket: &Path) -> Option<i32> {
    UnixStream::connect(socket).await.ok()?.peer_cred().ok()?.pid()
}

/// A client of the kernel that listens, or else of one started here.
pub(crate) async fn attach_or_start(globals: &Globals) -> Result<Session, Error> {
    let (options, socket) = (globals.options()?, globals.socket()?);
    match connect(&socket).await {
        Ok(client) => return Ok(Session { client, kernel: None }),
        Err(refusal) if refusal.reason != "kernel.unreachable" || globals.names_a_running_kernel() => {
            return Err(refusal);
        }
        Err(_) => {}
    }
    options.places.make()?;
    daemon::log_to_file(&daemon::log_file(&options.places))?;
    globals.log();
    daemon::become_kernel();
    match daemon::start(options).await {
        Ok(kernel) => Ok(Session { client: connect(&socket).await?, kernel: Some(kernel) }),
        Err(refusal) if refusal.code == Code::Conflict => {
            let client = connect_until(&socket, Instant::now() + STARTING).await.map_err(|_| refusal)?;
            Ok(Session { client, kernel: None })
        }
        Err(refusal) => Err(refusal),
    }
}

/// Tries until somebody listens. Nothing tells a stranger that a socket is bound, so it is looked for.
pub(crate) async fn connect_until(socket: &Path, deadline: Instant) -> Result<Client, Error> {
    loop {
        match connect(socket).await {
            Err(refusal) if refusal.reason == "kernel.unreachable" && Instant::now() < deadline => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            connected => return connected,
        }
    }
}
