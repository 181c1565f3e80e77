//! A subscription that outlives its connection, and the kernel.
//!
//! ```text
//!   away ──connected, subscribed from the cursor──▶ hearing ──lost, or the kernel stops──▶ away
//! ```
//!
//! Invariants: (1) Between two deliveries nothing is missing, unless a `gap` or a `reset` stands between them; after a
//! resumption some may come again. (2) A snapshot that was cut off is begun anew behind a `reset`. (3) A kernel that is
//! gone is waited for no longer than the patience that was given.

use std::path::{Path, PathBuf};
use std::time::Duration;

use eclosion_schemas::ops::kernel::Delivery;
use eclosion_schemas::{Epoch, Error, Seq};
use tokio::time::Instant;

use crate::call::Subscription;
use crate::{Client, ConnectOptions};

/// Between two tries, at first and at most.
const AGAIN: Duration = Duration::from_millis(10);
const AGAIN_MAX: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
#[must_use = "dropping it leaves"]
pub struct Follow {
    origin: Origin,
    filter: String,
    patience: Duration,
    hearing: Option<Subscription>,
    cursor: Cursor,
}

/// Whom to subscribe with.
#[derive(Debug)]
enum Origin {
    Path(PathBuf, ConnectOptions),
    /// There is no other to come.
    Connection(Client),
}

/// Up to where was heard.
#[derive(Debug, Default)]
struct Cursor {
    position: (Epoch, Seq),
    /// A snapshot has begun, and has come to its end.
    begun: bool,
    whole: bool,
    /// The next acknowledgement is followed by a reset of our own.
    reset_due: bool,
    acknowledged: bool,
}

impl Follow {
    /// Nothing is connected before the first [`Follow::next`]. A kernel that is gone is waited for as long as
    /// `patience` says.
    pub fn new(
        path: impl AsRef<Path>,
        options: ConnectOptions,
        filter: impl Into<String>,
        patience: Duration,
    ) -> Self {
        Self::from(Origin::Path(path.as_ref().to_owned(), options), filter.into(), patience)
    }

    /// As [`Follow::new`], where a client is connected already; over a stream that was given, it ends with the stream.
    pub(crate) fn of(client: &Client, filter: String, patience: Duration) -> Self {
        let origin = match client.origin() {
            Some((path, options)) => Origin::Path(path.clone(), options.clone()),
            None => Origin::Connection(client.clone()),
        };
        Self::from(origin, filter, patience)
    }

    fn from(origin: Origin, filter: String, patience: Duration) -> Self {
        Self { origin, filter, patience, hearing: None, cursor: Cursor::default() }
    }

    /// The next delivery. Cancel-safe: one that was not given is given by the next call.
    ///
    /// # Errors
    /// `unavailable` when no kernel came back in time, and what a kernel refuses.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        loop {
            if let Some(reset) = self.cursor.due() {
                return Ok(reset);
            }
            let hearing = match &mut self.hearing {
                Some(hearing) => hearing,
                none => {
                    none.insert(connect(&self.origin, &self.filter, self.patience, &mut self.cursor).await?)
                }
            };
            match hearing.next().await {
                Some(Ok(delivery)) => {
                    self.cursor.heard(&delivery);
                    return Ok(delivery);
                }
                Some(Err(why)) if !is_loss(&why) => return Err(why),
                _ => self.hearing = None,
            }
        }
    }
}

async fn connect(
    origin: &Origin,
    filter: &str,
    patience: Duration,
    cursor: &mut Cursor,
) -> Result<Subscription, Error> {
    let until = Instant::now() + patience;
    let mut pause = AGAIN;
    loop {
        match subscribe(origin, filter, cursor).await {
            Err(why) if origin.comes_back() && is_loss(&why) && Instant::now() + pause < until => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN_MAX);
            }
            connected => return connected,
        }
    }
}

async fn subscribe(origin: &Origin, filter: &str, cursor: &mut Cursor) -> Result<Subscription, Error> {
    let client = match origin {
        Origin::Path(path, options) => Client::connect_with(path, options.clone()).await?,
        Origin::Connection(client) => client.clone(),
    };
    let subscribe = client.subscribe(filter);
    let (epoch, seq) = cursor.position;
    cursor.reset_due = cursor.begun && !cursor.whole;
    if cursor.whole { subscribe.start(epoch, seq).await } else { subscribe.await }
}

impl Origin {
    fn comes_back(&self) -> bool {
        matches!(self, Self::Path(..))
    }
}

/// Whether the next kernel may be asked to go on.
fn is_loss(why: &Error) -> bool {
    ["connection.closed", "kernel.unreachable", "kernel.stopping"].contains(&why.reason.as_str())
}

impl Cursor {
    fn due(&mut self) -> Option<Delivery> {
        if !(self.reset_due && self.acknowledged) {
            return None;
        }
        self.reset_due = false;
        Some(Delivery::Reset { why: "the connection was lost inside a snapshot".into() })
    }

    fn heard(&mut self, delivery: &Delivery) {
        self.acknowledged = matches!(delivery, Delivery::Acknowledged { .. });
        match *delivery {
            Delivery::Acknowledged { epoch, seq } => self.position = (epoch, seq),
            Delivery::Snapshot { epoch, seq, .. } => {
                self.begun = true;
                self.position = self.position.max((epoch, seq));
            }
            Delivery::Change { epoch, seq, .. } => self.position = self.position.max((epoch, seq)),
            Delivery::SnapshotEnd {} => self.whole = true,
            Delivery::Reset { .. } => {
                self.whole = false;
                self.reset_due = false;
            }
            Delivery::Gap { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(seq: u64) -> Delivery {
        Delivery::Snapshot { subject: "x".into(), epoch: Epoch(1), seq: Seq(seq), value: 0.into() }
    }

    #[test]
    fn a_snapshot_that_was_cut_off_is_begun_anew_behind_a_reset() {
        let acknowledged = Delivery::Acknowledged { epoch: Epoch(1), seq: Seq(4) };
        let mut cursor = Cursor::default();
        cursor.heard(&acknowledged);
        cursor.heard(&snapshot(3));
        assert!(!cursor.whole && cursor.due().is_none());
        cursor.reset_due = cursor.begun && !cursor.whole;
        assert_eq!(cursor.due(), None);
        cursor.heard(&acknowledged);
        assert!(matches!(cursor.due(), Some(Delivery::Reset { .. })));
        assert_eq!(cursor.due(), None);
        cursor.heard(&snapshot(3));
        cursor.heard(&Delivery::SnapshotEnd {});
        assert_eq!((cursor.whole, cursor.position), (true, (Epoch(1), Seq(4))));
    }
}
