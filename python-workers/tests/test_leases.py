"""Leases on a real kernel: one at a time, over the kernel's death, and told when they are lost."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from eclosion import Refused, Rejected
from eclosion.client import LeaseLost, aio
from eclosion.client._operations import LeaseEnded, LeaseStanding
from house import DEADLINE_S, House, house

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator


@pytest.fixture
def home(tmp_path: pathlib.Path) -> Iterator[House]:
    with house(tmp_path) as built:
        yield built


def test_a_block_is_alone_under_its_lock_and_the_fence_grows(home: House) -> None:
    inside, fences, together = 0, list[tuple[int, int]](), list[int]()

    def work() -> None:
        nonlocal inside
        with home.connect() as client:
            for _ in range(3):
                with client.lease("db", purpose="a test") as lease:
                    inside += 1
                    together.append(inside)
                    fences.append((lease.fence.epoch, lease.fence.counter))
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert together == [1] * 9
    assert fences == sorted(set(fences))


def test_who_does_not_want_to_wait_is_told_who_holds_it(home: House) -> None:
    with home.connect() as first, home.connect() as second:
        with first.lease("db", purpose="migration"):
            with pytest.raises(Rejected, match="migration") as refused, second.lease("db", wait_s=0):
                pass
            assert refused.value.retry_after > 0
            with second.lease("table", wait_s=0) as had:
                assert [held.lease for held in first.arbitration.status().leases][1:] == [had.id]
            with second.lease("index"):
                assert len(second.arbitration.status().leases) == 2
        assert not second.arbitration.status().leases


def test_a_lease_goes_on_over_a_kernel_that_was_killed(home: House) -> None:
    with home.connect() as client, home.connect() as other, client.lease("db") as lease:
        home.kill(client)
        home.up()
        # It is durable, and whoever comes meanwhile does not get it.
        with pytest.raises(Rejected), other.lease("db", wait_s=0):
            pass
        assert [held.lease for held in other.arbitration.status().leases] == [lease.id]
    with home.connect() as other:
        assert not other.arbitration.status().leases


def test_a_lease_that_was_given_back_is_not_taken_up_again(home: House) -> None:
    # As by a block that ends while its lease is taken up at the next kernel: what comes late would hold it for nobody.
    with home.connect() as client:
        with client.lease("db") as lease:
            again = lease.again()
        late = client.request_stream("lease.hold", again, LeaseStanding, LeaseEnded, "a-key", 8)
        with pytest.raises(Refused, match="its holder gave it back"):
            late.reply()
        assert not client.arbitration.status().leases


def test_a_lease_is_used_once(home: House) -> None:
    async def again() -> None:
        async with aio.connect(home.socket) as client:
            lease = client.lease("db")
            async with lease:
                with pytest.raises(Refused, match="make another"):
                    await lease.__aenter__()
            with pytest.raises(Refused, match="make another"):
                await lease.__aenter__()

    with home.connect() as client:
        lease = client.lease("db")
        with lease:
            with pytest.raises(Refused, match="make another"), lease:
                pass
            lease.check()
        with pytest.raises(Refused) as refused, lease:
            pass
        assert refused.value.error.get("reason") == "lease.used"
    asyncio.run(asyncio.wait_for(again(), DEADLINE_S))


def test_a_lease_that_is_not_entered_holds_nothing(home: House) -> None:
    with home.connect() as client, home.connect() as other:
        unused = client.lease("db")
        with other.lease("db", wait_s=0):
            pass
        with unused:
            assert [held.lease for held in other.arbitration.status().leases] == [unused.id]


def test_a_lease_that_was_taken_away_is_told_by_the_block(home: House) -> None:
    with home.connect() as client, pytest.raises(LeaseLost, match="it hangs"), client.lease("db") as lease:
        client.lease.release(lease=lease.id, reason="it hangs")


def test_the_same_in_coroutines(home: House) -> None:
    async def lose(client: aio.AsyncClient) -> None:
        async with client.lease("db") as lease:
            await client.lease.release(lease=lease.id, reason="it hangs")
            while True:
                await client.kernel.status()
                lease.check()

    async def scenario() -> list[int]:
        order: list[int] = []
        async with await aio.connect(home.socket) as client:

            async def work(n: int) -> None:
                async with client.lease("db", resources={"cpu": 1}):
                    order.append(n)
                    await client.kernel.status()
                    order.append(n)

            await asyncio.gather(*(work(n) for n in range(4)))
            with pytest.raises(LeaseLost):
                await lose(client)
            assert not (await client.arbitration.status()).leases
        return order

    order = asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
    assert order[::2] == order[1::2]
