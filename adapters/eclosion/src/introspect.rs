//! The actor `/kernel`: status, tree, operations, stop.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use eclosion_bus::InHand;
use eclosion_kernel::clock::{Clock, SystemClock};
use eclosion_kernel::{Builder, Handler, Kernel, Phase};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::kernel::{
    Describe, DescribeReply, Empty, Ping, Status, StatusReply, Stop, Tree, TreeReply,
};
use eclosion_schemas::{Error, Timestamp};
use tokio::sync::watch;

/// What the actor needs of the kernel that it is part of; the kernel itself is known once it has started.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) kernel: OnceLock<Kernel>,
    pub(crate) instance: String,
    pub(crate) state: PathBuf,
    pub(crate) started: Timestamp,
    pub(crate) stop: watch::Sender<bool>,
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
        })
    }

    /// Once, when the kernel has started.
    pub(crate) fn attach(&self, kernel: &Kernel) {
        // An `Own` belongs to one kernel; a second attach is the same one.
        let _ = self.kernel.set(kernel.clone());
    }
}

/// Adds the actor.
pub(crate) fn serve(builder: Builder, own: &Arc<Own>) -> Builder {
    let own = Arc::clone(own);
    builder.service(eclosion_schemas::ops::kernel::ADDRESS, move || Introspect(Arc::clone(&own)))
}

impl Handler for Introspect {
    async fn handle(&mut self, message: InHand) {
        let answer = match self.0.kernel.get() {
            Some(kernel) => self.answer(kernel, &message),
            None => Err(Error::new(
                eclosion_schemas::Code::Unavailable,
                "kernel.starting",
                "the kernel is starting",
            )
            .retry(eclosion_schemas::Retry::After { after_ms: 50 })),
        };
        let stop = message.request::<Stop>().is_some();
        message.finish().reply(answer);
        // After the reply: stopping ends the session that asked for it.
        if stop {
            self.0.stop.send_replace(true);
        }
    }
}

type Answer = Result<Box<dyn std::any::Any + Send>, Error>;

fn reply<O: Operation>(value: O::Reply) -> Answer {
    Ok(Box::new(value))
}

impl Introspect {
    fn answer(&self, kernel: &Kernel, message: &InHand) -> Answer {
        match message.operation {
            Ping::NAME => reply::<Ping>(Empty {}),
            Status::NAME => reply::<Status>(self.status(kernel)),
            Tree::NAME => reply::<Tree>(TreeReply { actors: kernel.rows() }),
            Describe::NAME => {
                let name = message.request::<Describe>().and_then(|request| request.name.clone());
                describe(kernel, name.as_deref())
            }
            Stop::NAME => reply::<Stop>(Empty {}),
            #[cfg(feature = "chaos")]
            crate::chaos::Panic::NAME => match message.request::<crate::chaos::Panic>() {
                Some(request) => crate::chaos::panic(kernel, request).map(|()| Box::new(()) as _),
                None => Err(Error::invalid("request.type", "not a chaos.panic")),
            },
            other => Err(eclosion_kernel::actor::unimplemented(&kernel_address(), other)),
        }
    }

    fn status(&self, kernel: &Kernel) -> StatusReply {
        let marks = kernel.journal().marks();
        let poisoned = kernel.journal().poisoned();
        let state = match (&poisoned, *self.0.stop.borrow(), kernel.phase()) {
            (Some(_), ..) => "read_only",
            (None, true, _) => "draining",
            (None, false, Phase::Run) => "ready",
            (None, false, _) => "starting",
        };
        StatusReply {
            instance: self.0.instance.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            epoch: kernel.journal().epoch(),
            uptime_ms: kernel.clock().now().since_ms(self.0.started),
            state: state.into(),
            appended: marks.appended,
            written: marks.written,
            synced: marks.synced,
            state_dir: self.0.state.display().to_string(),
            rss_bytes: own_rss_bytes(),
            findings: findings(kernel, poisoned.as_deref()),
        }
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
    reply::<Describe>(DescribeReply { operations })
}

/// What an operator should look at, as sentences with the next command in them.
fn findings(kernel: &Kernel, poisoned: Option<&str>) -> Vec<String> {
    let mut findings = Vec::new();
    if let Some(why) = poisoned {
        findings.push(format!(
            "The journal is read-only since a write or sync failed ({why}). Mend the disk, then: eclosion down && eclosion up"
        ));
    }
    if rustix::process::getuid().is_root() {
        findings.push("The kernel runs as root; tasks do too. Run it as a user of its own.".into());
    }
    for row in kernel.rows() {
        if row.restarts > 0 {
            let error = row.last_error.as_deref().unwrap_or("no text");
            findings.push(format!(
                "{} was restarted {} times lately, last: {error}. See: eclosion tree",
                row.address, row.restarts
            ));
        }
        if row.dead_letters > 0 {
            findings.push(format!("{} has {} dead letters.", row.address, row.dead_letters));
        }
    }
    findings
}

fn own_rss_bytes() -> u64 {
    let Ok(pid) = sysinfo::get_current_pid() else { return 0 };
    let Ok(mut system) = sysinfo::System::new() else { return 0 };
    let wanted = sysinfo::ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(sysinfo::ProcessesToUpdate::Some(&[pid]), true, wanted);
    system.process(pid).map_or(0, sysinfo::Process::memory)
}

fn kernel_address() -> eclosion_bus::Address {
    eclosion_schemas::ops::kernel::ADDRESS.parse().unwrap_or_else(|_| unreachable!("a well-formed address"))
}
