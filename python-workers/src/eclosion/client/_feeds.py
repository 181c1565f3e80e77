"""A stream into a function: what a program has, value by value, while the function runs on a worker.

    with client.feed(rows()) as feed:
        print(client.submit(train, feed).result())      # def train(rows): for row in rows: ...

The program serves its values as any service does, at an address of their own on a connection of their own, and what
travels as the argument is that address; the function iterates over it (``_inputs.py``). So both ways have credits,
which add up: a slow function stops the iterator here. Cancel and death reach both ends: an iterator that nobody reads
any more is closed, and a function whose program is gone is told so at its next value.

    offered --the function begins to read--> read --the end, or it is left--> over            any --close--> over
       └ its call is done or refused, or nobody has the feed any more--> over

Invariants: (1) one reader, once: the address is gone after it. (2) The iterator runs on the feed's own thread, and is
closed there. (3) Addresses are used again, so that the kernel's table does not grow with feeds.
"""

from __future__ import annotations

import itertools
import os
import weakref

# The annotation is looked at: it says that the method streams what.
from collections.abc import Generator  # noqa: TC003
from typing import TYPE_CHECKING, Any

from .. import _frames as frames
from .. import _values
from .._errors import Refused, error
from .._process import start_thread
from ..service import Call, Server, connect, methods_of, service

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .._frames import Frame

# Programs that feed at the same time; a kernel has 128 connections.
ADDRESSES = 64


@service(address="/feed", waiting_max=1, concurrency=1)
class _Source:
    """What one feed serves."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = values

    def read(self) -> Generator[Any, None, None]:
        """The values, in the order in which they come."""
        values = iter(self._values)
        try:
            for value in values:
                yield _values.encode(value).carried()
        finally:
            close = getattr(values, "close", None)
            if close is not None:
                close()


class _Feeding(Server):
    """Ends when its one reader has had everything, or has left."""

    _is_read = False

    def take(self, frame: Frame) -> None:
        if frame.kind == frames.CALL:
            self._is_read = True
        super().take(frame)

    def end_unread(self) -> None:
        """Ends it unless it has its reader, who ends it."""
        if not self._is_read:
            self.hang_up()

    def answer(self, call: Call) -> None:
        super().answer(call)
        self.hang_up()


# Not always from the first: that one is taken as long as a feed is read. Programs begin at different ones.
_next_place = itertools.count(os.getpid())


def _places() -> Iterator[int]:
    """Every address, once, from the one after the last."""
    first = next(_next_place)
    return ((first + n) % ADDRESSES for n in range(ADDRESSES))


class Feed(_values.Fed):
    """See the head of this file. Made by :meth:`Client.feed`; may be used as a context manager."""

    def __init__(self, path: str, values: Iterable[Any]) -> None:
        methods = methods_of(_Source)
        [method] = methods.values()
        for n in _places():
            operation = f"feed-{n}.read"
            served = {**method.declare(), "name": operation}
            address = {"address": f"/feed-{n}", "waiting_max": 1, "concurrency": 1, "operations": [served]}
            try:
                channel, early = connect(path, {"addresses": [address]})
                break
            except Refused as refused:
                if refused.error.get("code") != "already_exists":
                    raise
        else:
            text = f"{ADDRESSES} feeds are open, the most that there may be"
            raise Refused(error("exhausted", "feed.full", text, help="close those that are not read any more"))
        self.place: dict[str, Any] = {"socket": path, "operation": operation}
        """What a worker finds it by."""
        self._channel = channel
        self._server = _Feeding(_Source(values), channel, {operation: method})
        for frame in early:
            self._server.take(frame)
        start_thread(self._server.run, "eclosion-feed")
        weakref.finalize(self, self._server.end_unread).atexit = False

    def end_unread(self) -> None:
        """The call that took it is done, or will never be: ends it unless it is being read."""
        self._server.end_unread()

    def close(self) -> None:
        """Ends it; who still reads is told that it is gone."""
        self._channel.hang_up()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
