"""Services: an object with a state, an address, and methods that anybody may call.

    from eclosion import service

    @service(address="/counter")
    class Counter:
        def __init__(self) -> None:
            self.total = 0

        def add(self, amount: int) -> int:
            "Adds to the total."
            self.total += amount
            return self.total

``eclosion service start counter counter:Counter`` has the kernel hold it: in a worker, begun again when it dies.
``python -m eclosion.service counter:Counter`` serves it from this process, until the kernel stops. Each public method
is an operation, ``counter.add``, with the schemas of its annotations; a method that yields streams its items.

Two threads. The *main* thread makes the object and runs its methods, one after the other, so that its state needs no
lock. The *reader* owns the other half of the connection, so that cancel and credit work while a method runs.

    CALL --> line --> run --+-- DATA|END
                            +-- ERROR: what it raised; the object goes on
                            +-- DATA ... as far as there is credit

Invariants: (1) at most ``concurrency`` calls are in line, because the kernel sends no more. (2) A call that was
cancelled in line is not run; a generator stops at its next item. A method that runs is left alone, as an exception
between two of its lines would leave the state half changed. (3) The end of the connection ends the service: who
started it decides whether it comes back.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import queue
import socket
import sys
import threading
import time
import types
import typing
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from . import _frames as frames
from ._current import Current, current
from ._errors import Refused, TaskError, error, packed
from ._exceptions import one_line, remote_exception
from ._frames import Channel, Disconnected, Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

CLIENT = "eclosion-python/0.1.0"
API = 1
# Until the kernel has answered.
ANSWER_S = 10.0
# A service that has ended leaves no thread behind for longer.
LOOK_AGAIN_S = 5.0

C = TypeVar("C", bound=type[Any])

_OPTIONS = "__eclosion_service__"
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode


class Options(NamedTuple):
    """What :func:`service` was told."""

    address: str
    waiting_max: int
    concurrency: int


def service(*, address: str, waiting_max: int = 256, concurrency: int = 16) -> Callable[[C], C]:
    """Makes a class a service. ``waiting_max`` calls may wait at the kernel, ``concurrency`` in this process."""

    def decorate(cls: C) -> C:
        setattr(cls, _OPTIONS, Options(address, waiting_max, concurrency))
        return cls

    return decorate


class Method:
    """One operation of a service."""

    def __init__(self, owner: str, name: str, function: Callable[..., Any]) -> None:
        self.name = f"{owner}.{name}"
        self.attribute = name
        hints = typing.get_type_hints(function)
        fields: list[Any] = []
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"{self.name}: `{parameter}` cannot be given by name")
            kind = hints.get(parameter.name, Any)
            default = parameter.default
            given = () if default is parameter.empty else (default,)
            fields.append((parameter.name, kind, *given))
        required = [field for field in fields if len(field) == 2]
        optional = [field for field in fields if len(field) == 3]
        self._request = msgspec.defstruct(name, required + optional, kw_only=True, forbid_unknown_fields=True)
        self.decode = msgspec.msgpack.Decoder(self._request).decode
        self._reply = hints.get("return", Any)
        self._doc = inspect.getdoc(function) or ""
        self.streams = inspect.isgeneratorfunction(function)

    def declare(self) -> dict[str, Any]:
        """``ServedOperation`` of ``schemas/src/ops/service.rs``."""
        item = (typing.get_args(self._reply) or (Any,))[0] if self.streams else None
        return {
            "name": self.name,
            "streams": self.streams,
            "doc": self._doc.partition("\n")[0],
            "request": schema(self._request),
            "reply": schema(None if self.streams else self._reply),
            "item": schema(item) if self.streams else None,
        }

    def arguments(self, body: bytes) -> dict[str, Any]:
        """The keyword arguments of one call. Raises :class:`msgspec.MsgspecError`."""
        return msgspec.structs.asdict(self.decode(body))


def schema(kind: Any) -> dict[str, Any]:
    """The JSON Schema of an annotation; ``{}``, which admits everything, for one that has none."""
    try:
        return msgspec.json.schema(kind)
    except TypeError:
        return {}


def methods_of(cls: type[Any]) -> dict[str, Method]:
    """The operations of a service class, by their names."""
    options = options_of(cls)
    owner = options.address.strip("/").replace("/", "-")
    public = inspect.getmembers(cls, inspect.isfunction)
    methods = [Method(owner, name, function) for name, function in public if not name.startswith("_")]
    return {method.name: method for method in methods}


def options_of(cls: type[Any]) -> Options:
    """What the class was decorated with."""
    options = getattr(cls, _OPTIONS, None)
    if not isinstance(options, Options):
        raise TypeError(f"{cls.__module__}:{cls.__qualname__} is no service; decorate it with @service(address=...)")
    return options


class Call:
    """A CALL that has come and is not answered."""

    def __init__(self, frame: Frame) -> None:
        self.stream = frame.stream
        self.method = str(frame.envelope.get("method", ""))
        self.body = frame.body
        self.until = time.monotonic() + frame.envelope.get("deadline_ms", 0) / 1000
        self.cancelled = False
        self.sent = 0
        self.credit = int(frame.envelope.get("credit", 0))
        self.timed = bool(frame.envelope.get("timings")) or "trace" in frame.envelope
        self.began_ns = 0

    def ran(self) -> dict[str, Any]:
        """What the answer says of when it was in hand, if anybody wants to know."""
        return {"ran": [self.began_ns, time.time_ns()]} if self.timed else {}


class Server:
    """Serves one object over one connection. ``run`` belongs to the main thread."""

    def __init__(self, instance: Any, channel: Channel, methods: dict[str, Method]) -> None:
        self._instance = instance
        self._channel = channel
        self._methods = methods
        self._line: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._calls: dict[int, Call] = {}
        self._changed = threading.Condition()
        self._over = False
        self.was_told = False
        """The kernel said goodbye, and did not just vanish."""

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more."""
        return self._over

    def hang_up(self) -> None:
        """Ends it after the call that runs."""
        self._line.put(None)

    def run(self) -> None:
        """Until the connection ends."""
        reader = threading.Thread(target=self._read, name="eclosion-service", daemon=True)
        reader.start()
        try:
            while (call := self._line.get()) is not None:
                self.answer(call)
        except Disconnected:
            return
        finally:
            self._channel.hang_up()
            reader.join()
            self._channel.close()

    def _read(self) -> None:
        try:
            while True:
                for frame in self._channel.receive():
                    self.take(frame)
        except Disconnected:
            pass
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            self._line.put(None)

    def take(self, frame: Frame) -> None:
        """What the kernel says."""
        if frame.kind == frames.CALL:
            call = Call(frame)
            self._calls[call.stream] = call
            self._line.put(call)
        elif frame.kind == frames.PING:
            self._channel.send(frames.PONG, frame.stream, {"id": frame.envelope.get("id", "")})
        elif frame.kind in (frames.CANCEL, frames.CREDIT):
            with self._changed:
                call = self._calls.get(frame.stream)
                if call is not None and frame.kind == frames.CANCEL:
                    call.cancelled = True
                elif call is not None:
                    call.credit = max(call.credit, int(frame.envelope.get("credit", 0)))
                self._changed.notify_all()
        elif frame.kind == frames.GOAWAY:
            self.was_told = True
            self._line.put(None)

    def answer(self, call: Call) -> None:
        """One call, to its end."""
        try:
            if call.cancelled or time.monotonic() > call.until:
                return
            self._perform(call)
        finally:
            self._calls.pop(call.stream, None)

    def _perform(self, call: Call) -> None:
        if call.timed:
            call.began_ns = time.time_ns()
        try:
            body = self._encoded(call, self._result(call))
        except Refused as refused:
            reason, body = packed(refused.error)
            self._channel.send(frames.ERROR, call.stream, {**reason, **call.ran()}, body)
            return
        if not call.cancelled:
            self._channel.send(frames.DATA, call.stream, call.ran() or None, body, flags=frames.END)

    def _encoded(self, call: Call, value: Any) -> bytes:
        try:
            body = _encode(value)
        except Exception as why:
            text = f"what {call.method} gives is no data that can be sent: {why}"
            raise Refused(error("internal", "reply.encode", text)) from None
        if len(body) > frames.MESSAGE_BYTES_MAX:
            text = f"what {call.method} gives has {len(body)} bytes, over the limit of {frames.MESSAGE_BYTES_MAX}"
            raise Refused(error("exhausted", "reply.encode", text, help="yield it in pieces"))
        return body

    def _result(self, call: Call) -> Any:
        """What the method returns. Raises :class:`Refused` with what is wrong with the call, or what it raised."""
        method = self._methods.get(call.method)
        if method is None:
            raise Refused(error("unimplemented", "operation.unknown", f"there is no {call.method} here"))
        try:
            arguments = method.arguments(call.body)
        except (msgspec.MsgspecError, RecursionError) as why:
            text = f"the request of {call.method} is malformed: {why}"
            help = f"eclosion describe {call.method}"
            raise Refused(error("invalid", "request.malformed", text, help=help)) from None
        try:
            result = getattr(self._instance, method.attribute)(**arguments)
            return self._stream(call, result) if method.streams else result
        except (Refused, Disconnected):
            raise
        except Exception as raised:
            remote = remote_exception(raised, "")
            raise Refused(error("internal", "service.raised", one_line(raised), remote=remote)) from None

    def _stream(self, call: Call, items: Generator[Any, None, Any]) -> Any:
        """Sends what it yields; returns what it returns."""
        try:
            while not call.cancelled:
                try:
                    item = next(items)
                except StopIteration as end:
                    return end.value
                self._wait_for_credit(call)
                if not call.cancelled:
                    call.sent += 1
                    self._channel.send(frames.DATA, call.stream, None, self._encoded(call, item))
            return None
        finally:
            items.close()

    def _wait_for_credit(self, call: Call) -> None:
        with self._changed:
            self._changed.wait_for(lambda: call.sent < call.credit or call.cancelled or self._over)
            if self._over:
                raise Disconnected("the other end closed the stream")


def connect(path: str, declaration: dict[str, Any]) -> tuple[Channel, list[Frame]]:
    """A connection on which the addresses of ``declaration`` are served, and what came on it since they are: the first
    calls may come with the answer, or before it. Raises :class:`Refused`."""
    early: list[Frame] = []
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(ANSWER_S)
    try:
        sock.connect(path)
        channel = Channel(sock)
        channel.send(frames.HELLO, 0, {"client": CLIENT, "api": API, "role": "service"})
        channel.send(frames.CALL, 1, {"method": "service.declare"}, _encode(declaration))
        while True:
            early += channel.receive()
            answers = [frame for frame in early if frame.stream in (0, 1) and frame.kind in (frames.ERROR, frames.DATA)]
            if answers and answers[0].kind == frames.ERROR:
                raise Refused(_decode(answers[0].body, type=dict[str, Any]))  # pyright: ignore[reportArgumentType]
            if answers:
                sock.settimeout(None)
                return channel, [frame for frame in early if frame.stream > 1]
    except OSError as why:
        sock.close()
        text = f"no kernel answers on {path}: {why}"
        raise Refused(error("unavailable", "kernel.unreachable", text, help="eclosion up", retry=True)) from None
    except BaseException:
        sock.close()
        raise


def load(target: str) -> type[Any]:
    """The class that ``MODULE:CLASS`` names."""
    module, _, name = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def serve(target: str, socket: str) -> tuple[Server, Options]:
    """Makes the object and has its address served; its methods run in ``Server.run``.

    Raises a :class:`TaskError` that forbids to try again for code that cannot become a service by itself.
    """
    try:
        cls = load(target)
        options = options_of(cls)
        methods = methods_of(cls)
    except (ImportError, SyntaxError, AttributeError, TypeError) as why:
        help = f"mend {target} in its --code directory, then: eclosion service restart NAME"
        raise TaskError(f"{target} is no service: {one_line(why)}", help=help, retry=False) from why
    instance = cls()
    declaration: dict[str, Any] = {
        "addresses": [
            {
                "address": options.address,
                "waiting_max": options.waiting_max,
                "concurrency": options.concurrency,
                "operations": [method.declare() for method in methods.values()],
            }
        ],
    }
    channel, early = connect(socket, declaration)
    server = Server(instance, channel, methods)
    for frame in early:
        server.take(frame)
    return server, options


def run(target: str, socket: str) -> None:
    """Makes the object and serves it, until the connection ends."""
    server, _ = serve(target, socket)
    server.run()


def held(target: str, socket: str) -> Generator[dict[str, Any], None, None]:
    """What the kernel has a worker run for a service that it holds: yields once, when the address is served. A method
    that raises ``SystemExit`` ends the service; with a code that is not zero, it has failed."""
    attempt = current()
    server, options = serve(target, socket)
    leaving = threading.Thread(target=_leave, args=(attempt, server), name="eclosion-service-leave", daemon=True)
    leaving.start()
    yield {"address": options.address, "pid": os.getpid()}
    try:
        server.run()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"the service ended with {end.code!r}") from None
        return
    if not server.was_told and not attempt.cancelled:
        raise RuntimeError("the kernel has hung up")


def _leave(attempt: Current, server: Server) -> None:
    while not server.is_over:
        if attempt.wait_cancelled(LOOK_AGAIN_S):
            server.hang_up()
            return


def main() -> int:
    """``python -m eclosion.service MODULE:CLASS``."""
    parser = argparse.ArgumentParser(prog="python -m eclosion.service", description="Serves an object from here.")
    parser.add_argument("target", metavar="MODULE:CLASS")
    parser.add_argument("--socket", default=os.environ.get("ECLOSION_SOCKET"), help="default: $ECLOSION_SOCKET")
    given = parser.parse_args()
    if given.socket is None:
        parser.error("say which kernel: --socket or ECLOSION_SOCKET")
    sys.path.insert(0, os.getcwd())
    try:
        run(given.target, given.socket)
    except (Refused, TaskError) as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


class _Callable(types.ModuleType):
    """``from eclosion import service`` gives this module, as Python has it; it is the decorator as well."""

    def __call__(self, *, address: str, waiting_max: int = 256, concurrency: int = 16) -> Callable[[C], C]:
        return service(address=address, waiting_max=waiting_max, concurrency=concurrency)


sys.modules[__name__].__class__ = _Callable


if __name__ == "__main__":
    # As the module that services import, so that both know the same classes.
    sys.exit(importlib.import_module("eclosion.service").main())
