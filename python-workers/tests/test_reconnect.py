"""The kernel is killed under its clients, again and again, while a run progresses: what they fold is the truth."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import client_steps as steps
import eclosion
from eclosion._schemas import (
    DeliveryAcknowledged,
    DeliveryChange,
    DeliveryGap,
    DeliveryReset,
    DeliverySnapshot,
    DeliverySnapshotEnd,
    EnvironmentSpec,
    FlowSpec,
    TaskSpec,
)
from eclosion.client import Subscription, View, aio
from house import DEADLINE_S, SOURCES, House, house

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from eclosion._schemas import Delivery
    from eclosion.client import Client

KILLS = 4
STEPS = 24


@pytest.fixture
def home(tmp_path: pathlib.Path) -> Iterator[House]:
    with house(tmp_path) as built:
        yield built


def start(client: Client) -> str:
    """A run whose steps take a while each, so that it is killed in the middle."""
    tasks = {"work": TaskSpec(run="client_steps:slow", each=list(range(STEPS)), with_={"n": "${item}"})}
    flow = FlowSpec(
        schema="eclosion/flow/v1",
        name="followed",
        code=str(SOURCES.parent / "tests"),
        environment=EnvironmentSpec(python=sys.executable),
        tasks=tasks,
    )
    return client.run.start(flow=flow).run


class Recorder(Subscription):
    """A subscription that keeps what it heard."""

    heard: list[Delivery]

    def next(self, timeout_s: float | None = None) -> Delivery | None:
        delivery = super().next(timeout_s)
        if delivery is not None:
            self.heard.append(delivery)
        return delivery


class Follower(threading.Thread):
    """Folds everything about a run until it is over."""

    def __init__(self, client: Client, run: str) -> None:
        super().__init__(daemon=True)
        self.recorder = Recorder(client.link, f"run/{run}/**", "gap", DEADLINE_S)
        self.recorder.heard = []
        self.view = View(self.recorder)
        self.why: BaseException | None = None
        self._head = f"run/{run}/state"

    def run(self) -> None:
        try:
            while self.view.states.get(self._head, {}).get("state") not in ("succeeded", "failed", "cancelled"):
                self.view.update(DEADLINE_S)
        except BaseException as why:
            self.why = why


def test_a_view_is_the_truth_after_the_kernel_was_killed_again_and_again(home: House) -> None:
    with home.connect() as client:
        run = start(client)
        follower = Follower(client, run)
        follower.start()
        for kill in range(KILLS):
            done = (kill + 1) * STEPS // (KILLS + 2)
            _until(lambda done=done: client.run.get(run=run).run.counts.get("succeeded", 0) >= done)
            home.kill(client)
            home.up()
        follower.join(DEADLINE_S)
        assert not follower.is_alive()
        assert follower.why is None

        truth = client.run.get(run=run)
        head = follower.view.states[f"run/{run}/state"]
        assert (
            (head["state"], head["counts"])
            == (truth.run.state, truth.run.counts)
            == ("succeeded", {"succeeded": STEPS})
        )
        told = {task.task: follower.view.states.get(f"run/{run}/task/{task.task}/state") for task in truth.tasks}
        changes = [heard for heard in follower.recorder.heard if isinstance(heard, (DeliverySnapshot, DeliveryChange))]
        assert any(change.subject.startswith(f"run/{run}/task/") for change in changes)
        for task in truth.tasks:
            # Of a run that is over, states are not kept: a task may be missing, and is never stale.
            state = told[task.task]
            assert state is None or (state["state"], state["attempt"]) == (task.state, task.attempt)
        _check_order(follower.recorder.heard)


def _check_order(heard: list[Delivery]) -> None:
    """Another epoch begins with a reset, and inside of one nothing goes back behind what was heard of a subject."""
    epoch = None
    newest: dict[str, int] = {}
    epochs: set[int] = set()
    resets = 0
    expects_reset = False
    for delivery in heard:
        if isinstance(delivery, DeliveryAcknowledged):
            expects_reset = epoch is not None and delivery.epoch != epoch
        elif isinstance(delivery, DeliveryReset):
            resets += 1
            expects_reset = False
            epoch = None
            newest.clear()
        elif isinstance(delivery, (DeliverySnapshot, DeliveryChange)):
            assert not expects_reset, "another epoch without a reset"
            assert epoch in (None, delivery.epoch), "another epoch without a reset"
            epoch = delivery.epoch
            epochs.add(epoch)
            # Reports have no place in the journal of their own.
            if delivery.subject.endswith("/state"):
                assert delivery.seq >= newest.get(delivery.subject, 0)
                newest[delivery.subject] = delivery.seq
        elif isinstance(delivery, DeliveryGap):
            newest.clear()
    # A kernel that was killed soon may have been missed altogether.
    assert resets >= len(epochs) - 1 >= 1


def test_what_reads_is_sent_again_and_what_changes_is_told(home: House) -> None:
    with home.connect() as client:
        home.kill(client)
        threading.Timer(0.2, home.up).start()
        # Neither knows that the kernel is gone.
        assert client.kernel.status().epoch == 2
        gate = steps.gate(home.folder)
        ref = client.submit(steps.wait, str(gate))
        gate.entered()
        home.kill(client)
        with pytest.raises(eclosion.Unreachable):
            ref.result(DEADLINE_S)
        home.up()
        assert client.submit(steps.square, 4).result(DEADLINE_S) == 16


def test_who_polls_a_subscription_misses_nothing_and_outlasts_the_kernel(home: House) -> None:
    with home.connect() as client:
        subscription, view = client.subscribe("run/*/state"), client.view("run/*/state")
        assert [type(_next(subscription)) for _ in range(2)] == [DeliveryAcknowledged, DeliverySnapshotEnd]
        assert view.update(DEADLINE_S)
        for wait in (subscription.next, view.update) * 2:
            with pytest.raises(eclosion.DeadlineExceeded):
                wait(0.01)
        run = start(client)
        assert isinstance(change := _next(subscription), DeliveryChange)
        assert change.subject == f"run/{run}/state"
        assert view.update(DEADLINE_S)
        assert list(view.states) == [f"run/{run}/state"]

        home.kill(client)

        def waits_for_a_kernel() -> bool:
            try:
                subscription.next(0.01)
            except eclosion.DeadlineExceeded as why:
                return isinstance(why.__cause__, eclosion.Unreachable)
            return False

        _until(waits_for_a_kernel)
        home.up()
        assert isinstance(_next(subscription), DeliveryAcknowledged)
        subscription.close()
        assert subscription.next(0) is None


def test_a_kernel_that_does_not_come_back_is_told_to_who_polls(home: House) -> None:
    with home.connect(reconnect_s=0.05) as client:
        subscription = client.subscribe("run/*/state")
        home.kill(client)

        def gives_up() -> bool:
            try:
                subscription.next(0.01)
            except eclosion.DeadlineExceeded:
                return False
            except eclosion.Unreachable:
                return True
            return False

        _until(gives_up)


def test_a_coroutine_that_polls_a_subscription_misses_nothing(home: House) -> None:
    async def main(other: Client) -> None:
        async with aio.connect(home.socket, reconnect_s=3600) as client:
            subscription, view = client.subscribe("run/*/state"), client.view("run/*/state")
            assert [type(await anext(subscription)) for _ in range(2)] == [DeliveryAcknowledged, DeliverySnapshotEnd]
            assert await view.update()
            for wait in (subscription.next, subscription.__anext__, view.update) * 2:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(wait(), 0.01)
            run = await asyncio.to_thread(start, other)
            assert isinstance(change := await anext(subscription), DeliveryChange)
            assert change.subject == f"run/{run}/state"
            assert await view.update()
            assert list(view.states) == [f"run/{run}/state"]

            await asyncio.to_thread(home.kill, other)
            # More than there are threads, of which one is to be left.
            nothing = 0
            while nothing < 64:
                try:
                    await asyncio.wait_for(anext(subscription), 0.001)
                except asyncio.TimeoutError:
                    nothing += client._client.link.alive() is None
            await asyncio.to_thread(home.up)
            heard = await anext(subscription)
            while not isinstance(heard, DeliveryAcknowledged):
                heard = await anext(subscription)
            subscription.close()
            assert [delivery async for delivery in subscription] == []

    with home.connect() as other:
        asyncio.run(asyncio.wait_for(main(other), DEADLINE_S))


def test_a_deadline_is_of_waiting_for_the_kernel_too(home: House) -> None:
    # Whoever waits for so long is ended by the watchdog.
    with home.connect(reconnect_s=3600) as client:
        home.kill(client)
        _until(lambda: client.link.alive() is None)
        with pytest.raises(eclosion.Unreachable):
            client.call("kernel.status", deadline_s=0.01)
        with pytest.raises(eclosion.Unreachable):
            client.kernel.status(deadline_s=0.01)

    async def main() -> None:
        async with aio.connect(home.socket, reconnect_s=3600) as client:
            await asyncio.to_thread(home.say, "down")
            await asyncio.to_thread(_until, lambda: client._client.link.alive() is None)
            with pytest.raises(eclosion.Unreachable):
                await client.kernel.status(deadline_s=0.01)
            with pytest.raises(eclosion.Unreachable):
                await client.call("kernel.status", deadline_s=0.01)

    home.up()
    asyncio.run(main())


def test_a_connection_that_breaks_without_the_kernel_goes_on_without_a_reset(home: House) -> None:
    with home.connect() as client:
        subscription = client.subscribe("run/**")
        first = start(client)
        heard: list[Delivery] = []
        while not any(isinstance(one, DeliveryChange) and one.subject == f"run/{first}/state" for one in heard):
            heard.append(_next(subscription))
        client.link.connection().close()
        _until(lambda: client.run.get(run=first).run.state == "succeeded")
        while not _succeeded(heard, first):
            heard.append(_next(subscription))
        assert sum(isinstance(one, DeliveryAcknowledged) for one in heard) == 2
        assert not any(isinstance(one, (DeliveryReset, DeliveryGap)) for one in heard)
        ended = {
            one.subject for one in heard if isinstance(one, DeliveryChange) and one.value.get("state") == "succeeded"
        }
        assert ended == {f"run/{first}/state", *(f"run/{first}/task/work[{n}]/state" for n in range(STEPS))}


def test_a_coroutine_that_follows_goes_on_with_the_next_kernel(home: House) -> None:
    async def main(other: Client, run: str) -> list[Delivery]:
        async with await aio.connect(home.socket) as client:
            heard: list[Delivery] = []
            async for delivery in client.subscribe(f"run/{run}/state"):
                heard.append(delivery)
                if len(heard) == 3:
                    await asyncio.to_thread(home.kill, other)
                    await asyncio.to_thread(home.up)
                if len(heard) == 5:
                    return heard
        raise AssertionError("it ended")

    with home.connect() as other:
        run = start(other)
        _until(lambda: other.run.get(run=run).run.state == "succeeded")
        heard = asyncio.run(asyncio.wait_for(main(other, run), DEADLINE_S))
    kinds = [type(delivery).__name__.removeprefix("Delivery") for delivery in heard]
    assert kinds == ["Acknowledged", "Snapshot", "SnapshotEnd", "Acknowledged", "Reset"]


def _next(subscription: Any) -> Delivery:
    delivery = subscription.next(DEADLINE_S)
    assert delivery is not None
    return delivery


def _succeeded(heard: list[Delivery], run: str) -> bool:
    heads = [one for one in heard if isinstance(one, DeliveryChange) and one.subject == f"run/{run}/state"]
    return heads[-1].value["state"] == "succeeded"


def _until(holds: Any) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.01)


def test_a_stream_that_the_kernels_death_cut_off_says_so(home: House) -> None:
    with home.connect() as client:
        events = iter(client.stream("bus.subscribe", {"filter": "**"}))
        next(events)
        home.kill(client)
        with pytest.raises(eclosion.Unreachable):
            list(events)
