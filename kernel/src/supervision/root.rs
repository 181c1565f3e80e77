//! The root: starts groups again, until its own budget is used up.

use std::sync::Arc;

use eclosion_bus::Bus;
use eclosion_schemas::error::{Code, Error};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};

use super::budget::{Budget, Exit, History, Restart, Verdict};
use super::group::{ChildSpec, End, Ended, Group, Message as GroupMessage, Shared, Wish};
use super::tree::Tree;
use crate::clock::Clock;

/// Nothing is left to restart: the kernel cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the kernel gave up: {0}")]
pub struct Escalated(pub String);

/// The handle of a supervision tree. Dropping it does not stop the tree; [`Root::stop`] does.
#[derive(Debug, Clone)]
pub struct Root {
    actor: ActorRef<Message>,
    tree: Tree,
    clock: Arc<dyn Clock>,
    escalated: watch::Receiver<Option<Escalated>>,
}

#[derive(Debug)]
enum Message {
    AddGroup(Arc<Shared>, oneshot::Sender<Result<(), String>>),
    Group(Arc<str>, oneshot::Sender<Option<ActorRef<GroupMessage>>>),
}

#[derive(Debug)]
struct Supervisor {
    clock: Arc<dyn Clock>,
    bus: Bus,
    escalated: watch::Sender<Option<Escalated>>,
}

#[derive(Debug, Default)]
struct State {
    groups: Vec<(Arc<Shared>, Option<ActorRef<GroupMessage>>)>,
    history: History,
}

impl Root {
    /// Starts an empty tree on the current runtime.
    ///
    /// # Errors
    /// `internal` when the runtime cannot start an actor.
    pub async fn start(clock: Arc<dyn Clock>, bus: Bus) -> Result<Self, Error> {
        let (sender, escalated) = watch::channel(None);
        let supervisor = Supervisor { clock: Arc::clone(&clock), bus: bus.clone(), escalated: sender };
        let (actor, _) = Actor::spawn(None, supervisor, ())
            .await
            .map_err(|why| Error::internal("supervision.start", why.to_string()))?;
        Ok(Self { actor, tree: Tree::new(bus), clock, escalated })
    }

    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Adds a group; groups stop in the reverse of the order in which they were added.
    ///
    /// # Errors
    /// `unavailable` when the tree is stopping.
    pub async fn add_group(&self, address: &str) -> Result<(), Error> {
        let shared = Shared::new(address.into(), self.tree.clone(), Arc::clone(&self.clock));
        let (reply, outcome) = oneshot::channel();
        self.actor.cast(Message::AddGroup(Arc::new(shared), reply)).map_err(|_| stopping())?;
        outcome.await.map_err(|_| stopping())?.map_err(|why| Error::internal("supervision.group", why))
    }

    /// Starts a child in a group.
    ///
    /// # Errors
    /// `internal` when it does not start; nothing of it is kept then.
    pub async fn add_child(&self, group: &str, spec: ChildSpec) -> Result<(), Error> {
        let found = self.group(group).await?;
        let (reply, outcome) = oneshot::channel();
        found.cast(GroupMessage::Add(spec, reply)).map_err(|_| stopping())?;
        outcome.await.map_err(|_| stopping())?.map_err(|why| Error::internal("supervision.child", why))
    }

    /// Ends an incarnation of a child of a group, and waits for what comes after it.
    ///
    /// # Errors
    /// `unavailable` when the tree is stopping, or the supervisor died meanwhile.
    pub async fn end_child(&self, group: &str, address: &str, how: End, why: &str) -> Result<Ended, Error> {
        let found = self.group(group).await?;
        let (reply, ended) = oneshot::channel();
        let wish = Wish { address: address.into(), how, why: why.into(), reply };
        found.cast(GroupMessage::End(wish)).map_err(|_| stopping())?;
        ended.await.map_err(|_| stopping())
    }

    async fn group(&self, address: &str) -> Result<ActorRef<GroupMessage>, Error> {
        let (reply, found) = oneshot::channel();
        self.actor.cast(Message::Group(address.into(), reply)).map_err(|_| stopping())?;
        found.await.map_err(|_| stopping())?.ok_or_else(stopping)
    }

    /// Waits until the tree has given up.
    pub async fn escalated(&self) -> Escalated {
        let mut watch = self.escalated.clone();
        match watch.wait_for(Option::is_some).await {
            Ok(found) => found.clone().unwrap_or_else(|| Escalated("unknown".into())),
            // The root has stopped in good order.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops everything, in reverse order.
    pub async fn stop(&self) {
        // A second stop finds it gone already.
        let _ = self.actor.get_cell().stop_and_wait(None, None).await;
    }
}

fn stopping() -> Error {
    Error::new(Code::Unavailable, "kernel.stopping", "the kernel is stopping")
}

impl Actor for Supervisor {
    type Msg = Message;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<State, ActorProcessingErr> {
        Ok(State::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::AddGroup(shared, reply) => {
                let started = start(&myself, &shared).await;
                let outcome = started.as_ref().map(|_| ()).map_err(ToString::to_string);
                if let Ok(group) = started {
                    state.groups.push((shared, Some(group)));
                }
                let _ = reply.send(outcome);
            }
            Message::Group(address, reply) => {
                let found = state.groups.iter().find(|(shared, _)| shared.address == address);
                let _ = reply.send(found.and_then(|(_, group)| group.clone()));
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, why): (ActorCell, String) = match event {
            SupervisionEvent::ActorFailed(cell, why) => (cell, why.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => (cell, reason.unwrap_or_default()),
            _ => return Ok(()),
        };
        let is_it = |group: &Option<ActorRef<GroupMessage>>| {
            group.as_ref().is_some_and(|g| g.get_id() == cell.get_id())
        };
        let Some(at) = state.groups.iter().position(|(_, group)| is_it(group)) else { return Ok(()) };
        let now = self.clock.now();
        match state.history.decide(Restart::Permanent, Exit::Abnormal, Budget::ROOT, now, 0) {
            Verdict::RestartAfter { .. } => {
                tracing::error!(group = %state.groups[at].0.address, why, "a group gave up and is started again");
                let started = start(&myself, &state.groups[at].0).await?;
                state.groups[at].1 = Some(started);
                Ok(())
            }
            Verdict::Gone | Verdict::Escalate => {
                // The other groups are killed with this actor.
                self.bus.retire();
                self.escalated.send_replace(Some(Escalated(why.clone())));
                Err(why.into())
            }
        }
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        for group in state.groups.iter().rev().filter_map(|(_, group)| group.as_ref()) {
            // It may have ended by itself.
            let _ = group.get_cell().stop_and_wait(None, None).await;
        }
        self.bus.retire();
        Ok(())
    }
}

async fn start(
    myself: &ActorRef<Message>,
    shared: &Arc<Shared>,
) -> Result<ActorRef<GroupMessage>, ActorProcessingErr> {
    let (group, _) = Actor::spawn_linked(None, Group, Arc::clone(shared), myself.get_cell()).await?;
    Ok(group)
}
