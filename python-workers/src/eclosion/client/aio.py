"""The client for asyncio: the same operations as coroutines.

    async with eclosion.client.aio.connect() as kernel:
        print((await kernel.kernel.status()).state)
        async for delivery in kernel.subscribe("run/*/state"): ...
        print(await kernel.submit(square, 3))

It belongs to the event loop that it is used on, which it never blocks: the connection is read by its own thread, which
wakes the loop, and is made again in another. A task that is cancelled cancels its call; what is followed (a
subscription, a view, reports) stays, so that a wait for its next item may have a time-out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from .._errors import Unreachable, raised
from ._async_leases import AsyncLeases
from ._async_operations import AsyncOperations
from ._calls import decode_report
from ._client import RECONNECT_S, Client, decoder
from ._connection import CREDIT, DEADLINE_S, PATIENCE_S, Exchange, error_lost, fresh_key
from ._link import within
from ._places import socket_path
from ._subscriptions import SUBSCRIBED, Cursor, Fold, decode_delivery, goes_on

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Mapping

    from .._schemas import Delivery, EnvironmentSpec, Payload, TaskReport
    from ._calls import Ref
    from ._connection import Connection
    from ._feeds import Feed

R = TypeVar("R")
Reply = TypeVar("Reply")
Item = TypeVar("Item")

_encode = msgspec.msgpack.encode


class _Waiter:
    """Wakes a coroutine when something has come for an exchange or a Ref."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            pass  # The loop is closed: nobody waits.

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


class _AsyncExchange:
    """An exchange that is waited for in coroutines."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._waiter = _Waiter()
        exchange.watch(self._waiter.wake)

    async def heard(self) -> bytes | None:
        """The next item; None once there is none. A wait that is cancelled takes nothing, and the call goes on."""
        while True:
            item = self.exchange.take()
            if item is not None or self.exchange.outcome is not None:
                # What came just before the outcome goes first.
                return item if item is not None else self.exchange.take()
            await self._waiter.wait()

    async def next(self) -> bytes | None:
        """As :meth:`heard`; cancelled, it cancels the call."""
        try:
            return await self.heard()
        except asyncio.CancelledError:
            self.exchange.cancel()
            raise

    async def reply(self) -> bytes:
        while await self.next() is not None:
            pass
        outcome = self.exchange.outcome
        if isinstance(outcome, bytes):
            return outcome
        raise raised(outcome or error_lost("the call was left"))


class AsyncStream(Generic[Item, Reply]):
    """Items, then the reply; what iterating over it raises is said at :class:`eclosion.client.Stream`.

    Leaving it early, by ``close`` or as a context manager, cancels the call.
    """

    def __init__(self, opened: Callable[[], Any], item: Any, reply: Any) -> None:
        self._opened = opened
        self._exchange: _AsyncExchange | None = None
        self._item = decoder(item)
        self._reply = decoder(reply)
        self._closed = False

    async def _open(self) -> _AsyncExchange:
        if self._exchange is None:
            self._exchange = _AsyncExchange(await self._opened())
        return self._exchange

    async def __aiter__(self) -> AsyncIterator[Item]:
        exchange = await self._open()
        while (item := await exchange.next()) is not None:
            yield self._item(item)
        if not self._closed:
            await exchange.reply()  # Raises what it ended with, if that is an error.

    async def reply(self) -> Reply:
        """The reply; items that were not taken are passed over."""
        return self._reply(await (await self._open()).reply())

    def close(self) -> None:
        if self._exchange is not None and self._exchange.exchange.outcome is None:
            self._closed = True
            self._exchange.exchange.cancel()

    async def __aenter__(self) -> AsyncStream[Item, Reply]:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncSubscription:
    """As :class:`eclosion.client.Subscription`: goes on after the kernel was killed and started again.

    A wait that is cancelled leaves it as it is: after ``asyncio.wait_for(anext(subscription), 1)`` has timed out, the
    next one goes on. Only :meth:`close` ends it.
    """

    def __init__(self, client: AsyncClient, filter: str, on_full: str) -> None:
        self._client = client
        self._cursor = Cursor(filter, on_full)
        self._exchange: _AsyncExchange | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._closed = False

    def __aiter__(self) -> AsyncSubscription:
        return self

    async def __anext__(self) -> Delivery:
        delivery = await self.next()
        if delivery is None:
            raise StopAsyncIteration
        return delivery

    async def next(self) -> Delivery | None:
        """The next delivery; None after :meth:`close`. May be cancelled, and called again."""
        while not self._closed:
            reset = self._cursor.due()
            if reset is not None:
                return reset
            exchange = self._exchange
            if exchange is None:
                connection = await self._connection()
                if not self._closed:
                    request = self._cursor.request()
                    self._exchange = _AsyncExchange(connection.open("bus.subscribe", request, credit=SUBSCRIBED))
                continue
            item = await exchange.heard()
            if item is not None:
                delivery = decode_delivery(item)
                self._cursor.heard(delivery)
                return delivery
            if not self._closed and exchange is self._exchange:
                goes_on(exchange.exchange)
                self._exchange = None
        return None

    def restart(self) -> None:
        """From a snapshot anew, with the next delivery: after a gap, what was folded lacks something."""
        self._leave()
        self._cursor.forget()
        self._exchange = None

    def close(self) -> None:
        self._closed = True
        self._leave()

    async def __aenter__(self) -> AsyncSubscription:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _connection(self) -> Connection:
        # One for all waits: what connects in a thread goes on when a wait is cancelled, and they would add up.
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._client.connection())
        connecting = self._connecting
        try:
            return await asyncio.shield(connecting)
        finally:
            if connecting.done():
                self._connecting = None

    def _leave(self) -> None:
        if self._exchange is not None:
            self._exchange.exchange.cancel()


class AsyncView(Fold):
    """As :class:`eclosion.client.View`. A wait for an update may be cancelled, and begun again."""

    def __init__(self, subscription: AsyncSubscription) -> None:
        super().__init__(subscription.restart)
        self._subscription = subscription

    async def update(self) -> bool:
        """Folds deliveries until the states are whole and something was folded; False after the end."""
        async for delivery in self._subscription:
            if self.fold(delivery):
                return True
        return False

    def close(self) -> None:
        self._subscription.close()


class AsyncReports:
    """What a function reports, in a coroutine. A wait that is cancelled leaves the function running."""

    def __init__(self, ref: Ref[Any]) -> None:
        self._ref = ref
        self._waiter = _Waiter()
        self._last: Exchange | None = None
        self._exchange: _AsyncExchange | None = None
        ref.when_begun(self._waiter.wake)
        ref.watch(self._waiter.wake)

    def __aiter__(self) -> AsyncReports:
        return self

    async def __anext__(self) -> TaskReport:
        while True:
            if self._exchange is None:
                await self._begin()
            elif (item := await self._exchange.heard()) is not None:
                return decode_report(item)
            else:
                # Refused for want of room, it is sent again, on another one.
                self._exchange = None

    async def _begin(self) -> None:
        while self._ref.exchange is self._last and not self._ref.done():
            await self._waiter.wait()
        last, self._last = self._last, self._ref.exchange
        if self._last is None or self._last is last:
            raise StopAsyncIteration
        self._exchange = _AsyncExchange(self._last)


class AsyncClient(AsyncOperations):
    """See the module. Made by :func:`connect`; may be used as an asynchronous context manager."""

    def __init__(self, client: Client) -> None:
        super().__init__(self)
        self.lease: AsyncLeases = AsyncLeases(self)
        self._client = client

    @property
    def reconnect_s(self) -> float:
        """How long a kernel that is gone is waited for."""
        return self._client.reconnect_s

    @property
    def welcome(self) -> dict[str, Any]:
        """What the kernel said of itself when it was connected to last: server, instance, epoch, role, limits."""
        return self._client.link.last.welcome

    async def connection(self, end: float | None = None) -> Connection:
        """A connection that was alive a moment ago; a new one is made outside of the loop, by ``end`` at the latest."""
        link = self._client.link
        return link.alive() or await asyncio.to_thread(link.connection, within(self._client.reconnect_s, end))

    async def call(
        self, method: str, request: Any = None, *, deadline_s: float | None = DEADLINE_S, idem: str | None = None
    ) -> Any:
        """Calls any operation by its name, with plain data in and out; items, should it stream, are passed over.

        ``deadline_s`` is of all of it: a kernel that is gone is waited for no longer, :class:`Unreachable` says so.
        """
        data: Any = {} if request is None else request
        return await self.request(method, data, Any, deadline_s, idem or fresh_key(), False)

    def stream(self, method: str, request: Any = None, *, credit: int = CREDIT) -> AsyncStream[Any, Any]:
        """Calls any operation that streams."""
        return self.request_stream(method, {} if request is None else request, Any, Any, fresh_key(), credit)

    def subscribe(self, filter: str, *, on_full: str = "gap") -> AsyncSubscription:
        """Deliveries of all subjects that match: ``run/*/state``, ``run/7k2m4q9d/**``."""
        return AsyncSubscription(self, filter, on_full)

    async def value(self, payload: Payload | Mapping[str, Any]) -> Any:
        """As :meth:`eclosion.client.Client.value`; what has to be fetched is fetched outside of the loop."""
        return await asyncio.to_thread(self._client.value, payload)

    def iterate(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Iterates, here, over what a generator yields on a worker; ``aclose`` stops it.

        Raises TypeError for what is no generator. What it returns is had of :meth:`submit`.
        """
        return self._client.submit_generator(function, args, kwargs).__aiter__()

    def view(self, filter: str) -> AsyncView:
        """The folded states of all subjects that match."""
        return AsyncView(self.subscribe(filter))

    @overload
    def submit(self, function: Callable[..., Generator[Any, Any, R]], /, *args: Any, **kwargs: Any) -> Ref[R]: ...
    @overload
    def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> Ref[R]: ...
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Ref[Any]:
        """Calls a function on a worker; await what it gives, or iterate over it: ``async for token in …``.

        As :meth:`eclosion.client.Client.submit`. Where the kernel is gone it waits up to ``reconnect_s`` for one, and
        the loop with it.
        """
        return self._client.submit(function, *args, **kwargs)

    def map(self, function: Callable[..., R], items: Iterable[Any], /, **fixed: Any) -> list[Ref[R]]:
        """One call for each item, given to the first parameter."""
        return self._client.map(function, items, **fixed)

    async def feed(self, values: Iterable[Any]) -> Feed:
        """As :meth:`eclosion.client.Client.feed`; ``values`` are taken on a thread of their own."""
        return await asyncio.to_thread(self._client.feed, values)

    def close(self) -> None:
        self._client.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # Of the generated operations.

    async def request(
        self, method: str, request: Any, reply: Any, deadline_s: float | None, idem: str | None, again: bool
    ) -> Any:
        """One call. ``again`` says that it may be sent once more when the connection was lost under it."""
        body = _encode(request)
        end = None if deadline_s is None else time.monotonic() + deadline_s
        while True:
            connection = await self.connection(end)
            left = None if end is None else max(0.0, end - time.monotonic())
            exchange = _AsyncExchange(connection.open(method, body, deadline_s=left, idem=idem))
            try:
                patience_s = None if left is None else left + PATIENCE_S
                return decoder(reply)(await asyncio.wait_for(exchange.reply(), patience_s))
            except Unreachable:
                if not again or (end is not None and time.monotonic() >= end):
                    raise

    def request_stream(
        self, method: str, request: Any, item: Any, reply: Any, idem: str | None, credit: int
    ) -> AsyncStream[Any, Any]:
        body = _encode(request)

        async def opened() -> Exchange:
            return (await self.connection()).open(method, body, credit=credit, idem=idem)

        return AsyncStream(opened, item, reply)


async def done(ref: Ref[Any]) -> None:
    """Returns when a Ref is done. Cancelled, it cancels the call."""
    waiter = _Waiter()
    ref.watch(waiter.wake)
    try:
        while not ref.done():
            await waiter.wait()
    except asyncio.CancelledError:
        ref.cancel()
        raise


async def items(ref: Ref[Any]) -> AsyncIterator[tuple[Exchange, bytes]]:
    """What comes of a call while it is under way, until it is done. Cancelled, it cancels the call."""
    waiter = _Waiter()
    ref.when_begun(waiter.wake)
    ref.watch(waiter.wake)
    last = None
    while True:
        while ref.exchange is last and not ref.done():
            await waiter.wait()
        if ref.exchange is None or ref.exchange is last:
            return
        last = ref.exchange
        exchange = _AsyncExchange(last)
        while (item := await exchange.next()) is not None:
            yield last, item


class Connecting(Coroutine[Any, Any, AsyncClient]):
    """What :func:`connect` gives: a coroutine to await, or to enter right away, as that of a client."""

    def __init__(self, made: Coroutine[Any, Any, AsyncClient]) -> None:
        self._made = made
        self._client: AsyncClient | None = None

    def __await__(self) -> Generator[Any, Any, AsyncClient]:
        return self._made.__await__()

    def send(self, value: Any, /) -> Any:
        return self._made.send(value)

    def throw(self, *why: Any) -> Any:
        return self._made.throw(*why)

    def close(self) -> None:
        self._made.close()

    async def __aenter__(self) -> AsyncClient:
        self._client = await self
        return self._client

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    instance: str | None = None,
    role: str | None = None,
    environment: EnvironmentSpec | None = None,
    reconnect_s: float = RECONNECT_S,
) -> Connecting:
    """As :func:`eclosion.connect`: ``await connect()``, or ``async with connect() as kernel``."""

    async def made() -> AsyncClient:
        path = socket_path(socket, instance)
        return AsyncClient(await asyncio.to_thread(Client, path, role, environment, reconnect_s))

    return Connecting(made())
