//! The verdict of a program that shares no code with the kernel; and the proof that it can say no.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::failure::{Failure, ensure};
use crate::kernel::{python, source};
use crate::round::Round;

/// One of them every round, in turn.
const FORGERIES: [&str; 3] = ["double-commit", "lost-record", "spurious-start"];

pub(crate) fn judge(round: &Round, directory: &Path, seed: u64) -> Result<String, Failure> {
    let copy = directory.join("judged");
    fs::create_dir_all(copy.join("journal"))?;
    for entry in fs::read_dir(round.kernel.journal())? {
        let path = entry?.path();
        if path.is_file() {
            fs::copy(&path, copy.join("journal").join(path.file_name().unwrap_or_default()))?;
        }
    }
    fs::rename(round.ledger.path(), copy.join("ledger"))?;
    fs::write(copy.join("round.json"), round.account.to_json().to_string())?;
    let verdict = judged(&copy, &[])?;
    let words = String::from_utf8_lossy(&verdict.stdout).trim().to_owned();
    ensure(verdict.status.success(), || format!("{words}\n{}", String::from_utf8_lossy(&verdict.stderr)))?;
    for forgery in forgeries(round, seed) {
        let verdict = judged(&copy, &["--forge", forgery])?;
        let found = String::from_utf8_lossy(&verdict.stdout).contains("VIOLATION");
        ensure(found && verdict.status.code() == Some(1), || {
            format!("the judge does not find this: {forgery}, {verdict:?}")
        })?;
    }
    Ok(words)
}

/// With what only this round can show.
fn forgeries(round: &Round, seed: u64) -> Vec<&'static str> {
    let mut forgeries = vec![FORGERIES[(seed % 3) as usize]];
    let account = &round.account;
    // In a crowd, or with a call, a worker may be killed that takes no attempt along.
    if account.took_along {
        forgeries.push("same-worker");
    }
    if account.told.seq > 0 {
        forgeries.push("untrue");
    }
    if !account.told.finished.is_empty() {
        forgeries.push("run-again");
    }
    if !account.crowds.is_empty() {
        forgeries.extend(["nobody-waited", "begun-and-given-back"]);
    }
    let more = [
        (account.services.is_empty(), &["nobody-answered", "served-twice"][..]),
        (account.streams.is_empty(), &["item-lost", "beyond-credit", "left-open"]),
        (account.arenas.is_empty(), &["still-mapped", "grown"]),
        (account.schedules.is_empty(), &["tick-twice", "tick-lost"]),
        (account.collections.is_empty(), &["collected-held", "half-collected"]),
    ];
    forgeries.extend(more.into_iter().filter(|(none, _)| !none).flat_map(|(_, kinds)| kinds));
    forgeries
}

fn judged(copy: &Path, forge: &[&str]) -> Result<Output, Failure> {
    Ok(Command::new(python()).arg(source("judge.py")).arg(copy).args(forge).output()?)
}
