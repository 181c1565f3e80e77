//! Background work under supervision: a listener, a session, a worker's holder, a timer. A future with an address, so
//! that it stands in the tree, can be told to stop, and is restarted when it panics.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use eclosion_bus::{Address, Bus, Control, Mailbox, Taken};
use eclosion_schemas::Error;
use ractor::{ActorProcessingErr, ActorRef};

use crate::service::obey_panic;
use crate::shell::Run;

/// What a background actor does in one incarnation. `Ok` is a normal end.
pub type Work = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;
/// Makes the work of the next incarnation.
pub type Begin = Arc<dyn Fn() -> Work + Send + Sync>;

/// Work that can be begun only once, because it owns something (a socket): a second incarnation ends at once.
pub fn once(work: impl Future<Output = Result<(), Error>> + Send + 'static) -> Begin {
    let work: Mutex<Option<Work>> = Mutex::new(Some(Box::pin(work)));
    Arc::new(move || {
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.unwrap_or_else(|| Box::pin(std::future::ready(Ok(()))))
    })
}

pub(crate) struct Background;

pub(crate) struct Life {
    mailbox: Mailbox,
    begin: Begin,
    /// Its address goes with it, if nobody will come after it.
    _closing: Option<Closing>,
}

pub(crate) struct Closing {
    pub(crate) bus: Bus,
    pub(crate) address: Address,
}

impl Drop for Closing {
    fn drop(&mut self) {
        // It may have been closed by hand.
        let _ = self.bus.close(&self.address);
    }
}

impl ractor::Actor for Background {
    type Msg = Run;
    type State = Life;
    type Arguments = (Mailbox, Begin, Option<Closing>);

    async fn pre_start(
        &self,
        _: ActorRef<Run>,
        (mailbox, begin, closing): Self::Arguments,
    ) -> Result<Life, ActorProcessingErr> {
        Ok(Life { mailbox, begin, _closing: closing })
    }

    async fn post_start(&self, myself: ActorRef<Run>, _: &mut Life) -> Result<(), ActorProcessingErr> {
        Ok(myself.cast(Run)?)
    }

    async fn handle(&self, myself: ActorRef<Run>, _: Run, life: &mut Life) -> Result<(), ActorProcessingErr> {
        let mut work = (life.begin)();
        loop {
            tokio::select! {
                biased;
                taken = life.mailbox.take_control() => match taken {
                    Taken::Control(Control::Stop { .. }) | Taken::Closed => break,
                    Taken::Control(Control::Panic(text)) => obey_panic(life.mailbox.address(), &text),
                    Taken::Control(Control::Ping(probe)) => probe.answer(),
                    Taken::Message(_) => {}
                },
                ended = &mut work => {
                    ended?;
                    break;
                }
            }
        }
        myself.stop(None);
        Ok(())
    }
}
