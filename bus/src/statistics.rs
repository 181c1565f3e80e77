//! What became of everything that a mailbox accepted, and how fast.

use std::time::Duration;

use crate::mailbox::Gate;

/// Of a sample of recent messages, within 13 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantiles {
    pub p50: Duration,
    pub p99: Duration,
}

/// One reading of a mailbox, consistent in itself:
/// `accepted = handled + dropped + expired + cancelled + dead_lettered + queued + in_hand` (P5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MailboxStatistics {
    pub accepted: u64,
    /// Finished by whoever took it.
    pub handled: u64,
    /// By the policy for a full mailbox; a refusal is not among them, it was never accepted.
    pub dropped: u64,
    /// Deadline passed while queued.
    pub expired: u64,
    /// Withdrawn by the asker while queued, or given back in hand after the asker had left.
    pub cancelled: u64,
    pub dead_lettered: u64,
    pub queued: u64,
    pub in_hand: u64,
    pub refused: u64,
    /// Times a message came back from a hand that died.
    pub redelivered: u64,
    /// Of the data lane.
    pub capacity: u64,
    pub control_queued: u64,
    /// How long the oldest queued message has waited.
    pub oldest_age: Option<Duration>,
    /// The operation taken last, while anything is in hand.
    pub current: Option<&'static str>,
    /// How long the same has been in hand, as far as the sweeps have seen.
    pub in_hand_for: Option<Duration>,
    pub gate: Gate,
    /// Over the last full second.
    pub accepted_per_s: u64,
    /// The part of the last full second in which something was in hand, in thousandths.
    pub busy_permille: u16,
    /// From accepted to taken, of asks.
    pub wait: Option<Quantiles>,
    /// From taken until the taker takes again.
    pub handling: Option<Quantiles>,
}

impl MailboxStatistics {
    /// Whether nothing was lost without a trace.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.accepted
            == self.handled
                + self.dropped
                + self.expired
                + self.cancelled
                + self.dead_lettered
                + self.queued
                + self.in_hand
    }
}
