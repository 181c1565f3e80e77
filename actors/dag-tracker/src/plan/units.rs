//! Durations and sizes as people write them: `"30s"`, `"1.5h"`, `"500ms"`; `"2GiB"`, `"512MB"`, `1048576`.

use std::time::Duration;

use eclosion_schemas::Error;
use serde_json::Value;

/// A time-out above this is a slip of the unit.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads a duration, which is more than nothing and at most 366 days.
///
/// # Errors
/// `flow.duration`.
pub fn duration(text: &str) -> Result<Duration, Error> {
    let refuse = |why: &str| {
        Error::invalid("flow.duration", format!("`{text}` is no duration: {why}"))
            .help("write a number and a unit, such as \"500ms\", \"30s\", \"2m\", \"1h\" or \"1d\"")
    };
    let (number, unit) = split(text).ok_or_else(|| refuse("a number comes first"))?;
    let unit_ms = DURATION_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms);
    let unit_ms = unit_ms
        .ok_or_else(|| refuse(if unit.is_empty() { "the unit is missing" } else { "unknown unit" }))?;
    let ms = scaled(number, unit_ms).ok_or_else(|| refuse("the number is not usable"))?;
    match Duration::from_millis(ms) {
        Duration::ZERO => Err(refuse("it must be at least 1ms")),
        long if long > DURATION_MAX => Err(refuse("it must be at most 366 days")),
        duration => Ok(duration),
    }
}

/// Reads a size in bytes, from text with a unit or from a plain number.
///
/// # Errors
/// `flow.size`.
pub fn size_bytes(value: &Value) -> Result<u64, Error> {
    let refuse = |why: &str| {
        Error::invalid("flow.size", format!("{value} is no size: {why}"))
            .help("write bytes, or a number and a unit, such as \"512MB\" or \"2GiB\"")
    };
    let bytes = match value {
        Value::Number(number) => {
            number.as_u64().ok_or_else(|| refuse("it must be a whole number of bytes"))?
        }
        Value::String(text) => {
            let (number, unit) = split(text).ok_or_else(|| refuse("a number comes first"))?;
            let unit = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
            let (_, unit_bytes) = unit.ok_or_else(|| refuse("unknown unit"))?;
            scaled(number, *unit_bytes).ok_or_else(|| refuse("the number is not usable"))?
        }
        _ => return Err(refuse("it is neither a number nor text")),
    };
    if bytes == 0 { Err(refuse("it must be at least one byte")) } else { Ok(bytes) }
}

/// `"1.5 GiB"` → (`"1.5"`, `"GiB"`).
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (end > 0).then(|| (&text[..end], text[end..].trim_start()))
}

/// A decimal number of units, without going through a float.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || fraction.len() > 9 || whole.is_empty() {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let digits: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u64::try_from(u128::from(digits) * u128::from(unit) / scale).ok()?;
    whole.checked_mul(unit)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_read_as_they_are_written() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("2m", 120_000),
            ("1.5h", 5_400_000),
            (" 1 d", 86_400_000),
            ("0.25s", 250),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_the_way_to_write_it() {
        for text in
            ["", "s", "30", "30 parsecs", "-1s", "0s", "400d", "1.2.3s", "99999999999999999999s", "²s"]
        {
            let error = duration(text).expect_err(text);
            assert_eq!(error.reason, "flow.duration", "{text}");
            assert!(error.help.is_some_and(|help| help.contains("\"30s\"")), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (value, bytes) in [
            (json!("2GiB"), 2 << 30),
            (json!("512MB"), 512_000_000),
            (json!("1.5 KiB"), 1536),
            (json!("4096"), 4096),
            (json!(4096), 4096),
        ] {
            assert_eq!(size_bytes(&value), Ok(bytes), "{value}");
        }
        for value in [json!("2 gigs"), json!(-1), json!(1.5), json!(null), json!("0B"), json!("99999999TiB")]
        {
            assert_eq!(size_bytes(&value).expect_err("no size").reason, "flow.size", "{value}");
        }
    }
}
