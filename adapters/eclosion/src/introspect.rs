//! The actor `/kernel`: status, tree, operations, stop; what it hands to [`operate`], [`history`] and [`processes`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use eclosion_audit::AuditActor;
use eclosion_bus::{Address, Bus, InHand, Publication, Subject};
use eclosion_ipc::Traffic;
use eclosion_kernel::clock::{Clock, SystemClock};
use eclosion_kernel::{Builder, Handler, Kernel, Phase};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::dead;
use eclosion_schemas::ops::kernel::{
    Describe, DescribeReply, Empty, Events, Ping, Processes, Publish, PublishReply, PublishRequest, Status,
    StatusReply, Stop, TrafficCounts, Tree, TreeReply,
};
use eclosion_schemas::timings::call_options;
use eclosion_schemas::{Code, Error, Timestamp};
use tokio::sync::watch;

use crate::extension::check_subject;
use crate::{history, operate, processes};

/// What the actor needs of the kernel that it is part of; the kernel itself is known once it has started.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) kernel: OnceLock<Kernel>,
    pub(crate) instance: String,
    pub(crate) state: PathBuf,
    pub(crate) started: Timestamp,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) traffic: Arc<Traffic>,
    #[cfg(feature = "workers")]
    pub(crate) host: OnceLock<crate::workers::WorkerHost>,
    #[cfg(feature = "workers")]
    pub(crate) services: OnceLock<ServiceViews>,
    /// What the subsystems found, as sentences.
    pub(crate) more: OnceLock<Finder>,
}

#[cfg(feature = "workers")]
type ServiceViews =
    eclosion_kernel::view::Views<eclosion_schemas::ServiceName, eclosion_schemas::ops::service::ServiceView>;

/// Asked by every `kernel.status`; it must be quick.
pub(crate) struct Finder(pub(crate) Box<dyn Fn() -> Vec<String> + Send + Sync>);

impl std::fmt::Debug for Finder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Finder")
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Introspect(pub(crate) Arc<Own>);

impl Own {
    pub(crate) fn new(instance: &str, state: PathBuf, stop: &watch::Sender<bool>) -> Arc<Self> {
        Arc::new(Self {
            kernel: OnceLock::new(),
            instance: instance.to_owned(),
            state,
            started: SystemClock.now(),
            stop: stop.clone(),
            traffic: Arc::default(),
            #[cfg(feature = "workers")]
            host: OnceLock::new(),
            #[cfg(feature = "workers")]
            services: OnceLock::new(),
            more: OnceLock::new(),
        })
    }

    /// Once, when the kernel has started.
    pub(crate) fn attach(&self, kernel: &Kernel) {
        // An `Own` belongs to one kernel; a second attach is the same one.
        let _ = self.kernel.set(kernel.clone());
        if let Ok(address) = Address::new(eclosion_schemas::ops::kernel::ADDRESS) {
            kernel.bus().record_acts_at(address);
        }
    }
}

impl Own {
    /// The processes that belong to workers, with the keeper's.
    #[cfg(feature = "workers")]
    async fn known(&self, bus: &Bus) -> Result<processes::Known, Error> {
        use eclosion_schemas::ops::pool::{Status, StatusRequest};
        let keeper = match self.host.get() {
            Some(host) => host.keeper_pid().await,
            None => None,
        };
        let workers = bus.ask::<Status>(StatusRequest {}).await?.workers;
        let services =
            self.services().into_iter().filter_map(|service| Some((service.pid?, service.name.clone())));
        Ok(processes::Known {
            keeper,
            workers: workers.into_iter().map(|worker| (worker.pid, worker.worker)).collect(),
            services: services.collect(),
        })
    }

    #[cfg(not(feature = "workers"))]
    #[expect(clippy::unused_async, reason = "as with workers")]
    async fn known(&self, _: &Bus) -> Result<processes::Known, Error> {
        Ok(processes::Known::default())
    }
}

#[cfg(feature = "workers")]
impl Own {
    /// Once, too.
    pub(crate) fn attach_workers(&self, host: &crate::workers::WorkerHost) {
        let _ = self.host.set(host.clone());
    }

    /// The services that the kernel holds.
    fn services(&self) -> Vec<Arc<eclosion_schemas::ops::service::ServiceView>> {
        self.services.get().map(eclosion_kernel::view::Views::snapshot).unwrap_or_default()
    }
}

/// Adds the actor, and the audit record that it writes what operators do into.
pub(crate) fn serve(builder: Builder, own: &Arc<Own>) -> Builder {
    let own = Arc::clone(own);
    builder
        .actor(AuditActor)
        .service(eclosion_schemas::ops::kernel::ADDRESS, move || Introspect(Arc::clone(&own)))
}

impl Handler for Introspect {
    async fn handle(&mut self, message: InHand) {
        let Some(kernel) = self.0.kernel.get() else {
            let starting = Error::new(Code::Unavailable, "kernel.starting", "the kernel is starting")
                .retry(eclosion_schemas::Retry::After { after_ms: 50 });
            return message.finish().reply(Err(starting));
        };
        let message = match self.hand_on(kernel, message) {
            Ok(()) => return,
            Err(message) => message,
        };
        let answer = self.answer(kernel, &message);
        message.finish().reply(answer);
    }
}

type Answer = Result<Box<dyn std::any::Any + Send>, Error>;

fn reply<O: Operation>(value: O::Reply) -> Answer {
    Ok(Box::new(value))
}

impl Introspect {
    /// What takes its time, or streams, runs beside this actor.
    fn hand_on(&self, kernel: &Kernel, message: InHand) -> Result<(), InHand> {
        match message.operation {
            Events::NAME => history::serve(kernel, message),
            Processes::NAME => {
                let (own, bus, responder) = (Arc::clone(&self.0), kernel.bus().clone(), message.finish());
                tokio::spawn(async move {
                    let listed = match own.known(&bus).await {
                        Ok(known) => processes::list(known).await,
                        Err(refusal) => Err(refusal),
                    };
                    responder.reply(listed.map(|reply| Box::new(reply) as _));
                });
            }
            Stop::NAME => operate::stop(kernel, message, self.0.stop.clone()),
            _ => return operate::serve(kernel, message),
        }
        Ok(())
    }

    fn answer(&self, kernel: &Kernel, message: &InHand) -> Answer {
        match message.operation {
            Ping::NAME => reply::<Ping>(Empty {}),
            Status::NAME => reply::<Status>(self.status(kernel)),
            Tree::NAME => reply::<Tree>(TreeReply { actors: self.rows(kernel) }),
            Describe::NAME => {
                let name = message.request::<Describe>().and_then(|request| request.name.clone());
                describe(kernel, name.as_deref())
            }
            Publish::NAME => message.request::<Publish>().map_or_else(
                || Err(Error::invalid("request.type", "not a bus.publish")),
                |request| publish(kernel, request),
            ),
            dead::List::NAME => {
                let limit = message.request::<dead::List>().map_or(0, |request| request.limit);
                reply::<dead::List>(operate::letters(kernel, limit))
            }
            dead::Show::NAME => {
                let id = message.request::<dead::Show>().map_or(0, |request| request.id);
                show_letter(kernel, id)
            }
            #[cfg(feature = "chaos")]
            crate::chaos::Panic::NAME => match message.request::<crate::chaos::Panic>() {
                Some(request) => crate::chaos::panic(kernel, request).map(|()| Box::new(()) as _),
                None => Err(Error::invalid("request.type", "not a chaos.panic")),
            },
            other => Err(eclosion_kernel::actor::unimplemented(&kernel_address(), other)),
        }
    }

    /// Every actor; services that wait or have failed are shown in their places.
    fn rows(&self, kernel: &Kernel) -> Vec<eclosion_schemas::view::ActorRow> {
        let rows = kernel.rows();
        #[cfg(feature = "workers")]
        let rows = crate::service_lives::shown(rows, &self.0.services());
        rows
    }

    fn status(&self, kernel: &Kernel) -> StatusReply {
        let marks = kernel.journal().marks();
        let poisoned = kernel.journal().poisoned();
        StatusReply {
            instance: self.0.instance.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            epoch: kernel.journal().epoch(),
            uptime_ms: kernel.clock().now().since_ms(self.0.started),
            state: state(&self.0, kernel).into(),
            appended: marks.appended,
            written: marks.written,
            synced: marks.synced,
            state_dir: self.0.state.display().to_string(),
            rss_bytes: own_rss_bytes(),
            findings: findings(
                kernel,
                poisoned.as_deref(),
                self.0.more.get().map(|more| (more.0)()).unwrap_or_default(),
            ),
            traffic: self.traffic(kernel),
        }
    }
}

impl Introspect {
    fn traffic(&self, kernel: &Kernel) -> TrafficCounts {
        let sessions =
            |address: &eclosion_bus::Address| address.as_str().starts_with(crate::sockets::SESSIONS);
        TrafficCounts {
            connections: kernel.bus().addresses().iter().filter(|address| sessions(address)).count() as u64,
            streams: self.0.traffic.streams(),
            credit: self.0.traffic.credit(),
        }
    }
}

pub(crate) const READY: &str = "ready";
/// What [`state`] may say.
pub(crate) const STATES: [&str; 4] = ["starting", READY, "draining", "read_only"];

/// The state of the whole kernel.
pub(crate) fn state(own: &Own, kernel: &Kernel) -> &'static str {
    let [starting, ready, draining, read_only] = STATES;
    match (kernel.journal().poisoned(), *own.stop.borrow(), kernel.phase()) {
        (Some(_), ..) => read_only,
        (None, true, _) => draining,
        (None, false, Phase::Run) => ready,
        (None, false, _) => starting,
    }
}

fn describe(kernel: &Kernel, name: Option<&str>) -> Answer {
    let table = kernel.bus().table();
    let operations: Vec<_> = match name {
        None => table.iter().map(|spec| spec.describe()).collect(),
        Some(name) => match table.get(name) {
            Some(spec) => vec![spec.describe()],
            None => {
                return Err(Error::not_found("operation.name", format!("there is no operation {name}"))
                    .help("eclosion describe"));
            }
        },
    };
    reply::<Describe>(DescribeReply { operations, call_options: call_options() })
}

/// At the last position that clients were shown, so that nobody's cursor runs ahead of what is still to come.
fn publish(kernel: &Kernel, request: &PublishRequest) -> Answer {
    let subject = Subject::new(&request.subject)?;
    check_subject(&request.subject)?;
    let (epoch, seq) = (kernel.journal().epoch(), kernel.journal().marks().synced);
    let publication = Publication::new(epoch, seq, request.value.clone()).weighing(bytes_of(&request.value));
    let heard = match request.keep {
        true => kernel.bus().retain(&subject, publication)?,
        false => kernel.bus().publish(&subject, publication),
    };
    reply::<Publish>(PublishReply { heard: heard as u64 })
}

/// About what keeping it costs.
fn bytes_of(value: &serde_json::Value) -> u64 {
    use serde_json::Value;
    let inside = match value {
        Value::String(text) => text.len() as u64,
        Value::Array(values) => values.iter().map(bytes_of).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() as u64 + bytes_of(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    inside + size_of::<Value>() as u64
}

fn show_letter(kernel: &Kernel, id: u64) -> Answer {
    let letter = operate::letter(kernel, id)?;
    let request = kernel.bus().dead_letter_request(id).unwrap_or_default();
    reply::<dead::Show>(dead::ShowReply { letter: operate::shown(&letter), request })
}

/// What an operator should look at, as sentences with the next command in them.
fn findings(kernel: &Kernel, poisoned: Option<&str>, more: Vec<String>) -> Vec<String> {
    let mut findings = more;
    if let Some(why) = poisoned {
        findings.push(format!(
            "The journal is read-only since a write or sync failed ({why}). Mend the disk, then: eclosion down && eclosion up"
        ));
    }
    if rustix::process::getuid().is_root() {
        findings.push("The kernel runs as root; tasks do too. Run it as a user of its own.".into());
    }
    let rows = kernel.rows();
    findings.extend(operate::findings(&rows));
    for row in rows {
        if row.restarts > 0 {
            let error = row.last_error.as_deref().unwrap_or("no text");
            findings.push(format!(
                "{} was restarted {} times lately, last: {error}. See: eclosion tree",
                row.address, row.restarts
            ));
        }
    }
    // Those that are kept: who has seen to them has dropped them.
    let mut letters = BTreeMap::<String, usize>::new();
    for letter in kernel.bus().dead_letters() {
        *letters.entry(letter.address.to_string()).or_default() += 1;
    }
    for (address, count) in letters {
        findings.push(format!("{address} has {count} dead letters. See: eclosion dead ls"));
    }
    findings
}

pub(crate) fn own_rss_bytes() -> u64 {
    let Ok(pid) = sysinfo::get_current_pid() else { return 0 };
    let Ok(mut system) = sysinfo::System::new() else { return 0 };
    let wanted = sysinfo::ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(sysinfo::ProcessesToUpdate::Some(&[pid]), true, wanted);
    system.process(pid).map_or(0, sysinfo::Process::memory)
}

fn kernel_address() -> eclosion_bus::Address {
    eclosion_schemas::ops::kernel::ADDRESS.parse().unwrap_or_else(|_| unreachable!("a well-formed address"))
}
