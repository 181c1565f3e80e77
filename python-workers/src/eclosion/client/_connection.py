"""One connection to a kernel, which all calls of a client share, and the calls on it.

One thread reads and hands each message to its exchange; whoever calls sends for itself. States of an exchange:
*open* --reply, error, lost--> *answered*; a cancelled one is answered at once and what still comes of it is dropped.

Invariants:
1. Every exchange is answered: by the kernel, or with the loss of the connection (P3). None is added afterwards.
2. The kernel sends no more items than were granted, so that what nobody takes is bounded by the credit.
3. The connection's lock is held for a few instructions; an exchange's watchers are called outside of every lock.

It deliberately does not connect again: see ``_link.py``.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from .. import _frames as frames
from .._errors import DeadlineExceeded, ErrorData, error, raised
from .._frames import Channel, Disconnected, Frame
from .._process import start_thread
from ._arenas import SEALED, Arenas
from ._places import up_command
from ._timings import Timing, timing_of
from ._traces import traceparent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLIENT = "eclosion-python/0.1.0"
API = 1
# Until the kernel has answered HELLO.
CONNECT_S = 2.0
# Of a call that names none.
DEADLINE_S = 30.0
# Items under way at most.
CREDIT = 64
# A kernel that keeps its deadline late is given this much more before the call ends here.
PATIENCE_S = 2.0

Item = TypeVar("Item")
Reply = TypeVar("Reply")

_encode = msgspec.msgpack.encode
_decode_error = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Exchange:
    """One call under way, in bytes."""

    __slots__ = (
        "_arrived",
        "_connection",
        "_credit",
        "_descriptors",
        "_granted",
        "_items",
        "_outcome",
        "_settled",
        "_taken",
        "_timing",
        "_watchers",
        "stream",
    )

    def __init__(self, connection: Connection, stream: int, credit: int, timing: Timing | None = None) -> None:
        self.stream = stream
        self._connection = connection
        self._timing = timing
        self._credit = credit
        self._granted = credit
        self._taken = 0
        self._settled = False
        self._items: deque[bytes] = deque()
        self._outcome: bytes | ErrorData | None = None
        self._descriptors: tuple[int, ...] = ()
        self._watchers: list[Callable[[], None]] = []
        self._arrived = threading.Condition(threading.Lock())

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def outcome(self) -> bytes | ErrorData | None:
        """The reply or the error, once it is there."""
        return self._outcome

    def take_descriptors(self) -> tuple[int, ...]:
        """What came with the reply; the caller's to close."""
        with self._arrived:
            taken, self._descriptors = self._descriptors, ()
        return taken

    def take(self) -> bytes | None:
        """An item that is there already."""
        with self._arrived:
            if not self._items:
                return None
            item = self._items.popleft()
        self._taken += 1
        if self._outcome is None and self._granted - self._taken <= self._credit // 2:
            self._granted = self._taken + self._credit
            self._connection.send(frames.CREDIT, self.stream, {"credit": self._granted})
        return item

    def next(self, until: float | None = None) -> bytes | None:
        """The next item; None once there is none. Interrupted, the call is cancelled; at the time ``until`` the wait
        ends with :class:`DeadlineExceeded` and the call goes on."""
        while True:
            item = self.take()
            if item is not None or self._outcome is not None:
                return item
            self._wait(until)

    def reply(self, until: float | None = None) -> bytes:
        """The reply; items that were not taken are passed over. Raises what the call ended with, and is its end."""
        try:
            while self.next(until) is not None:
                pass
        except DeadlineExceeded:  # Nobody waits for the answer any more.
            self.cancel()
            raise DeadlineExceeded(error("deadline", "deadline", "the call did not finish in time")) from None
        if isinstance(self._outcome, bytes):
            return self._outcome
        raise raised(self._outcome or error_lost("the call was left"))

    def _wait(self, until: float | None) -> None:
        """Waits for an item or the outcome."""
        try:
            with self._arrived:
                while not self._items and self._outcome is None:
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        raise DeadlineExceeded(error("deadline", "deadline", "nothing has come in time; it goes on"))
                    self._arrived.wait(left)
        except DeadlineExceeded:  # Who polls comes again.
            raise
        except BaseException:  # Ctrl-C: nobody waits for the answer any more.
            self.cancel()
            raise

    def cancel(self) -> None:
        """Asks the kernel to end the call, which is answered with `cancelled` here and now."""
        self._connection.leave(self)
        self.answer(error("cancelled", "call.cancelled", "the caller cancelled the call"))

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls ``watcher``, soon and in any thread, whenever something has come."""
        with self._arrived:
            if self._outcome is None:
                self._watchers.append(watcher)
            due = bool(self._items) or self._outcome is not None
        if due:
            watcher()

    def settle(self) -> bool:
        """True for the first who asks once the outcome is there."""
        with self._arrived:
            first = self._outcome is not None and not self._settled
            self._settled = self._settled or first
        return first

    # The reading thread.

    def deliver(self, item: bytes) -> None:
        with self._arrived:
            self._items.append(item)
            self._arrived.notify_all()
            watchers = tuple(self._watchers)
        for watcher in watchers:
            watcher()

    def answer(
        self,
        outcome: bytes | ErrorData,
        stages: list[dict[str, Any]] | None = None,
        descriptors: tuple[int, ...] = (),
    ) -> None:
        with self._arrived:
            if self._outcome is not None:
                close_all(descriptors)
                return
            if self._timing is not None:
                self._timing.ended(stages or [])
            self._outcome = outcome
            self._descriptors = descriptors
            self._arrived.notify_all()
            # For the last time; they may hold this exchange, and with it a value that lies in shared memory.
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()


class Connection:
    """See the head of this file."""

    def __init__(
        self, path: str, role: str | None = None, *, memory: str | None = SEALED, within_s: float = CONNECT_S
    ) -> None:
        """Connects and is welcomed. Raises :class:`Unreachable`, or what the kernel refuses the client for."""
        self.path = path
        self.pid = os.getpid()
        self.lost: ErrorData | None = None
        self._lock = threading.Lock()
        self._exchanges: dict[int, Exchange] = {}
        self._streams = itertools.count(1, 2)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(within_s)
            self._connect(sock)
            self._channel = Channel(sock)
            self.welcome, rest = self._greet(role, memory)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        given: list[str] = self.welcome.get("features", [])
        self.arenas = Arenas(self) if memory in given else None
        """Where large values lie, if the kernel shares memory with this client."""
        for frame in rest:
            self._dispatch(frame)
        start_thread(self._read, "eclosion-client")

    def _connect(self, sock: socket.socket) -> None:
        try:
            sock.connect(self.path)
        except (FileNotFoundError, ConnectionRefusedError):
            text = f"no kernel listens on {self.path}"
            help = up_command(self.path)
            raise raised(error("unavailable", "kernel.unreachable", text, help=help, retry=True)) from None
        except OSError as why:
            text = f"cannot reach a kernel on {self.path}: {why}"
            raise raised(error("unavailable", "kernel.unreachable", text, help="eclosion doctor")) from None

    def _greet(self, role: str | None, memory: str | None) -> tuple[dict[str, Any], list[Frame]]:
        hello: dict[str, Any] = {"client": CLIENT, "api": API, "api_compatible": API}
        if role is not None:
            hello["role"] = role
        if memory is not None:
            hello["features"] = [memory]
        arrived: list[Frame] = []
        try:
            self._channel.send(frames.HELLO, 0, hello)
            while not arrived:
                arrived = self._channel.receive()
        except Disconnected as why:
            text = f"the kernel on {self.path} did not answer: {why}"
            raise raised(error("unavailable", "kernel.unreachable", text, help="eclosion doctor", retry=True)) from None
        first = arrived.pop(0)
        if first.kind == frames.ERROR:
            raise raised(error_of(first))
        return first.envelope, arrived

    def open(
        self,
        method: str,
        body: bytes,
        *,
        credit: int = 0,
        deadline_s: float | None = None,
        idem: str | None = None,
        watcher: Callable[[], None] | None = None,
    ) -> Exchange:
        """Sends a call. One that cannot be sent is answered with the loss of the connection."""
        envelope: dict[str, Any] = {"method": method}
        if credit:
            envelope["credit"] = credit
        if deadline_s is not None:
            envelope["deadline_ms"] = max(0, round(deadline_s * 1000))
        if idem is not None:
            envelope["idem"] = idem
        trace = traceparent()
        if trace is not None:
            envelope["trace"] = trace
        timing = timing_of(method)
        if timing is not None:
            envelope["timings"] = True
        with self._lock:
            exchange = Exchange(self, next(self._streams), credit, timing)
            lost = self.lost
            if lost is None:
                self._exchanges[exchange.stream] = exchange
        if watcher is not None:
            exchange.watch(watcher)
        if lost is not None:
            exchange.answer(lost)
            return exchange
        try:
            self.send(frames.CALL, exchange.stream, envelope, body)
        except BaseException:  # Ctrl-C: nobody will ever have the exchange.
            exchange.cancel()
            raise
        return exchange

    def send(self, kind: int, stream: int, envelope: dict[str, Any], body: bytes = b"") -> None:
        """Sends one frame. A failure is the reading thread's to find."""
        try:
            self._channel.send(kind, stream, envelope, body)
        except Disconnected:
            self._channel.hang_up()

    def leave(self, exchange: Exchange) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            known = self._exchanges.pop(exchange.stream, None)
        if known is not None:
            self.send(frames.CANCEL, exchange.stream, {})
            if self.arenas is not None:
                self.arenas.left(exchange.stream)

    def tell(self, method: str, body: bytes, deadline_s: float) -> None:
        """Sends a call whose answer nobody wants; also when those of the client have ended."""
        with self._lock:
            stream = next(self._streams)
        self.send(frames.CALL, stream, {"method": method, "deadline_ms": round(deadline_s * 1000)}, body)

    def close(self) -> None:
        """Ends every call, and the connection with them or, where it has lent memory, with the last value there.

        Takes no lock: the garbage collector calls it, in any thread.
        """
        if self.lost is None:
            self.lost = error_lost("the client was closed")
        if self.arenas is None or not self.arenas.retire():
            self.hang_up()

    def hang_up(self) -> None:
        self._channel.hang_up()

    def leave_all(self) -> None:
        """Ends every call of a connection that is closed and still has to last."""
        with self._lock:
            open_ = tuple(self._exchanges.values())
        for exchange in open_:
            self.leave(exchange)
            exchange.answer(self.lost or error_lost("the client was closed"))

    # The reading thread.

    def _read(self) -> None:
        why: ErrorData
        try:
            while True:
                for frame in self._channel.receive():
                    ended = self._dispatch(frame)
                    if ended is not None:
                        raise Disconnected(ended.get("message", ""))
        except (Disconnected, ValueError) as ended:  # ValueError: the socket was closed meanwhile.
            why = error_lost(str(ended))
        with self._lock:
            self.lost = why = self.lost or why
            open_, self._exchanges = self._exchanges, {}
        self._channel.close()
        if self.arenas is not None:
            self.arenas.close()
        for exchange in open_.values():
            exchange.answer(why)

    def _dispatch(self, frame: Frame) -> ErrorData | None:
        """Hands a message over; returns the error that ends the connection."""
        if frame.kind == frames.DATA and not frame.flags & frames.END:
            exchange = self._exchanges.get(frame.stream)
            if exchange is not None:
                exchange.deliver(frame.body)
        elif frame.kind == frames.PING:
            self.send(frames.PONG, frame.stream, {"id": frame.envelope["id"]} if "id" in frame.envelope else {})
        elif frame.kind == frames.ERROR and frame.stream == 0:
            return error_of(frame)
        elif frame.kind in (frames.DATA, frames.ERROR):
            with self._lock:
                exchange = self._exchanges.pop(frame.stream, None)
            if exchange is not None:
                outcome = frame.body if frame.kind == frames.DATA else error_of(frame)
                exchange.answer(outcome, frame.envelope.get("stages"), frame.descriptors)
                return None
        close_all(frame.descriptors)
        return None


class Stream(Generic[Item, Reply]):
    """Items, then the reply. Leaving it early, by ``close`` or as a context manager, cancels the call.

    Iterating over it raises, after the items that came, what the call ended with, if that is an error. One that this
    program has closed just ends.
    """

    def __init__(self, exchange: Exchange, item: Callable[[bytes], Item], reply: Callable[[bytes], Reply]) -> None:
        self._exchange = exchange
        self._item = item
        self._reply = reply
        self._closed = False

    def __iter__(self) -> Iterator[Item]:
        while (item := self._exchange.next()) is not None:
            yield self._item(item)
        if not self._closed:
            self._exchange.reply()  # Raises what it ended with, if that is an error.

    def reply(self, timeout_s: float | None = None) -> Reply:
        """The reply; items that were not taken are passed over. A time-out cancels the call."""
        return self._reply(self._exchange.reply(until(timeout_s)))

    def close(self) -> None:
        if self._exchange.outcome is None:
            self._closed = True
            self._exchange.cancel()

    def __enter__(self) -> Stream[Item, Reply]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def until(timeout_s: float | None) -> float | None:
    """The time on the monotonic clock that lies ``timeout_s`` ahead."""
    return None if timeout_s is None else time.monotonic() + timeout_s


def error_of(frame: Frame) -> ErrorData:
    """What an ERROR frame says."""
    try:
        data: Any = _decode_error(frame.body)
    except msgspec.MsgspecError as why:
        return error("internal", "error.malformed", f"the kernel sent an error that cannot be read: {why}")
    return data


def error_lost(why: str) -> ErrorData:
    text = f"the connection to the kernel is gone: {why}"
    return error("unavailable", "connection.closed", text, help="eclosion status", retry=True)


_process: tuple[int, str] = (0, "")
_keys = itertools.count()


def fresh_key() -> str:
    """An idempotency key that is never made twice."""
    global _process
    pid = os.getpid()
    if _process[0] != pid:  # A fork must not repeat its parent's.
        _process = (pid, os.urandom(16).hex())
    return f"{_process[1]}-{next(_keys)}"
