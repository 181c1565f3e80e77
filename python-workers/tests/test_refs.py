"""A Ref of a generator: iterated over, in a thread and in a coroutine, left early, waited for as a whole."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

import client_steps as steps
from eclosion import TaskDied
from eclosion.client import aio, as_completed
from eclosion.client._connection import Connection
from eclosion.client._results import value_of
from house import DEADLINE_S, House

if TYPE_CHECKING:
    import pathlib

    from eclosion.client import Client

# More than the worker may be ahead.
MANY = 500


def test_a_ref_of_a_generator_gives_each_value_and_then_what_was_returned(client: Client) -> None:
    ref = client.submit(steps.tokens, MANY)
    assert list(ref) == [f"token {n}" for n in range(MANY)]
    assert ref.result(DEADLINE_S) == MANY


def test_waited_for_as_a_whole_it_passes_over_what_it_yields(client: Client) -> None:
    assert client.submit(steps.tokens, MANY).result(DEADLINE_S) == MANY
    refs = [client.submit(steps.tokens, MANY + n) for n in range(3)]
    assert sorted(ref.result() for ref in as_completed(refs, DEADLINE_S)) == [MANY, MANY + 1, MANY + 2]


def test_who_leaves_the_loop_stops_the_generator(client: Client, tmp_path: pathlib.Path) -> None:
    gate = steps.gate(tmp_path)
    for token in client.submit(steps.endless, str(gate)):
        assert token == 0
        break
    assert gate.left() == "closed"


def test_what_a_generator_raises_is_raised_after_what_it_has_yielded(client: Client) -> None:
    values = iter(client.submit(steps.breaks_off, 3))
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(values)


def test_what_has_one_result_is_not_iterated_over(client: Client) -> None:
    ref = client.submit(steps.square, 3)
    with pytest.raises(TypeError, match="one result"):
        next(iter(ref))
    assert ref.result(DEADLINE_S) == 9


def test_a_function_with_one_result_is_not_begun_to_be_iterated_over(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(client.iterate(steps.logged_tokens, 2)) == ["token 0", "token 1"]

    def sent(*_: Any, **__: Any) -> None:
        raise AssertionError("it was sent")

    monkeypatch.setattr(Connection, "open", sent)
    with pytest.raises(TypeError, match=r"no generator function.*client\.submit\(square"):
        client.iterate(steps.square, 3)


def test_coroutines_iterate_without_blocking_the_loop(home: House, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with await aio.connect(home.socket) as client:
            seen = [token async for token in client.submit(steps.tokens, MANY)]
            assert seen == [f"token {n}" for n in range(MANY)]
            assert await client.submit(steps.tokens, MANY) == MANY
            with pytest.raises(KeyError):
                async for _ in client.submit(steps.breaks_off, 3):
                    pass
            # Two at once, each as the other waits: the loop is never held.
            first, second = (aiter(client.submit(steps.tokens, 50)) for _ in range(2))
            for n in range(50):
                assert [await anext(first), await anext(second)] == [f"token {n}"] * 2
            gate = steps.gate(tmp_path)
            values: Any = aiter(client.submit(steps.endless, str(gate)))
            assert await anext(values) == 0
            await values.aclose()
            assert await asyncio.to_thread(gate.left) == "closed"

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_a_coroutine_that_is_cancelled_while_it_iterates_stops_the_generator(
    home: House, tmp_path: pathlib.Path
) -> None:
    async def main() -> None:
        async with await aio.connect(home.socket) as client:
            gate = steps.gate(tmp_path)
            begun = asyncio.Event()

            async def follow() -> None:
                async for _ in client.submit(steps.stuck, str(gate)):
                    begun.set()

            following = asyncio.ensure_future(follow())
            await begun.wait()
            following.cancel()
            with pytest.raises(asyncio.CancelledError):
                await following
            assert await asyncio.to_thread(gate.left) == "closed"

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_what_the_kernel_has_to_be_asked_for_is_not_asked_for_on_the_loop(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[threading.Thread] = []

    def noted(*arguments: Any) -> Any:
        opened.append(threading.current_thread())
        return value_of(*arguments)

    monkeypatch.setattr("eclosion.client._calls.value_of", noted)

    async def main() -> None:
        async with await aio.connect(home.socket) as client:
            assert len(await client.submit(steps.large, 100_000)) == 100_000
            assert threading.main_thread() not in opened
            with pytest.raises(TaskDied) as died:
                await client.submit(steps.die)
            assert died.value.certificate is not None

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))
