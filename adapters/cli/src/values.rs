//! Values that people type: parameters of a flow, states, durations, policies.

use std::collections::BTreeMap;
use std::path::Path;

use eclosion_schemas::Error;
use eclosion_schemas::schedule::{Misfire, Overlap};
use eclosion_schemas::view::RunState;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How many are shown.
pub(crate) fn at_least_one() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

/// Reads `NAME=VALUE`s. A value is JSON, else text; text that is the relative path of a file, seen from `directory`,
/// becomes absolute, because the kernel works elsewhere. The last of equal names wins.
///
/// # Errors
/// `invalid` for one without `=` or without a name.
pub(crate) fn parameters(set: &[String], directory: &Path) -> Result<BTreeMap<String, Value>, Error> {
    set.iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), parameter(value, directory))),
            _ => Err(Error::invalid("set.syntax", format!("--set {text} is not NAME=VALUE"))
                .help("--set seed=8 --set data=table.csv")),
        })
        .collect()
}

fn parameter(text: &str, directory: &Path) -> Value {
    if let Ok(value) = eclosion_schemas::codec::json::decode::<Value>(text.as_bytes()) {
        return value;
    }
    let file = directory.join(text);
    let is_relative_file = !text.is_empty() && Path::new(text).is_relative() && file.is_file();
    match is_relative_file.then(|| file.canonicalize()) {
        Some(Ok(absolute)) => absolute.to_string_lossy().into_owned().into(),
        _ => text.into(),
    }
}

/// A state by its name.
pub(crate) fn run_state(text: &str) -> Result<RunState, String> {
    serde_json::from_value(text.into())
        .map_err(|_| "running, cancelling, succeeded, failed or cancelled".to_owned())
}

/// One of an enum's words, as it travels.
pub(crate) fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    // The refusal names them all.
    serde_json::from_value(text.into()).map_err(|why| why.to_string())
}

/// `500ms`, `10s`, `5m`, `2h`, `1d`, and several of them: `1h30m`.
/// `NAME=AMOUNT`
pub(crate) fn counted(text: &str) -> Result<(String, u64), String> {
    let parsed =
        text.split_once('=').and_then(|(name, amount)| Some((name.to_owned(), amount.parse().ok()?)));
    parsed.ok_or_else(|| format!("`{text}` is not a name and a whole number, such as licences=2"))
}

pub(crate) fn duration_ms(text: &str) -> Result<u64, String> {
    let malformed = || format!("`{text}` is not a duration such as 10m, 1h30m or 500ms");
    let (mut rest, mut sum) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(malformed()),
        };
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
        sum = part.and_then(|part| sum.checked_add(part)).ok_or_else(malformed)?;
        rest = behind;
    }
    if text.is_empty() { Err(malformed()) } else { Ok(sum) }
}

/// `skip`, `run_once`, `run_all:N`.
pub(crate) fn misfire(text: &str) -> Result<Misfire, String> {
    policy(text).ok_or_else(|| "skip, run_once or run_all:N".to_owned())
}

/// `skip`, `queue:N`, `allow:N`, `cancel_previous`.
pub(crate) fn overlap(text: &str) -> Result<Overlap, String> {
    policy(text).ok_or_else(|| "skip, queue:N, allow:N or cancel_previous".to_owned())
}

/// The tag of an enum, and behind a colon the bound that some of its variants have.
fn policy<T: DeserializeOwned + Serialize>(text: &str) -> Option<T> {
    let value = match text.split_once(':') {
        Some((tag, max)) => serde_json::json!({"tag": tag, "max": max.parse::<u32>().ok()?}),
        None => serde_json::json!({ "tag": text }),
    };
    let read: T = serde_json::from_value(value.clone()).ok()?;
    // A bound that the policy does not have is a misunderstanding.
    (serde_json::to_value(&read).ok()? == value).then_some(read)
}

/// As it is typed.
pub(crate) fn policy_text<T: Serialize>(policy: T) -> String {
    let value = serde_json::to_value(policy).unwrap_or_default();
    let tag = value.get("tag").and_then(Value::as_str).unwrap_or_default();
    value.get("max").map_or_else(|| tag.to_owned(), |max| format!("{tag}:{max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, directory: &Path) -> Value {
        parameters(&[format!("x={text}")], directory).unwrap().remove("x").unwrap()
    }

    #[test]
    fn a_value_is_json_and_else_text() {
        let here = Path::new("/nowhere");
        for (text, expected) in [
            ("8", serde_json::json!(8)),
            ("0.5", serde_json::json!(0.5)),
            ("true", true.into()),
            ("null", Value::Null),
            ("\"8\"", "8".into()),
            ("[1, 2]", serde_json::json!([1, 2])),
            ("iris", "iris".into()),
            ("a=b", "a=b".into()),
            ("", "".into()),
            ("{open", "{open".into()),
        ] {
            assert_eq!(one(text, here), expected, "{text}");
        }
    }

    #[test]
    fn a_file_beside_us_becomes_absolute_and_a_directory_or_a_missing_file_stays_text() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().canonicalize().unwrap().join("table.csv");
        std::fs::write(&file, "a,b\n").unwrap();
        assert_eq!(one("table.csv", directory.path()), file.to_string_lossy().as_ref());
        assert_eq!(one(".", directory.path()), ".");
        assert_eq!(one("other.csv", directory.path()), "other.csv");
    }

    #[test]
    fn what_is_no_pair_is_refused_with_an_example() {
        for bad in ["seed", "=8", ""] {
            let error = parameters(&[bad.to_owned()], Path::new(".")).unwrap_err();
            assert!(error.reason == "set.syntax" && error.help.is_some(), "{bad}");
        }
    }

    #[test]
    fn a_state_is_known_by_its_name() {
        assert_eq!(run_state("failed"), Ok(RunState::Failed));
        assert!(run_state("Failed").is_err());
    }

    #[test]
    fn durations_are_sums_of_units() {
        for (text, ms) in
            [("10m", 600_000), ("1h30m", 5_400_000), ("500ms", 500), ("0s", 0), ("1d1ms", 86_400_001)]
        {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for bad in ["", "10", "m", "-1s", "1.5h", "1y", "10 m", "99999999999999999d"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_policy_is_read_with_its_bound_and_shown_as_it_is_typed() {
        for text in ["skip", "queue:3", "allow:2", "cancel_previous"] {
            assert_eq!(overlap(text).map(policy_text), Ok(text.to_owned()));
        }
        for text in ["skip", "run_once", "run_all:5"] {
            assert_eq!(misfire(text).map(policy_text), Ok(text.to_owned()));
        }
        for bad in ["queue", "skip:3", "allow:-1", "Skip", "run_all:x", ""] {
            assert!(overlap(bad).is_err() && (bad == "skip" || misfire(bad).is_err()), "{bad}");
        }
    }
}
