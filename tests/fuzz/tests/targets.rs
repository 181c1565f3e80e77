//! A few seconds of each target, the same cases every time; and proof that the harness can find something.

#![expect(clippy::panic, reason = "a finding fails the test")]

use eclosion_fuzz::memory::Bound;
use eclosion_fuzz::{Amount, Seed, Target, all, run};

const SEED: u64 = 7;

fn nothing_is_found(name: &str) {
    for mut target in all().into_iter().filter(|target| target.name == name) {
        let cases = Amount::Cases(target.cases);
        match run(&mut target, SEED, cases) {
            Ok(done) => assert!(done == target.cases && (target.corpus)().len() > 3, "{name}: {done}"),
            Err(finding) => panic!("{finding}\n  go on by hand: cargo t fuzz {name} 1m"),
        }
    }
}

#[test]
fn frames_are_the_same_however_they_are_cut_or_refused() {
    nothing_is_found("frame");
}

#[test]
fn messages_that_decode_come_back_as_they_were() {
    nothing_is_found("message");
}

#[test]
fn a_changed_journal_is_read_up_to_the_change_or_refused() {
    nothing_is_found("journal");
}

#[test]
fn a_flow_file_is_a_flow_or_refused_with_its_place() {
    nothing_is_found("flow");
}

type Mistake = fn(&[u8]) -> Result<(), String>;

/// A decoder with three mistakes: each is found within what a test run does.
#[test]
fn what_panics_or_reserves_or_lies_is_found() {
    let mistakes: [(&str, Mistake); 3] = [
        ("panicked", |bytes| match bytes {
            [_, length, rest @ ..] if bytes[0] == 0 => {
                Err(format!("{}", rest[usize::from(*length)])).or(Ok(()))
            }
            _ => Ok(()),
        }),
        ("bytes of memory", |bytes| {
            let claimed = bytes.first_chunk().map_or(0, |head| u32::from_be_bytes(*head) as usize);
            drop(Vec::<u8>::with_capacity(claimed % (1 << 28)));
            Ok(())
        }),
        ("another", |bytes| if bytes.contains(&0xc1) { Err("it is another".into()) } else { Ok(()) }),
    ];
    for (expected, check) in mistakes {
        let bound = Bound { each: 64, base: 64 * 1024 };
        let corpus = || eclosion_fuzz::corpus::golden_frames();
        let mut target = Target { name: "mistake", cases: 2_000, bound, corpus, check: Box::new(check) };
        let found = run(&mut target, SEED, Amount::Cases(2_000));
        assert!(found.as_ref().is_err_and(|finding| finding.why.contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn a_seed_is_the_same_input_always() {
    let corpus = eclosion_fuzz::corpus::golden_frames();
    let make = |seed| eclosion_fuzz::Mutator::new(&corpus).make(Seed::new(seed));
    assert_eq!(make(11), make(11));
    assert!((0..100).any(|seed| make(seed) != make(seed + 1)));
}
