//! What could not be handled, kept for operators: listed, sent again, or dropped.
//!
//! The list is bounded; when it is full the oldest letter is forgotten, and the list says how many were.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::ask::CancelToken;
use crate::locked;
use crate::mailbox::Message;

/// Letters that are kept.
pub const LETTERS_MAX: usize = 1024;

/// A dead letter as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: u64,
    pub address: Address,
    pub operation: &'static str,
    /// `died twice` or `address closed`, and the text of whoever died.
    pub why: String,
    pub deliveries: u8,
    pub caller: Option<String>,
    pub age: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct DeadLetters(Mutex<Letters>);

#[derive(Debug, Default)]
struct Letters {
    kept: VecDeque<Letter>,
    last_id: u64,
    forgotten: u64,
}

#[derive(Debug)]
pub(crate) struct Letter {
    id: u64,
    pub(crate) address: Address,
    why: String,
    at: Instant,
    pub(crate) message: Box<Message>,
}

impl DeadLetters {
    pub(crate) fn bury(&self, address: &Address, mut message: Box<Message>, why: &str, at: Instant) {
        message.asker = CancelToken::GONE;
        tracing::warn!(%address, operation = message.operation, why, "dead letter");
        let forgotten = {
            let mut letters = locked(&self.0);
            letters.last_id += 1;
            let (id, address, why) = (letters.last_id, address.clone(), why.to_owned());
            letters.kept.push_back(Letter { id, address, why, at, message });
            let over = letters.kept.len() > LETTERS_MAX;
            letters.forgotten += u64::from(over);
            over.then(|| letters.kept.pop_front())
        };
        // A message's own drop runs outside the lock.
        drop(forgotten);
    }

    pub(crate) fn list(&self, now: Instant) -> Vec<DeadLetter> {
        let view = |letter: &Letter| DeadLetter {
            id: letter.id,
            address: letter.address.clone(),
            operation: letter.message.operation,
            why: letter.why.clone(),
            deliveries: letter.message.deliveries,
            caller: letter.message.context.caller.as_deref().map(str::to_owned),
            age: now.saturating_duration_since(letter.at),
        };
        locked(&self.0).kept.iter().map(view).collect()
    }

    pub(crate) fn with<T>(&self, id: u64, see: impl FnOnce(&Message) -> T) -> Option<T> {
        let letters = locked(&self.0);
        let at = letters.kept.binary_search_by_key(&id, |letter| letter.id).ok()?;
        letters.kept.get(at).map(|letter| see(&letter.message))
    }

    pub(crate) fn take(&self, id: u64) -> Option<Letter> {
        let mut letters = locked(&self.0);
        let at = letters.kept.binary_search_by_key(&id, |letter| letter.id).ok()?;
        letters.kept.remove(at)
    }

    /// A replay was refused.
    pub(crate) fn put_back(&self, letter: Letter) {
        let mut letters = locked(&self.0);
        let at = letters.kept.partition_point(|kept| kept.id < letter.id);
        letters.kept.insert(at, letter);
    }

    pub(crate) fn forgotten(&self) -> u64 {
        locked(&self.0).forgotten
    }
}
