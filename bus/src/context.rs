//! What rides along with every message besides its request.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use eclosion_schemas::{EffectId, Role};

use crate::timings::Timings;

/// Who asks, until when, and because of what.
#[derive(Debug, Clone)]
pub struct Context {
    /// After it nobody waits for the answer; a message that is still queued is not handled anymore.
    pub deadline: Instant,
    pub trace: Option<TraceContext>,
    /// The effect that this message performs; a repeated cause gets the recorded reply.
    pub cause: Option<EffectId>,
    /// The idempotency key.
    pub idem: Option<String>,
    pub role: Role,
    /// The client or actor that sends, for audit and for people.
    pub caller: Option<Arc<str>>,
    /// Where to note how its time is spent, if its asker wants to know.
    pub timings: Option<Timings>,
    /// The asker reads large values where they lie in shared memory, and gives them back.
    pub shares: bool,
}

impl Context {
    /// The kernel's own role, no trace, no cause.
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            trace: None,
            cause: None,
            idem: None,
            role: Role::Admin,
            caller: None,
            timings: None,
            shares: false,
        }
    }
}

/// A W3C trace context (`traceparent`), carried and never interpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub flags: u8,
}

/// A `traceparent` that is not of version 00 of the W3C recommendation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a traceparent is 00-<32 hex>-<16 hex>-<2 hex>, lower case, and neither id is all zeros")]
pub struct InvalidTraceContext;

impl FromStr for TraceContext {
    type Err = InvalidTraceContext;

    fn from_str(text: &str) -> Result<Self, InvalidTraceContext> {
        let mut parts = text.split('-');
        let (Some("00"), Some(trace), Some(span), Some(flags), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidTraceContext);
        };
        let [flags] = bytes_of_hex(flags)?;
        let context = Self { trace_id: bytes_of_hex(trace)?, span_id: bytes_of_hex(span)?, flags };
        if context.trace_id == [0; 16] || context.span_id == [0; 8] {
            return Err(InvalidTraceContext);
        }
        Ok(context)
    }
}

fn bytes_of_hex<const N: usize>(text: &str) -> Result<[u8; N], InvalidTraceContext> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(InvalidTraceContext);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return Err(InvalidTraceContext),
            };
            *byte = *byte << 4 | value;
        }
    }
    Ok(bytes)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_written_back() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(text.parse::<TraceContext>().unwrap().to_string(), text);
    }

    #[test]
    fn refuses_what_is_not_a_traceparent() {
        let zeros = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        for bad in ["", "00", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "00-é-é-é", &zeros]
        {
            assert_eq!(bad.parse::<TraceContext>(), Err(InvalidTraceContext), "{bad}");
        }
    }
}
