//! The pure core of services.
//!
//! ```text
//!              declared                       ready
//!   (none) ───────────────► due ──started──► starting ──────► ready
//!                            ▲                  │               │
//!                            │ again, resume    └─────ended─────┤
//!                            ├──────────────────────────────────┤ over     ► stopped
//!                            └── declared anew ◄── stopped ◄────┘ given up ► failed
//! ```
//!
//! [`Core::settle`] begins the lives that are due, and ends those of an earlier life of the kernel. Invariants:
//! 1. A service has at most one life that is not over; lives are counted from 1 and never used twice.
//! 2. A life is owed, as one effect, from `service.started` until it is ended, stopped or declared anew.
//! 3. What is reported of a life that is over changes nothing.
//! 4. The death of the kernel costs a service nothing of its budget.
//! 5. At most [`SERVICES_MAX`] are known; one that is stopped or failed gives way, the oldest first.

use std::collections::BTreeMap;

use eclosion_kernel::core::{AnyEvent, Core, Decision, Reads};
use eclosion_kernel::journal::Record;
use eclosion_kernel::supervision::budget::{Budget, Exit, History, Restart, Verdict};
use eclosion_schemas::error::{Code, Error, Retry};
use eclosion_schemas::events::Event;
use eclosion_schemas::events::service::{
    AfterEnd, ServiceDeclared, ServiceEnded, ServiceForgotten, ServiceReady, ServiceStarted, ServiceStopped,
};
use eclosion_schemas::ops::service::{
    DownRequest, ListReply, ListRequest, Noted, RestartPolicy, ServiceLife, ServiceReply, ServiceSpec,
    ServiceState, ServiceView, StartRequest, StopRequest, UpRequest,
};
use eclosion_schemas::{EffectId, Epoch, ServiceName, Timestamp};

/// Services that are known together.
pub const SERVICES_MAX: usize = 64;
/// Bounds of a policy: a budget beyond them would be none.
const RESTARTS_MAX: u32 = 1_000;
const WINDOW_MS_MAX: u64 = 24 * 3600 * 1000;
/// Text of an operator or of an object's name, in bytes.
const TEXT_BYTES_MAX: usize = 4 * 1024;

/// See the head of this file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Services;

#[derive(Debug, Clone)]
pub enum Command {
    Start(Box<StartRequest>),
    Stop(StopRequest),
    Restart(StopRequest),
    List(ListRequest),
    Up(UpRequest),
    Down(DownRequest),
}

/// One life of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    pub of: ServiceLife,
    pub spec: ServiceSpec,
}

#[derive(Debug, Clone, Default)]
pub struct State {
    services: BTreeMap<ServiceName, Service>,
    outstanding: BTreeMap<EffectId, Effect>,
}

#[derive(Debug, Clone)]
struct Service {
    spec: ServiceSpec,
    phase: Phase,
    since: Timestamp,
    life: u64,
    history: History,
    last_error: Option<Error>,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Due {
        at: Timestamp,
    },
    /// `served` once its address is.
    Alive {
        epoch: Epoch,
        effect: EffectId,
        served: Option<(String, u32)>,
    },
    Failed,
    Stopped,
}

impl State {
    /// Every service as it is shown.
    #[must_use]
    pub fn views(&self, now: Timestamp) -> Vec<ServiceView> {
        self.services.iter().map(|(name, service)| service.view(name, now)).collect()
    }

    /// The lives that are owed.
    #[must_use]
    pub fn lives(&self) -> Vec<ServiceLife> {
        self.outstanding.values().map(|effect| effect.of.clone()).collect()
    }

    fn get(&self, name: &ServiceName) -> Result<&Service, Error> {
        self.services.get(name).ok_or_else(|| {
            Error::not_found("service.unknown", format!("there is no service {name}"))
                .help("eclosion service ls")
        })
    }

    /// The service whose present life this is.
    fn living(&self, of: &ServiceLife) -> Option<&Service> {
        let service = self.services.get(&of.name)?;
        (service.life == of.life && matches!(service.phase, Phase::Alive { .. })).then_some(service)
    }
}

impl Service {
    fn new(spec: ServiceSpec, at: Timestamp) -> Self {
        let history = History::default();
        Self { spec, phase: Phase::Due { at }, since: at, life: 0, history, last_error: None }
    }

    fn budget(&self) -> Budget {
        Budget { restarts_max: self.spec.restarts_max, window_ms: self.spec.window_ms }
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Failed | Phase::Stopped)
    }

    fn view(&self, name: &ServiceName, now: Timestamp) -> ServiceView {
        let (state, served) = match &self.phase {
            Phase::Due { .. } if self.life > 0 => (ServiceState::Backoff, None),
            Phase::Due { .. } => (ServiceState::Starting, None),
            Phase::Alive { served: None, .. } => (ServiceState::Starting, None),
            Phase::Alive { served: Some(served), .. } => (ServiceState::Ready, Some(served.clone())),
            Phase::Failed => (ServiceState::Failed, None),
            Phase::Stopped => (ServiceState::Stopped, None),
        };
        let again_at = match self.phase {
            Phase::Due { at } if self.life > 0 => Some(at),
            _ => None,
        };
        let (address, pid) = served.unzip();
        ServiceView {
            name: name.clone(),
            spec: self.spec.clone(),
            state,
            since: self.since,
            life: self.life,
            restarts: self.history.clone().count(self.budget(), now),
            address,
            pid,
            again_at,
            last_error: self.last_error.clone(),
        }
    }
}

impl Core for Services {
    type State = State;
    type Volatile = ();
    type Command = Command;
    type Effect = Effect;

    const DECIDES: &'static [&'static str] = &[
        ServiceDeclared::KIND,
        ServiceStarted::KIND,
        ServiceReady::KIND,
        ServiceEnded::KIND,
        ServiceStopped::KIND,
        ServiceForgotten::KIND,
    ];
    const FOLDS: &'static [&'static str] = Self::DECIDES;

    fn decide(
        &self,
        state: &State,
        (): &mut (),
        reads: &Reads,
        command: &Command,
        now: Timestamp,
    ) -> Result<Decision, Error> {
        match command {
            Command::Start(request) => start(state, request, now),
            Command::Stop(request) => stop(state, request, now),
            Command::Restart(request) => restart(state, request, now),
            Command::List(request) => list(state, request, now),
            Command::Up(request) => Ok(up(state, request)),
            Command::Down(request) => Ok(down(state, request, now, reads.entropy())),
        }
    }

    fn settle(&self, state: &State, (): &mut (), reads: &Reads, now: Timestamp) -> Vec<AnyEvent> {
        let due = state.services.iter().filter_map(|(name, service)| match &service.phase {
            Phase::Due { at } if *at <= now => {
                Some(ServiceStarted { name: name.clone(), life: service.life + 1 }.into())
            }
            Phase::Alive { epoch, .. } if *epoch < reads.epoch() => {
                let text = "the kernel died under it, or was stopped";
                let error = Some(Error::new(Code::Unavailable, "kernel.died", text));
                let (name, life) = (name.clone(), service.life);
                Some(ServiceEnded { name, life, error, then: AfterEnd::Resume {} }.into())
            }
            _ => None,
        });
        due.collect()
    }

    fn apply(&self, state: &mut State, record: &Record) {
        if let Some(declared) = record.event::<ServiceDeclared>() {
            forget_effect(state, &declared.name);
            let service = state.services.entry(declared.name.clone());
            let service = service.or_insert_with(|| Service::new(declared.spec.clone(), record.at));
            // Lives are never counted anew: a report of an earlier one would be taken for one of this.
            *service = Service { life: service.life, ..Service::new(declared.spec.clone(), record.at) };
        } else if let Some(stopped) = record.event::<ServiceStopped>() {
            forget_effect(state, &stopped.name);
            if let Some(service) = state.services.get_mut(&stopped.name) {
                (service.phase, service.since) = (Phase::Stopped, record.at);
            }
        } else if let Some(forgotten) = record.event::<ServiceForgotten>() {
            state.services.remove(&forgotten.name);
        } else {
            apply_life(state, record);
        }
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, Effect> {
        &state.outstanding
    }

    fn wake_at(&self, state: &State, (): &()) -> Option<Timestamp> {
        let due = state.services.values().filter_map(|service| match service.phase {
            Phase::Due { at } => Some(at),
            _ => None,
        });
        due.min()
    }

    fn digest(&self, state: &State) -> String {
        format!("{state:?}")
    }
}

fn forget_effect(state: &mut State, name: &ServiceName) {
    if let Some(Service { phase: Phase::Alive { effect, .. }, .. }) = state.services.get(name) {
        state.outstanding.remove(effect);
    }
}

fn apply_life(state: &mut State, record: &Record) {
    if let Some(started) = record.event::<ServiceStarted>() {
        let Some(service) = state.services.get_mut(&started.name) else { return };
        let effect = EffectId { seq: record.seq, n: 0 };
        (service.life, service.since) = (started.life, record.at);
        service.phase = Phase::Alive { epoch: record.epoch, effect, served: None };
        let of = ServiceLife { name: started.name.clone(), life: started.life };
        state.outstanding.insert(effect, Effect { of, spec: service.spec.clone() });
    } else if let Some(ready) = record.event::<ServiceReady>() {
        let Some(service) = state.services.get_mut(&ready.name) else { return };
        if let Phase::Alive { served, .. } = &mut service.phase {
            *served = Some((ready.address.clone(), ready.pid));
            service.since = record.at;
        }
    } else if let Some(ended) = record.event::<ServiceEnded>() {
        forget_effect(state, &ended.name);
        let Some(service) = state.services.get_mut(&ended.name) else { return };
        service.since = record.at;
        if ended.error.is_some() {
            service.last_error.clone_from(&ended.error);
        }
        service.phase = match ended.then {
            AfterEnd::Again { at } => {
                // The budget was asked when it was decided; here the restart is only remembered.
                let _ = service.history.decide(
                    Restart::Permanent,
                    Exit::Abnormal,
                    service.budget(),
                    record.at,
                    0,
                );
                Phase::Due { at }
            }
            AfterEnd::Resume {} => Phase::Due { at: record.at },
            AfterEnd::Over {} => Phase::Stopped,
            AfterEnd::GivenUp {} => Phase::Failed,
        };
    }
}

fn start(state: &State, request: &StartRequest, now: Timestamp) -> Result<Decision, Error> {
    check(&request.spec)?;
    let known = state.services.get(&request.name);
    if let Some(known) = known.filter(|known| !known.is_over()) {
        if known.spec == request.spec {
            return Ok(Decision::reply(ServiceReply { service: known.view(&request.name, now) }));
        }
        let text = format!("service {} is there already, and made of something else", request.name);
        let error = Error::new(Code::AlreadyExists, "service.exists", text);
        return Err(error.help(format!("eclosion service stop {}", request.name)));
    }
    let forgotten = match known {
        None if state.services.len() >= SERVICES_MAX => Some(gives_way(state)?),
        _ => None,
    };
    let service =
        Service { life: known.map_or(0, |known| known.life), ..Service::new(request.spec.clone(), now) };
    let declared =
        ServiceDeclared { name: request.name.clone(), spec: request.spec.clone(), reason: String::new() };
    let reply = Decision::reply(ServiceReply { service: service.view(&request.name, now) });
    Ok(reply.events(forgotten.map(|name| ServiceForgotten { name }.into())).event(declared))
}

fn gives_way(state: &State) -> Result<ServiceName, Error> {
    let over = state.services.iter().filter(|(_, service)| service.is_over());
    over.min_by_key(|(_, service)| service.since).map(|(name, _)| name.clone()).ok_or_else(|| {
        let text = format!("{SERVICES_MAX} services run already, the most that there may be");
        Error::new(Code::Exhausted, "service.limit", text).help("eclosion service ls")
    })
}

fn check(spec: &ServiceSpec) -> Result<(), Error> {
    let named =
        spec.object.split_once(':').is_some_and(|(module, class)| !module.is_empty() && !class.is_empty());
    if !named || spec.object.len() > TEXT_BYTES_MAX {
        let text = format!("`{:.64}` is no MODULE:CLASS", spec.object);
        return Err(Error::invalid("service.object", text));
    }
    if !spec.code.starts_with('/') || spec.code.len() > TEXT_BYTES_MAX {
        return Err(Error::invalid("service.code", "the root of its code is an absolute path"));
    }
    if spec.restarts_max > RESTARTS_MAX || !(1..=WINDOW_MS_MAX).contains(&spec.window_ms) {
        let text = format!("restarts_max is at most {RESTARTS_MAX}, window_ms 1 to {WINDOW_MS_MAX}");
        return Err(Error::invalid("service.budget", text));
    }
    Ok(())
}

fn check_reason(reason: &str) -> Result<(), Error> {
    if reason.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Error::invalid("service.reason", format!("a reason has at most {TEXT_BYTES_MAX} bytes")))
}

fn stop(state: &State, request: &StopRequest, now: Timestamp) -> Result<Decision, Error> {
    check_reason(&request.reason)?;
    let mut service = state.get(&request.name)?.clone();
    if service.phase == Phase::Stopped {
        return Ok(Decision::reply(ServiceReply { service: service.view(&request.name, now) }));
    }
    (service.phase, service.since) = (Phase::Stopped, now);
    let stopped = ServiceStopped { name: request.name.clone(), reason: request.reason.clone() };
    Ok(Decision::reply(ServiceReply { service: service.view(&request.name, now) }).event(stopped))
}

fn restart(state: &State, request: &StopRequest, now: Timestamp) -> Result<Decision, Error> {
    check_reason(&request.reason)?;
    let service = state.get(&request.name)?;
    let reason = match request.reason.as_str() {
        "" => "an operator began it again".to_owned(),
        reason => reason.to_owned(),
    };
    let declared = ServiceDeclared { name: request.name.clone(), spec: service.spec.clone(), reason };
    let next = Service { life: service.life, ..Service::new(service.spec.clone(), now) };
    Ok(Decision::reply(ServiceReply { service: next.view(&request.name, now) }).event(declared))
}

fn list(state: &State, request: &ListRequest, now: Timestamp) -> Result<Decision, Error> {
    let services = match &request.name {
        Some(name) => vec![state.get(name)?.view(name, now)],
        None => state.views(now),
    };
    Ok(Decision::reply(ListReply { services }))
}

fn up(state: &State, request: &UpRequest) -> Decision {
    let noted = Decision::reply(Noted {});
    match state.living(&request.of).map(|service| &service.phase) {
        Some(Phase::Alive { served: None, .. }) => {
            let UpRequest { of: ServiceLife { name, life }, address, pid } = request.clone();
            noted.event(ServiceReady { name, life, address, pid })
        }
        _ => noted,
    }
}

/// Of a life that was never served: the next one would fail alike. Its code cannot be imported, say, or its environment
/// not be built.
fn is_hopeless(error: &Error) -> bool {
    error.retry == Retry::Never && (error.reason == "task.raised" || error.code == Code::Invalid)
}

fn down(state: &State, request: &DownRequest, now: Timestamp, jitter: u64) -> Decision {
    let noted = Decision::reply(Noted {});
    let Some(service) = state.living(&request.of) else { return noted };
    let policy = match service.spec.restart {
        RestartPolicy::Never => Restart::Temporary,
        RestartPolicy::OnFailure => Restart::Transient,
        RestartPolicy::Always => Restart::Permanent,
    };
    let exit = if request.error.is_some() { Exit::Abnormal } else { Exit::Normal };
    let begun = matches!(service.phase, Phase::Alive { served: Some(_), .. });
    let hopeless = request.error.as_ref().is_some_and(|error| !begun && is_hopeless(error));
    let then = match service.history.clone().decide(policy, exit, service.budget(), now, jitter) {
        _ if hopeless => AfterEnd::GivenUp {},
        Verdict::RestartAfter { ms } => AfterEnd::Again { at: now.plus_ms(ms) },
        Verdict::Gone if exit == Exit::Normal => AfterEnd::Over {},
        Verdict::Gone | Verdict::Escalate => AfterEnd::GivenUp {},
    };
    let ServiceLife { name, life } = request.of.clone();
    noted.event(ServiceEnded { name, life, error: request.error.clone(), then })
}

#[cfg(test)]
mod tests;
