"""The client that users hold: typed operations, any operation, subscriptions, functions on workers.

One connection, any number of threads. It is made again when the kernel was killed and another one listens; a call that
was under way then raises :class:`Unreachable`, unless it only reads: such a one is sent again.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import msgspec

from .._errors import Unreachable
from .._schemas import EnvironmentSpec, Payload
from .._values import feeds_of
from ..task import Task
from ._arenas import NAMED, SEALED
from ._calls import Calls, Ref
from ._connection import CREDIT, DEADLINE_S, PATIENCE_S, Stream, fresh_key
from ._functions import Roots, Target
from ._leases import Leases
from ._link import Link, within
from ._operations import Operations
from ._options import options_of
from ._places import socket_path
from ._results import value_of
from ._subscriptions import SUBSCRIBED, Subscription, View
from ._yielded import Values

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterable, Mapping

    from ._feeds import Feed

R = TypeVar("R")

# How long a kernel that is gone is waited for, by calls that may be sent again and by subscriptions.
RECONNECT_S = 30.0

# Of a code object, as `inspect` has them: CO_GENERATOR and CO_ASYNC_GENERATOR. Importing it costs more than the rest.
_GENERATOR = 0x20 | 0x200

_encode = msgspec.msgpack.encode
_decoders: dict[Any, Callable[[bytes], Any]] = {}


class Client(Operations):
    """See the module. Made by :func:`connect`; may be used as a context manager."""

    def __init__(
        self,
        path: str,
        role: str | None,
        environment: EnvironmentSpec | None,
        reconnect_s: float,
        memory: str | None = SEALED,
    ) -> None:
        super().__init__(self)
        self.lease: Leases = Leases(self)
        self.reconnect_s = reconnect_s
        self.environment = environment or EnvironmentSpec(python=sys.executable)
        """Of the workers that functions are sent to: by default this interpreter with its packages."""
        self.link = Link(path, role, memory)
        self._calls = Calls(self)
        self._roots = Roots()

    @property
    def welcome(self) -> dict[str, Any]:
        """What the kernel said of itself: server, instance, epoch, role, limits."""
        return self.link.connection(self.reconnect_s).welcome

    def call(
        self, method: str, request: Any = None, *, deadline_s: float | None = DEADLINE_S, idem: str | None = None
    ) -> Any:
        """Calls any operation by its name, with plain data in and out; items, should it stream, are passed over.

        ``deadline_s`` is of all of it: a kernel that is gone is waited for no longer, :class:`Unreachable` says so.
        """
        return self.request(method, {} if request is None else request, Any, deadline_s, idem or fresh_key(), False)

    def stream(self, method: str, request: Any = None, *, credit: int = CREDIT) -> Stream[Any, Any]:
        """Calls any operation that streams."""
        return self.request_stream(method, {} if request is None else request, Any, Any, fresh_key(), credit)

    def subscribe(self, filter: str, *, on_full: str = "gap", credit: int = SUBSCRIBED) -> Subscription:
        """Deliveries of all subjects that match: ``run/*/state``, ``run/7k2m4q9d/**``, ``credit`` at once."""
        return Subscription(self.link, filter, on_full, self.reconnect_s, credit)

    def value(self, payload: Payload | Mapping[str, Any]) -> Any:
        """The value of a payload that has come as an item, or was published; an array may lie in shared memory."""
        if not isinstance(payload, Payload):
            payload = msgspec.convert(payload, Payload)
        return value_of(self, payload, self.link.connection(self.reconnect_s))

    def iterate(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Values:
        """Iterates, here, over what a generator yields on a worker. Raises TypeError for what is no generator."""
        target, arguments = self._generator(function, args, kwargs)
        request = self._calls.request(target, arguments, self.environment, options_of(function))
        return Values(self, request, feeds=feeds_of(arguments))

    def feed(self, values: Iterable[Any]) -> Feed:
        """A stream into a function, as one of its arguments: ``client.submit(train, client.feed(rows()))``.

        The function iterates over it, once, and ``values`` are taken here as it does. Over when all were read, when the
        function leaves, or closed; unread, when the call is done or refused, when nobody has it any more, or when this
        client is closed.
        """
        return self._calls.feed(values)

    def view(self, filter: str) -> View:
        """The folded states of all subjects that match."""
        return View(self.subscribe(filter))

    @overload
    def submit(self, function: Callable[..., Generator[Any, Any, R]], /, *args: Any, **kwargs: Any) -> Ref[R]: ...
    @overload
    def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> Ref[R]: ...
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Ref[Any]:
        """Calls a function on a worker. It is imported there, so it belongs into a module or a script.

        What a generator function yields is iterated over: ``for value in client.submit(tokens, prompt)``. A task is
        kept to its ``timeout``, ``open_files`` and ``file_size``; one with options that only a flow has is refused.

        Arguments travel as data: a tuple or a set arrives as a list, a dataclass as a dict, and a Decimal, a UUID, a
        date or a datetime without a time zone as its text. Returns at once, unless the kernel is gone: this waits up
        to ``reconnect_s`` for one.
        """
        target, arguments = self._target(function, args, kwargs)
        options = options_of(function)
        return self._calls.submit(target, arguments, self.environment, options, yields=_yields(function))

    def map(self, function: Callable[..., R], items: Iterable[Any], /, **fixed: Any) -> list[Ref[R]]:
        """One call for each item, given to the first parameter."""
        refs: list[Ref[R]] = []
        try:
            refs.extend(self.submit(function, item, **fixed) for item in items)
        except BaseException:  # Nobody will ever have those that were submitted.
            for ref in refs:
                ref.cancel()
            raise
        return refs

    def close(self) -> None:
        """Ends every call, every feed, and the connection.

        Where an array or a table of a result lies in memory that the kernel has lent, and somebody has it still, the
        connection itself lasts, unused, until that is gone: what was had stays as it is. Whatever the kernel keeps for
        as long as this client's session lasts ends no sooner.
        """
        self._calls.close()
        self.link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        link = getattr(self, "link", None)
        if link is not None:
            link.close()

    # Of the client for asyncio.

    def submit_generator(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref[Any]:
        """As :meth:`submit`; raises as :meth:`iterate`."""
        target, arguments = self._generator(function, args, kwargs)
        return self._calls.submit(target, arguments, self.environment, options_of(function), yields=True)

    # Of the generated operations.

    def request(
        self, method: str, request: Any, reply: Any, deadline_s: float | None, idem: str | None, again: bool
    ) -> Any:
        """One call. ``again`` says that it may be sent once more when the connection was lost under it."""
        body = _encode(request)
        end = None if deadline_s is None else time.monotonic() + deadline_s
        while True:
            connection = self.link.connection(within(self.reconnect_s, end))
            left = None if end is None else max(0.0, end - time.monotonic())
            exchange = connection.open(method, body, deadline_s=left, idem=idem)
            try:
                return decoder(reply)(exchange.reply(None if end is None else end + PATIENCE_S))
            except Unreachable:
                if not again or (end is not None and time.monotonic() >= end):
                    raise

    def request_stream(
        self, method: str, request: Any, item: Any, reply: Any, idem: str | None, credit: int
    ) -> Stream[Any, Any]:
        connection = self.link.connection(self.reconnect_s)
        exchange = connection.open(method, _encode(request), credit=credit, idem=idem)
        return Stream(exchange, decoder(item), decoder(reply))

    def _generator(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Target, dict[str, Any]]:
        """What to call for it. Raises TypeError for a function whose one result nobody would take."""
        target, arguments = self._target(function, args, kwargs)
        if not _may_yield(function):
            name = getattr(function, "__qualname__", repr(function))
            help = f"for what it returns: client.submit({name}, …).result()"
            raise TypeError(f"`{name}` is no generator function, there is nothing to iterate over; {help}")
        return target, arguments

    def _target(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Target, dict[str, Any]]:
        if not callable(function):
            given = f"{function!r:.80} is of type {type(function).__name__}"
            raise TypeError(f"a function comes first, then its arguments: submit(f, x), not submit(f(x)); {given}")
        target = self._roots.target(function)
        if target is not None:
            return target, bound(function, args, kwargs) if args else kwargs
        from ._pickled import pickled

        return pickled(function, args, kwargs)


def _yields(function: Callable[..., Any]) -> bool:
    code = getattr(_plain(function), "__code__", None)
    return code is not None and bool(code.co_flags & _GENERATOR)


def _may_yield(function: Callable[..., Any]) -> bool:
    """False for what surely has one result; of what is no function of Python nothing is known."""
    plain = _plain(function)
    if not hasattr(plain, "__code__") or _yields(plain):
        return True
    wrapped = getattr(plain, "__wrapped__", None)
    return wrapped is not None and _may_yield(wrapped)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return cast("Task[..., Any]", function).function if isinstance(function, Task) else function


def bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name. Raises TypeError as the call itself would."""
    plain = _plain(function)
    code = getattr(plain, "__code__", None)
    names = code.co_varnames[code.co_posonlyargcount : code.co_argcount] if code is not None else ()
    simple = code is not None and not code.co_posonlyargcount and not hasattr(plain, "__self__")
    if simple and len(args) <= len(names) and not any(name in kwargs for name in names[: len(args)]):
        return {**dict(zip(names, args, strict=False)), **kwargs}
    # Imported late: it costs a third of this package's import.
    import inspect

    signature = inspect.signature(plain)
    named = signature.bind(*args, **kwargs)
    arguments: dict[str, Any] = {}
    for name, value in named.arguments.items():
        kind = signature.parameters[name].kind
        if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            raise TypeError(f"`{plain.__name__}` takes `{name}` by position; a worker is given arguments by name")
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        else:
            arguments[name] = value
    return arguments


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """Made once for each type."""
    known = _decoders.get(kind)
    if known is None:
        known = _decoders[kind] = msgspec.msgpack.Decoder(kind).decode
    return known


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    instance: str | None = None,
    role: str | None = None,
    environment: EnvironmentSpec | None = None,
    reconnect_s: float = RECONNECT_S,
    memory: Literal["sealed", "named"] | None = "sealed",
) -> Client:
    """Connects to the kernel that listens on ``socket``, or to that of an instance; see ``_places.py`` for defaults.

    ``role`` asks for less than this user may have (``view``, ``operate``). ``reconnect_s`` is how long a kernel that is
    gone is waited for. ``memory`` is how large values come: in shared memory that is passed by descriptor or found by
    name, or in frames and from the artifact store alone. Raises :class:`Unreachable` when nobody listens.
    """
    feature = {"sealed": SEALED, "named": NAMED, None: None}[memory]
    return Client(socket_path(socket, instance), role, environment, reconnect_s, feature)


_default: Client | None = None
_default_lock = threading.Lock()


def default_client() -> Client:
    """The client of ``task.submit``: made when it is first needed, one for each process."""
    global _default
    with _default_lock:
        if _default is None:
            _default = connect()
        return _default
