//! Bytes from outside: whatever they are, nothing panics, nothing overflows a stack, and no more memory is taken than
//! what arrived pays for (P-BND-2, P-BND-5, P-BND-6). Holds in debug and in release.
//!
//! Every allocation of this binary is measured by thread, so that tests beside each other do not disturb the count.

#![expect(unsafe_code, reason = "a global allocator that counts cannot be written without")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use bytes::BytesMut;
use eclosion_schemas::codec::{self, CodecError, json};
use eclosion_schemas::frame::{Assembler, Decoder, Flags, Frame, FrameType, Limits, StreamId, WireCodec};
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{Error, ops};
use proptest::prelude::*;

struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(more: usize, less: usize) {
    // At a thread's end its counters are gone already; what is freed then is nobody's measurement.
    let _ = HELD.try_with(|held| {
        let now = held.get().wrapping_add(more).saturating_sub(less);
        held.set(now);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

// SAFETY: every call goes to the system's allocator unchanged; the counters are plain cells without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the pointer came from `alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the pointer came from `alloc` with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `work` held at once beyond what was held before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    let value = work();
    (value, PEAK.with(Cell::get).saturating_sub(before))
}

/// What a decoder may hold for bytes that have arrived: twice for a buffer that grows by doubling, the envelope's
/// strings and the values of an error, and a little for the frame itself.
fn paid_by(arrived: usize) -> usize {
    128 * 1024 + 64 * arrived
}

fn decode_in_pieces(bytes: &[u8], piece: usize) {
    let limits = Limits { frame_bytes: 1 << 20, assembly_bytes: 1 << 20, ..Limits::DEFAULT };
    let (mut decoder, mut assembler) = (Decoder::new(limits), Assembler::new(limits));
    for chunk in bytes.chunks(piece.max(1)) {
        decoder.push(chunk);
        while let Ok(Some(frame)) = decoder.next_frame() {
            let Ok(Some(message)) = assembler.push(frame) else { continue };
            let _ = message.decode::<Execute>();
            let _ = message.to_error();
        }
    }
}

fn golden() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "hex"));
    files.sort();
    files.iter().map(|path| unhex(&std::fs::read_to_string(path).unwrap())).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A thread as small as those of a runtime's workers.
fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap();
}

/// Lists in lists, where a length may lie twice.
#[derive(serde::Serialize, serde::Deserialize)]
struct Places {
    lists: Vec<Vec<u64>>,
    named: std::collections::BTreeMap<String, Option<u64>>,
}

/// A list takes at most a MiB before its first element is there, and one in it as much again.
const PLACES_PEAK: usize = (2 << 20) + 128 * 1024;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048), piece in 1..64_usize) {
        let ((), peak) = peak_of(|| decode_in_pieces(&bytes, piece));
        prop_assert!(peak <= paid_by(bytes.len()), "{peak} bytes for {}", bytes.len());
    }

    #[test]
    fn any_bytes_are_read_by_place_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let (_, peak) = peak_of(|| codec::positional::decode::<Places>(&bytes));
        prop_assert!(peak <= PLACES_PEAK + 64 * bytes.len(), "{peak} bytes for {}", bytes.len());
    }

    #[test]
    fn a_length_that_lies_is_paid_by_nobody(
        good in prop::collection::vec((any::<String>(), prop::option::of(any::<u64>())), 0..16), at in any::<prop::sample::Index>(),
        lie in any::<u64>(),
    ) {
        let places = Places { lists: vec![good.iter().map(|(_, number)| number.unwrap_or(0)).collect()], named: good.into_iter().collect() };
        let mut bytes = codec::positional::encode(&places).unwrap();
        let at = at.index(bytes.len());
        let mut lied = bytes[..at].to_vec();
        lied.push(0xfd);
        lied.extend(lie.to_le_bytes());
        lied.extend(bytes.drain(at..).skip(1));
        let (_, peak) = peak_of(|| codec::positional::decode::<Places>(&lied));
        prop_assert!(peak <= PLACES_PEAK + 64 * lied.len(), "{peak} bytes for {}", lied.len());
    }

    #[test]
    fn any_bytes_behind_a_good_header_are_read_or_refused(
        kind in 0..16_u8, flags in any::<u8>(), stream in 0..4_u32,
        envelope in prop::collection::vec(any::<u8>(), 0..64), body in prop::collection::vec(any::<u8>(), 0..512),
    ) {
        let mut bytes = u32::try_from(12 + envelope.len() + body.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend([1, kind, flags, 2]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend([0, envelope.len() as u8, 0, 0]);
        bytes.extend(&envelope);
        bytes.extend(&body);
        let ((), peak) = peak_of(|| decode_in_pieces(&bytes, bytes.len()));
        prop_assert!(peak <= paid_by(bytes.len()), "{peak} bytes for {}", bytes.len());
    }

    #[test]
    fn a_golden_frame_with_wrong_bytes_is_read_or_refused(
        pick in any::<prop::sample::Index>(),
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(), piece in 1..200_usize,
    ) {
        let all = golden();
        let mut bytes = pick.get(&all).clone();
        for (at, byte) in wrong {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let ((), peak) = peak_of(|| decode_in_pieces(&bytes, piece));
        prop_assert!(peak <= paid_by(bytes.len()), "{peak} bytes for {}", bytes.len());
    }

    #[test]
    fn any_value_is_scanned_as_it_is_decoded(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let (scanned, peak) = peak_of(|| codec::scan(&bytes));
        prop_assert_eq!(peak, 0);
        if scanned.is_err() {
            prop_assert!(codec::decode::<serde_json::Value>(&bytes).is_err());
        }
        let _ = json::from_msgpack(&bytes);
        let _ = json::to_msgpack(&bytes);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[\\[\\]{}\",:0-9a-z\\\\$ ]{0,200}") {
        let _ = json::to_msgpack(text.as_bytes());
    }

    #[test]
    fn a_message_cut_anywhere_is_joined_to_itself(
        body in prop::collection::vec(any::<u8>(), 0..5000), fragment in 1..700_usize, piece in 1..900_usize,
    ) {
        let message = Frame::new(FrameType::Data, StreamId(3)).with_body(WireCodec::Bytes, body).end();
        let mut bytes = BytesMut::new();
        for frame in message.clone().fragments(fragment) {
            frame.encode(&mut bytes).unwrap();
        }
        let (mut decoder, mut assembler) = (Decoder::new(Limits::DEFAULT), Assembler::new(Limits::DEFAULT));
        let mut joined = Vec::new();
        for chunk in bytes.chunks(piece) {
            decoder.push(chunk);
            while let Some(frame) = decoder.next_frame().unwrap() {
                joined.extend(assembler.push(frame).unwrap());
            }
        }
        prop_assert_eq!(joined, vec![message]);
    }
}

#[test]
fn a_claimed_length_allocates_nothing() {
    let mut header = (Limits::DEFAULT.frame_bytes).to_be_bytes().to_vec();
    header.extend([1, 4, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0]);
    let mut decoder = Decoder::new(Limits::DEFAULT);
    let (next, peak) = peak_of(|| {
        decoder.push(&header);
        decoder.next_frame()
    });
    assert_eq!(next, Ok(None));
    assert!(peak <= 4096, "{peak}");
}

#[test]
fn a_frame_that_arrives_slowly_costs_at_most_twice_its_size() {
    let large = Frame::new(FrameType::Data, StreamId(1)).with_body(WireCodec::Bytes, vec![7; 8 << 20]);
    let mut bytes = BytesMut::new();
    large.encode(&mut bytes).unwrap();
    let mut decoder = Decoder::new(Limits::DEFAULT);
    let (frames, peak) = peak_of(|| {
        let mut frames = 0;
        for chunk in bytes.chunks(64 * 1024) {
            decoder.push(chunk);
            while decoder.next_frame().unwrap().is_some() {
                frames += 1;
            }
        }
        frames
    });
    assert_eq!(frames, 1);
    // Old and new buffer exist side by side for the moment of a copy.
    assert!(peak <= 3 * bytes.len(), "{peak} bytes for {}", bytes.len());
}

#[test]
fn endless_fragments_stop_at_the_limit_and_not_at_the_memory() {
    let limits = Limits { frame_bytes: 1 << 20, assembly_bytes: 2 << 20, ..Limits::DEFAULT };
    let mut assembler = Assembler::new(limits);
    let part = |stream| {
        Frame::new(FrameType::Data, StreamId(stream))
            .with_flags(Flags::MORE)
            .with_body(WireCodec::Bytes, vec![0; 64 * 1024])
    };
    let (taken, peak) =
        peak_of(|| (0_u32..).take_while(|n| assembler.push(part(1 + n % 8 * 2)).is_ok()).count());
    assert_eq!(taken, 32);
    assert!(peak <= 3 * (2 << 20), "{peak}");
}

#[test]
fn a_length_bomb_is_refused_by_scan_and_by_every_request() {
    let table = ops::table().unwrap();
    for marker in [0xc6, 0xc9, 0xdb, 0xdd, 0xdf] {
        for claimed in [u32::MAX, u32::MAX - 1, 1 << 31, 1 << 24, 2] {
            let bomb = [vec![marker], claimed.to_be_bytes().to_vec(), vec![0xc0]].concat();
            let (refused, peak) = peak_of(|| codec::decode::<serde_json::Value>(&bomb).is_err());
            assert!(refused && peak < 4096, "{marker:#x} {claimed}: {peak}");
            for spec in table.iter() {
                assert!((spec.decode_request)(&bomb).is_err(), "{}", spec.name);
            }
        }
    }
}

#[test]
fn a_depth_bomb_is_refused_on_a_small_stack_in_msgpack_and_in_json() {
    on_a_small_stack(|| {
        let table = ops::table().unwrap();
        for (depth, fits) in [(31, true), (32, true), (33, false), (768, false), (100_000, false)] {
            let array = [vec![0x91; depth], vec![0xc0]].concat();
            let map = [b"\x81\xa1a".repeat(depth), vec![0xc0]].concat();
            for bomb in [&array, &map] {
                assert_eq!(codec::decode::<serde_json::Value>(bomb).is_ok(), fits, "{depth}");
                assert_eq!(json::from_msgpack(bomb).is_ok(), fits, "{depth}");
                if !fits {
                    assert_eq!(codec::scan(bomb), Err(CodecError::Nesting { max: 32 }), "{depth}");
                }
                for spec in table.iter() {
                    let _ = (spec.decode_request)(bomb);
                }
            }
            let list = "[".repeat(depth) + &"]".repeat(depth);
            let object = "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
            for bomb in [list, object, "[".repeat(depth)] {
                let closed = bomb.ends_with([']', '}']);
                assert_eq!(json::to_msgpack(bomb.as_bytes()).is_ok(), fits && closed, "{depth}");
            }
        }
    });
}

#[test]
fn an_exception_with_a_long_chain_of_causes_is_refused_and_not_followed() {
    on_a_small_stack(|| {
        let chain = |length: usize| {
            let exception = br#"{"lang":"python","type":"E","text":"t","cause":"#;
            let remote = [exception.repeat(length), b"null".to_vec(), b"}".repeat(length)].concat();
            let head = br#"{"code":"internal","reason":"task.raised","message":"m","remote":"#;
            [head.to_vec(), remote, b"}".to_vec()].concat()
        };
        assert!(json::decode::<Error>(&chain(31)).is_ok());
        let packed = json::to_msgpack(&chain(31)).unwrap();
        assert!(codec::decode::<Error>(&packed).is_ok());
        assert!(json::decode::<Error>(&chain(32)).is_err());
        assert!(json::decode::<Error>(&chain(10_000)).is_err());
    });
}
