"""What a refusal says, in the one shape that it has everywhere, and the exceptions that users meet.

An error that crosses the wire is plain data (:class:`ErrorData`, ``schemas/src/error.rs``). In Python it is raised as
:class:`Refused`, which carries that data. :class:`Cancelled` and :class:`TaskError` are the two that user code may
raise itself.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Cancelled(BaseException):
    """The attempt was cancelled. Not an ``Exception``, so that a task's own retry loops do not swallow it."""


class TaskError(Exception):
    """An error that a task raises on purpose, with a way out for whoever reads it.

    >>> raise TaskError("no column `price`", help="columns: id, cost", retry=False)

    ``retry=False`` says that another attempt would fail alike.
    """

    def __init__(self, message: str, *, help: str | None = None, retry: bool = True) -> None:
        super().__init__(message)
        self.help = help
        self.retry = retry


class ErrorData(TypedDict, total=False):
    """An error as it travels. ``code``, ``reason`` and ``message`` are always there."""

    code: str
    reason: str
    message: str
    retry: dict[str, Any]
    help: str
    causes: list[str]
    remote: dict[str, Any]


class Refused(Exception):  # noqa: N818
    """Something was refused, here or by the kernel; ``error`` is what it said."""

    def __init__(self, error: ErrorData) -> None:
        super().__init__(f"{error.get('message', '')} ({error.get('code', '')}, {error.get('reason', '')})")
        self.error = error


def error(
    code: str,
    reason: str,
    message: str,
    *,
    help: str | None = None,
    retry: bool = False,
    remote: dict[str, Any] | None = None,
) -> ErrorData:
    """An error as data; a field that says nothing is left out."""
    data = ErrorData(code=code, reason=reason, message=message, retry={"policy": "now" if retry else "never"})
    if help:
        data["help"] = help
    if remote is not None:
        data["remote"] = remote
    return data
