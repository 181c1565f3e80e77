//! Values that people type: parameters of a flow, states of runs.

use std::collections::BTreeMap;
use std::path::Path;

use eclosion_schemas::Error;
use eclosion_schemas::view::RunState;
use serde_json::Value;

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
}
