//! All samples of a row as an HDR histogram, for tools that draw or merge them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use serde::Serialize;

/// Figures of a thousand times the row's unit would not do: a view is read in 5 ns.
const STEPS_PER_UNIT: f64 = 1_000.0;
const DIGITS: u8 = 3;

/// Quantiles in the row's unit. Empty where nothing was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Distribution {
    count: u64,
    min: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
    /// The histogram itself, V2 compressed and in base64, as HdrHistogram's tools read it. It counts whole steps.
    hdr: String,
    hdr_steps_per_unit: f64,
}

impl Distribution {
    pub(crate) fn of(figures: impl Iterator<Item = f64>) -> Self {
        Self::recorded(figures).unwrap_or_default()
    }

    fn recorded(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut histogram = Histogram::<u64>::new(DIGITS).ok()?;
        for figure in figures {
            // A histogram of this kind grows; what is no number is 0.
            histogram.record((figure * STEPS_PER_UNIT) as u64).ok()?;
        }
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(&histogram, &mut bytes).ok()?;
        let at = |share| histogram.value_at_quantile(share) as f64 / STEPS_PER_UNIT;
        Some(Self {
            count: histogram.len(),
            min: histogram.min() as f64 / STEPS_PER_UNIT,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max() as f64 / STEPS_PER_UNIT,
            hdr: STANDARD.encode(bytes),
            hdr_steps_per_unit: STEPS_PER_UNIT,
        })
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;

    use super::*;

    #[test]
    fn what_is_printed_is_read_back_as_the_same_histogram() {
        let distribution = Distribution::of((1..=1_000).map(f64::from));
        let bytes = STANDARD.decode(&distribution.hdr).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!((read.len(), distribution.count), (1_000, 1_000));
        let within = |ours: f64, exact: f64| (ours - exact).abs() <= exact / 500.0;
        assert!(within(distribution.p50, 500.0) && within(distribution.p99, 990.0), "{distribution:?}");
        assert!(within(read.value_at_quantile(0.99) as f64, 990.0 * distribution.hdr_steps_per_unit));
    }
}
