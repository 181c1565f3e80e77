//! Prometheus' text format, version 0.0.4, as far as it is needed: counters and gauges with few labels.
//!
//! Written by hand because everything shown is a reading of the moment: a library would keep registered instruments beside
//! the books that exist already.

use std::fmt::Write as _;

/// What a number does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows, and begins again with the process. Its name ends in `_total`.
    Counter,
    Gauge,
}

/// A page in the making.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a family; the samples that follow belong to it.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

#[derive(Debug)]
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) {
        self.text.push_str(self.name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            value.chars().for_each(|c| escape(c, self.text));
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        match value.into() {
            Value::Whole(value) => _ = writeln!(self.text, " {value}"),
            Value::Real(value) => _ = writeln!(self.text, " {value}"),
        }
    }
}

fn escape(c: char, text: &mut String) {
    match c {
        '\\' => text.push_str("\\\\"),
        '"' => text.push_str("\\\""),
        '\n' => text.push_str("\\n"),
        c => text.push(c),
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    Whole(u64),
    /// Finite; ours are quotients by constants.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_escaped_and_a_family_has_one_head() {
        let mut text = Text::default();
        let mut family = text.family("eclosion_things", Kind::Gauge, "Things.");
        family.sample(&[("kind", "a\"b\\c\nd"), ("state", "x")], 1_u64);
        family.sample(&[], 0.25);
        assert_eq!(
            text.into_string(),
            "# HELP eclosion_things Things.\n# TYPE eclosion_things gauge\n\
             eclosion_things{kind=\"a\\\"b\\\\c\\nd\",state=\"x\"} 1\neclosion_things 0.25\n"
        );
    }
}
