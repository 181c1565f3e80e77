//! The book of one worker's attempts: which wait here, which are at the worker, whose outcome is not safe yet.
//!
//! ```text
//!   admit ──▶ waiting ──next──▶ at the worker ──ended──▶ unacknowledged ──acknowledged──▶ done
//!                └ withdraw ──────────────────────────────────▲
//! ```
//!
//! Attempts are sent ahead, so that the worker never waits for the next. It keeps the outcome of a journaled one until it
//! is told that it is safe: every call says below which fence they all are. That bounds what it keeps, because no more
//! is sent than it may keep. One that is not safe holds up all that come after it: they may be safe, and it keeps them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use eclosion_schemas::frame::{Envelope, FRAME_BYTES_MAX, Frame, FrameType, StreamId, WireCodec};
use eclosion_schemas::ops::task::{EXECUTE, Execute};
use eclosion_schemas::{Code, Error, Fence, Retry, codec};

/// Attempts that may wait for one worker.
const WAITING_MAX: usize = 64;
/// Attempts at the worker: one in hand, and what it lets queue.
const SENT_MAX: usize = 4;
/// Journaled attempts at the worker, and outcomes that it keeps.
pub(super) const KEPT_MAX: usize = 8;
/// Items of one journaled attempt that may be under way: whoever follows its run takes them as they come, or misses them.
pub(super) const ITEMS_AHEAD: u64 = 64;
/// Fences that are remembered one by one; older ones are known as a whole.
const KNOWN_MAX: usize = 256;

/// What becomes of an outcome if nobody has acknowledged it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// The worker keeps it until it is acknowledged.
    Journaled,
    /// It is lost with its caller, who may read its result in shared memory.
    Call { shares: bool },
    /// The same, and the caller wants a generator's items: so many at first.
    Stream { credit: u64, shares: bool },
}

impl Care {
    /// What the call names; without it, the worker yields nothing.
    fn credit(self) -> Option<u64> {
        match self {
            Care::Journaled => Some(ITEMS_AHEAD),
            Care::Call { .. } => None,
            Care::Stream { credit, .. } => Some(credit),
        }
    }

    fn shares(self) -> bool {
        matches!(self, Care::Call { shares: true } | Care::Stream { shares: true, .. })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Attempts {
    waiting: VecDeque<Waiting>,
    sent: BTreeMap<StreamId, Sent>,
    unacknowledged: BTreeSet<Fence>,
    /// Acknowledged, and the worker was not told yet.
    untold: BTreeSet<Fence>,
    last_stream: u32,
    known: KnownFences,
}

#[derive(Debug)]
struct Waiting {
    fence: Fence,
    care: Care,
    body: Bytes,
}

/// One attempt at the worker.
#[derive(Debug)]
struct Sent {
    fence: Fence,
    care: Care,
    /// Items in sum: that the worker may send, and that came.
    granted: u64,
    items: u64,
}

/// What a cancel meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    /// It had not been sent, and will not be.
    Waiting,
    AtWorker(StreamId),
    Nothing,
}

impl Attempts {
    /// Takes an attempt to be sent. One that is known is done.
    pub(crate) fn admit(&mut self, execute: &Execute, care: Care) -> Result<(), Error> {
        let fence = execute.fence;
        if self.is_known(fence, care) {
            return Ok(());
        }
        if self.waiting.len() >= WAITING_MAX {
            let text = format!("{WAITING_MAX} attempts wait for this worker already");
            return Err(Error::new(Code::Exhausted, "worker.full", text).retry(Retry::After { after_ms: 50 }));
        }
        let body = codec::encode(execute)?;
        if body.len() + 1024 > FRAME_BYTES_MAX {
            let text = format!(
                "the arguments of {} have {} bytes, over the limit of a frame",
                execute.task,
                body.len()
            );
            return Err(
                Error::new(Code::Exhausted, "frame.size", text).help("pass large values as artifacts")
            );
        }
        self.note(fence, care);
        self.waiting.push_back(Waiting { fence, care, body: body.into() });
        Ok(())
    }

    /// The call that may be sent now.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let Waiting { fence, care, .. } = *self.waiting.front()?;
        let is_kept = care == Care::Journaled;
        let may_go = self.sent.len() < SENT_MAX && !(is_kept && self.keeps_too_much_for(fence));
        let Waiting { fence, care, body } = self.waiting.pop_front_if(|_| may_go)?;
        let stream = self.open(fence, care);
        let credit = care.credit();
        let call = Frame::new(FrameType::Call, stream).with_body(WireCodec::Msgpack, body);
        let (method, safe_below) = (Some(EXECUTE.to_owned()), self.oldest_unsafe());
        self.untold.retain(|fence| safe_below.is_some_and(|below| *fence >= below));
        Some(call.with_envelope(Envelope { method, safe_below, credit, ..Envelope::default() }))
    }

    /// Lets an attempt send `total` items since it began. Returns the stream of one that is at the worker; one that waits
    /// takes it along.
    pub(crate) fn grant(&mut self, fence: Fence, total: u64) -> Option<StreamId> {
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.fence == fence) {
            if let Care::Stream { credit, .. } = &mut waiting.care {
                *credit = total.max(*credit);
            }
            return None;
        }
        let (stream, sent) = self.sent.iter_mut().find(|(_, sent)| sent.fence == fence)?;
        (total > sent.granted).then(|| {
            sent.granted = total;
            *stream
        })
    }

    /// An item has come. Returns what is to be granted now, in sum, if nobody else says so.
    ///
    /// # Errors
    /// The worker had no credit for it: it is cut off.
    pub(crate) fn item(&mut self, stream: StreamId) -> Result<Option<u64>, Error> {
        let Some(sent) = self.sent.get_mut(&stream) else { return Ok(None) };
        sent.items += 1;
        if sent.items > sent.granted {
            let text = format!("a worker sent item {} where {} were granted", sent.items, sent.granted);
            return Err(Error::invalid("stream.credit", text));
        }
        let is_due = sent.care == Care::Journaled && sent.granted - sent.items <= ITEMS_AHEAD / 2;
        Ok(is_due.then(|| {
            sent.granted = sent.items + ITEMS_AHEAD;
            sent.granted
        }))
    }

    /// Whether the worker might come to keep more than it may, as all that it can be told with this one is that what lies
    /// below the oldest is safe. If nothing there is unsafe, nothing is to come that would change that: then it may go.
    fn keeps_too_much_for(&self, fence: Fence) -> bool {
        self.oldest_unsafe().is_some_and(|oldest| {
            let untold = self.untold.range(oldest.min(fence)..).count();
            self.unacknowledged.len() + untold + self.journaled().count() >= KEPT_MAX
        })
    }

    fn journaled(&self) -> impl Iterator<Item = Fence> {
        self.sent.values().filter(|sent| sent.care == Care::Journaled).map(|sent| sent.fence)
    }

    /// Below this, every outcome is safe. `None` for a worker that serves calls alone.
    fn oldest_unsafe(&self) -> Option<Fence> {
        self.unacknowledged.iter().copied().chain(self.journaled()).min()
    }

    /// An attempt that the worker has had before this link: its outcome is to come on the stream returned. Its items too,
    /// once a CREDIT has said how many.
    pub(crate) fn resume(&mut self, fence: Fence) -> StreamId {
        self.note(fence, Care::Journaled);
        self.open(fence, Care::Journaled)
    }

    pub(crate) fn fence(&self, stream: StreamId) -> Option<Fence> {
        self.sent.get(&stream).map(|sent| sent.fence)
    }

    /// Whether whoever waits for the attempt, which is at the worker, reads shared memory.
    pub(crate) fn shares(&self, fence: Fence) -> bool {
        self.sent.values().any(|sent| sent.fence == fence && sent.care.shares())
    }

    /// Its outcome has come. `None` for a stream that is no attempt's, or not any more.
    pub(crate) fn ended(&mut self, stream: StreamId) -> Option<Fence> {
        let Sent { fence, care, .. } = self.sent.remove(&stream)?;
        if care == Care::Journaled {
            self.unacknowledged.insert(fence);
        }
        Some(fence)
    }

    pub(crate) fn acknowledged(&mut self, fence: Fence) {
        if self.unacknowledged.remove(&fence) {
            self.untold.insert(fence);
        }
    }

    /// Takes an attempt back if it is not sent; one that never came will not be executed when it comes.
    pub(crate) fn cancel(&mut self, fence: Fence) -> Met {
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.fence == fence) {
            self.waiting.remove(at);
            return Met::Waiting;
        }
        match self.sent.iter().find(|(_, sent)| sent.fence == fence) {
            Some((stream, _)) => Met::AtWorker(*stream),
            None => Met::Nothing,
        }
    }

    /// Attempts whose outcome will not come any more.
    pub(crate) fn close(&mut self) -> Vec<Fence> {
        let sent = std::mem::take(&mut self.sent).into_values().map(|sent| sent.fence);
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.fence);
        sent.chain(waiting).collect()
    }

    fn is_known(&self, fence: Fence, care: Care) -> bool {
        match care {
            Care::Journaled => self.known.has(fence),
            Care::Call { .. } | Care::Stream { .. } => {
                self.waiting.iter().any(|waiting| waiting.fence == fence)
                    || self.sent.values().any(|sent| sent.fence == fence)
            }
        }
    }

    fn note(&mut self, fence: Fence, care: Care) {
        if care == Care::Journaled {
            self.known.note(fence);
        }
    }

    fn open(&mut self, fence: Fence, care: Care) -> StreamId {
        // Even, from 2 on. A worker is replaced long before they are used up, and then the first are free again.
        self.last_stream = self.last_stream.wrapping_add(2).max(2);
        let stream = StreamId(self.last_stream);
        self.sent.insert(stream, Sent { fence, care, granted: care.credit().unwrap_or(0), items: 0 });
        stream
    }
}

/// Fences that were executed or cancelled: what is known is done.
///
/// They come in order as a rule. After a restart those of an earlier kernel may come late, so they are known one by one,
/// and only what is older than the last few hundred as a whole.
#[derive(Debug, Default)]
pub struct KnownFences {
    newest: BTreeSet<Fence>,
    through: Option<Fence>,
}

impl KnownFences {
    #[must_use]
    pub fn has(&self, fence: Fence) -> bool {
        self.through.is_some_and(|through| fence <= through) || self.newest.contains(&fence)
    }

    pub fn note(&mut self, fence: Fence) {
        self.newest.insert(fence);
        if self.newest.len() > KNOWN_MAX {
            self.through = self.through.max(self.newest.pop_first());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eclosion_schemas::ids::Epoch;

    fn execute(counter: u64) -> Execute {
        Execute {
            run: "7k2m4q9d".parse().unwrap(),
            task: "load".parse().unwrap(),
            attempt: eclosion_schemas::Attempt(1),
            fence: fence(counter),
            function: "steps:load".into(),
            code: "/code".into(),
            code_hash: String::new(),
            arguments: BTreeMap::new(),
            seed: 1,
            idempotency_key: String::new(),
            timeout_ms: None,
            lease: BTreeMap::new(),
            limits: None,
            trace: None,
            timings: false,
            keeps: false,
        }
    }

    fn fence(counter: u64) -> Fence {
        Fence { epoch: Epoch(1), counter }
    }

    fn admit(attempts: &mut Attempts, counter: u64, care: Care) -> Result<(), Error> {
        attempts.admit(&execute(counter), care)
    }

    fn next(attempts: &mut Attempts) -> Option<u32> {
        attempts.next().map(|frame| frame.stream.0)
    }

    fn safe_below(attempts: &mut Attempts) -> Option<Fence> {
        attempts.next().unwrap().envelope.safe_below
    }

    #[test]
    fn attempts_are_sent_ahead_up_to_what_the_worker_lets_queue() {
        for care in [Care::Call { shares: false }, Care::Journaled] {
            let mut attempts = Attempts::default();
            for counter in 1..=6 {
                admit(&mut attempts, counter, care).unwrap();
            }
            let sent: Vec<_> = std::iter::from_fn(|| next(&mut attempts)).collect();
            assert_eq!(sent, [2, 4, 6, 8]);
            attempts.ended(StreamId(4));
            assert_eq!(next(&mut attempts), Some(10));
        }
    }

    #[test]
    fn a_call_says_below_which_fence_every_outcome_is_safe() {
        let mut attempts = Attempts::default();
        admit(&mut attempts, 1, Care::Journaled).unwrap();
        assert_eq!(safe_below(&mut attempts), Some(fence(1)));
        admit(&mut attempts, 2, Care::Journaled).unwrap();
        assert_eq!(safe_below(&mut attempts), Some(fence(1)));
        attempts.ended(StreamId(2));
        attempts.ended(StreamId(4));
        attempts.acknowledged(fence(2));
        admit(&mut attempts, 3, Care::Journaled).unwrap();
        assert_eq!(safe_below(&mut attempts), Some(fence(1)));
        attempts.acknowledged(fence(1));
        admit(&mut attempts, 4, Care::Journaled).unwrap();
        assert_eq!(safe_below(&mut attempts), Some(fence(3)));
    }

    #[test]
    fn no_more_is_sent_than_the_worker_may_keep() {
        let mut attempts = Attempts::default();
        for counter in 1..=10 {
            admit(&mut attempts, counter, Care::Journaled).unwrap();
        }
        let mut sent = 0;
        while let Some(stream) = next(&mut attempts) {
            sent += 1;
            attempts.ended(StreamId(stream));
        }
        assert_eq!(sent, KEPT_MAX);
        attempts.acknowledged(fence(1));
        assert!(next(&mut attempts).is_some());
    }

    #[test]
    fn what_is_safe_counts_as_long_as_one_before_it_is_not() {
        let mut attempts = Attempts::default();
        for counter in 2..=20 {
            admit(&mut attempts, counter, Care::Journaled).unwrap();
        }
        let mut sent = 0;
        while let Some(stream) = next(&mut attempts) {
            sent += 1;
            let ended = attempts.ended(StreamId(stream));
            ended.filter(|ended| *ended > fence(2)).iter().for_each(|safe| attempts.acknowledged(*safe));
        }
        assert_eq!(sent, KEPT_MAX);
        attempts.acknowledged(fence(2));
        assert_eq!(safe_below(&mut attempts), Some(fence(10)));
        assert!(attempts.untold.is_empty());
    }

    #[test]
    fn one_that_comes_late_goes_once_nothing_is_unsafe() {
        let mut attempts = Attempts::default();
        for counter in 2..=9 {
            attempts.resume(fence(counter));
            attempts.ended(StreamId(2 * (counter as u32 - 1)));
            attempts.acknowledged(fence(counter));
        }
        admit(&mut attempts, 1, Care::Journaled).unwrap();
        assert_eq!(safe_below(&mut attempts), Some(fence(1)));
    }

    #[test]
    fn a_fence_that_is_known_is_not_executed_again() {
        let mut attempts = Attempts::default();
        admit(&mut attempts, 5, Care::Journaled).unwrap();
        assert!(next(&mut attempts).is_some());
        attempts.ended(StreamId(2));
        attempts.acknowledged(fence(5));
        for counter in [5, 4] {
            admit(&mut attempts, counter, Care::Journaled).unwrap();
            assert_eq!(next(&mut attempts).is_some(), counter == 4, "{counter}");
        }
    }

    #[test]
    fn a_resumed_attempt_is_known_and_an_older_one_that_was_lost_is_not() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.resume(fence(7)), StreamId(2));
        for counter in [7, 8, 6] {
            admit(&mut attempts, counter, Care::Journaled).unwrap();
        }
        assert_eq!(attempts.oldest_unsafe(), Some(fence(7)));
        assert_eq!((next(&mut attempts), next(&mut attempts)), (Some(4), Some(6)));
        assert_eq!(attempts.fence(StreamId(6)), Some(fence(6)));
        assert_eq!((next(&mut attempts), attempts.oldest_unsafe()), (None, Some(fence(6))));
    }

    #[test]
    fn a_cancel_meets_an_attempt_where_it_is() {
        let mut attempts = Attempts::default();
        for counter in 1..=5 {
            admit(&mut attempts, counter, Care::Journaled).unwrap();
        }
        while next(&mut attempts).is_some() {}
        assert_eq!(attempts.cancel(fence(1)), Met::AtWorker(StreamId(2)));
        assert_eq!(attempts.cancel(fence(5)), Met::Waiting);
        assert_eq!(attempts.cancel(fence(6)), Met::Nothing);
        assert_eq!(attempts.close(), [1, 2, 3, 4].map(fence));
    }

    #[test]
    fn an_item_without_credit_is_refused_and_a_journaled_attempt_gets_credit_as_its_items_come() {
        let mut attempts = Attempts::default();
        admit(&mut attempts, 1, Care::Stream { credit: 1, shares: false }).unwrap();
        assert_eq!(attempts.grant(fence(1), 2), None, "it waits, and takes it along");
        let call = attempts.next().unwrap();
        assert_eq!((call.stream, call.envelope.credit), (StreamId(2), Some(2)));
        assert_eq!((attempts.item(StreamId(2)), attempts.item(StreamId(2))), (Ok(None), Ok(None)));
        assert_eq!(attempts.grant(fence(1), 2), None, "cumulative");
        assert_eq!(attempts.grant(fence(1), 3), Some(StreamId(2)));
        assert_eq!(attempts.item(StreamId(2)), Ok(None));
        assert_eq!(attempts.item(StreamId(2)).unwrap_err().reason, "stream.credit");

        admit(&mut attempts, 2, Care::Journaled).unwrap();
        assert_eq!(attempts.next().unwrap().envelope.credit, Some(ITEMS_AHEAD));
        let granted: Vec<_> = (0..1000).filter_map(|_| attempts.item(StreamId(4)).unwrap()).collect();
        assert_eq!(granted.first(), Some(&(ITEMS_AHEAD / 2 + ITEMS_AHEAD)));
        assert!(granted.len() < 1000 / 16, "not a frame for each item: {}", granted.len());

        admit(&mut attempts, 3, Care::Call { shares: false }).unwrap();
        assert_eq!(attempts.next().unwrap().envelope.credit, None);
        assert!(attempts.item(StreamId(6)).is_err(), "nobody asked for items");
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut attempts = Attempts::default();
        for counter in 1..=WAITING_MAX as u64 {
            admit(&mut attempts, counter, Care::Journaled).unwrap();
        }
        let refused = admit(&mut attempts, 1000, Care::Journaled).unwrap_err();
        assert_eq!(refused.code, Code::Exhausted);
        next(&mut attempts);
        admit(&mut attempts, 1000, Care::Journaled).unwrap();
    }
}
