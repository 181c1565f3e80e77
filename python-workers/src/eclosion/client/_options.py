"""What a call carries of a task's options: its time-out and what its worker keeps it to. The rest needs a flow.

A call is not journaled and takes no lease: nobody would try it again, keep its result or hold a lock for it. So an
option that wishes for this is refused, here, before anything is sent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .._errors import Refused, error
from .._schemas import AttemptLimits

if TYPE_CHECKING:
    from ..task import Task, TaskOptions


class CallOptions(NamedTuple):
    timeout_ms: int | None = None
    limits: AttemptLimits | None = None


NONE = CallOptions()

_CARRIED = frozenset({"name", "timeout", "open_files", "file_size"})
# What a call is anyway; nothing is wished for by saying so.
_AS_IT_IS: dict[str, Any] = {"retries": 0, "cpu": 1, "priority": "normal", "cache": "off", "cache_seed": True}
_EMPTY: tuple[Any, ...] = (None, [], {})
_DURATIONS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**n for n, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}iB": 1024**n for n, prefix in enumerate("KMGT", 1)},
}


def options_of(function: Any) -> CallOptions:
    """Of a task; a plain function has none. Raises :class:`Refused` for what a call cannot carry."""
    from ..task import Task

    return _carried(function) if isinstance(function, Task) else NONE  # pyright: ignore[reportUnknownArgumentType]


def _carried(task: Task[..., Any]) -> CallOptions:
    given = task.given
    if not given:
        return NONE
    wishes = [name for name, value in given.items() if name not in _CARRIED and not _is_no_wish(name, value)]
    if wishes:
        raise _refused(task, wishes)
    limits = AttemptLimits(
        open_files=given.get("open_files"),
        file_bytes=_scaled("file_size", given["file_size"], _SIZES) if "file_size" in given else None,
    )
    return CallOptions(_timeout_ms(given), None if limits == AttemptLimits() else limits)


def _is_no_wish(name: str, value: Any) -> bool:
    return value in _EMPTY or (name in _AS_IT_IS and value == _AS_IT_IS[name])


def _refused(task: Task[..., Any], wishes: list[str]) -> Refused:
    named = ", ".join(f"`{name}`" for name in sorted(wishes))
    text = f"a single call of `{task.name}` cannot have {named}: only a flow's tasks can"
    without = ", ".join(f"{name}=…" for name in sorted(wishes))
    help = (
        f"put it into a flow: a function with @flow that calls {task.name}(…), then `eclosion run FILE.py:FLOW`; "
        f"or call it without: @task with no {without}, or client.submit({task.name}.function, …)"
    )
    return Refused(error("invalid", "call.options", text, help=help))


def _timeout_ms(given: TaskOptions) -> int | None:
    timeout = given.get("timeout")
    if timeout is None:
        return None
    if not isinstance(timeout, str):
        timeout = f"{round(timeout * 1000)}ms"
    return _scaled("timeout", timeout, _DURATIONS)


def _scaled(option: str, value: str | int, units: dict[str, int]) -> int:
    """As ``actors/dag-tracker/src/plan/units.rs`` reads it."""
    if isinstance(value, int):
        return value
    read = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    unit = units.get(read[2]) if read else None
    amount = int(float(read[1]) * unit) if read and unit else 0
    if amount < 1:
        known = ", ".join(name for name in units if name)
        text = f"`{option}` is {value!r}, which is no number with one of the units {known}"
        raise Refused(error("invalid", "call.options", text))
    return amount
