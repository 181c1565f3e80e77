"""What a refusal says, in the one shape that it has everywhere, and the exceptions that users meet.

An error that crosses the wire is plain data (:class:`ErrorData`, ``schemas/src/error.rs``). In Python it is raised as
:class:`Refused`, which carries that data, or as the class below it that says most (:func:`raised`). Nothing is ever
unpickled: an exception of a task is a :class:`TaskRaised` that tells of it, and a ``ValueError`` too if it was one
(a ``StopIteration`` is a ``RuntimeError``).
:class:`Cancelled` and :class:`TaskError` are the two that user code may raise itself.
"""

from __future__ import annotations

import builtins
import sys
from typing import TYPE_CHECKING, Any, TypedDict, cast

import msgspec

if TYPE_CHECKING:
    from ._schemas import DeathCertificate


# Of an error on the wire, and of each text in one that is over it.
ERROR_BYTES_MAX = 4 << 20
ERROR_TEXT_MAX = 64 * 1024
REASON_MAX = 256

_encode = msgspec.msgpack.encode

# Python 3.10 shows no notes in a traceback.
_HAS_NOTES = sys.version_info >= (3, 11)


def _helped(text: str, error: ErrorData) -> str:
    """What an exception says of itself; with the way out, where that cannot be a note."""
    help = error.get("help")
    return f"{text}\nhelp: {help}" if help and not _HAS_NOTES else text


class Cancelled(BaseException):
    """The attempt, or the call, was cancelled. Not an ``Exception``, so that retry loops do not swallow it."""


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
        help = error.get("help")
        if help and sys.version_info >= (3, 11):
            self.add_note(f"help: {help}")

    def __str__(self) -> str:
        return _helped(str(self.args[0]), self.error)


class Unreachable(Refused, ConnectionError):  # noqa: N818
    """No kernel answers, or the one that did is gone before it answered."""


class DeadlineExceeded(Refused, TimeoutError):  # noqa: N818
    """The call did not finish before its deadline."""


class Rejected(Refused):
    """The kernel has no room for it now; ``retry_after`` is how many seconds to wait before it is sent again."""

    def __init__(self, error: ErrorData) -> None:
        super().__init__(error)
        self.retry_after = error.get("retry", {}).get("after_ms", 0) / 1000


class TaskDied(Refused):
    """The worker died under the call; ``certificate`` says how, as far as the kernel has seen it."""

    certificate: DeathCertificate | None = None


class TaskRaised(Refused):
    """The task raised; ``remote`` is its exception as data (``RemoteException``)."""

    def __init__(self, error: ErrorData) -> None:
        super().__init__(error)
        self.remote: dict[str, Any] = error.get("remote", {})

    def __str__(self) -> str:
        return _helped(self.remote.get("text", "") or str(self.args[0]), self.error)


class RemoteTraceback(Exception):  # noqa: N818
    """Shown above a :class:`TaskRaised`: the lines that Python printed where it was raised."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def raised(data: ErrorData) -> BaseException:
    """The exception to raise for an error that came over the wire."""
    code, reason = data.get("code"), data.get("reason", "")
    if code == "cancelled":
        return Cancelled(data.get("message", ""))
    if code == "deadline":
        return DeadlineExceeded(data)
    if reason == "worker.died":
        return TaskDied(data)
    if reason == "task.raised":
        return _task_raised(data)
    if reason in ("kernel.unreachable", "connection.closed"):
        return Unreachable(data)
    if data.get("retry", {}).get("policy", "never") != "never":
        return Rejected(data)
    return Refused(data)


def _task_raised(data: ErrorData) -> TaskRaised:
    remote = data.get("remote", {})
    kind = getattr(builtins, remote.get("type", ""), None)
    if kind in (StopIteration, StopAsyncIteration):
        # As PEP 479 has it: raised here, it would be taken for the end of a loop or the value of a coroutine.
        kind = RuntimeError
    found: TaskRaised | None = None
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            found = _both(kind)(data)
        except TypeError:
            pass  # One that cannot be made so, as a UnicodeDecodeError.
    found = found or TaskRaised(data)
    if remote:
        found.__cause__ = RemoteTraceback(traceback_of(remote))
    return found


def _both(kind: type[Exception]) -> type[TaskRaised]:
    both = _both_known.get(kind)
    if both is None:
        both = _both_known[kind] = type(kind.__name__, (TaskRaised, kind), {"__module__": "eclosion.remote"})
    return both


_both_known: dict[type[Exception], type[TaskRaised]] = {}


def traceback_of(remote: dict[str, Any]) -> str:
    """A remote exception as Python would print it, its causes first."""
    lines: list[str] = []
    cause = remote.get("cause")
    if cause:
        lines += [traceback_of(cause), "\nThe above exception led to the following one:\n\n"]
    lines.append("Traceback (in the worker, most recent call last):\n")
    for frame in remote.get("frames", []):
        lines.append(f'  File "{frame["file"]}", line {frame["line"]}, in {frame["function"]}\n')
        if frame.get("source"):
            lines.append(f"    {frame['source']}\n")
    lines.append(f"{remote.get('type')}: {remote.get('text')}\n")
    lines += [f"{note}\n" for note in remote.get("notes", [])]
    return "".join(lines)


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


def packed(data: ErrorData) -> tuple[dict[str, Any], bytes]:
    """Envelope and body of an ERROR frame. Whatever an exception says of itself can be sent: a surrogate is escaped, a
    text without end is cut."""
    try:
        body = _encode(data)
    except (TypeError, ValueError, OverflowError):
        body = b""
    if not body or len(body) > ERROR_BYTES_MAX:
        data = cast("ErrorData", _sendable(data))
        body = _encode(data)
    return {"reason": sendable(data.get("reason", ""))[:REASON_MAX]}, body


def sendable(text: str) -> str:
    """The text, with what UTF-8 has no bytes for as its escape."""
    return text.encode(errors="backslashreplace").decode()


def _sendable(value: object) -> object:
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and value.bit_length() < 64:
        return value
    if isinstance(value, dict):
        entries = cast("dict[object, object]", value)
        return {_sendable(key): _sendable(entry) for key, entry in entries.items()}
    if isinstance(value, (list, tuple)):
        return [_sendable(entry) for entry in cast("list[object]", value)]
    return sendable(str(value)[:ERROR_TEXT_MAX])
