"""The worker's end of a stream into a function: an iterator over what another program feeds (``client/_feeds.py``).

Values are asked for as they are taken, :data:`CREDIT` ahead. A function that leaves early, or is cancelled, leaves the
call, which closes the iterator at the other end.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec

from ._current import current
from ._errors import Cancelled
from ._parts import open_carried
from ._schemas import Payload
from ._values import decode, write_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._schemas import Part
    from .client._connection import Connection, Exchange

# Values under way; the kernel passes on as many to the program that feeds.
CREDIT = 16
# A task that is cancelled while it waits finds out.
LOOK_AGAIN_S = 0.05

_decode_payload: Callable[[bytes], Payload] = msgspec.msgpack.Decoder(Payload).decode


class InputStream:
    """Iterated over once. Closed by the end of the attempt at the latest."""

    def __init__(self, place: dict[str, Any]) -> None:
        self._place = place
        self._connection: Connection | None = None
        self._exchange: Exchange | None = None
        self._arrived = threading.Event()

    def __iter__(self) -> InputStream:
        return self

    def __next__(self) -> Any:
        exchange = self._opened()
        while True:
            # Before it is looked for, so that what comes meanwhile is not slept over.
            self._arrived.clear()
            item = exchange.take()
            if item is not None:
                return decode(_decode_payload(item), _open_part)
            if exchange.outcome is not None:
                if (item := exchange.take()) is not None:
                    return decode(_decode_payload(item), _open_part)
                exchange.reply()  # Raises what it ended with, if that is an error.
                raise StopIteration
            if current().cancelled:
                self.close()
                raise Cancelled
            self._arrived.wait(LOOK_AGAIN_S)

    def close(self) -> None:
        """Nothing more is wanted."""
        if self._connection is not None:
            self._connection.close()

    def _opened(self) -> Exchange:
        if self._exchange is None:
            # Not at the top: few tasks need a client.
            from .client._connection import Connection

            self._connection = Connection(self._place["socket"], memory=None)
            body = msgspec.msgpack.encode({})
            self._exchange = self._connection.open(
                self._place["operation"], body, credit=CREDIT, watcher=self._arrived.set
            )
        return self._exchange


def _open_part(part: Part) -> object:
    if part.data is None:
        raise ValueError("a value of a stream has a part that does not ride along")
    if part.codec == "file":
        return write_file(current().scratch, part.name, part.data)
    return open_carried(part.codec, part.data)
