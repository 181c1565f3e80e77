//! Bytes from outside, made worse: golden inputs, changed at random from a seed, given to every decoder that reads what
//! somebody else has written.
//!
//! | target | it reads | what must hold |
//! |---|---|---|
//! | `frame` | a socket's bytes | the same frames however they are cut; encoding them gives the same bytes |
//! | `message` | msgpack and JSON of every operation, event and envelope | what decodes encodes to what decodes to the same |
//! | `journal` | the files of a journal | a prefix that holds all that was synced, or a refusal; never other records |
//! | `flow` | a flow file's text | refused with file, line and column, or a flow that reads the same again |
//!
//! And of all: no panic, and memory in proportion to what came ([`memory`]).
//!
//! A target is a function of bytes, so a fuzzer that watches coverage can call it as well. A case is made of a seed and
//! its number alone: what was found once is found again, and its bytes are then kept in `corpus/TARGET`.

pub mod corpus;
pub mod memory;
mod mutation;
mod seed;
pub mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

pub use mutation::Mutator;
pub use seed::Seed;
pub use targets::{Target, all};

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub enum Amount {
    Cases(u64),
    Time(Duration),
}

/// What broke its promise.
#[derive(Debug)]
pub struct Finding {
    pub target: &'static str,
    /// Of which case, by the seed of the whole.
    pub case: u64,
    pub input: Vec<u8>,
    pub why: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { target, case, input, why } = self;
        let head = &input[..input.len().min(256)];
        write!(
            f,
            "{target}, case {case}: {why}\n  {} bytes: {:?}",
            input.len(),
            String::from_utf8_lossy(head)
        )
    }
}

/// Gives a target its whole corpus as it is, then changed, until `amount` is reached; says how many cases there were.
///
/// # Errors
/// The first [`Finding`].
pub fn run(target: &mut Target, seed: u64, amount: Amount) -> Result<u64, Box<Finding>> {
    let corpus = (target.corpus)();
    let began = Instant::now();
    let mut mutator = Mutator::new(&corpus);
    for case in 0.. {
        let is_enough = match amount {
            Amount::Cases(cases) => case >= cases,
            Amount::Time(time) => began.elapsed() >= time,
        };
        if is_enough {
            return Ok(case);
        }
        let input = match corpus.get(usize::try_from(case).unwrap_or(usize::MAX)) {
            Some(golden) => golden.clone(),
            None => mutator.make(Seed::new(seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
        };
        if let Err(why) = once(target, &input) {
            return Err(Box::new(Finding { target: target.name, case, input, why }));
        }
    }
    Ok(0)
}

/// One input; a panic is a broken promise like any other.
///
/// # Errors
/// What did not hold, in words.
pub fn once(target: &mut Target, input: &[u8]) -> Result<(), String> {
    let checking = AssertUnwindSafe(|| memory::peak_of(|| (target.check)(input)));
    let (outcome, bytes) =
        catch_unwind(checking).map_err(|panic| format!("it panicked: {}", words(&*panic)))?;
    outcome?;
    let bound = target.bound.of(input.len());
    if bytes > bound {
        return Err(format!("{bytes} bytes of memory for {} of input; the bound is {bound}", input.len()));
    }
    Ok(())
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
