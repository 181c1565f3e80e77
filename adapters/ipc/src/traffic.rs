//! What all sessions of a kernel hold together (open streams, and items that they may still send), and what their
//! connections have carried.
//!
//! What is held is counted where it is held and given back where it is dropped, so that whoever looks sees what a client
//! that was killed has left: nothing (P1, P5). What was carried is counted at the socket, heads and fragments included,
//! and only grows. Bytes in shared memory never pass here, and calls that are over are counted by their actors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shared by the sessions and whoever shows it. The numbers are each right and not taken at one instant.
#[derive(Debug, Default)]
pub struct Traffic {
    streams: AtomicU64,
    credit: AtomicU64,
    frames_received: AtomicU64,
    frames_sent: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
}

/// What connections have carried since the kernel started. A line of JSON is a frame; HTTP has bytes alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    pub frames_received: u64,
    pub frames_sent: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
}

impl Traffic {
    /// Calls and subscriptions that have not ended.
    #[must_use]
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// Items that open streams may send before their clients grant more; of streams that name their credit.
    #[must_use]
    pub fn credit(&self) -> u64 {
        self.credit.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn carried(&self) -> Carried {
        Carried {
            frames_received: self.frames_received.load(Ordering::Relaxed),
            frames_sent: self.frames_sent.load(Ordering::Relaxed),
            bytes_received: self.bytes_received.load(Ordering::Relaxed),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn frame_received(&self) {
        self.frames_received.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn frame_sent(&self) {
        self.frames_sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn received_bytes(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sent_bytes(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// One stream's share.
#[derive(Debug)]
pub(crate) struct Counted {
    traffic: Arc<Traffic>,
    outstanding: u64,
}

impl Counted {
    pub(crate) fn new(traffic: &Arc<Traffic>, credit: u64) -> Self {
        traffic.streams.fetch_add(1, Ordering::Relaxed);
        let mut counted = Self { traffic: Arc::clone(traffic), outstanding: 0 };
        counted.granted(credit);
        counted
    }

    pub(crate) fn granted(&mut self, more: u64) {
        // What a client claims is added up with what others claim, and must not wrap.
        let more = more.min(u64::from(u32::MAX) - self.outstanding.min(u64::from(u32::MAX)));
        self.outstanding += more;
        self.traffic.credit.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn sent(&mut self) {
        if self.outstanding > 0 {
            self.outstanding -= 1;
            self.traffic.credit.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.traffic.streams.fetch_sub(1, Ordering::Relaxed);
        self.traffic.credit.fetch_sub(self.outstanding, Ordering::Relaxed);
    }
}
