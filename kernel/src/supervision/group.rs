//! A supervisor of children that are restarted one by one.
//!
//! States of a child: started (has a cell) → down (waits for its backoff) → started … or gone. `ended` makes every
//! transition but the first. An end that somebody wished for ([`Message::End`]) is answered when the next incarnation
//! has started, or the child is gone; a wished restart costs nothing of the budget, a kill counts like any death.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eclosion_schemas::Incarnation;
use eclosion_schemas::view::ActorState;
use ractor::concurrency::Duration as RactorDuration;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::oneshot;

use super::budget::{Budget, Exit, History, Restart, Verdict};
use super::tree::{Tree, Vital};
use crate::clock::Clock;

pub type StartFuture = Pin<Box<dyn Future<Output = Result<ActorCell, SpawnErr>> + Send>>;
/// Starts an incarnation, linked to the supervisor that it is given.
pub type Start = Arc<dyn Fn(Incarnation, ActorCell) -> StartFuture + Send + Sync>;

/// What a supervisor needs to know of a child.
#[derive(Clone)]
pub struct ChildSpec {
    pub address: Arc<str>,
    pub restart: Restart,
    pub budget: Budget,
    pub start: Start,
    /// Tells the present incarnation to end; ractor's own stop is not seen inside a handler that loops.
    pub stop: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec").field("address", &self.address).field("restart", &self.restart).finish()
    }
}

/// How long a child may take to stop before it is killed.
const STOP: RactorDuration = RactorDuration::from_secs(5);

static ORDER: AtomicU64 = AtomicU64::new(0);

/// What outlives the supervisor's own incarnations.
#[derive(Debug)]
pub struct Shared {
    pub(super) address: Arc<str>,
    pub(super) tree: Tree,
    pub(super) clock: Arc<dyn Clock>,
    specs: Mutex<Vec<ChildSpec>>,
    /// Incarnations go on counting when the group itself is restarted.
    incarnations: Mutex<BTreeMap<Arc<str>, u32>>,
}

impl Shared {
    pub(super) fn new(address: Arc<str>, tree: Tree, clock: Arc<dyn Clock>) -> Self {
        let (specs, incarnations) = (Mutex::default(), Mutex::default());
        Self { address, tree, clock, specs, incarnations }
    }

    fn next_incarnation(&self, address: &Arc<str>) -> Incarnation {
        let mut incarnations = self.incarnations.lock().unwrap_or_else(PoisonError::into_inner);
        let count = incarnations.entry(Arc::clone(address)).or_default();
        *count += 1;
        Incarnation(*count)
    }

    fn forget(&self, address: &str) {
        self.incarnations.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
        self.specs.lock().unwrap_or_else(PoisonError::into_inner).retain(|spec| &*spec.address != address);
        self.tree.remove(address);
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Group;

#[derive(Debug)]
pub enum Message {
    Add(ChildSpec, oneshot::Sender<Result<(), String>>),
    StartAgain(Arc<str>),
    End(Wish),
}

/// An operator's wish that an incarnation end.
#[derive(Debug)]
pub struct Wish {
    pub address: Arc<str>,
    pub how: End,
    /// Shown as the child's last error.
    pub why: String,
    pub reply: oneshot::Sender<Ended>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// After what is in hand, and the next incarnation begins.
    Restart,
    /// Now; what is in hand is delivered once more.
    Kill,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The next incarnation has started.
    Next(Incarnation),
    /// It was temporary, and is no more.
    Gone,
    /// It is not of this group.
    Unknown,
    /// It is not begun again, so it cannot be restarted.
    Temporary,
    /// It is down already and waits for its backoff.
    Down,
}

/// What one incarnation of a group knows.
#[derive(Debug)]
pub struct State {
    shared: Arc<Shared>,
    children: BTreeMap<Arc<str>, Child>,
}

#[derive(Debug)]
struct Child {
    spec: ChildSpec,
    cell: Option<ActorCell>,
    history: History,
    /// What its end was wished for, and who waits for what comes after it.
    wished: Option<Wish>,
}

impl Child {
    fn new(spec: ChildSpec) -> Self {
        Self { spec, cell: None, history: History::default(), wished: None }
    }

    /// Whoever wished for its end may have left.
    fn answer(&mut self, ended: Ended) {
        if let Some(wish) = self.wished.take() {
            let _ = wish.reply.send(ended);
        }
    }
}

impl Actor for Group {
    type Msg = Message;
    type State = State;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        shared: Arc<Shared>,
    ) -> Result<State, ActorProcessingErr> {
        let specs = shared.specs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut state = State { shared, children: BTreeMap::new() };
        for spec in specs {
            let address = Arc::clone(&spec.address);
            state.children.insert(Arc::clone(&address), Child::new(spec));
            // A child that cannot start now is treated as one that died.
            if let Err(why) = start(&mut state, &myself, &address).await {
                ended(&mut state, &myself, &address, Exit::Abnormal, &why)?;
            }
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Add(spec, reply) => {
                let outcome = add(state, &myself, spec).await;
                // Nobody may be waiting any more; the child runs all the same.
                let _ = reply.send(outcome);
            }
            Message::StartAgain(address) => {
                if let Err(why) = start(state, &myself, &address).await {
                    ended(state, &myself, &address, Exit::Abnormal, &why)?;
                }
            }
            Message::End(wish) => end(state, wish),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (id, exit, why) = match event {
            SupervisionEvent::ActorFailed(cell, why) => (cell.get_id(), Exit::Abnormal, why.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                let reason = reason.unwrap_or_default();
                // ractor reports a kill like a normal end; only the words tell.
                let killed = reason == "killed" || reason == "actor_task_cancelled";
                (cell.get_id(), if killed { Exit::Abnormal } else { Exit::Normal }, reason)
            }
            _ => return Ok(()),
        };
        match address_of(state, id) {
            Some(address) => ended(state, &myself, &address, exit, &why),
            None => Ok(()),
        }
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        let mut children: Vec<&Child> = state.children.values().collect();
        let order = |child: &Child| state.shared.tree.get(&child.spec.address).map_or(0, |vital| vital.order);
        children.sort_by_key(|child| std::cmp::Reverse(order(child)));
        for child in children {
            let Some(cell) = &child.cell else { continue };
            (child.spec.stop)();
            if cell.wait(Some(STOP)).await.is_err() {
                tracing::warn!(address = %child.spec.address, "did not stop in time and is killed");
                cell.kill();
            }
        }
        Ok(())
    }
}

async fn add(state: &mut State, myself: &ActorRef<Message>, spec: ChildSpec) -> Result<(), String> {
    let address = Arc::clone(&spec.address);
    if state.children.contains_key(&address) {
        return Err(format!("{address} is supervised already"));
    }
    if spec.restart != Restart::Temporary {
        state.shared.specs.lock().unwrap_or_else(PoisonError::into_inner).push(spec.clone());
    }
    state.children.insert(Arc::clone(&address), Child::new(spec));
    let started = start(state, myself, &address).await;
    if started.is_err() {
        state.children.remove(&address);
        state.shared.forget(&address);
    }
    started
}

/// Begins an end that was wished for; what comes of it is reported to the supervisor.
fn end(state: &mut State, wish: Wish) {
    let refused = match state.children.get(&wish.address) {
        None => Some(Ended::Unknown),
        Some(child) if child.cell.is_none() => Some(Ended::Down),
        Some(child) if child.spec.restart == Restart::Temporary && wish.how == End::Restart => {
            Some(Ended::Temporary)
        }
        Some(_) => None,
    };
    if let Some(refused) = refused {
        // Whoever wished may have left.
        let _ = wish.reply.send(refused);
        return;
    }
    let Some(child) = state.children.get_mut(&wish.address) else { return };
    match (wish.how, &child.cell) {
        (End::Restart, _) => (child.spec.stop)(),
        (End::Kill, Some(cell)) => cell.kill(),
        (End::Kill, None) => {}
    }
    // A second wish takes the place of the first, whose waiter sees its sender dropped.
    child.wished = Some(wish);
}

async fn start(state: &mut State, myself: &ActorRef<Message>, address: &Arc<str>) -> Result<(), String> {
    let Some(child) = state.children.get_mut(address) else { return Ok(()) };
    let incarnation = state.shared.next_incarnation(address);
    let (budget, now) = (child.spec.budget, state.shared.clock.now());
    let earlier = state.shared.tree.get(address);
    let vital = Vital {
        state: ActorState::Starting,
        incarnation,
        restarts: child.history.count(budget, now),
        budget,
        last_error: earlier.as_ref().and_then(|vital| vital.last_error.clone()),
        order: earlier.map_or_else(|| ORDER.fetch_add(1, Ordering::Relaxed), |vital| vital.order),
        group: Arc::clone(&state.shared.address),
        temporary: child.spec.restart == Restart::Temporary,
    };
    state.shared.tree.set(address, vital);
    match (child.spec.start)(incarnation, myself.get_cell()).await {
        Ok(cell) => {
            child.cell = Some(cell);
            state.shared.tree.update(address, |vital| vital.state = ActorState::Ready);
            // Not before it is seen as ready.
            child.answer(Ended::Next(incarnation));
            Ok(())
        }
        Err(why) => Err(why.to_string()),
    }
}

/// One exit of the current incarnation of `address`.
fn ended(
    state: &mut State,
    myself: &ActorRef<Message>,
    address: &Arc<str>,
    exit: Exit,
    why: &str,
) -> Result<(), ActorProcessingErr> {
    let Some(child) = state.children.get_mut(address) else { return Ok(()) };
    child.cell = None;
    let clock = &state.shared.clock;
    let restarted = child.wished.as_ref().is_some_and(|wish| wish.how == End::Restart);
    let wished_why = child.wished.as_ref().map(|wish| wish.why.clone());
    let why = wished_why.as_deref().unwrap_or(why);
    let verdict = match restarted && exit == Exit::Normal {
        true => Verdict::RestartAfter { ms: 0 },
        false => {
            child.history.decide(child.spec.restart, exit, child.spec.budget, clock.now(), clock.entropy())
        }
    };
    if exit == Exit::Abnormal {
        tracing::warn!(%address, why, ?verdict, "died");
    }
    match verdict {
        Verdict::Gone => {
            child.answer(Ended::Gone);
            state.children.remove(address);
            state.shared.forget(address);
        }
        Verdict::RestartAfter { ms } => {
            state.shared.tree.died(address, why, ActorState::Backoff);
            let again = Message::StartAgain(Arc::clone(address));
            if ms == 0 {
                myself.cast(again)?;
            } else {
                myself.send_after(Duration::from_millis(ms), move || again);
            }
        }
        Verdict::Escalate => {
            state.shared.tree.died(address, why, ActorState::Failed);
            return Err(format!("{address} used up its restart budget: {why}").into());
        }
    }
    Ok(())
}

fn address_of(state: &State, id: ActorId) -> Option<Arc<str>> {
    let current = |child: &Child| child.cell.as_ref().is_some_and(|cell| cell.get_id() == id);
    state.children.iter().find(|(_, child)| current(child)).map(|(address, _)| Arc::clone(address))
}
