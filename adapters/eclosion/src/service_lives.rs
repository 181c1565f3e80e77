//! Lives of services: implements the `Runner` of the actor of services over streaming calls to Python.
//!
//! ```text
//!   run ─► the life before is over ─► holder `/services/NAME` ─► pool.stream of eclosion.service:held
//!                                          │ its one item ─► service.up
//!                                          │ its reply    ─► service.down
//!                                          └ not wanted   ─► the call is dropped, and with it cancelled
//! ```
//!
//! The worker connects to the kernel's own socket as any program that serves an address (`services`): so the address is
//! closed, and its callers are told, in the moment in which its process dies. What a life costs beside is one call.
//!
//! It stands outside the actor and outlives its incarnations. Invariants: (1) a life is begun once, and after the life
//! before it has left its address. (2) The end of a life is reported, however it comes, unless nobody wants the life any
//! more or the kernel stops: then the next kernel begins another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use eclosion_bus::{Address, Bus, Call, Context, Item, Pending};
use eclosion_kernel::Kernel;
use eclosion_kernel::kernel::HOLDERS;
use eclosion_schemas::ops::pool::{CALLS, CallRequest, Stream};
use eclosion_schemas::ops::service::{
    Down, DownRequest, ServiceLife, ServiceSpec, ServiceState, ServiceView, Up, UpRequest,
};
use eclosion_schemas::view::{ActorRow, ActorState, TaskReport};
use eclosion_schemas::{Code, Error, Incarnation, Operation, Payload, Role, ServiceName, codec};
use eclosion_services::Runner;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::report::until_heard;
use crate::workers::lock;

/// What a worker is asked to run.
const HELD: &str = "eclosion.service:held";
/// How long an address may stay taken by a life that was told to end: the ladder ends what does not end by itself.
const LEAVE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// See the head of this file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ServiceLives(Arc<Shared>);

struct Shared {
    kernel: OnceLock<Kernel>,
    socket: Option<PathBuf>,
    stop: watch::Receiver<bool>,
    lives: Mutex<BTreeMap<ServiceName, Held>>,
}

/// The newest life of a service.
struct Held {
    life: u64,
    unwanted: watch::Sender<bool>,
    /// Ends when the holder has.
    over: watch::Receiver<()>,
}

/// What the runner of a service in Python says once its address is served.
#[derive(Debug, Deserialize)]
struct Served {
    address: String,
    pid: u32,
}

impl ServiceLives {
    pub(crate) fn new(socket: Option<PathBuf>, stop: watch::Receiver<bool>) -> Self {
        Self(Arc::new(Shared { kernel: OnceLock::new(), socket, stop, lives: Mutex::default() }))
    }

    /// Once the kernel has started.
    pub(crate) fn attach(&self, kernel: &Kernel) {
        // It belongs to one kernel; a second attach is the same one.
        let _ = self.0.kernel.set(kernel.clone());
    }

    async fn begin(
        self,
        of: ServiceLife,
        spec: ServiceSpec,
        before: Option<watch::Receiver<()>>,
        unwanted: watch::Receiver<bool>,
        over: watch::Sender<()>,
    ) {
        let Some(kernel) = self.0.kernel.get().cloned() else {
            return tracing::error!(name = %of.name, "asked for before the kernel has started");
        };
        if let Some(mut before) = before {
            // Its sender goes with the holder: that is what is waited for.
            while before.changed().await.is_ok() {}
        }
        let address = format!("/services/{}", of.name).parse::<Address>();
        let stop = self.0.stop.clone();
        let life = Life { kernel: kernel.clone(), of, unwanted, stop, told: false, _over: over };
        // Taken by the holder that begins; a life that finds none says so when it is dropped.
        let life = Arc::new(Mutex::new(Some(life)));
        let held = async {
            let address = address?;
            let until = Instant::now() + LEAVE;
            loop {
                let (life, socket, spec) = (Arc::clone(&life), self.0.socket.clone(), spec.clone());
                let work = async move {
                    let life = lock(&life).take();
                    if let Some(life) = life {
                        life.live(socket, spec).await;
                    }
                    Ok(())
                };
                match kernel.hold(HOLDERS, address.clone(), work).await {
                    // The holder of the life before is on its way out.
                    Err(refusal) if is_taken(&refusal) && Instant::now() < until => {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                    held => return held,
                }
            }
        };
        if let Err(why) = held.await {
            tracing::warn!(%why, "a service has no holder");
        }
    }
}

impl Runner for ServiceLives {
    fn run(&self, of: &ServiceLife, spec: &ServiceSpec) {
        let (wanting, unwanted) = watch::channel(false);
        let (ending, over) = watch::channel(());
        let before = {
            let mut lives = lock(&self.0.lives);
            if lives.get(&of.name).is_some_and(|held| held.life >= of.life) {
                return;
            }
            let held = Held { life: of.life, unwanted: wanting, over };
            lives.insert(of.name.clone(), held).map(|before| {
                before.unwanted.send_replace(true);
                before.over
            })
        };
        tokio::spawn(self.clone().begin(of.clone(), spec.clone(), before, unwanted, ending));
    }

    fn keep(&self, wanted: &[ServiceLife]) {
        let wanted: BTreeSet<_> = wanted.iter().map(|of| (&of.name, of.life)).collect();
        lock(&self.0.lives).retain(|name, held| {
            let is_wanted = wanted.contains(&(name, held.life));
            if !is_wanted {
                held.unwanted.send_replace(true);
            }
            // One that is on its way out is waited for by the next.
            is_wanted || held.over.has_changed().is_ok()
        });
    }
}

/// One life, as long as its holder works.
struct Life {
    kernel: Kernel,
    of: ServiceLife,
    unwanted: watch::Receiver<bool>,
    stop: watch::Receiver<bool>,
    /// Its end was reported, or is nobody's business.
    told: bool,
    _over: watch::Sender<()>,
}

impl Life {
    async fn live(mut self, socket: Option<PathBuf>, spec: ServiceSpec) {
        let mut address = None;
        let ended = match socket {
            None => Some(Err(no_socket())),
            Some(socket) => match self.call(&socket.to_string_lossy(), &spec) {
                Ok(mut pending) => self.attend(&mut pending, &mut address).await,
                Err(refusal) => Some(Err(refusal)),
            },
        };
        match ended {
            // It was told to end: the next life may begin once its address is free.
            None => {
                self.told = true;
                if let Some(address) = address {
                    left(self.kernel.bus(), &address).await;
                }
            }
            Some(ended) => self.tell(ended.err()).await,
        }
    }

    fn call(&self, socket: &str, spec: &ServiceSpec) -> Result<Pending, Error> {
        let bus = self.kernel.bus();
        let with = [("target", spec.object.as_str()), ("socket", socket)];
        let request = CallRequest {
            timeout_ms: None,
            limits: None,
            function: HELD.into(),
            code: spec.code.clone(),
            // Each life reads its code anew, also in a worker that had an earlier one.
            code_hash: format!("{}/{}", self.of.name, self.of.life),
            environment: spec.environment.clone(),
            arguments: Payload::default(),
            with: with.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect(),
        };
        let mut context = Context::until(bus.clock().never());
        context.role = Role::Service;
        context.caller = Some(format!("service {}", self.of.name).into());
        let spec = bus.admitted(Stream::NAME, Role::Admin)?;
        Ok(bus.call(Call {
            spec,
            address: Address::new(CALLS)?,
            request: Box::new(request),
            context,
            credit: None,
        }))
    }

    /// Until it has ended; nothing, if it was told to.
    async fn attend(
        &mut self,
        pending: &mut Pending,
        address: &mut Option<Address>,
    ) -> Option<Result<(), Error>> {
        let mut unwanted = self.unwanted.clone();
        loop {
            let word = tokio::select! {
                biased;
                // A sender that is gone is a runner that is gone.
                _ = unwanted.wait_for(|unwanted| *unwanted) => return None,
                word = pending.next() => word,
            };
            match word {
                Some(Item::Item(item)) => {
                    if let Some(served) = served(item.downcast_ref::<TaskReport>()) {
                        *address = Address::new(&*served.address).ok();
                        self.is_up(served).await;
                    }
                }
                Some(Item::Reply(reply)) => return Some(reply.map(drop)),
                None => return Some(Err(Error::died(CALLS, "it ended without a reply"))),
            }
        }
    }

    async fn is_up(&self, served: Served) {
        let request = UpRequest { of: self.of.clone(), address: served.address, pid: served.pid };
        if let Err(why) = until_heard::<Up>(self.kernel.bus(), request).await {
            tracing::warn!(name = %self.of.name, %why, "nobody heard that a service is up");
        }
    }

    async fn tell(&mut self, error: Option<Error>) {
        self.told = true;
        // A kernel that stops ends its services; they are still wanted, and the next one begins them.
        if *self.stop.borrow() {
            return;
        }
        report(self.kernel.bus(), self.of.clone(), error).await;
    }
}

impl Drop for Life {
    /// Its holder was killed.
    fn drop(&mut self) {
        if self.told || *self.stop.borrow() {
            return;
        }
        let (bus, of) = (self.kernel.bus().clone(), self.of.clone());
        let error = Error::new(Code::Cancelled, "service.holder", "its holder was ended");
        tokio::spawn(async move { report(&bus, of, Some(error)).await });
    }
}

async fn report(bus: &Bus, of: ServiceLife, error: Option<Error>) {
    let name = of.name.clone();
    if let Err(why) = until_heard::<Down>(bus, DownRequest { of, error }).await {
        tracing::warn!(%name, %why, "nobody heard that a service is down");
    }
}

fn is_taken(refusal: &Error) -> bool {
    ["supervision.child", "address.taken"].contains(&refusal.reason.as_str())
}

async fn left(bus: &Bus, address: &Address) {
    let gone = async {
        while bus.statistics(address).is_some() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    if tokio::time::timeout(LEAVE, gone).await.is_err() {
        tracing::warn!(%address, "is still served by a life that was told to end");
    }
}

fn served(report: Option<&TaskReport>) -> Option<Served> {
    let TaskReport::Item { payload, .. } = report? else { return None };
    codec::decode(&payload.body).ok()
}

fn no_socket() -> Error {
    let text = "a service is called over the kernel's socket, and this kernel listens on none";
    Error::new(Code::Precondition, "service.socket", text).help("Kernel::builder().listen(PATH)")
}

/// The rows of `eclosion tree` with what is known of services: one that waits or has failed has no actor that would be
/// listed, and one that lives has restarts that its holder does not know of.
pub(crate) fn shown(mut rows: Vec<ActorRow>, services: &[Arc<ServiceView>]) -> Vec<ActorRow> {
    for service in services {
        let address = format!("/services/{}", service.name);
        let row = match rows.iter_mut().find(|row| row.address == address) {
            Some(row) => row,
            None => {
                rows.push(ActorRow { address, ..ActorRow::default() });
                let last = rows.len() - 1;
                &mut rows[last]
            }
        };
        row.state = match service.state {
            ServiceState::Starting => ActorState::Starting,
            ServiceState::Ready => ActorState::Ready,
            ServiceState::Backoff => ActorState::Backoff,
            ServiceState::Failed => ActorState::Failed,
            ServiceState::Stopped => ActorState::Stopped,
        };
        row.incarnation = Incarnation(u32::try_from(service.life).unwrap_or(u32::MAX));
        (row.restarts, row.restarts_max) = (service.restarts, service.spec.restarts_max);
        row.window_ms = service.spec.window_ms;
        row.last_error = service.last_error.as_ref().map(|error| error.message.clone());
    }
    rows
}
