//! Inputs that nobody has written: one of the corpus with a few changes, each by the dice.

use crate::Seed;

/// Where sizes, signs and types of most formats change.
const BYTES: [u8; 12] = [0x00, 0x01, 0x7f, 0x80, 0x90, 0xc0, 0xc1, 0xc9, 0xdd, 0xdf, 0xfe, 0xff];
const LENGTHS: [u64; 8] = [0, 1, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 62, u64::MAX];
/// Of text: what opens, closes, escapes and nests.
const WORDS: [&str; 20] = [
    "[", "]", "{", "}", "[[", "\"", "'''", "\\", "\\u", "\n", " = ", "${", "}", ".", "\u{0}", "\u{feff}",
    "é", "9e999", "-0", "#",
];
const INPUT_BYTES_MAX: usize = 64 * 1024;
const CHANGES_MAX: usize = 4;

#[derive(Debug)]
pub struct Mutator<'a> {
    corpus: &'a [Vec<u8>],
}

impl<'a> Mutator<'a> {
    #[must_use]
    pub fn new(corpus: &'a [Vec<u8>]) -> Self {
        Self { corpus }
    }

    /// The input of this seed.
    pub fn make(&mut self, mut dice: Seed) -> Vec<u8> {
        let mut input = self.one(&mut dice).to_vec();
        for _ in 0..=dice.below(CHANGES_MAX) {
            self.change(&mut input, &mut dice);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn one(&self, dice: &mut Seed) -> &'a [u8] {
        self.corpus.get(dice.below(self.corpus.len())).map_or(&[], Vec::as_slice)
    }

    fn change(&self, input: &mut Vec<u8>, dice: &mut Seed) {
        let at = dice.below(input.len() + 1);
        let end = (at + 1 + dice.below(16)).min(input.len());
        match dice.below(9) {
            0 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << dice.below(8)),
            1 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = BYTES[dice.below(BYTES.len())]),
            2 => put(input, at, number(dice)),
            3 => drop(input.drain(at.min(end)..end)),
            4 => input.truncate(at),
            5 => insert(input, at, WORDS[dice.below(WORDS.len())].as_bytes()),
            6 => {
                let again = input[at.min(end)..end].repeat(1 + dice.below(64));
                insert(input, at, &again);
            }
            7 => {
                let other = self.one(dice);
                let from = dice.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => insert(input, at, &[BYTES[dice.below(BYTES.len())]].repeat(1 + dice.below(128))),
        }
    }
}

/// A number of two, four or eight bytes, in one order or the other.
fn number(dice: &mut Seed) -> Vec<u8> {
    let value = LENGTHS[dice.below(LENGTHS.len())].to_be_bytes();
    let mut bytes = value[8 - (2 << dice.below(3))..].to_vec();
    if dice.below(2) == 0 {
        bytes.reverse();
    }
    bytes
}

fn put(input: &mut [u8], at: usize, bytes: Vec<u8>) {
    input.iter_mut().skip(at).zip(bytes).for_each(|(byte, new)| *byte = new);
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}
