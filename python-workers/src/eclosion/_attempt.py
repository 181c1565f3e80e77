"""One attempt, from its request to its outcome. Knows no sockets: the worker and the tests bring a :class:`Store`.

Order: arguments are decoded, the root's code is loaded, ``random`` and numpy are seeded, the function runs, its result
is encoded. Importing and running are user code, which a cancel may interrupt; the rest is not.
"""

from __future__ import annotations

import inspect
import random
import sys
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from . import _values
from ._current import Current, activate
from ._errors import Cancelled, ErrorData, Refused, TaskError, error
from ._exceptions import one_line, remote_exception
from ._schemas import ArgumentList
from ._threads import ThreadCounts

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    from ._interrupts import UserCode
    from ._schemas import ArgumentValue, Execute
    from ._values import Encoded, Store

_threads = ThreadCounts()


class Code(Protocol):
    """Where functions come from; see ``_code.py``."""

    def switch(self, root: str, code_hash: str) -> None: ...

    def resolve(self, function: str) -> Callable[..., Any]: ...


def current_of(
    execute: Execute, scratch_root: pathlib.Path | None, report: Callable[[dict[str, Any]], None]
) -> Current:
    """What the attempt will see as ``eclosion.current()``."""
    return Current(
        run=execute.run,
        task=execute.task,
        attempt=execute.attempt,
        idempotency_key=execute.idempotency_key,
        seed=execute.seed,
        timeout_s=None if not execute.timeout_ms else execute.timeout_ms / 1000,
        lease=dict(execute.lease or {}),
        scratch_root=scratch_root,
        report=report,
    )


def perform(execute: Execute, current: Current, code: Code, store: Store, user: UserCode) -> Encoded | ErrorData:
    """Runs the attempt on this thread and returns its result, ready to be staged, or its error."""
    inputs = _values.Inputs(store, lambda: current.scratch)
    try:
        arguments = {name: _argument(value, inputs) for name, value in execute.arguments.items()}
        code.switch(execute.code, execute.code_hash)
        activate(current)
        ended = user.run(lambda: _call(code, execute, arguments))
        if ended.raised is not None:
            return error_of(ended.raised, execute.code, cancelled=current.cancelled)
        return _result(ended.value)
    except Refused as why:
        return why.error
    except (ValueError, OSError, msgspec.MsgspecError) as why:
        text = f"an argument cannot be read: {one_line(why)}"
        return error("data_loss", "task.arguments", text, remote=remote_exception(why, execute.code))
    finally:
        activate(None)
        inputs.close()


def seed_generators(seed: int) -> None:
    """Seeds ``random``, and numpy's global generator if numpy was imported."""
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy.random

        numpy.random.seed(seed & 0xFFFF_FFFF)


def error_of(raised: BaseException, code_root: str, *, cancelled: bool) -> ErrorData:
    """The error that an exception of user code becomes."""
    if isinstance(raised, Refused):
        return raised.error
    remote = remote_exception(raised, code_root)
    if isinstance(raised, Cancelled) or (cancelled and isinstance(raised, KeyboardInterrupt)):
        return error("cancelled", "task.cancelled", "the task was cancelled", remote=remote)
    if isinstance(raised, TaskError):
        return error("internal", "task.raised", str(raised), help=raised.help, retry=raised.retry, remote=remote)
    return error("internal", "task.raised", one_line(raised), retry=True, remote=remote)


def _call(code: Code, execute: Execute, arguments: dict[str, Any]) -> Any:
    function = code.resolve(execute.function)
    _threads.limit((execute.lease or {}).get("cpu", 1))
    seed_generators(execute.seed)
    try:
        return function(**arguments)
    except TypeError as why:
        # Raised by the call itself and not inside of the function: the flow names other arguments than it takes.
        if why.__traceback__ is not None and why.__traceback__.tb_next is None:
            raise _unfit(execute.function, function, why) from why
        raise


def _unfit(name: str, function: Callable[..., Any], why: TypeError) -> Refused:
    try:
        takes = f"it takes {inspect.signature(function)}"
    except (TypeError, ValueError):
        takes = None
    return Refused(error("invalid", "task.arguments", f"`{name}` cannot be called: {why}", help=takes))


def _argument(argument: ArgumentValue | ArgumentList, inputs: _values.Inputs) -> Any:
    if isinstance(argument, ArgumentList):
        return [_values.decode(payload, inputs.open_part) for payload in argument.payloads]
    return _values.decode(argument.payload, inputs.open_part)


def _result(value: object) -> Encoded:
    if isinstance(value, (GeneratorType, AsyncGeneratorType)):
        _close(value)
        raise Refused(error("unimplemented", "task.encode", "a task returned a generator", help="return list(…) of it"))
    if isinstance(value, CoroutineType):
        _close(value)
        raise Refused(
            error(
                "unimplemented",
                "task.encode",
                "a task returned a coroutine",
                help="return asyncio.run(…) of it",
            )
        )
    return _values.encode(value)


def _close(unfinished: Any) -> None:
    close = getattr(unfinished, "close", None)
    if close is not None:
        close()
