//! What a bench says: rows, ratios, and whether the budget is met. The one file here that prints.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench is a binary: data on stdout, talk on stderr"
)]

use std::process::Command;

use serde::Serialize;

use crate::distribution::Distribution;
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

/// What the figures of a row count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Ns,
    Bytes,
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub name: &'static str,
    pub role: Role,
    pub unit: Unit,
    pub p50: f64,
    /// A tenth of the rounds had a lower median.
    pub p50_low: f64,
    pub p50_high: f64,
    pub p99: f64,
    /// Only of what takes time.
    pub per_s: Option<f64>,
    pub rounds: usize,
    pub histogram: Distribution,
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

/// A figure by itself, in its row's unit.
#[derive(Debug, Serialize)]
pub(crate) struct Limit {
    pub of: &'static str,
    pub value: f64,
    pub max: f64,
    pub met: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub id: &'static str,
    pub what: &'static str,
    pub rows: Vec<Row>,
    pub ratios: Vec<Ratio>,
    pub limits: Vec<Limit>,
    pub budget: &'static str,
    pub met: bool,
    pub machine: String,
    pub commit: String,
}

impl Report {
    pub(crate) fn new(id: &'static str, what: &'static str, budget: &'static str, rows: Vec<Row>) -> Self {
        let (machine, commit) = (machine(), commit());
        Self { id, what, rows, ratios: Vec::new(), limits: Vec::new(), budget, met: true, machine, commit }
    }

    /// Holds the median of every row of which `is` is true against a limit. With no such row nothing is met.
    pub(crate) fn at_most(mut self, max: f64, is: impl Fn(&Row) -> bool) -> Self {
        let limit = |row: &Row| Limit { of: row.name, value: row.p50, max, met: row.p50 <= max };
        let limits: Vec<_> = self.rows.iter().filter(|row| is(row)).map(limit).collect();
        self.met &= !limits.is_empty() && limits.iter().all(|limit| limit.met);
        self.limits.extend(limits);
        self
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

    /// How much more than the peer's ours grows between two of its rows and two of ours: what both take longer for, such as
    /// memory further away, is nobody's. `to` says so in words.
    pub(crate) fn growth(
        mut self,
        of: [&'static str; 2],
        peer: [&'static str; 2],
        to: &'static str,
        budget: f64,
    ) -> Self {
        let p50 = |name| self.rows.iter().find(|row| row.name == name).map_or(f64::NAN, |row| row.p50);
        let value = (p50(of[1]) / p50(of[0])) / (p50(peer[1]) / p50(peer[0]));
        let met = value <= budget;
        self.ratios.push(Ratio { of: of[1], to, value, budget, met });
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
            "  {:<6} {:<38} {:>10} {:>21} {:>10} {:>11}",
            "", "", "p50", "(10 % … 90 %)", "p99", "per s"
        );
        for row in &self.rows {
            let role = format!("{:?}", row.role).to_lowercase();
            let of = |figure| shown(row.unit, figure);
            let (p50, p99) = (of(row.p50), of(row.p99));
            let spread = format!("{} … {}", of(row.p50_low), of(row.p50_high));
            let per_s = row.per_s.map(|rate| format!("{rate:.0}")).unwrap_or_default();
            println!("  {role:<6} {:<38} {p50:>10} {spread:>21} {p99:>10} {per_s:>11}", row.name);
        }
        for ratio in &self.ratios {
            let verdict = if ratio.met { "met" } else { "MISSED" };
            println!("  {:.2} × {} (budget {}): {verdict}", ratio.value, ratio.to, ratio.budget);
        }
        for limit in self.limits.iter().filter(|limit| !limit.met) {
            let unit = self.rows.iter().find(|row| row.name == limit.of).map_or(Unit::Ns, |row| row.unit);
            let (value, max) = (shown(unit, limit.value), shown(unit, limit.max));
            println!("  {}: {value} (budget {max}): MISSED", limit.of);
        }
        println!("  budget: {}: {}\n", self.budget, if self.met { "met" } else { "MISSED" });
    }
}

/// Three digits that count, in the unit that people say.
fn shown(unit: Unit, figure: f64) -> String {
    let (steps, units): (f64, &[&str]) = match unit {
        Unit::Ns => (1_000.0, &["ns", "µs", "ms", "s"]),
        Unit::Bytes => (1_024.0, &["B", "KiB", "MiB", "GiB"]),
    };
    let (mut figure, mut units) = (figure, units.iter());
    let mut name = units.next().copied().unwrap_or_default();
    while let Some(next) = (figure >= steps).then(|| units.next()).flatten() {
        (figure, name) = (figure / steps, next);
    }
    let digits = if figure >= 100.0 { 0 } else { 1 };
    format!("{figure:.digits$} {name}")
}

pub(crate) fn say(line: &str) {
    println!("{line}");
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
