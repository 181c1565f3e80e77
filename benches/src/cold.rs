//! `cargo measure cold`: what it costs to have it at all. Crates, a cold release build, and the size of what comes of it,
//! by the facade's features and for the binary.
//!
//! Only when asked for by name: each line is built from nothing in a directory of its own, which takes minutes. Time is that
//! of all processors together, because what else the machine does meanwhile does not count in it. The size of a feature is
//! that of the example `embed` with it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::{Failure, report};

pub(crate) const NAME: &str = "cold";
const FACADE: &str = "eclosion";
const BINARY: &str = "eclosion-cli";
/// Of the facade; `workers` brings all but `client`.
const FEATURES: [&str; 6] = ["", "client", "ipc", "sqlite", "config", "client,workers"];

#[derive(Debug, Serialize)]
struct Cold<'a> {
    package: &'a str,
    features: &'a str,
    crates: usize,
    processor_s: f64,
    program_bytes: u64,
}

pub(crate) fn run(json: bool) -> Result<(), Failure> {
    if !json {
        report::say("package       features          crates   processor s   program MiB");
    }
    for features in FEATURES {
        let selected = ["--package", FACADE, "--no-default-features", "--features", features];
        say(&cold(FACADE, features, &selected, &["--example", "embed"], "examples/embed")?, json)?;
    }
    say(&cold(BINARY, "default", &["--package", BINARY], &[], "eclosion")?, json)
}

fn say(cold: &Cold<'_>, json: bool) -> Result<(), Failure> {
    let Cold { package, features, crates, processor_s, program_bytes } = cold;
    report::say(&if json {
        serde_json::to_string(cold)?
    } else {
        let features = if features.is_empty() { "none" } else { features };
        let mib = *program_bytes as f64 / (1 << 20) as f64;
        format!("{package:<14}{features:<18}{crates:>6}{processor_s:>14.0}{mib:>14.1}")
    });
    Ok(())
}

fn cold<'a>(
    package: &'a str,
    features: &'a str,
    selected: &[&str],
    target: &[&str],
    made: &str,
) -> Result<Cold<'a>, Failure> {
    let directory = tempfile::tempdir_in("target").or_else(|_| tempfile::tempdir())?;
    let before = children_s()?;
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet", "--release"]).args(selected).args(target);
    if !build.env("CARGO_TARGET_DIR", directory.path()).status()?.success() {
        return Err(format!("cargo build {} failed", selected.join(" ")).into());
    }
    let processor_s = children_s()? - before;
    let program_bytes = directory.path().join("release").join(made).metadata()?.len();
    Ok(Cold { package, features, crates: crates(selected)?, processor_s, program_bytes })
}

/// The package and all that it is linked with.
fn crates(selected: &[&str]) -> Result<usize, Failure> {
    let mut tree = Command::new("cargo");
    tree.args(["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}"]).args(selected);
    let output = tree.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("cargo tree {} failed", selected.join(" ")).into());
    }
    let named = |line: &str| line.split(" (").next().unwrap_or(line).to_owned();
    Ok(String::from_utf8(output.stdout)?.lines().map(named).collect::<BTreeSet<_>>().len())
}

/// Processor time of every child that has ended, and of theirs.
fn children_s() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string(Path::new("/proc/self/stat"))?;
    // Behind the name, which may hold anything: state is the third field, and cutime and cstime the 16th and 17th.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
    let (user, system) = ticks(16).zip(ticks(17)).ok_or("no times in /proc/self/stat")?;
    Ok((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}
