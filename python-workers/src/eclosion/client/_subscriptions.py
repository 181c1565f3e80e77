"""What changes, as it changes: a subscription that goes on after the kernel was killed and started again.

Deliveries are those of the protocol: ``acknowledged``; for retained states a ``snapshot`` each and ``snapshot_end``;
then ``change`` and ``gap``. When the connection is lost the next kernel is asked to go on from the cursor. One that
cannot says ``reset``, and its snapshot follows: whatever was folded so far is to be forgotten. After a resumption a
change may come again, and never is one left out without a ``gap`` or a ``reset``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .._errors import raised
from .._schemas import (
    Delivery,
    DeliveryAcknowledged,
    DeliveryChange,
    DeliveryGap,
    DeliveryReset,
    DeliverySnapshot,
    DeliverySnapshotEnd,
    SubscribeRequest,
)
from ._connection import CREDIT, Exchange, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._link import Link

Reset = DeliveryReset
# Deliveries under way at most.
SUBSCRIBED = CREDIT * 4

_encode = msgspec.msgpack.encode
decode_delivery: Callable[[bytes], Delivery] = msgspec.msgpack.Decoder(Delivery).decode


class Cursor:
    """Up to where a subscriber has heard, and what to ask the next kernel for."""

    def __init__(self, filter: str, on_full: str) -> None:
        self.filter = filter
        self.on_full = on_full
        self._epoch = 0
        self._seq = 0
        self._whole = False
        """A snapshot has come to its end: what follows can be added to it."""
        self._begun = False
        self._acknowledged = False
        self._reset_due = False

    def request(self) -> bytes:
        """What to subscribe with now."""
        start = f"{self._epoch}:{self._seq}" if self._whole else None
        # What came of a snapshot that was cut off is of no use to the next one.
        self._reset_due = self._begun and not self._whole
        return _encode(SubscribeRequest(filter=self.filter, on_full=self.on_full, start=start))

    def due(self) -> DeliveryReset | None:
        """A reset that no kernel can know of."""
        if not self._reset_due or not self._acknowledged:
            return None
        self._reset_due = False
        return DeliveryReset(why="the connection was lost inside a snapshot")

    def heard(self, delivery: Delivery) -> None:
        self._acknowledged = isinstance(delivery, DeliveryAcknowledged)
        if isinstance(delivery, (DeliveryAcknowledged, DeliverySnapshot, DeliveryChange)):
            position = (delivery.epoch, delivery.seq)
            if isinstance(delivery, DeliveryAcknowledged) or position > (self._epoch, self._seq):
                self._epoch, self._seq = position
            self._begun = self._begun or isinstance(delivery, DeliverySnapshot)
        elif isinstance(delivery, DeliverySnapshotEnd):
            self._whole = True
        elif isinstance(delivery, DeliveryReset):
            self._whole = False
            self._reset_due = False

    def forget(self) -> None:
        """The next subscription begins with a snapshot."""
        self._whole = self._begun = False


def goes_on(ended: Exchange) -> None:
    """Raises what a subscription ended with, unless the next kernel is to be asked to go on."""
    outcome = ended.outcome
    if isinstance(outcome, dict) and outcome.get("reason") not in ("connection.closed", "kernel.stopping"):
        raise raised(outcome)


class Subscription:
    """Iterates over deliveries, kernels coming and going. ``close`` leaves."""

    def __init__(self, link: Link, filter: str, on_full: str, reconnect_s: float, credit: int = SUBSCRIBED) -> None:
        self._credit = credit
        self._link = link
        self._reconnect_s = reconnect_s
        self._cursor = Cursor(filter, on_full)
        self._closed = False
        self._exchange = self._subscribe()

    def __iter__(self) -> Iterator[Delivery]:
        while True:
            delivery = self.next()
            if delivery is None:
                return
            yield delivery

    def next(self, timeout_s: float | None = None) -> Delivery | None:
        """The next delivery; None after :meth:`close`. Raises :class:`DeadlineExceeded`, or what the kernel refuses."""
        end = until(timeout_s)
        while not self._closed:
            reset = self._cursor.due()
            if reset is not None:
                return reset
            item = self._exchange.next(end)
            if item is not None:
                delivery = decode_delivery(item)
                self._cursor.heard(delivery)
                return delivery
            if not self._closed:
                goes_on(self._exchange)
                self._exchange = self._subscribe()
        return None

    def restart(self) -> None:
        """Subscribes anew, from a snapshot: after a gap, what was folded lacks something."""
        self._exchange.cancel()
        self._cursor.forget()
        self._exchange = self._subscribe()

    def close(self) -> None:
        self._closed = True
        self._exchange.cancel()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _subscribe(self) -> Exchange:
        connection = self._link.connection(self._reconnect_s)
        return connection.open("bus.subscribe", self._cursor.request(), credit=self._credit)


class View:
    """The states of all subjects that match a filter, as they were told last.

    ``update`` waits for the next thing that changed them; ``states`` is never the fold of a stream with a hole in it:
    where the kernel says ``gap`` or ``reset``, it is filled from a snapshot anew. ``holes`` counts these.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._filling: dict[str, Any] | None = None
        self.states: dict[str, Any] = {}
        self.holes = 0

    def update(self, timeout_s: float | None = None) -> bool:
        """Folds deliveries until the states are whole and something was folded; False after the end."""
        while True:
            delivery = self._subscription.next(timeout_s)
            if delivery is None:
                return False
            if self._fold(delivery):
                return True

    def close(self) -> None:
        self._subscription.close()

    def _fold(self, delivery: Delivery) -> bool:
        if isinstance(delivery, DeliveryChange):
            states = self.states if self._filling is None else self._filling
            states[delivery.subject] = delivery.value
            return self._filling is None
        if isinstance(delivery, DeliverySnapshot):
            self._filling = {} if self._filling is None else self._filling
            self._filling[delivery.subject] = delivery.value
        elif isinstance(delivery, DeliverySnapshotEnd):
            self.states, self._filling = self._filling or {}, None
            return True
        elif isinstance(delivery, DeliveryReset):
            self.holes += 1
            self._filling = {}
        elif isinstance(delivery, DeliveryGap):
            self.holes += 1
            self._filling = None
            self._subscription.restart()
        return False
