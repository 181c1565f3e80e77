//! When a schedule ticks: a specification made ready for use, as a pure function from an instant to the next one.
//!
//! Zone data is part of the program (IANA, bundled), so a schedule ticks alike on every machine; a later version of the
//! program may know newer rules, and then the ticks to come follow those.
//!
//! Invariants: (1) [`Plan::next`] is strictly later than what it is given. (2) [`Plan::latest`] is the last instant that
//! walking with `next` would reach. (3) Jitter never changes the order of ticks or their names.

mod civil;
mod cron;

use eclosion_schemas::schedule::{
    GRACE_MS_DEFAULT, Misfire, MissingTime, Overlap, RepeatedTime, ScheduleSpec, Trigger, UpcomingTick,
};
use eclosion_schemas::suggest::nearest;
use eclosion_schemas::{Error, ScheduleName, Timestamp};
use jiff::tz::{TimeZone, TimeZoneDatabase};

use self::civil::{Calendar, Civil};
use self::cron::Cron;

pub use self::civil::Due;

/// A schedule may not tick more often.
pub const EVERY_MS_MIN: u64 = 100;
/// Timers are a little late, and a tick that is later than the grace is missed.
pub const GRACE_MS_MIN: u64 = 100;
/// Longer periods and graces than ten years are a slip of the finger.
const SPAN_MS_MAX: u64 = 10 * 366 * 24 * 3_600_000;
/// Ticks that may wait, or are made up for.
pub const TICKS_MAX: u32 = 1_000;
/// Ticks of one schedule that run at a time.
pub const LIVE_MAX: u32 = 64;
/// Skipped instants that are counted one by one.
const COUNTED_MAX: u64 = 10_000;

/// Zones by their names. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Zones(TimeZoneDatabase);

impl Default for Zones {
    fn default() -> Self {
        Self(TimeZoneDatabase::bundled())
    }
}

impl Zones {
    fn get(&self, name: &str) -> Result<TimeZone, Error> {
        self.0.get(name).map_err(|_| {
            let shown: String = name.chars().take(64).collect();
            let error = Error::invalid("schedule.zone", format!("there is no zone `{shown}`"));
            let names: Vec<String> = self.0.available().map(|name| name.as_str().to_owned()).collect();
            match nearest(name, names.iter().map(String::as_str)) {
                Some(meant) => error.help(format!("did you mean {meant}?")),
                None => error.help("zones have names such as Europe/Berlin, America/New_York or UTC"),
            }
        })
    }
}

/// A schedule's trigger and policies, complete and checked.
#[derive(Clone)]
pub struct Plan {
    when: When,
    zone: TimeZone,
    pub(crate) misfire: Misfire,
    pub(crate) grace_ms: u64,
    pub(crate) overlap: Overlap,
    jitter_ms: u64,
}

#[derive(Debug, Clone)]
enum When {
    Every { every_ms: u64, anchor: Timestamp },
    At(Timestamp),
    Civil(Civil),
    Never,
}

/// A specification says all of it.
impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plan")
    }
}

impl Plan {
    /// Checks a specification and fills in what was left out.
    ///
    /// # Errors
    /// `invalid` says what may stand there.
    pub fn compile(zones: &Zones, spec: &ScheduleSpec) -> Result<(Self, ScheduleSpec), Error> {
        let mut spec = spec.clone();
        let zone = zones.get(spec.zone.get_or_insert_with(|| "UTC".into()))?;
        let missing = *spec.missing.get_or_insert(MissingTime::ShiftForward);
        let calendar = calendar(&spec.trigger)?;
        let hourly = matches!(&calendar, Some(Calendar::Cron(cron)) if cron.is_hourly());
        let repeated =
            *spec.repeated.get_or_insert(if hourly { RepeatedTime::Both } else { RepeatedTime::First });
        let misfire = *spec.misfire.get_or_insert(Misfire::RunOnce {});
        let grace_ms = *spec.grace_ms.get_or_insert(GRACE_MS_DEFAULT);
        let overlap = *spec.overlap.get_or_insert(match misfire {
            Misfire::RunAll { max } => Overlap::Queue { max },
            Misfire::Skip {} | Misfire::RunOnce {} => Overlap::Skip {},
        });
        let when = match (calendar, &spec.trigger) {
            (Some(calendar), _) => When::Civil(Civil { calendar, zone: zone.clone(), missing, repeated }),
            (None, Trigger::Every { every_ms, anchor }) => {
                When::Every { every_ms: *every_ms, anchor: *anchor }
            }
            (None, Trigger::At { at } | Trigger::Cron { cron: at }) => When::At(parse_instant(at)?),
        };
        let plan = Self { when, zone, misfire, grace_ms, overlap, jitter_ms: spec.jitter_ms };
        plan.check(&spec)?;
        Ok((plan, spec))
    }

    /// Of a schedule that this version cannot read any more; it does not tick until it is replaced.
    pub(crate) fn never() -> Self {
        Self {
            when: When::Never,
            zone: TimeZone::UTC,
            misfire: Misfire::Skip {},
            grace_ms: 0,
            overlap: Overlap::Skip {},
            jitter_ms: 0,
        }
    }

    pub(crate) fn is_never(&self) -> bool {
        matches!(self.when, When::Never)
    }

    fn check(&self, spec: &ScheduleSpec) -> Result<(), Error> {
        if let When::Every { every_ms, .. } = &self.when
            && !(EVERY_MS_MIN..=SPAN_MS_MAX).contains(every_ms)
        {
            let message = format!("every {every_ms} ms is not {EVERY_MS_MIN} ms to ten years");
            return Err(Error::invalid("schedule.every", message));
        }
        if self.grace_ms < GRACE_MS_MIN && matches!(self.misfire, Misfire::Skip {}) {
            let message =
                format!("a grace of {} ms misses every tick: timers are a little late", self.grace_ms);
            let help = format!("write at least {GRACE_MS_MIN} ms");
            return Err(Error::invalid("schedule.grace", message).help(help));
        }
        if self.grace_ms > SPAN_MS_MAX || self.jitter_ms > SPAN_MS_MAX {
            return Err(Error::invalid("schedule.span", "grace and jitter are at most ten years"));
        }
        let bounds = [
            (
                "misfire run_all",
                TICKS_MAX,
                matches!(self.misfire, Misfire::RunAll { max } if !(1..=TICKS_MAX).contains(&max)),
            ),
            (
                "overlap queue",
                TICKS_MAX,
                matches!(self.overlap, Overlap::Queue { max } if !(1..=TICKS_MAX).contains(&max)),
            ),
            (
                "overlap allow",
                LIVE_MAX,
                matches!(self.overlap, Overlap::Allow { max } if !(1..=LIVE_MAX).contains(&max)),
            ),
        ];
        if let Some((what, max, _)) = bounds.iter().find(|(_, _, is_outside)| *is_outside) {
            return Err(Error::invalid("schedule.bound", format!("{what} takes 1 to {max} ticks")));
        }
        match self.next(Timestamp(0)) {
            Some(_) => Ok(()),
            None => Err(never(spec)),
        }
    }

    /// The first instant after `after`; `None` if there is none any more.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Due> {
        let plain = |at| Some(Due { at, rule: None });
        match &self.when {
            When::Every { every_ms, anchor } => plain(next_every(*every_ms, *anchor, after)?),
            When::At(at) => (*at > after).then_some(*at).and_then(plain),
            When::Civil(civil) => civil.next(after),
            When::Never => None,
        }
    }

    /// The last instant in `(after, until]`.
    #[must_use]
    pub fn latest(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let reaches = |from: Timestamp| self.next(from).filter(|due| due.at <= until).map(|due| due.at);
        let mut found = reaches(after)?;
        if let When::Every { every_ms, .. } = &self.when {
            return Some(Timestamp(until.0 - (until.0 - found.0) % every_ms));
        }
        // What is reached from `low` is not too late, what is reached from `high` would be.
        let (mut low, mut high) = (found, until);
        while low < high {
            let middle = Timestamp(low.0 + (high.0 - low.0) / 2);
            match reaches(middle) {
                Some(later) => (found, low) = (later, later),
                None => high = middle,
            }
        }
        Some(found)
    }

    /// How many instants there are in `[first, last]`, both of which are some; true: and more.
    pub(crate) fn count(&self, first: Timestamp, last: Timestamp) -> (u64, bool) {
        if let When::Every { every_ms, .. } = &self.when {
            return (last.since_ms(first) / every_ms + 1, false);
        }
        let mut count = 1;
        let mut at = first;
        while at < last {
            if count == COUNTED_MAX {
                return (count, true);
            }
            let Some(next) = self.next(at) else { break };
            (at, count) = (next.at, count + 1);
        }
        (count, false)
    }

    /// When the tick of an instant fires: the same for the same name, always.
    #[must_use]
    pub fn fires_at(&self, name: &ScheduleName, at: Timestamp) -> Timestamp {
        match self.jitter_ms {
            0 => at,
            jitter_ms => at.plus_ms(mixed(name, at) % (jitter_ms + 1)),
        }
    }

    /// Ticks before this are late: even with the most jitter their grace is over.
    pub(crate) fn late_before(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0.saturating_sub(self.grace_ms).saturating_sub(self.jitter_ms))
    }

    pub(crate) fn upcoming(&self, name: &ScheduleName, due: Due) -> UpcomingTick {
        UpcomingTick {
            scheduled: due.at,
            fires_at: self.fires_at(name, due.at),
            utc: instant_text(due.at),
            local: shown(due.at, &self.zone),
            rule: due.rule,
        }
    }

    /// The next `n` ticks after `after`.
    #[must_use]
    pub fn preview(&self, name: &ScheduleName, after: Timestamp, n: u32) -> Vec<UpcomingTick> {
        let first = self.next(after);
        let ticks = std::iter::successors(first, |due| self.next(due.at));
        ticks.take(n as usize).map(|due| self.upcoming(name, due)).collect()
    }
}

/// RFC 3339 in UTC.
#[must_use]
pub fn instant_text(at: Timestamp) -> String {
    shown(at, &TimeZone::UTC)
}

/// RFC 3339 with the offset of the zone.
fn shown(at: Timestamp, zone: &TimeZone) -> String {
    let Some(instant) = i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
    else {
        return format!("{} ms", at.0);
    };
    instant.display_with_offset(zone.to_offset(instant)).to_string()
}

fn calendar(trigger: &Trigger) -> Result<Option<Calendar>, Error> {
    Ok(match trigger {
        Trigger::Cron { cron } => Some(Calendar::Cron(Cron::parse(cron)?)),
        // An offset or a Z makes it an instant; without one it is a time of day somewhere.
        Trigger::At { at } if at.parse::<jiff::Timestamp>().is_ok() => None,
        Trigger::At { at } => {
            let local: jiff::civil::DateTime = at.parse().map_err(|_| malformed(at))?;
            if local.subsec_nanosecond() != 0 {
                return Err(malformed(at));
            }
            Some(Calendar::Once(local))
        }
        Trigger::Every { .. } => None,
    })
}

/// An instant as RFC 3339 writes it.
///
/// # Errors
/// `invalid` for anything else, and for instants before 1970.
pub fn parse_instant(at: &str) -> Result<Timestamp, Error> {
    let instant: jiff::Timestamp = at.parse().map_err(|_| malformed(at))?;
    u64::try_from(instant.as_millisecond()).map(Timestamp).map_err(|_| malformed(at))
}

fn malformed(at: &str) -> Error {
    let shown: String = at.chars().take(64).collect();
    Error::invalid(
        "schedule.at",
        format!("`{shown}` is neither an instant since 1970 nor a local time in whole seconds"),
    )
    .help("2026-12-24T18:00:00Z, or 2026-12-24T18:00:00 with a zone")
}

fn never(spec: &ScheduleSpec) -> Error {
    match &spec.trigger {
        Trigger::At { at } => {
            let zone = spec.zone.as_deref().unwrap_or_default();
            Error::invalid("schedule.never", format!("the time {at} does not exist in {zone}"))
                .help("clocks are put forward over it; set missing to shift_forward, or choose another time")
        }
        Trigger::Cron { cron } => {
            Error::invalid("schedule.never", format!("`{cron}` never matches")).help("is there such a day?")
        }
        Trigger::Every { .. } => Error::invalid("schedule.never", "it never ticks"),
    }
}

fn next_every(every_ms: u64, anchor: Timestamp, after: Timestamp) -> Option<Timestamp> {
    let every_ms = every_ms.max(1);
    let phase = anchor.0 % every_ms;
    if after.0 < phase {
        return Some(Timestamp(phase));
    }
    let passed = (after.0 - phase) / every_ms;
    Some(Timestamp(passed.checked_add(1)?.checked_mul(every_ms)?.checked_add(phase)?))
}

/// A number that follows from a tick's name alone: FNV-1a over it, then the finalizer of SplitMix64, because the last
/// bytes of an instant differ little.
fn mixed(name: &ScheduleName, at: Timestamp) -> u64 {
    let bytes = name.as_str().bytes().chain(at.0.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests;
