"""Where the time of calls goes.

    with eclosion.client.timed() as calls:
        kernel.run.list()
    print(calls[0].method, calls[0].stages, calls[0].total_ns)

Every call that is sent inside of the block, in its thread or its coroutine, asks the kernel for its stages. They stand
in the list, in the order in which the calls were answered, before what they returned is there. Outside of a block
nothing is measured.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator


@dataclass(frozen=True)
class Stage:
    """A part of a call's time; each begins where the one before it has ended."""

    name: str
    took_ns: int


@dataclass(frozen=True)
class CallTimings:
    """One call."""

    method: str
    stages: list[Stage]
    """Empty where the kernel is older than timings, or has refused the call at its door."""

    total_ns: int
    """As seen from here: what the stages leave of it was on the way."""


_calls: contextvars.ContextVar[list[CallTimings] | None] = contextvars.ContextVar("eclosion-timed", default=None)


@contextlib.contextmanager
def timed() -> Generator[list[CallTimings]]:
    """See the head of this file."""
    calls: list[CallTimings] = []
    before = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(before)


class Timing:
    """One call under way that is timed."""

    __slots__ = ("_began_ns", "_calls", "_method")

    def __init__(self, method: str, calls: list[CallTimings]) -> None:
        self._method = method
        self._calls = calls
        self._began_ns = time.monotonic_ns()

    def ended(self, stages: list[dict[str, Any]]) -> None:
        total_ns = time.monotonic_ns() - self._began_ns
        told = [Stage(str(stage["name"]), int(stage["took_ns"])) for stage in stages]
        self._calls.append(CallTimings(self._method, told, total_ns))


def timing_of(method: str) -> Timing | None:
    """Of a call that is sent now; None unless somebody wants to know."""
    calls = _calls.get()
    return None if calls is None else Timing(method, calls)
