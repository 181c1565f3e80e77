//! What a bench says: rows, ratios, and whether the budget is met. The one file here that prints.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench is a binary: data on stdout, talk on stderr"
)]

use std::process::Command;

use serde::Serialize;

use crate::measure::{quantile, sorted};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// What the parts cost.
    Floor,
    /// What a user would pick instead.
    Peer,
    Us,
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub name: &'static str,
    pub role: Role,
    pub p50_ns: f64,
    /// A tenth of the rounds had a lower median.
    pub p50_low_ns: f64,
    pub p50_high_ns: f64,
    pub p99_ns: f64,
    pub per_s: f64,
    pub rounds: usize,
    /// The median of each round, for comparing rounds with rounds.
    #[serde(skip)]
    pub by_round: Vec<f64>,
}

/// Ours over theirs.
#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    pub of: &'static str,
    pub to: &'static str,
    pub value: f64,
    pub budget: f64,
    pub met: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub id: &'static str,
    pub what: &'static str,
    pub rows: Vec<Row>,
    pub ratios: Vec<Ratio>,
    pub budget: &'static str,
    pub met: bool,
    pub machine: String,
    pub commit: String,
}

impl Report {
    pub(crate) fn new(id: &'static str, what: &'static str, budget: &'static str, rows: Vec<Row>) -> Self {
        let (machine, commit) = (machine(), commit());
        Self { id, what, rows, ratios: Vec::new(), budget, met: true, machine, commit }
    }

    /// Compares two rows by name, round with round, and takes the median: a neighbor that comes or goes between rounds
    /// hits both sides. A row that is missing or a figure that is not a number is not met.
    pub(crate) fn ratio(mut self, of: &'static str, to: &'static str, budget: f64) -> Self {
        let rounds =
            |name| self.rows.iter().find(|row| row.name == name).map_or(&[][..], |row| &row.by_round);
        let ratios = rounds(of).iter().zip(rounds(to)).map(|(ours, theirs)| ours / theirs).collect();
        let value = quantile(&sorted(ratios), 0.5);
        let met = value <= budget;
        self.ratios.push(Ratio { of, to, value, budget, met });
        self.met &= met;
        self
    }

    pub(crate) fn print_json(&self) {
        match serde_json::to_string(self) {
            Ok(line) => println!("{line}"),
            Err(why) => complain(&why.to_string()),
        }
    }

    pub(crate) fn print_table(&self) {
        println!("{}  {}  ({}, {})", self.id.to_uppercase(), self.what, self.machine, self.commit);
        println!(
            "  {:<6} {:<34} {:>9} {:>17} {:>9} {:>12}",
            "", "", "p50 ns", "(10 % … 90 %)", "p99 ns", "per s"
        );
        for row in &self.rows {
            let role = format!("{:?}", row.role).to_lowercase();
            let spread = format!("{:.0} … {:.0}", row.p50_low_ns, row.p50_high_ns);
            let Row { name, p50_ns, p99_ns, per_s, .. } = row;
            println!("  {role:<6} {name:<34} {p50_ns:>9.1} {spread:>17} {p99_ns:>9.1} {per_s:>12.0}");
        }
        for ratio in &self.ratios {
            let verdict = if ratio.met { "met" } else { "MISSED" };
            println!("  {:.2} × {} (budget {}): {verdict}", ratio.value, ratio.to, ratio.budget);
        }
        println!("  budget: {}: {}\n", self.budget, if self.met { "met" } else { "MISSED" });
    }
}

pub(crate) fn complain(line: &str) {
    eprintln!("{line}");
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}-{}, {cores} cores", std::env::consts::ARCH, std::env::consts::OS)
}

fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let text = output.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    if text.is_empty() { "unknown commit".to_owned() } else { text.trim().to_owned() }
}
