"""Which trace a call belongs to, as a W3C traceparent.

The first that there is: the current span of OpenTelemetry, where the program uses it; the attempt, where the program is
one; ``TRACEPARENT`` of the environment. This package exports nothing itself, and never imports OpenTelemetry.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .._current import active


def traceparent() -> str | None:
    """Of a call that is sent now."""
    telemetry: Any = sys.modules.get("opentelemetry.trace")
    if telemetry is not None:
        span = telemetry.get_current_span().get_span_context()
        if span.is_valid:
            return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
    attempt = active()
    if attempt is not None and attempt.trace is not None:
        return attempt.trace
    return _ENVIRONMENT


_ENVIRONMENT = os.environ.get("TRACEPARENT") or None
