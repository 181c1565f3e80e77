//! Goes on for longer than a test run: `cargo t fuzz [TARGET] [10m | 30s | CASES]`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this binary talks to whoever runs it")]

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eclosion_fuzz::{Amount, all, run};

const USUAL: Amount = Amount::Time(Duration::from_secs(60));

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let amounts: Vec<Amount> = arguments.iter().filter_map(|word| amount(word)).collect();
    let names: Vec<&String> = arguments.iter().filter(|word| amount(word).is_none()).collect();
    let mut targets = all();
    if let Some(unknown) = names.iter().find(|name| targets.iter().all(|target| target.name != name.as_str()))
    {
        let known: Vec<_> = targets.iter().map(|target| target.name).collect();
        eprintln!("unknown: {unknown}\nusage: cargo t fuzz [{}] [10m | 30s | CASES]", known.join(" | "));
        return ExitCode::from(2);
    }
    targets.retain(|target| names.is_empty() || names.iter().any(|name| name.as_str() == target.name));
    // Another one each time, and printed, so that a run can be repeated with its case.
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let mut failed = false;
    for target in &mut targets {
        match run(target, seed, amounts.first().copied().unwrap_or(USUAL)) {
            Ok(cases) => println!("{}: {cases} cases of seed {seed}, nothing found", target.name),
            Err(finding) => {
                failed = true;
                println!("FOUND in seed {seed}: {finding}");
                keep(&finding);
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn amount(word: &str) -> Option<Amount> {
    let time = |unit: char, seconds: u64| {
        let count: u64 = word.strip_suffix(unit)?.parse().ok()?;
        Some(Amount::Time(Duration::from_secs(count.checked_mul(seconds)?)))
    };
    time('m', 60).or_else(|| time('s', 1)).or_else(|| word.parse().ok().map(Amount::Cases))
}

/// Into the corpus: from now on every test run begins with it.
fn keep(finding: &eclosion_fuzz::Finding) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(finding.target);
    let path = folder.join(format!("case-{}", finding.case));
    match std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, &finding.input)) {
        Ok(()) => println!("  kept as {}", path.display()),
        Err(why) => eprintln!("  {}: {why}", path.display()),
    }
}
