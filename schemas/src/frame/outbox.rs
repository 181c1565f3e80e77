//! What waits to be sent on one connection, and in which order it goes.
//!
//! Control first; then one fragment of each stream in turn, so that nothing waits behind a large message longer than
//! one fragment of every other stream takes. The order inside a stream is kept.
//!
//! It deliberately does not refuse: it says how much it holds ([`Outbox::bytes`], [`Outbox::control_frames`]), and
//! whoever fills it stops in time, where stopping can be explained to somebody.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use super::{Flags, Fragments, Frame, FrameType, HEADER_BYTES, StreamId};

/// `A` rides along with a message and comes out with its first frame: descriptors, where there are any.
#[derive(Debug)]
pub struct Outbox<A = ()> {
    fragment_bytes: usize,
    control: VecDeque<(Frame, Option<A>)>,
    streams: BTreeMap<StreamId, Queue<A>>,
    /// Whose turn it is; each stream with messages is in it once.
    turns: VecDeque<StreamId>,
    bytes: usize,
}

/// Most streams have one message waiting, and that one needs no list.
#[derive(Debug)]
struct Queue<A> {
    first: Message<A>,
    rest: VecDeque<Message<A>>,
}

#[derive(Debug)]
struct Message<A> {
    fragments: Fragments,
    attachment: Option<A>,
    /// A fragment of it has left.
    is_begun: bool,
}

impl<A> Outbox<A> {
    /// Bodies over `fragment_bytes` are cut.
    #[must_use]
    pub fn new(fragment_bytes: usize) -> Self {
        Self {
            fragment_bytes,
            control: VecDeque::new(),
            streams: BTreeMap::new(),
            turns: VecDeque::new(),
            bytes: 0,
        }
    }

    pub fn push(&mut self, frame: Frame, attachment: Option<A>) {
        self.bytes += HEADER_BYTES + frame.body.len();
        if is_control(&frame) {
            self.control.push_back((frame, attachment));
            return;
        }
        let stream = frame.stream;
        let message =
            Message { fragments: frame.fragments(self.fragment_bytes), attachment, is_begun: false };
        match self.streams.entry(stream) {
            Entry::Occupied(queue) => queue.into_mut().rest.push_back(message),
            Entry::Vacant(place) => {
                place.insert(Queue { first: message, rest: VecDeque::new() });
                self.turns.push_back(stream);
            }
        }
    }

    /// The frame that goes next.
    pub fn pop(&mut self) -> Option<(Frame, Option<A>)> {
        if let Some((frame, attachment)) = self.control.pop_front() {
            self.bytes -= HEADER_BYTES + frame.body.len();
            return Some((frame, attachment));
        }
        let stream = self.turns.pop_front()?;
        let Entry::Occupied(mut queue) = self.streams.entry(stream) else { return None };
        let message = &mut queue.get_mut().first;
        let attachment = message.attachment.take();
        let frame = message.fragments.next()?;
        message.is_begun = true;
        self.bytes -= frame.body.len();
        if message.fragments.is_over() {
            self.bytes -= HEADER_BYTES;
            let Queue { first, rest } = queue.get_mut();
            match rest.pop_front() {
                Some(next) => *first = next,
                None => {
                    queue.remove();
                    return Some((frame, attachment));
                }
            }
        }
        self.turns.push_back(stream);
        Some((frame, attachment))
    }

    /// Drops what was not sent yet of a stream that is over. True if a message was cut off in its middle: then the other
    /// end keeps the first part of it until it hears that no more comes.
    pub fn forget(&mut self, stream: StreamId) -> bool {
        let Some(queue) = self.streams.remove(&stream) else { return false };
        self.turns.retain(|turn| *turn != stream);
        let messages = queue.rest.iter().chain([&queue.first]);
        self.bytes -= messages.map(|message| HEADER_BYTES + message.fragments.left()).sum::<usize>();
        queue.first.is_begun
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.turns.is_empty()
    }

    /// Headers and bodies that wait. Envelopes are not counted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[must_use]
    pub fn control_frames(&self) -> usize {
        self.control.len()
    }
}

/// What ends or carries an exchange keeps its place in its stream; all else goes before.
fn is_control(frame: &Frame) -> bool {
    let in_stream = matches!(frame.kind, FrameType::Call | FrameType::Data | FrameType::Error);
    !in_stream || frame.stream == StreamId::CONNECTION || frame.flags.contains(Flags::URGENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::WireCodec;

    fn data(stream: u32, bytes: usize) -> Frame {
        Frame::new(FrameType::Data, StreamId(stream)).with_body(WireCodec::Bytes, vec![0; bytes])
    }

    fn order(outbox: &mut Outbox) -> Vec<(u32, usize)> {
        std::iter::from_fn(|| outbox.pop().map(|(frame, _)| (frame.stream.0, frame.body.len()))).collect()
    }

    #[test]
    fn streams_take_turns_fragment_by_fragment() {
        let mut outbox = Outbox::new(10);
        outbox.push(data(1, 25), None);
        outbox.push(data(3, 3), None);
        outbox.push(data(3, 4), None);
        assert_eq!(order(&mut outbox), [(1, 10), (3, 3), (1, 10), (3, 4), (1, 5)]);
        assert_eq!((outbox.bytes(), outbox.is_empty()), (0, true));
    }

    #[test]
    fn control_goes_first_and_an_error_keeps_its_place() {
        let mut outbox = Outbox::<()>::new(10);
        outbox.push(data(1, 15), None);
        outbox.push(Frame::new(FrameType::Error, StreamId(1)), None);
        assert_eq!(outbox.pop().map(|(frame, _)| frame.kind), Some(FrameType::Data));
        outbox.push(Frame::new(FrameType::Pong, StreamId::CONNECTION), None);
        let kinds: Vec<_> = std::iter::from_fn(|| outbox.pop().map(|(frame, _)| frame.kind)).collect();
        assert_eq!(kinds, [FrameType::Pong, FrameType::Data, FrameType::Error]);
    }

    #[test]
    fn a_stream_that_is_over_leaves_nothing_behind() {
        let mut outbox = Outbox::new(10);
        outbox.push(data(1, 25), None);
        outbox.push(data(3, 3), None);
        outbox.pop();
        assert!(outbox.forget(StreamId(1)), "it was cut off in its middle");
        assert_eq!(order(&mut outbox), [(3, 3)]);
        assert_eq!(outbox.bytes(), 0);
        outbox.push(data(1, 25), None);
        assert!(!outbox.forget(StreamId(1)) && !outbox.forget(StreamId(1)), "nothing of it had left");
    }

    #[test]
    fn an_attachment_leaves_with_the_first_fragment() {
        let mut outbox = Outbox::new(10);
        outbox.push(data(1, 15), Some("fd"));
        assert_eq!(outbox.pop().and_then(|(_, attachment)| attachment), Some("fd"));
        assert_eq!(outbox.pop().map(|(_, attachment)| attachment), Some(None));
    }
}
