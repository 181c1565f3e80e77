"""What a generator on a worker yields, value by value: ``pool.stream`` as an iterator.

The worker runs ahead by the credit and no more. Leaving it early, by ``close`` or as a context manager, stops the
generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .._schemas import Payload, ReportItem, TaskReport
from ._connection import CREDIT, fresh_key
from ._results import value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .._values import Fed
    from ._client import Client

_decode_report: Callable[[bytes], TaskReport] = msgspec.msgpack.Decoder(TaskReport).decode
_decode_payload = msgspec.msgpack.Decoder(Payload).decode


class Values:
    """See the head of this file. Progress and metrics go to ``reports``, if somebody sets it."""

    def __init__(self, client: Client, request: bytes, credit: int = CREDIT, feeds: Iterable[Fed] = ()) -> None:
        self._client = client
        connection = client.link.connection(client.reconnect_s)
        self._exchange = connection.open("pool.stream", request, credit=credit, idem=fresh_key())
        self._feeds = list(feeds)
        """They end when nobody has them any more."""
        self.reports: Callable[[TaskReport], None] | None = None

    def __iter__(self) -> Values:
        return self

    def __next__(self) -> Any:
        while True:
            item = self._exchange.next()
            if item is None:
                self._end_feeds()
                self._exchange.reply()  # Raises what it ended with, if that is an error.
                raise StopIteration
            report = _decode_report(item)
            if isinstance(report, ReportItem):
                return value_of(self._client, report.payload, self._exchange.connection)
            if self.reports is not None:
                self.reports(report)

    def result(self) -> Any:
        """What the generator returned; values that were not taken are passed over."""
        return value_of(self._client, _decode_payload(self._exchange.reply()), self._exchange.connection)

    def close(self) -> None:
        if self._exchange.outcome is None:
            self._exchange.cancel()
        self._end_feeds()

    def _end_feeds(self) -> None:
        for feed in self._feeds:
            feed.end_unread()
        self._feeds.clear()

    def __enter__(self) -> Values:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
