//! From local times of a zone to instants: what becomes of a local time that does not exist or exists twice.
//!
//! Time is walked in segments of constant offset, because inside one local times and instants go together. At a segment's
//! edges the policies have their say:
//!
//! ```text
//! put forward by d:  …─────┤begin├─────…   local times between the offsets are missing; shifted by d they are the
//!                                          instants [begin, begin + d) of the later segment
//! put back by d:     …──[ d ]┤begin├[ d ]──…   the same local times on both sides: first, second
//! ```
//!
//! Invariant: instants come in order, each once, whatever the policies; two local times that become the same instant (one
//! shifted onto the other) are one tick.

use eclosion_schemas::Timestamp;
use eclosion_schemas::schedule::{DstRule, MissingTime, RepeatedTime};
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

use super::cron::Cron;

/// Further than this nobody looks: an expression that matches only 29 February on a Monday has a longer way than most.
const HORIZON_S: i64 = 60 * 366 * 24 * 3600;
/// Instants beyond the year 9998 are not looked at.
const LAST_S: i64 = 253_370_764_800;

/// The local times that are meant.
#[derive(Debug, Clone)]
pub(super) enum Calendar {
    Cron(Cron),
    Once(DateTime),
}

impl Calendar {
    fn next(&self, from: DateTime, until: DateTime) -> Option<DateTime> {
        match self {
            Calendar::Cron(cron) => cron.next(from, until),
            Calendar::Once(at) => (from <= *at && *at < until).then_some(*at),
        }
    }
}

/// An instant, and what moved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub at: Timestamp,
    pub rule: Option<DstRule>,
}

#[derive(Debug, Clone)]
pub(super) struct Civil {
    pub(super) calendar: Calendar,
    pub(super) zone: TimeZone,
    pub(super) missing: MissingTime,
    pub(super) repeated: RepeatedTime,
}

/// Between two transitions, in seconds since 1970; offsets in seconds.
#[derive(Debug, Clone, Copy)]
struct Segment {
    begin: i64,
    end: i64,
    before: i64,
    offset: i64,
    after: i64,
}

impl Civil {
    /// The first instant after `after`.
    pub(super) fn next(&self, after: Timestamp) -> Option<Due> {
        let mut from = i64::try_from(after.0 / 1000).ok()?.checked_add(1)?;
        let horizon = from.checked_add(HORIZON_S)?.min(LAST_S);
        while from < horizon {
            let segment = self.segment(from, horizon)?;
            if let Some((at, rule)) = self.next_in(segment, from) {
                return Some(Due { at: Timestamp(u64::try_from(at).ok()?.checked_mul(1000)?), rule });
            }
            from = segment.end;
        }
        None
    }

    fn segment(&self, at: i64, horizon: i64) -> Option<Segment> {
        let second = |at: i64| jiff::Timestamp::from_second(at).ok();
        let offset_at = |at: i64| Some(i64::from(self.zone.to_offset(second(at)?).seconds()));
        let offset = offset_at(at)?;
        let transition =
            self.zone.preceding(second(at + 1)?).next().map(|found| found.timestamp().as_second());
        let begin = transition.unwrap_or(i64::MIN);
        let before = if begin == i64::MIN { offset } else { offset_at(begin - 1)? };
        let transition = self.zone.following(second(at)?).next().map(|found| found.timestamp().as_second());
        let end = transition.unwrap_or(horizon).min(horizon);
        let after = offset_at(end)?;
        Some(Segment { begin, end, before, offset, after })
    }

    fn next_in(&self, segment: Segment, from: i64) -> Option<(i64, Option<DstRule>)> {
        let plain = self.plain(segment, from);
        let shifted = self.shifted(segment, from).map(|at| (at, Some(DstRule::ShiftedForward)));
        match (plain, shifted) {
            (Some(plain), Some(shifted)) if shifted.0 < plain.0 => Some(shifted),
            (None, shifted) => shifted,
            (plain, _) => plain,
        }
    }

    /// Local times that exist in the segment, without those of repeated ones that are not wanted.
    fn plain(&self, segment: Segment, from: i64) -> Option<(i64, Option<DstRule>)> {
        let Segment { begin, end, before, offset, after } = segment;
        let seconds_end = begin.saturating_add((before - offset).max(0));
        let firsts_begin = end - (offset - after).max(0);
        let from = if self.repeated == RepeatedTime::First { from.max(seconds_end) } else { from };
        let until = if self.repeated == RepeatedTime::Second { firsts_begin } else { end };
        let at = self.matching(from, until, offset)?;
        let rule = match at {
            _ if at < seconds_end => Some(DstRule::RepeatedSecond),
            _ if at >= firsts_begin => Some(DstRule::RepeatedFirst),
            _ => None,
        };
        Some((at, rule))
    }

    /// Local times that were left out before the segment, as late as if they had not been.
    fn shifted(&self, segment: Segment, from: i64) -> Option<i64> {
        let Segment { begin, before, offset, .. } = segment;
        if self.missing == MissingTime::Skip || offset <= before {
            return None;
        }
        self.matching(from.max(begin), begin + (offset - before), before)
    }

    /// The first instant in `[from, until)` whose local time, at this offset, is meant.
    fn matching(&self, from: i64, until: i64, offset: i64) -> Option<i64> {
        if from >= until {
            return None;
        }
        let offset = Offset::from_seconds(i32::try_from(offset).ok()?).ok()?;
        let local = |at: i64| Some(offset.to_datetime(jiff::Timestamp::from_second(at).ok()?));
        let found = self.calendar.next(local(from)?, local(until)?)?;
        Some(offset.to_timestamp(found).ok()?.as_second())
    }
}
