//! Rates: how often something may be used, as a token bucket in whole numbers.
//!
//! `60/min burst 10` means: never more than 60 in any minute, and at most 10 at once. The bucket holds `burst` tokens and
//! is refilled with `count - burst + 1` tokens in each period, so that what it held before a period began and what came
//! to it meanwhile are never more than `count` together. Without a burst (1) that is one each `period / count`.
//!
//! Pure: a bucket follows from the times of the records that took from it. One token is `period_ms` units, and the
//! refill of a millisecond is a whole number of units, so nothing is ever rounded. A clock that is set back refills
//! nothing; one that is set forward fills the bucket at most once.

use std::fmt;
use std::str::FromStr;

use eclosion_schemas::Timestamp;
use eclosion_schemas::error::Error;

/// More in a period than anybody counts; sums of units stay far from overflow.
const COUNT_MAX: u64 = 1_000_000_000;
const PERIODS: [(&str, u64); 7] = [
    ("s", 1_000),
    ("sec", 1_000),
    ("min", 60_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("hour", 3_600_000),
    ("day", 86_400_000),
];

/// See the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: u64,
    period_ms: u64,
    burst: u64,
}

impl Rate {
    /// # Errors
    /// `invalid`, when `burst` is not between 1 and `count`, or `count` or `period_ms` is out of reason.
    pub fn new(count: u64, period_ms: u64, burst: u64) -> Result<Self, Error> {
        let day_ms = 86_400_000;
        if (1..=COUNT_MAX).contains(&count)
            && (1..=day_ms).contains(&period_ms)
            && (1..=count).contains(&burst)
        {
            return Ok(Self { count, period_ms, burst });
        }
        let text = format!("{count} in {period_ms} ms with a burst of {burst} is no rate");
        Err(Error::invalid("arbitration.rate", text)
            .help(format!("count is 1 to {COUNT_MAX}, a period 1 ms to a day, a burst 1 to the count")))
    }

    /// Tokens that may be taken at once, if nobody took any for a while.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst
    }

    fn units_max(&self) -> u64 {
        self.burst * self.period_ms
    }

    fn refill_per_ms(&self) -> u64 {
        self.count - self.burst + 1
    }
}

/// `60/min`, `10/s burst 3`.
impl FromStr for Rate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || {
            Error::invalid("arbitration.rate", "this is no rate")
                .help("write 60/min or 10/s, and 60/min burst 10 where several may come at once")
        };
        let mut words = text.split_whitespace();
        let (count, period) = words.next().and_then(|word| word.split_once('/')).ok_or_else(refused)?;
        let count = count.parse().map_err(|_| refused())?;
        let period = PERIODS.iter().find(|(name, _)| *name == period).ok_or_else(refused)?;
        let burst = match (words.next(), words.next(), words.next()) {
            (None, ..) => 1,
            (Some("burst"), Some(burst), None) => burst.parse().map_err(|_| refused())?,
            _ => return Err(refused()),
        };
        Self::new(count, period.1, burst)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PERIODS.iter().find(|(_, ms)| *ms == self.period_ms) {
            Some((name, _)) => write!(f, "{}/{name}", self.count)?,
            None => write!(f, "{}/{}ms", self.count, self.period_ms)?,
        }
        if self.burst > 1 { write!(f, " burst {}", self.burst) } else { Ok(()) }
    }
}

/// What is left of a rate, and when that was so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    at: Timestamp,
    units: u64,
}

impl Bucket {
    pub(crate) fn full(rate: &Rate, at: Timestamp) -> Self {
        Self { at, units: rate.units_max() }
    }

    fn units(&self, rate: &Rate, now: Timestamp) -> u64 {
        let refilled = now.since_ms(self.at).saturating_mul(rate.refill_per_ms());
        self.units.saturating_add(refilled).min(rate.units_max())
    }

    /// Whole tokens.
    pub(crate) fn tokens(&self, rate: &Rate, now: Timestamp) -> u64 {
        self.units(rate, now) / rate.period_ms
    }

    pub(crate) fn take(&mut self, rate: &Rate, tokens: u64, now: Timestamp) {
        let taken = tokens.saturating_mul(rate.period_ms);
        *self = Self { at: now, units: self.units(rate, now).saturating_sub(taken) };
    }

    /// When there are this many tokens, if nobody takes any before.
    pub(crate) fn ready_at(&self, rate: &Rate, tokens: u64) -> Timestamp {
        let wanted = tokens.saturating_mul(rate.period_ms).min(rate.units_max());
        self.at.plus_ms(wanted.saturating_sub(self.units).div_ceil(rate.refill_per_ms()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read_as_they_are_written() {
        for (text, count, period_ms, burst) in [
            ("60/min", 60, 60_000, 1),
            ("10/s burst 3", 10, 1_000, 3),
            (" 1/day ", 1, 86_400_000, 1),
            ("5/h  burst  5", 5, 3_600_000, 5),
        ] {
            assert_eq!(text.parse(), Rate::new(count, period_ms, burst), "{text}");
        }
        for text in ["", "60", "/min", "60/week", "0/min", "5/min burst 6", "5/min burst", "5/min 3", "-1/s"]
        {
            assert_eq!(text.parse::<Rate>().unwrap_err().reason, "arbitration.rate", "{text}");
        }
        assert_eq!("60/min burst 10".parse::<Rate>().unwrap().to_string(), "60/min burst 10");
    }

    #[test]
    fn a_clock_that_is_set_back_refills_nothing() {
        let rate = "60/min".parse().unwrap();
        let mut bucket = Bucket::full(&rate, Timestamp(100_000));
        bucket.take(&rate, 1, Timestamp(100_000));
        assert_eq!((bucket.tokens(&rate, Timestamp(1)), bucket.ready_at(&rate, 1)), (0, Timestamp(101_000)));
        assert_eq!(bucket.tokens(&rate, Timestamp(101_000)), 1);
    }

    proptest! {
        /// However greedy: what is there is taken at once, in any portions.
        #[test]
        fn no_window_of_a_period_ever_sees_more_than_the_count(
            (count, burst) in (1_u64..60).prop_flat_map(|count| (Just(count), 1..=count)),
            period_ms in 1_u64..5_000,
            waits in prop::collection::vec((0_u64..400, 1_u64..8), 1..300),
        ) {
            let rate = Rate::new(count, period_ms, burst).unwrap();
            let mut now = Timestamp(1_000);
            let mut bucket = Bucket::full(&rate, now);
            let mut taken: Vec<(Timestamp, u64)> = Vec::new();
            for (wait_ms, most) in waits {
                now = now.plus_ms(wait_ms);
                let tokens = bucket.tokens(&rate, now).min(most);
                prop_assert!(tokens <= burst);
                bucket.take(&rate, tokens, now);
                taken.push((now, tokens));
                let ready = bucket.ready_at(&rate, 1);
                prop_assert!(bucket.tokens(&rate, ready) >= 1);
                prop_assert!(ready <= now || bucket.tokens(&rate, Timestamp(ready.0 - 1)) == 0);
            }
            for (begin, _) in &taken {
                let inside = taken.iter().filter(|(at, _)| at >= begin && at.since_ms(*begin) < period_ms);
                prop_assert!(inside.map(|(_, tokens)| tokens).sum::<u64>() <= count);
            }
        }
    }
}
