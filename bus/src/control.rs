//! The control lane: what must never wait behind data.

use std::time::Duration;

use eclosion_schemas::{Code, Error};
use tokio::sync::oneshot;

/// A word to whoever takes from a mailbox; always taken before any data.
#[derive(Debug)]
pub enum Control {
    /// Finish what is in hand, or with `now` not even that, and end.
    Stop { now: bool },
    /// Answer that you are alive.
    Ping(Probe),
    /// Panic with this text; only kernels that were built with the feature `chaos` obey.
    Panic(String),
}

/// How long a probe waits before the probed one counts as stuck.
const PROBE_WAIT: Duration = Duration::from_secs(5);

/// The answering end of a ping.
#[derive(Debug)]
pub struct Probe(oneshot::Sender<()>);

impl Probe {
    pub(crate) fn pair() -> (Self, Probing) {
        let (answer, answered) = oneshot::channel();
        (Self(answer), Probing(answered))
    }

    pub fn answer(self) {
        // Whoever asked may be gone; then nobody wants to know.
        let _ = self.0.send(());
    }
}

#[derive(Debug)]
pub(crate) struct Probing(oneshot::Receiver<()>);

impl Probing {
    pub(crate) async fn answered(self, address: &str) -> Result<(), Error> {
        match tokio::time::timeout(PROBE_WAIT, self.0).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::died(address, "the probe was dropped")),
            Err(_) => Err(Error::new(
                Code::Deadline,
                "actor.stuck",
                format!("{address} did not answer a probe in 5 s"),
            )
            .help("eclosion tree")),
        }
    }
}
