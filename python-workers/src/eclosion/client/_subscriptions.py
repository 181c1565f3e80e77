"""What changes, as it changes: a subscription that goes on after the kernel was killed and started again.

Deliveries are those of the protocol: ``acknowledged``; for retained states a ``snapshot`` each and ``snapshot_end``;
then ``change`` and ``gap``. When the connection is lost the next kernel is asked to go on from the cursor. One that
cannot says ``reset``, and its snapshot follows: whatever was folded so far is to be forgotten. After a resumption a
change may come again, and never is one left out without a ``gap`` or a ``reset``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from .._errors import DeadlineExceeded, Unreachable, error, raised
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
from ._link import may_come

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._connection import Connection
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
        self._given_up_at: float | None = None
        """While the kernel is gone: until when it is waited for."""
        self._exchange: Exchange | None = self._subscribe(None)

    def __iter__(self) -> Iterator[Delivery]:
        while True:
            delivery = self.next()
            if delivery is None:
                return
            yield delivery

    def next(self, timeout_s: float | None = None) -> Delivery | None:
        """The next delivery; None after :meth:`close`. Raises what the kernel refuses.

        A time-out raises :class:`DeadlineExceeded` and leaves the subscription as it is: nothing is lost, and the next
        call goes on. A kernel that is gone is waited for no longer than that either; :class:`Unreachable` is raised
        when it has not come back within the client's ``reconnect_s``, which calls that time out wait for together.
        """
        end = until(timeout_s)
        while not self._closed:
            reset = self._cursor.due()
            if reset is not None:
                return reset
            exchange = self._exchange
            if exchange is None:
                self._exchange = self._subscribe(end)
                continue
            item = exchange.next(end)
            if item is not None:
                delivery = decode_delivery(item)
                self._cursor.heard(delivery)
                return delivery
            if not self._closed:
                goes_on(exchange)
                self._exchange = None
        # Closed by another thread, perhaps while this one subscribed.
        self._leave()
        return None

    def restart(self) -> None:
        """From a snapshot anew, with the next delivery: after a gap, what was folded lacks something."""
        self._leave()
        self._cursor.forget()
        self._exchange = None

    def close(self) -> None:
        self._closed = True
        self._leave()

    def _leave(self) -> None:
        exchange = self._exchange
        if exchange is not None:
            exchange.cancel()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _subscribe(self, end: float | None) -> Exchange:
        connection = self._connection(end)
        return connection.open("bus.subscribe", self._cursor.request(), credit=self._credit)

    def _connection(self, end: float | None) -> Connection:
        now = time.monotonic()
        if self._given_up_at is None:
            self._given_up_at = now + self._reconnect_s
        last = self._given_up_at if end is None else min(end, self._given_up_at)
        try:
            connection = self._link.connection(max(0.0, last - now))
        except Unreachable as why:
            if last < self._given_up_at and may_come(why):
                text = "no kernel has come back in time; it is waited for further"
                raise DeadlineExceeded(error("deadline", "deadline", text)) from why
            self._given_up_at = None
            raise
        self._given_up_at = None
        return connection


class Fold:
    """What a view has folded, in a thread or in a coroutine."""

    def __init__(self, restart: Callable[[], None]) -> None:
        self._restart = restart
        self._filling: dict[str, Any] | None = None
        self.states: dict[str, Any] = {}
        self.holes = 0

    def fold(self, delivery: Delivery) -> bool:
        """Whether the states are whole and changed."""
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
            self._restart()
        return False


class View(Fold):
    """The states of all subjects that match a filter, as they were told last.

    ``update`` waits for the next thing that changed them; ``states`` is never the fold of a stream with a hole in it:
    where the kernel says ``gap`` or ``reset``, it is filled from a snapshot anew. ``holes`` counts these.
    """

    def __init__(self, subscription: Subscription) -> None:
        super().__init__(subscription.restart)
        self._subscription = subscription

    def update(self, timeout_s: float | None = None) -> bool:
        """Folds deliveries until the states are whole and something was folded; False after the end.

        A time-out raises :class:`DeadlineExceeded`; what was folded stays, and the next call goes on.
        """
        end = until(timeout_s)
        while True:
            delivery = self._subscription.next(None if end is None else max(0.0, end - time.monotonic()))
            if delivery is None:
                return False
            if self.fold(delivery):
                return True

    def close(self) -> None:
        self._subscription.close()
