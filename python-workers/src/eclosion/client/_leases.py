"""Leases that this program holds while a block runs: named locks, counted resources, tokens of rates.

    with kernel.lease("db", purpose="migration") as lease:
        write(fence=lease.fence)

The kernel gives it when it is its turn, tells others who holds it, and takes it back when the block or this process
ends. A kernel that is killed and started again within the grace finds its holder again. A lease that was lost meanwhile
(an operator took it away, no kernel came back in time) is told by :meth:`Lease.check`, and by the end of the block:
:class:`LeaseLost`. Whoever writes to something that outlives such a loss writes the fence along with it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from .._errors import Cancelled, Refused, Unreachable, error
from ._connection import CREDIT, fresh_key
from ._operations import LeaseEnded, LeaseHeld, LeaseOperations, LeaseRequest, LeaseStanding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._schemas import Fence, Priority
    from ._client import Client
    from ._connection import Stream


# Between two tries with a kernel that is about to go.
AGAIN_S = 0.1


class LeaseLost(Refused):
    """It was over before its holder gave it back."""


def request_of(
    locks: tuple[str, ...],
    resources: Mapping[str, int] | None,
    rates: Mapping[str, int] | None,
    wait_s: float | None,
    purpose: str,
    tenant: str | None,
    priority: Priority | None,
) -> LeaseRequest:
    """``wait_s`` None: as long as it takes."""
    return LeaseRequest(
        locks=list(locks),
        resources=dict(resources or {}),
        rates=dict(rates or {}),
        wait_ms=None if wait_s is None else round(wait_s * 1000),
        purpose=purpose,
        tenant=tenant,
        priority=priority,
        key=fresh_key(),
    )


def goes_on(why: BaseException) -> bool:
    """Whether the next kernel may know more."""
    return isinstance(why, Refused) and why.error.get("code") == "unavailable"


def lost_of(why: str) -> LeaseLost:
    return LeaseLost(error("conflict", "lease.lost", why))


class Holding:
    """What both clients know of a lease."""

    def __init__(self, request: LeaseRequest) -> None:
        self.request = request
        self.known: LeaseHeld | None = None
        self.lost: LeaseLost | None = None
        self.over = False
        self._used = threading.Lock()

    def use(self) -> None:
        """Its block begins. Raises for a second one."""
        if not self._used.acquire(blocking=False):
            raise Refused(error("precondition", "lease.used", "a lease is used once; make another"))

    @property
    def held(self) -> LeaseHeld:
        """What the kernel said of it. Raises before the block begins."""
        if self.known is None:
            raise Refused(error("precondition", "lease.unheld", "the lease is held inside of its block"))
        return self.known

    @property
    def id(self) -> str:
        return self.held.lease

    @property
    def fence(self) -> Fence:
        """Larger than that of any lease before it."""
        return self.held.fence

    def check(self) -> None:
        """Raises :class:`LeaseLost` if it is known to be over."""
        if self.lost is not None:
            raise self.lost

    def again(self) -> LeaseRequest:
        """To take it up at the next kernel: this lease, and no other in its place."""
        return replace(self.request, again=self.id)

    def begun(self, standing: LeaseStanding) -> bool:
        """Whether it is held now."""
        if standing.held is None:
            return False
        self.known = standing.held
        return True

    def lose(self, why: str) -> None:
        if self.lost is None and not self.over:
            self.lost = lost_of(f"lease {self.id} is over: {why}")

    def ended(self, why: BaseException) -> None:
        """Nothing to go on from: it could not be taken up again."""
        if isinstance(why, Refused) and over(why):
            self.lose("it ended while no kernel was there")
        else:
            self.lose(str(why))


class Lease(Holding):
    """A block that holds it. Made by ``client.lease(…)``; each is used once, and asked for when its block begins."""

    def __init__(self, client: Client, request: LeaseRequest) -> None:
        super().__init__(request)
        self._client = client
        self._stream: Stream[LeaseStanding, LeaseEnded]
        # Held while the stream is another one, so that the end of the block closes the last.
        self._changing = threading.Lock()
        self._tender = threading.Thread(target=self._tend, name="eclosion-lease", daemon=True)

    def __enter__(self) -> Lease:
        self.use()
        stream = self._stream = self._opened(self.request)
        try:
            if self._waited(stream):
                self._tender.start()
                return self
        except BaseException:  # Ctrl-C as well: it is not waited for any more.
            stream.close()
            raise
        raise Unreachable(error("unavailable", "connection.closed", "the lease never began"))

    def __exit__(self, kind: object, *_: object) -> None:
        with self._changing:
            self.over = True
        try:
            if self.lost is None:
                self._client.lease.release(lease=self.held.lease, key=self.held.key)
        except Refused as why:
            if not over(why):
                raise
            self.lost = lost_of(str(why.error.get("message")))
        finally:
            self._stream.close()
        if kind is None:
            self.check()

    def _opened(self, request: LeaseRequest) -> Stream[LeaseStanding, LeaseEnded]:
        return self._client.request_stream("lease.hold", request, LeaseStanding, LeaseEnded, fresh_key(), CREDIT)

    def _waited(self, stream: Stream[LeaseStanding, LeaseEnded]) -> bool:
        return any(self.begun(standing) for standing in stream)

    def _tend(self) -> None:
        """In a thread of its own: hears of its end, and takes it up again where the kernel was killed."""
        while not self.over:
            try:
                self.lose(self._stream.reply().reason)
                return
            except (Exception, Cancelled) as why:  # Whatever it is, the block is told.
                if self.over or not goes_on(why):
                    self.ended(why)
                    return
            end = time.monotonic() + self._client.reconnect_s
            while not self.over:
                try:
                    if self._taken_up():
                        break
                except (Exception, Cancelled) as why:
                    if not goes_on(why) or time.monotonic() >= end:
                        self.ended(why)
                        return
                    time.sleep(AGAIN_S)

    def _taken_up(self) -> bool:
        stream = self._opened(self.again())
        with self._changing:
            if self.over:
                stream.close()
                return False
            self._stream = stream
        return self._waited(stream)


def over(why: Refused) -> bool:
    """Whether it was over before it was given back."""
    return why.error.get("reason") == "lease.over"


class Leases(LeaseOperations):
    """``client.lease("db")`` holds a lock; the operations ``lease.*`` are its methods."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._whole = client

    def __call__(
        self,
        *locks: str,
        resources: Mapping[str, int] | None = None,
        rates: Mapping[str, int] | None = None,
        wait_s: float | None = None,
        purpose: str = "",
        tenant: str | None = None,
        priority: Priority | None = None,
    ) -> Lease:
        """Locks by name, ``"name:shared"`` with others who share it.

        ``resources``: ``cpu`` in thousandths of a core, ``memory`` in bytes, others in their own count. ``wait_s``
        ends in :class:`Rejected`; with 0 it is had if it is free.
        """
        request = request_of(locks, resources, rates, wait_s, purpose, tenant, priority)
        return Lease(self._whole, request)
