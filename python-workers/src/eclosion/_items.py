"""What a generator yields, on its way to the kernel: sent with credit alone, so that a slow reader stops the generator.

    idle --value--> has credit? --yes--> sent
                        └ no: waits --CREDIT--> sent
                                    --cancelled--> Cancelled, and the generator is closed
                                    --kernel gone--> a call's: Cancelled; a run's: dropped, and the generator goes on

The main thread drives the generator (:func:`drain`). The reading thread says what the kernel has granted, that the
stream is gone, and on which one it goes on.

Invariants:
1. No item is sent without credit, and at most one is made ahead of it: the end of a generator needs no credit.
2. However it ends, the generator is closed on the main thread, as user code: its ``finally`` runs.

A task of a run has a result that later steps read: what the generator returned if that is not None, else the list of
what it yielded. A call's result is what it returned; whoever called has the items.
"""

from __future__ import annotations

from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from . import _frames as frames
from ._errors import Cancelled, Refused, error
from ._frames import Disconnected
from ._values import SHARED_BYTES_MIN, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._interrupts import UserCode
    from ._kernel import Kernel
    from ._values import Lender, PayloadData

GENERATORS = (GeneratorType, AsyncGeneratorType)
# Room for what surrounds a payload in its message.
ITEM_BYTES_MAX = frames.MESSAGE_BYTES_MAX - 64 * 1024

_pack = msgspec.msgpack.encode


class Items:
    """The items of one attempt."""

    __slots__ = ("_cancelled", "_granted", "_index", "_kept", "_kernel", "_lender", "_sent", "_stream", "_user")

    def __init__(
        self,
        kernel: Kernel,
        user: UserCode,
        stream: int,
        credit: int,
        lender: Lender,
        cancelled: Callable[[], bool],
        *,
        keeps: bool,
    ) -> None:
        """``keeps``: the attempt is a run's, which outlives its kernel and wants all items as its result."""
        self._kernel = kernel
        self._user = user
        self._stream: int | None = stream
        self._granted = credit
        self._sent = 0
        self._index = 0
        self._cancelled = cancelled
        self._kept: list[object] | None = [] if keeps else None
        self._lender = lender

    # The main thread.

    def send(self, value: object) -> None:
        """Sends one value once there is credit for it. Raises :class:`Cancelled` when the generator is to stop."""
        self._user.shielded(self._send, value)
        if self._kept is not None:
            self._kept.append(value)

    def result(self, returned: object) -> object:
        """What the attempt results in, once the generator has returned."""
        return self._kept if returned is None and self._kept is not None else returned

    def _send(self, value: object) -> None:
        body = _pack({"tag": "item", "index": self._index, "payload": self._payload(value)})
        if len(body) > ITEM_BYTES_MAX:
            text = f"an item of {len(body)} bytes is over the limit of {ITEM_BYTES_MAX}"
            raise Refused(error("exhausted", "frame.size", text, help="yield it in pieces"))
        self._index += 1
        if not self._may_go_on():
            self._kernel.before_wait()
            with self._kernel.changed:
                self._kernel.changed.wait_for(self._may_go_on)
        channel, stream = self._kernel.channel, self._stream
        if self._cancelled() or (self._kept is None and (channel is None or stream is None)):
            raise Cancelled
        if channel is None or stream is None:
            return
        try:
            channel.send(frames.DATA, stream, None, body)
        except Disconnected:
            pass  # The reading thread finds the end as well.
        self._sent += 1

    def _payload(self, value: object) -> PayloadData:
        """Of a call, large parts lie in shared memory if there is room, and the caller reads it there."""
        encoded = encode(value)
        if self._kept is None and any(part.size_bytes >= SHARED_BYTES_MIN for part in encoded.parts):
            try:
                shared = encoded.shared(self._lender)
            except Disconnected:
                shared = None  # Nobody waits for it any more, which is found out below.
            if shared is not None:
                return shared
        return encoded.carried()

    def _may_go_on(self) -> bool:
        return self._sent < self._granted or self._stream is None or self._cancelled()

    # The reading thread; it notifies ``kernel.changed`` itself when the attempt is cancelled.

    def grant(self, stream: int, total: int) -> None:
        """The kernel lets ``total`` items come, since the stream began."""
        with self._kernel.changed:
            if stream == self._stream:
                self._granted = max(self._granted, total)
                self._kernel.changed.notify_all()

    def move(self, stream: int | None) -> None:
        """The stream is gone; or the next kernel wants what comes on another one, and has granted nothing yet."""
        with self._kernel.changed:
            self._stream, self._granted, self._sent = stream, 0, 0
            self._kernel.changed.notify_all()


def drain(generator: object, items: Items) -> object:
    """Sends what a generator yields; returns what the attempt results in. For the main thread, as user code."""
    if isinstance(generator, AsyncGeneratorType):
        # Imported late: few tasks need it, and it costs more than all of this package.
        import asyncio

        return asyncio.run(_drain_async(cast("AsyncGeneratorType[object, None]", generator), items))
    values = cast("GeneratorType[object, None, object]", generator)
    try:
        while True:
            try:
                value = next(values)
            except StopIteration as end:
                returned: Any = end.value
                return items.result(returned)
            items.send(value)
    finally:
        values.close()


async def _drain_async(generator: AsyncGeneratorType[object, None], items: Items) -> object:
    try:
        async for value in generator:
            items.send(value)
        return items.result(None)
    finally:
        await generator.aclose()
