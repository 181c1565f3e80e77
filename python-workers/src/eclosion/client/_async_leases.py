"""Leases in coroutines: ``async with kernel.lease("db") as lease``. As ``_leases.py``, which says the rest."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from .._errors import Refused, Unreachable, error
from ._async_operations import AsyncLeaseOperations
from ._connection import CREDIT, fresh_key
from ._leases import AGAIN_S, Holding, goes_on, lost_of, over, request_of
from ._operations import LeaseEnded, LeaseRequest, LeaseStanding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._schemas import Priority
    from .aio import AsyncClient, AsyncStream


class AsyncLease(Holding):
    """As :class:`Lease`, in an ``async with``."""

    def __init__(self, client: AsyncClient, request: LeaseRequest) -> None:
        super().__init__(request)
        self._client = client
        self._stream = self._opened(request)
        self._tender: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncLease:
        self.use()
        try:
            if await self._waited():
                self._tender = asyncio.get_running_loop().create_task(self._tend())
                return self
        except BaseException:  # Cancelled as well: it is not waited for any more.
            self._stream.close()
            raise
        raise Unreachable(error("unavailable", "connection.closed", "the lease never began"))

    async def __aexit__(self, kind: object, *_: object) -> None:
        self.over = True
        if self._tender is not None:
            self._tender.cancel()
        try:
            if self.lost is None:
                await self._client.lease.release(lease=self.held.lease, key=self.held.key)
        except Refused as why:
            if not over(why):
                raise
            self.lost = lost_of(str(why.error.get("message")))
        finally:
            self._stream.close()
        if kind is None:
            self.check()

    def _opened(self, request: LeaseRequest) -> AsyncStream[LeaseStanding, LeaseEnded]:
        return self._client.request_stream("lease.hold", request, LeaseStanding, LeaseEnded, fresh_key(), CREDIT)

    async def _waited(self) -> bool:
        async for standing in self._stream:
            if self.begun(standing):
                return True
        return False

    async def _tend(self) -> None:
        while not self.over:
            try:
                self.lose((await self._stream.reply()).reason)
                return
            except Exception as why:
                if not goes_on(why):
                    self.ended(why)
                    return
            end = time.monotonic() + self._client.reconnect_s
            while not self.over:
                try:
                    # No await between the two: the end of the block closes the last.
                    self._stream = self._opened(self.again())
                    if await self._waited():
                        break
                except Exception as why:
                    if not goes_on(why) or time.monotonic() >= end:
                        self.ended(why)
                        return
                    await asyncio.sleep(AGAIN_S)


class AsyncLeases(AsyncLeaseOperations):
    """``client.lease("db")`` holds a lock; the operations ``lease.*`` are its methods."""

    def __init__(self, client: AsyncClient) -> None:
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
    ) -> AsyncLease:
        """As :meth:`Leases.__call__`."""
        request = request_of(locks, resources, rates, wait_s, purpose, tenant, priority)
        return AsyncLease(self._whole, request)
