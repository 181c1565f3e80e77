//! Writer and syncer as supervised actors. Each runs its loop on a thread of its own and waits for it; a loop that
//! panics takes the actor along, and the next incarnation goes on with what stands in the journal.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use ractor::{ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::sequencer::Journal;
use super::store::{JournalStore, Projection, Syncer};
use super::threads::{self, BeforeSync};
use crate::shell::Run;

/// What the writer works on; the lock keeps a second incarnation waiting until the first one's thread is gone.
pub(crate) struct Writing {
    pub(crate) journal: Arc<Journal>,
    pub(crate) store: Mutex<Box<dyn JournalStore>>,
    pub(crate) projections: Vec<Projection>,
}

/// What the syncer works on.
pub(crate) struct Syncing {
    pub(crate) journal: Arc<Journal>,
    pub(crate) syncer: Mutex<Box<dyn Syncer>>,
    pub(crate) before: Vec<BeforeSync>,
}

/// The loop of a stage.
pub(crate) trait Stage: Send + Sync + 'static {
    const NAME: &'static str;
    /// # Errors
    /// What poisoned the journal.
    fn work(&self) -> Result<(), eclosion_schemas::Error>;
}

impl Stage for Writing {
    const NAME: &'static str = "journal-writer";
    fn work(&self) -> Result<(), eclosion_schemas::Error> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        threads::write(&self.journal, store.as_mut(), &self.projections)
    }
}

impl Stage for Syncing {
    const NAME: &'static str = "journal-syncer";
    fn work(&self) -> Result<(), eclosion_schemas::Error> {
        let mut syncer = self.syncer.lock().unwrap_or_else(PoisonError::into_inner);
        threads::sync(&self.journal, syncer.as_mut(), &self.before)
    }
}

pub(crate) struct StageActor<S>(std::marker::PhantomData<fn() -> S>);

impl<S> Default for StageActor<S> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<S: Stage> ractor::Actor for StageActor<S> {
    type Msg = Run;
    type State = Arc<S>;
    type Arguments = Arc<S>;

    async fn pre_start(&self, _: ActorRef<Run>, stage: Arc<S>) -> Result<Arc<S>, ActorProcessingErr> {
        Ok(stage)
    }

    async fn post_start(&self, myself: ActorRef<Run>, _: &mut Arc<S>) -> Result<(), ActorProcessingErr> {
        Ok(myself.cast(Run)?)
    }

    async fn handle(
        &self,
        myself: ActorRef<Run>,
        _: Run,
        stage: &mut Arc<S>,
    ) -> Result<(), ActorProcessingErr> {
        let (ended, end) = oneshot::channel();
        let stage = Arc::clone(stage);
        let work = move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stage.work()));
            // Whoever hears of the end may open the store again.
            drop(stage);
            // The actor may have been killed meanwhile.
            let _ = ended.send(outcome);
        };
        std::thread::Builder::new().name(S::NAME.into()).spawn(work)?;
        match end.await {
            // A poisoned journal stays read-only until the next start; there is nothing to restart for.
            Ok(Ok(_)) => {
                myself.stop(None);
                Ok(())
            }
            Ok(Err(panic)) => Err(text_of(&*panic).into()),
            Err(_) => Err("its thread vanished".into()),
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".into())
}
