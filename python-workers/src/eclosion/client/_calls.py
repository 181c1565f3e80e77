"""Functions on workers: ``submit`` gives a :class:`Ref`, which is waited for in a thread or in a coroutine.

    waiting --room--> sent --outcome--> done          any --cancel--> done, with `cancelled`

A function that was submitted is sent when there is room: the kernel has a limit for calls under way, and what is over
it waits here in order. Invariants: (1) every Ref becomes done (P3); (2) at most :data:`UNDER_WAY_MAX` are sent; (3)
none is sent twice, unless the kernel refused it for want of room, when nothing was begun.

The Ref of a generator is iterated over, in a thread or in a coroutine: what it yields comes as it is taken, and who
leaves the loop early stops it. Waited for as a whole, it results in what it returned; what it yields is passed over.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from .. import _frames as frames
from .. import _values
from .._errors import DeadlineExceeded, ErrorData, Refused, Rejected, TaskDied, error, raised
from .._schemas import CallRequest, EnvironmentSpec, Payload, ReportItem, TaskReport
from ._connection import CREDIT, Exchange, fresh_key, until
from ._options import NONE, CallOptions
from ._results import value_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator

    from ._client import Client
    from ._feeds import Feed
    from ._functions import Target
    from .aio import AsyncReports

# Of the 256 that the kernel allows for all its clients.
UNDER_WAY_MAX = 128
# What one message holds, but for what surrounds them in it.
ARGUMENTS_BYTES_MAX = frames.MESSAGE_BYTES_MAX - 64 * 1024
# Within this the pool manager has written how a worker died.
CERTIFICATE_S = 2.0

R = TypeVar("R")

_encode = msgspec.msgpack.encode
_decode_payload = msgspec.msgpack.Decoder(Payload).decode
decode_report: Callable[[bytes], TaskReport] = msgspec.msgpack.Decoder(TaskReport).decode


class Ref(Generic[R]):
    """What a submitted function will have returned."""

    def __init__(self, calls: Calls, request: bytes, *, yields: bool = False) -> None:
        self._calls = calls
        self._request = request
        self._yields = yields
        self._passes_over = False
        self._begun: list[Callable[[], None]] = []
        self._changed = threading.Condition(threading.Lock())
        self._exchange: Exchange | None = None
        self._outcome: bytes | ErrorData | None = None
        self._watchers: list[Callable[[], None]] = []
        self._value: Any = _UNSET

    def result(self, timeout_s: float | None = None) -> R:
        """Waits for the value, or raises what the function raised.

        A time-out raises :class:`DeadlineExceeded` and leaves the function running; Ctrl-C cancels it.
        """
        self._wait(timeout_s)
        return self._unpacked()

    def done(self) -> bool:
        return self._outcome is not None

    def cancelled(self) -> bool:
        outcome = self._outcome
        return isinstance(outcome, dict) and outcome.get("code") == "cancelled"

    def cancel(self) -> bool:
        """Ends the function, at its worker too. False if it was done already."""
        if self._outcome is not None:
            return False
        self._calls.leave(self)
        exchange = self._exchange
        if exchange is not None:
            exchange.cancel()
        self.conclude(error("cancelled", "call.cancelled", "the caller cancelled the call"))
        return True

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        """What :meth:`result` would raise, or None."""
        self._wait(timeout_s)
        outcome = self._outcome
        return None if isinstance(outcome, bytes) else self._error(cast("ErrorData", outcome))

    def reports(self) -> Reports:
        """What the function reports while it runs, ``progress`` and ``metric``; ends when it does. Lossy.

        Iterated over in a thread or, by ``async for``, in a coroutine.
        """
        return Reports(self)

    def __iter__(self) -> Iterator[Any]:
        """What a generator yields. Leaving the loop early cancels it."""
        self._check_yields()
        try:
            for exchange, item in self.items():
                payload = _payload_of(item)
                if payload is not None:
                    yield value_of(self._calls.client, payload, exchange.connection)
            self._check_outcome()
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        """As :meth:`__iter__`, in a coroutine."""
        import asyncio

        from .aio import items

        self._check_yields()
        try:
            async for exchange, item in items(cast("Ref[Any]", self)):
                payload = _payload_of(item)
                if payload is not None:
                    # A large one is mapped or fetched first, which asks the kernel.
                    arguments = (self._calls.client, payload, exchange.connection)
                    yield await asyncio.to_thread(value_of, *arguments) if payload.parts else value_of(*arguments)
            self._check_outcome()
        finally:
            self.cancel()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls ``watcher`` in some thread once it is done; at once if it is.

        That may be the thread that reads the connection: a watcher hands over to another one whatever takes long or
        asks the kernel, as :meth:`result` may.
        """
        with self._changed:
            if self._outcome is None:
                self._watchers.append(watcher)
                return
        watcher()

    def __await__(self) -> Generator[Any, Any, R]:
        from .aio import done

        self.pass_over()
        yield from done(cast("Ref[Any]", self)).__await__()
        outcome = self._outcome
        if isinstance(outcome, bytes) and not _decode_payload(outcome).parts:
            return self._unpacked()
        # A large value is mapped or fetched first, and how a worker died is looked up: both ask the kernel.
        import asyncio

        return (yield from asyncio.to_thread(self._unpacked).__await__())

    def __repr__(self) -> str:
        if self._outcome is None:
            state = "running" if self._exchange is not None else "waiting"
        else:
            state = "done" if isinstance(self._outcome, bytes) else self._outcome.get("reason", "failed")
        return f"<Ref {state}>"

    def _check_yields(self) -> None:
        if not self._yields:
            raise TypeError("only what a generator function was submitted as is iterated over; this has one result")

    def _next_exchange(self, last: Exchange | None) -> Exchange | None:
        with self._changed:
            self._changed.wait_for(lambda: self._exchange is not last or self._outcome is not None)
            return self._exchange if self._exchange is not last else None

    def _check_outcome(self) -> None:
        if not isinstance(self._outcome, bytes):
            raise self._error(cast("ErrorData", self._outcome))

    def pass_over(self) -> None:
        """From now on what is yielded is of no interest: taken, so that the generator gets to its end."""
        if not self._yields or self._passes_over:
            return
        self._passes_over = True

        def begun() -> None:
            exchange = cast("Exchange", self._exchange)

            def take_all() -> None:
                while exchange.take() is not None:
                    pass

            exchange.watch(take_all)

        self.when_begun(begun)

    def _wait(self, timeout_s: float | None) -> None:
        try:
            end = until(timeout_s)
            self.pass_over()
            with self._changed:
                while self._outcome is None:
                    left = None if end is None else end - time.monotonic()
                    if left is not None and left <= 0:
                        text = "the function has not returned in time; it goes on"
                        raise DeadlineExceeded(error("deadline", "deadline", text))
                    self._changed.wait(left)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def _unpacked(self) -> R:
        outcome = self._outcome
        if not isinstance(outcome, bytes):
            raise self._error(cast("ErrorData", outcome))
        if self._value is _UNSET:
            payload, exchange = _decode_payload(outcome), self._exchange
            # It was sent, as it is answered.
            connection = exchange.connection if exchange is not None else self._calls.client.link.connection()
            self._value = value_of(self._calls.client, payload, connection)
        return self._value

    def _error(self, data: ErrorData) -> BaseException:
        why = raised(data)
        if isinstance(why, TaskDied):
            why.certificate = self._calls.certificate(data)
        return why

    # Of `Reports`.

    def items(self) -> Iterator[tuple[Exchange, bytes]]:
        """What comes of the call while it is under way, until it is done."""
        exchange = None
        # Refused for want of room, it is sent again, on another one.
        while (exchange := self._next_exchange(exchange)) is not None:
            while (item := exchange.next()) is not None:
                yield exchange, item

    # Of `Calls`.

    @property
    def request(self) -> bytes:
        return self._request

    @property
    def method(self) -> str:
        return "pool.stream" if self._yields else "pool.call"

    @property
    def exchange(self) -> Exchange | None:
        """Once it is sent."""
        return self._exchange

    def when_begun(self, begun: Callable[[], None]) -> None:
        """Calls ``begun`` whenever it is sent, and now if it was."""
        with self._changed:
            self._begun.append(begun)
            due = self._exchange is not None
        if due:
            begun()

    def sent(self, exchange: Exchange) -> None:
        with self._changed:
            self._exchange = exchange
            left = self._outcome is not None
            self._changed.notify_all()
            begun = tuple(self._begun)
        for each in begun:
            each()
        if left:
            exchange.cancel()

    def conclude(self, outcome: bytes | ErrorData) -> None:
        with self._changed:
            if self._outcome is not None:
                return
            self._outcome = outcome
            self._request = b""
            self._changed.notify_all()
            watchers, self._watchers = self._watchers, []
            self._begun = []
        for watcher in watchers:
            watcher()


_UNSET: Any = object()


class Reports:
    """What a function reports. See :meth:`Ref.reports`."""

    def __init__(self, ref: Ref[Any]) -> None:
        self._ref = ref
        self._items = ref.items()

    def __iter__(self) -> Reports:
        return self

    def __next__(self) -> TaskReport:
        return decode_report(next(self._items)[1])

    def __aiter__(self) -> AsyncReports:
        from .aio import AsyncReports

        return AsyncReports(self._ref)


def _payload_of(item: bytes) -> Payload | None:
    """What was yielded; None for progress and metrics."""
    report = decode_report(item)
    return report.payload if isinstance(report, ReportItem) else None


class Calls:
    """The functions that one client has submitted."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._waiting: deque[Ref[Any]] = deque()
        self._under_way = 0
        self._resting = False
        self._feeds: weakref.WeakSet[Feed] = weakref.WeakSet()

    def submit(
        self,
        target: Target,
        arguments: dict[str, Any],
        environment: EnvironmentSpec,
        options: CallOptions = NONE,
        *,
        yields: bool = False,
    ) -> Ref[Any]:
        """Sends a call, or lets it wait for room. Its feeds end with it."""
        feeds = _values.feeds_of(arguments)
        try:
            ref = self._submit(target, arguments, environment, options, yields=yields)
        except BaseException:
            _end(feeds)
            raise
        if feeds:
            ref.watch(lambda: _end(feeds))
        return ref

    def feed(self, values: Iterable[Any]) -> Feed:
        """A feed that ends with this client at the latest."""
        from ._feeds import Feed

        feed = Feed(self.client.link.path, values)
        self._feeds.add(feed)
        return feed

    def close(self) -> None:
        """Ends its feeds."""
        for feed in list(self._feeds):
            feed.close()

    def _submit(
        self,
        target: Target,
        arguments: dict[str, Any],
        environment: EnvironmentSpec,
        options: CallOptions,
        *,
        yields: bool,
    ) -> Ref[Any]:
        ref: Ref[Any] = Ref(self, self.request(target, arguments, environment, options), yields=yields)
        self.client.link.connection(self.client.reconnect_s)
        try:
            with self._lock:
                self._waiting.append(ref)
            self._send()
        except BaseException:  # Ctrl-C: nobody will ever have the Ref.
            ref.cancel()
            raise
        return ref

    def request(
        self, target: Target, arguments: dict[str, Any], environment: EnvironmentSpec, options: CallOptions = NONE
    ) -> bytes:
        """What ``pool.call`` and ``pool.stream`` are asked for."""
        request = CallRequest(
            function=target.function,
            code=target.code,
            code_hash=target.code_hash,
            environment=environment,
            arguments=encode_arguments(arguments),
            timeout_ms=options.timeout_ms,
            limits=options.limits,
        )
        return _encode(request)

    def leave(self, ref: Ref[Any]) -> None:
        with self._lock:
            try:
                self._waiting.remove(ref)
            except ValueError:
                pass  # It was sent.

    def certificate(self, data: ErrorData) -> Any:
        """How the worker died that an error names. The call is told at once, the certificate is written after it."""
        end = time.monotonic() + CERTIFICATE_S
        while time.monotonic() < end:
            try:
                died = self.client.pool.status(deadline_s=CERTIFICATE_S).died
            except Exception:  # The kernel is gone as well; the error says enough.
                return None
            found = [one for one in died if f" {one.worker} " in data.get("message", "")]
            if found:
                return found[-1]
            time.sleep(0.01)
        return None

    def _send(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self._under_way >= UNDER_WAY_MAX or self._resting:
                    return
                ref = self._waiting.popleft()
                self._under_way += 1
            try:
                connection = self.client.link.connection()
            except Exception as why:
                self._over()
                ref.conclude(getattr(why, "error", None) or error("unavailable", "kernel.unreachable", str(why)))
                continue
            exchange = None
            try:
                exchange = connection.open(ref.method, ref.request, credit=CREDIT, idem=fresh_key())
                ref.sent(exchange)
                exchange.watch(lambda ref=ref, exchange=exchange: self._answered(ref, exchange))
            except BaseException:  # Ctrl-C.
                self._interrupted(ref, exchange)
                raise

    def _interrupted(self, ref: Ref[Any], exchange: Exchange | None) -> None:
        """Being sent, perhaps watched: it ends here, and its room is free once."""
        if exchange is not None:
            exchange.cancel()
        if exchange is None or exchange.settle():
            self._over()
        ref.cancel()

    def _answered(self, ref: Ref[Any], exchange: Exchange) -> None:
        outcome = exchange.outcome
        if outcome is None or not exchange.settle():
            return
        self._over()
        if isinstance(outcome, dict) and outcome.get("reason") == "call.full" and not ref.done():
            self._rest(ref, Rejected(outcome).retry_after)
        else:
            ref.conclude(outcome)
        self._send()

    def _over(self) -> None:
        with self._lock:
            self._under_way -= 1

    def _rest(self, ref: Ref[Any], pause_s: float) -> None:
        """Other clients have all the room: what is waiting is sent a little later."""
        with self._lock:
            self._waiting.appendleft(ref)
            if self._resting:
                return
            self._resting = True
        timer = threading.Timer(pause_s, self._rested)
        timer.daemon = True
        timer.start()

    def _rested(self) -> None:
        with self._lock:
            self._resting = False
        self._send()


def _end(feeds: list[_values.Fed]) -> None:
    for feed in feeds:
        feed.end_unread()


def encode_arguments(arguments: dict[str, Any]) -> Payload:
    """Keyword arguments as one map; arrays, tables and files are parts that ride along, and lie in shared memory at the
    worker. Raises :class:`Refused` for what cannot travel, or not in one message."""
    arguments = _values.placed(arguments)
    try:
        # What has no parts needs none of what follows.
        encoded = _values.Encoded(_encode(arguments, enc_hook=_values.plain), [])
    except Exception:
        encoded = _values.encode_named(arguments)
    size = len(encoded.body) + sum(part.size_bytes for part in encoded.parts)
    if size > ARGUMENTS_BYTES_MAX:
        encoded.close()
        text = f"arguments of {size} bytes are over the limit of {ARGUMENTS_BYTES_MAX}"
        raise Refused(
            error("exhausted", "frame.size", text, help="pass the path of a file as a text, and open it there")
        )
    if not encoded.parts:
        return Payload(body=encoded.body)
    return msgspec.convert(encoded.carried(), Payload)


def as_completed(refs: Iterable[Ref[R]], timeout_s: float | None = None) -> Iterator[Ref[R]]:
    """Gives each Ref when it is done, in that order. Ctrl-C in the wait cancels those that are not."""
    import queue

    waited = list(refs)
    done: queue.SimpleQueue[Ref[R]] = queue.SimpleQueue()
    end = until(timeout_s)

    def next_done() -> Ref[R]:
        try:
            return done.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
        except queue.Empty:
            text = "not all functions have returned in time; they go on"
            raise DeadlineExceeded(error("deadline", "deadline", text)) from None

    try:
        for ref in waited:
            ref.pass_over()
            ref.watch(lambda ref=ref: done.put(ref))
        for _ in waited:
            yield next_done()
    except KeyboardInterrupt:
        for left in waited:
            left.cancel()
        raise
