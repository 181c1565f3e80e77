//! How things look. Everything here is text out of values: no output, no clock but [`now`].

pub(crate) mod error;
pub(crate) mod progress;
pub(crate) mod run;
pub(crate) mod tree;
pub(crate) mod value;

use std::io::IsTerminal;
use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle};
use eclosion_schemas::codec::json;
use eclosion_schemas::suggest::shell_word;
use eclosion_schemas::{Payload, Timestamp};
use serde::Serialize;

use crate::terminal::one_line;

/// The wall clock, for ages only.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// ` --reason TEXT` for a command that is to be said again, if there was one.
pub(crate) fn reason_flag(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(" --reason {}", shell_word(reason)),
    }
}

/// `350ms`, `2.4s`, `3m05s`, `2h03m`, `4d01h`.
pub(crate) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{}.{}s", seconds, ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `512 B`, `1.5 KiB`, `2.0 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// The word by which an enum travels.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".into(),
    }
}

/// A value of Python's as JSON; its parts are named and not opened.
pub(crate) fn shown(payload: &Payload) -> serde_json::Value {
    json::from_msgpack(&payload.body).unwrap_or_else(|why| format!("(cannot be shown: {why})").into())
}

/// A line under the heading and one under the last row; more lines than that would hide the rows.
const STYLE: TableStyle = TableStyle::new()
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

/// Rows under a heading, as wide as the terminal at most.
pub(crate) fn table(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        // A file or a pipe has no width; what reads it wants whole rows.
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(heading.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| one_line(cell)).collect::<Vec<_>>());
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// `key  value`, the values below each other.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    let lines = pairs.iter().map(|(key, value)| format!("{key:width$}  {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_short() {
        for (ms, text) in [
            (0, "0ms"),
            (350, "350ms"),
            (2_449, "2.4s"),
            (185_000, "3m05s"),
            (7_380_000, "2h03m"),
            (349_200_000, "4d01h"),
        ] {
            assert_eq!(duration(ms), text);
        }
        for (count, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2 << 30, "2.0 GiB"), (u64::MAX, "16384.0 PiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn a_table_has_one_line_per_row_and_nothing_that_a_terminal_obeys() {
        let shown = table(&["a", "b"], [vec!["1".to_owned(), "x\ny\u{1b}[2J".to_owned()]]);
        assert!(shown.contains("x y�[2J"), "{shown}");
        assert!(shown.lines().all(|line| line == line.trim_end()));
    }
}
