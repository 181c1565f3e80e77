"""One attempt, from its request to its outcome. Knows no sockets: the worker and the tests bring a :class:`Store`.

Order: arguments are decoded, the root's code is loaded, global generators are seeded, the function runs, its result is
encoded. Importing and running are user code, which a cancel may interrupt; the rest is not.
"""

from __future__ import annotations

import inspect
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec

from . import _limits, _values
from ._current import Current, activate
from ._errors import Cancelled, ErrorData, Refused, TaskError, error
from ._exceptions import one_line, remote_exception
from ._generators import Generators
from ._items import GENERATORS, drain
from ._schemas import ArgumentList
from ._threads import ThreadCounts

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    from ._interrupts import UserCode
    from ._items import Items
    from ._schemas import ArgumentValue, Execute
    from ._values import Encoded, Store

_threads = ThreadCounts()
_generators = Generators()
_UNFINISHED = (*GENERATORS, CoroutineType)


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
        timeout_s=execute.timeout_ms / 1000 if execute.timeout_ms else None,
        lease=execute.lease,
        trace=execute.trace,
        scratch_root=scratch_root,
        report=report,
    )


def perform(
    execute: Execute, current: Current, code: Code, store: Store, user: UserCode, items: Items | None = None
) -> Encoded | ErrorData:
    """Runs the attempt on this thread and returns its result, ready to be staged, or its error.

    ``items`` takes what a generator yields; without it, nobody wants a generator.
    """
    inputs = _values.Inputs(store, lambda: current.scratch)
    try:
        arguments = {name: _argument(value, inputs) for name, value in execute.arguments.items()}
        code.switch(execute.code, execute.code_hash)
        activate(current)
        with _limits.kept(execute.limits):
            value, raised = user.run(_call, code, execute, arguments, items)
        if raised is not None:
            blamed = _limits.blamed(raised, execute.limits, execute.code)
            return blamed or error_of(raised, execute.code, cancelled=current.cancelled)
        return _result(value)
    except Refused as why:
        return why.error
    except (ValueError, OSError, ImportError, msgspec.MsgspecError) as why:
        # An array where there is no numpy is such an argument too.
        text = f"an argument cannot be read: {one_line(why)}"
        return error("data_loss", "task.arguments", text, remote=remote_exception(why, execute.code))
    finally:
        activate(None)
        inputs.close()


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


def _call(code: Code, execute: Execute, arguments: dict[str, Any], items: Items | None) -> Any:
    function = code.resolve(execute.function)
    _threads.limit(execute.lease.get("cpu", 1))
    _generators.seed(execute.seed)
    try:
        value = function(**arguments)
    except TypeError as why:
        # Raised by the call itself and not inside of the function: the flow names other arguments than it takes.
        if why.__traceback__ is not None and why.__traceback__.tb_next is None:
            raise _unfit(execute.function, function, why) from why
        raise
    if items is not None and isinstance(value, GENERATORS):
        return drain(cast("object", value), items)
    return value


def _unfit(name: str, function: Callable[..., Any], why: TypeError) -> Refused:
    try:
        takes = f"it takes {inspect.signature(function)}"
    except (TypeError, ValueError):
        takes = None
    return Refused(error("invalid", "task.arguments", f"`{name}` cannot be called: {why}", help=takes))


def _argument(argument: ArgumentValue | ArgumentList, inputs: _values.Inputs) -> Any:
    if isinstance(argument, ArgumentList):
        return _values.decode_all(argument.payloads, inputs.open_part)
    return inputs.open(argument.payload)


def _result(value: object) -> Encoded:
    if isinstance(value, _UNFINISHED):
        raise _unfinished(cast("object", value))
    return _values.encode(value)


def _unfinished(value: Any) -> Refused:
    close = getattr(value, "close", None)  # An asynchronous generator has none.
    if close is not None:
        close()
    if isinstance(value, CoroutineType):
        text, help = "a task returned a coroutine", "return asyncio.run(…) of it"
    else:
        text, help = "a generator was called where nobody takes its items", "return list(…) of it, or call pool.stream"
    return Refused(error("unimplemented", "task.encode", text, help=help))
