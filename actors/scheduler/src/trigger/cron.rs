//! Cron expressions: what they say, and the next local time that matches one.
//!
//! Five fields, `minute hour day month weekday`, or six with the second in front. A field is `*`, a number, a name
//! (`jan`, `mon`), a range `a-b`, each with a step `/n`, or several of these with commas; `?` is `*`; Sunday is 0 or 7;
//! `L` as the day is the last of the month. `@yearly @monthly @weekly @daily @hourly` stand for what they say. As cron has
//! always done it, a day matches either field if both day and weekday are restricted.
//!
//! It knows no zone: local times come in and go out. It deliberately has no `W`, no `#` and no years.

use eclosion_schemas::Error;
use jiff::civil::{Date, DateTime, Time};

/// A parsed expression: for each field the set of its values, as bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cron {
    seconds: u64,
    minutes: u64,
    hours: u64,
    days: u64,
    last_day: bool,
    months: u64,
    weekdays: u64,
    /// Day and weekday are both restricted: either may match.
    either_day: bool,
}

/// What a field may hold.
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const SECOND: Field = Field { name: "second", min: 0, max: 59, names: &[] };
const MINUTE: Field = Field { name: "minute", min: 0, max: 59, names: &[] };
const HOUR: Field = Field { name: "hour", min: 0, max: 23, names: &[] };
const DAY: Field = Field { name: "day", min: 1, max: 31, names: &[] };
const MONTH: Field = Field {
    name: "month",
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
/// 7 is Sunday as well.
const WEEKDAY: Field =
    Field { name: "weekday", min: 0, max: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// Longer expressions than this are nobody's.
const CHARS_MAX: usize = 256;

impl Cron {
    /// # Errors
    /// `invalid` names the field and what it may hold.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > CHARS_MAX {
            return Err(refused(format!("a cron expression has at most {CHARS_MAX} characters")));
        }
        let text = nickname(text.trim())?.to_ascii_lowercase();
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let (second, [minute, hour, day, month, weekday]) = match fields.as_slice() {
            [minute, hour, day, month, weekday] => ("0", [minute, hour, day, month, weekday]),
            [second, minute, hour, day, month, weekday] => (*second, [minute, hour, day, month, weekday]),
            _ => {
                let count = fields.len();
                return Err(refused(format!(
                    "`{text}` has {count} fields, and cron has 5, or 6 with seconds"
                )));
            }
        };
        let last_day = *day == "l";
        let weekdays = WEEKDAY.parse(weekday)?;
        Ok(Self {
            seconds: SECOND.parse(second)?,
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days: if last_day { 0 } else { DAY.parse(day)? },
            last_day,
            months: MONTH.parse(month)?,
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            either_day: !is_any(day) && !is_any(weekday),
        })
    }

    /// Whether it is meant every hour, rather than at hours of the day.
    pub(super) fn is_hourly(&self) -> bool {
        self.hours == HOUR.all()
    }

    /// The first match in `[from, until)`.
    pub(super) fn next(&self, from: DateTime, until: DateTime) -> Option<DateTime> {
        let mut date = from.date();
        let mut earliest = from.time();
        if from.subsec_nanosecond() > 0 {
            return None;
        }
        while date <= until.date() {
            if !has(self.months, date.month() as u32) {
                date = date.last_of_month().tomorrow().ok()?;
                earliest = Time::midnight();
                continue;
            }
            if self.matches_day(date)
                && let Some(time) = self.next_time(earliest)
            {
                let found = date.to_datetime(time);
                return (found < until).then_some(found);
            }
            date = date.tomorrow().ok()?;
            earliest = Time::midnight();
        }
        None
    }

    fn matches_day(&self, date: Date) -> bool {
        let day = has(self.days, date.day() as u32) || self.last_day && date.day() == date.days_in_month();
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset() as u32);
        if self.either_day { day || weekday } else { day && weekday }
    }

    /// The first time of a day, not before `earliest`.
    fn next_time(&self, earliest: Time) -> Option<Time> {
        let (hour, minute) = (earliest.hour() as u32, earliest.minute() as u32);
        let (first_minute, first_second) = (first(self.minutes, 0)?, first(self.seconds, 0)?);
        let at = |hour: u32, minute: u32, second: u32| {
            Time::new(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, i8::try_from(second).ok()?, 0)
                .ok()
        };
        if has(self.hours, hour) {
            if has(self.minutes, minute)
                && let Some(second) = first(self.seconds, earliest.second() as u32)
            {
                return at(hour, minute, second);
            }
            if let Some(minute) = first(self.minutes, minute + 1) {
                return at(hour, minute, first_second);
            }
        }
        at(first(self.hours, hour + 1)?, first_minute, first_second)
    }
}

fn nickname(text: &str) -> Result<&str, Error> {
    Ok(match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other if other.starts_with('@') => {
            return Err(refused(format!("`{other}` is none of @yearly @monthly @weekly @daily @hourly")));
        }
        fields => fields,
    })
}

fn is_any(field: &str) -> bool {
    field.starts_with(['*', '?'])
}

fn has(set: u64, value: u32) -> bool {
    value < 64 && set >> value & 1 == 1
}

/// The smallest value of a set that is not below `least`.
fn first(set: u64, least: u32) -> Option<u32> {
    if least > 63 {
        return None;
    }
    let rest = set >> least;
    (rest != 0).then(|| rest.trailing_zeros() + least)
}

/// Digits alone; `+5` is no number here.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl Field {
    fn all(&self) -> u64 {
        (self.min..=self.max).fold(0, |set, value| set | 1 << value)
    }

    fn parse(&self, text: &str) -> Result<u64, Error> {
        text.split(',').try_fold(0, |set, part| Ok(set | self.part(part)?))
    }

    fn part(&self, text: &str) -> Result<u64, Error> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, Some(self.step(text, step)?)),
            None => (text, None),
        };
        let (low, high) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (self.min, self.max),
            Some((low, high)) => (self.value(low)?, self.value(high)?),
            // As cron has it: `5/15` begins at 5 and goes on to the end.
            None if step.is_some() => (self.value(range)?, self.max),
            None => (self.value(range)?, self.value(range)?),
        };
        if low > high {
            return Err(refused(format!("{low}-{high} in the field {} runs backwards", self.name))
                .help(format!("write it as two ranges: {low}-{},{}-{high}", self.max, self.min)));
        }
        let step = step.unwrap_or(1) as usize;
        Ok((low..=high).step_by(step).fold(0, |set, value| set | 1 << value))
    }

    fn step(&self, part: &str, step: &str) -> Result<u32, Error> {
        let number = number(step).filter(|step| (1..=self.max).contains(step));
        number.ok_or_else(|| {
            refused(format!("the step of `{part}` in the field {} is not 1 to {}", self.name, self.max))
        })
    }

    fn value(&self, text: &str) -> Result<u32, Error> {
        if let Some(at) = self.names.iter().position(|name| *name == text) {
            return Ok(at as u32 + self.min);
        }
        let number = number(text).filter(|number| (self.min..=self.max).contains(number));
        number.ok_or_else(|| {
            let (name, min, max) = (self.name, self.min, self.max);
            let names = match self.names {
                [first, .., last] => format!(", or {first} to {last}"),
                _ => String::new(),
            };
            refused(format!("`{text}` in the field {name} is not {min} to {max}{names}"))
        })
    }
}

fn refused(message: String) -> Error {
    Error::invalid("schedule.cron", message)
        .help("minute hour day month weekday, such as `30 2 * * mon-fri`, or `*/10 * * * * *` with seconds in front")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(cron: &str, from: &str) -> String {
        let until: DateTime = "2099-01-01T00:00:00".parse().unwrap();
        let found = Cron::parse(cron).unwrap().next(from.parse().unwrap(), until);
        found.map_or_else(|| "never".into(), |found| found.to_string())
    }

    #[test]
    fn the_next_match_is_found() {
        for (cron, from, expected) in [
            ("* * * * *", "2026-11-21T10:00:00", "2026-11-21T10:00:00"),
            ("* * * * *", "2026-11-21T10:00:01", "2026-11-21T10:01:00"),
            ("*/10 * * * * *", "2026-11-21T10:00:01", "2026-11-21T10:00:10"),
            ("*/10 * * * * *", "2026-12-31T23:59:51", "2027-01-01T00:00:00"),
            ("30 2 * * *", "2026-11-21T02:30:01", "2026-11-22T02:30:00"),
            ("5/15 * * * *", "2026-11-21T10:06:00", "2026-11-21T10:20:00"),
            ("0 9-17/4 * * *", "2026-11-21T13:00:01", "2026-11-21T17:00:00"),
            ("0 0 L * *", "2026-02-01T00:00:00", "2026-02-28T00:00:00"),
            ("0 0 29 2 *", "2026-03-01T00:00:00", "2028-02-29T00:00:00"),
            ("0 0 * * 7", "2026-11-21T00:00:00", "2026-11-22T00:00:00"),
            ("0 0 * * mon-fri", "2026-11-21T00:00:00", "2026-11-23T00:00:00"),
            ("0 0 1 jan,JUL *", "2026-11-21T00:00:00", "2027-01-01T00:00:00"),
            // Both restricted: the 13th, or a Friday.
            ("0 0 13 * fri", "2026-11-14T00:00:00", "2026-11-20T00:00:00"),
            // A day with a step is no restriction to cron.
            ("0 0 */2 * fri", "2026-11-21T00:00:00", "2026-11-27T00:00:00"),
            ("@weekly", "2026-11-21T00:00:00", "2026-11-22T00:00:00"),
            ("@hourly", "2026-11-21T00:00:01", "2026-11-21T01:00:00"),
            ("0 0 30 2 *", "2026-01-01T00:00:00", "never"),
        ] {
            assert_eq!(next(cron, from), expected, "{cron} from {from}");
        }
    }

    #[test]
    fn a_match_agrees_with_looking_at_every_minute() {
        let from: DateTime = "2027-12-29T22:58:00".parse().unwrap();
        for text in ["7 */5 * * *", "*/7 1-3 28-31 * *", "0 0 1 1,3 1-3", "59 23 l * ?"] {
            let cron = Cron::parse(text).unwrap();
            let until = from.checked_add(jiff::Span::new().days(90)).unwrap();
            let mut looked = Vec::new();
            let mut at = from;
            while at < until {
                let is_match = has(cron.months, at.month() as u32)
                    && cron.matches_day(at.date())
                    && has(cron.hours, at.hour() as u32)
                    && has(cron.minutes, at.minute() as u32);
                looked.extend(is_match.then_some(at));
                at = at.checked_add(jiff::Span::new().minutes(1)).unwrap();
            }
            let mut found = Vec::new();
            let mut at = from;
            while let Some(next) = cron.next(at, until) {
                found.push(next);
                at = next.checked_add(jiff::Span::new().seconds(1)).unwrap();
            }
            assert!(!looked.is_empty() && found == looked, "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused_with_its_field() {
        for (text, says) in [
            ("", "0 fields"),
            ("* * * *", "4 fields"),
            ("* * * * * * *", "7 fields"),
            ("60 * * * *", "minute"),
            ("* 24 * * *", "hour"),
            ("* * 0 * *", "day"),
            ("* * * 13 *", "month"),
            ("* * * * 8", "weekday"),
            ("* * * * sunday", "weekday"),
            ("*/0 * * * *", "step"),
            ("*/+5 * * * *", "step"),
            ("30-10 * * * *", "backwards"),
            ("+5 * * * *", "minute"),
            ("1,,2 * * * *", "minute"),
            ("@never", "@yearly"),
            ("\u{e9} * * * *", "minute"),
        ] {
            let error = Cron::parse(text).unwrap_err();
            assert!(error.message.contains(says) && error.help.is_some(), "{text}: {error}");
        }
        assert!(Cron::parse(&"*".repeat(300)).is_err());
    }
}
