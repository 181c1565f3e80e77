//! A refusal hands the message back: it was never accepted, and is not counted as such (P5).

use eclosion_schemas::{Code, Error, Retry};

/// Why a message was not accepted, with the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused<M> {
    /// The mailbox is at its capacity.
    Full(M),
    /// Nobody has opened this address, or it was closed.
    Closed(M),
    /// Its deadline had passed before it was sent.
    Expired(M),
    /// An operator has the address finish what is queued, and nothing new.
    Draining(M),
}

impl<M> Refused<M> {
    pub fn into_inner(self) -> M {
        match self {
            Refused::Full(message)
            | Refused::Closed(message)
            | Refused::Expired(message)
            | Refused::Draining(message) => message,
        }
    }

    pub fn map<N>(self, change: impl FnOnce(M) -> N) -> Refused<N> {
        match self {
            Refused::Full(message) => Refused::Full(change(message)),
            Refused::Closed(message) => Refused::Closed(change(message)),
            Refused::Expired(message) => Refused::Expired(change(message)),
            Refused::Draining(message) => Refused::Draining(change(message)),
        }
    }

    /// What the sender is told.
    #[must_use]
    pub fn to_error(&self, address: &str) -> Error {
        match self {
            Refused::Full(_) => full(address),
            Refused::Closed(_) => no_responders(address),
            Refused::Expired(_) => Error::deadline("the request"),
            Refused::Draining(_) => draining(address),
        }
    }
}

fn full(address: &str) -> Error {
    Error::new(Code::Exhausted, "mailbox.full", format!("the mailbox of {address} is full"))
        .retry(Retry::After { after_ms: 50 })
        .help("eclosion tree")
}

fn draining(address: &str) -> Error {
    Error::new(Code::Unavailable, "mailbox.draining", format!("{address} is draining and takes nothing new"))
        .retry(Retry::After { after_ms: 1_000 })
        .help(format!("eclosion resume {address}"))
}

pub(crate) fn no_responders(address: &str) -> Error {
    Error::new(Code::NoResponders, "address.unserved", format!("nobody serves {address}"))
        .help("eclosion tree")
}
