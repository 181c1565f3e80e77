"""Generators: what they yield goes to whoever granted it, and they stop with him."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

import kernel
from eclosion import _frames as frames
from eclosion._parts import open_carried

Write = Callable[[str], pathlib.Path]

# A call's: nobody keeps its outcome.
CALL = {"epoch": 0xFFFF_FFFF, "counter": 1}
COUNT = """
    import pathlib

    def count(produced, ended):
        try:
            for n in range(1000):
                pathlib.Path(produced).write_text(str(n + 1))
                yield n
        finally:
            pathlib.Path(ended).write_text("closed")
    """


def paths(folder: pathlib.Path) -> dict[str, Any]:
    return {name: kernel.value(str(folder / name)) for name in ("produced", "ended")}


def test_items_arrive_while_the_generator_runs(worker: kernel.Worker, code: Write, tmp_path: pathlib.Path) -> None:
    root = code("""
        import os, pathlib, time

        def tokens(gate):
            yield "to"
            while not pathlib.Path(gate).exists():
                time.sleep(0.001)
            yield "ken"
            return 2
        """)
    gate = tmp_path / "gate"
    arguments = {"gate": kernel.value(str(gate))}
    stream = worker.link.execute("steps:tokens", root, arguments=arguments, credit=8, fence=CALL)
    assert worker.link.item(stream) == "to"
    # The generator cannot have ended: it waits for this.
    gate.touch()
    assert worker.link.item(stream) == "ken"
    assert worker.link.result(stream) == 2


def test_without_credit_a_generator_stands_still(worker: kernel.Worker, code: Write, tmp_path: pathlib.Path) -> None:
    root = code(COUNT)
    stream = worker.link.execute("steps:count", root, arguments=paths(tmp_path), credit=3, fence=CALL)
    produced = tmp_path / "produced"
    for n in range(3):
        assert worker.link.item(stream) == n
    # It makes one ahead, to learn whether it ends, and that one does not leave.
    kernel.until(lambda: produced.exists() and produced.read_text() == "4")
    worker.link.channel.send(frames.PING, 0)
    assert worker.link.take(frames.DATA, frames.PONG).kind == frames.PONG
    # Cumulative: the same or a smaller one changes nothing.
    worker.link.grant(stream, 2)
    worker.link.grant(stream, 5)
    assert [worker.link.item(stream), worker.link.item(stream)] == [3, 4]
    kernel.until(lambda: produced.read_text() == "6")
    worker.link.cancel(stream, 1)
    assert worker.link.error(stream)["reason"] == "task.cancelled"
    assert (tmp_path / "ended").read_text() == "closed"
    assert produced.read_text() == "6"


@pytest.mark.parametrize("rung", [1, 2])
def test_a_cancel_closes_the_generator_and_the_worker_stays(
    worker: kernel.Worker, code: Write, tmp_path: pathlib.Path, rung: int
) -> None:
    root = code(COUNT)
    for _ in range(20):
        (tmp_path / "ended").unlink(missing_ok=True)
        stream = worker.link.execute("steps:count", root, arguments=paths(tmp_path), credit=1, fence=CALL)
        assert worker.link.item(stream) == 0
        worker.link.cancel(stream, rung)
        assert worker.link.error(stream)["reason"] == "task.cancelled"
        assert (tmp_path / "ended").read_text() == "closed"


def test_the_end_of_the_kernel_closes_a_calls_generator(
    worker: kernel.Worker, code: Write, tmp_path: pathlib.Path
) -> None:
    root = code(COUNT)
    stream = worker.link.execute("steps:count", root, arguments=paths(tmp_path), credit=1, fence=CALL)
    assert worker.link.item(stream) == 0
    worker.link.close()
    kernel.until((tmp_path / "ended").exists)
    worker.adopt().welcome()
    stream = worker.link.execute("operator:index", root, arguments={}, credit=1, fence=CALL)
    assert worker.link.error(stream)["reason"] == "task.arguments"


def test_a_runs_generator_goes_on_without_a_kernel_and_its_result_has_every_item(
    worker: kernel.Worker, code: Write, tmp_path: pathlib.Path
) -> None:
    root = code("""
        import pathlib, time

        def count(gate):
            for n in range(5):
                yield n
                while n == 1 and not pathlib.Path(gate).exists():
                    time.sleep(0.001)
        """)
    gate = tmp_path / "gate"
    fence = {"epoch": 1, "counter": 9}
    arguments = {"gate": kernel.value(str(gate))}
    stream = worker.link.execute("steps:count", root, arguments=arguments, credit=64, fence=fence)
    assert [worker.link.item(stream), worker.link.item(stream)] == [0, 1]
    worker.link.close()
    link = worker.adopt()
    assert link.welcome(2)["attempts"] == [fence]
    link.grant(2, 64)
    link.channel.send(frames.PING, 0)
    link.take(frames.PONG)
    gate.touch()
    assert [link.item(2) for _ in range(3)] == [2, 3, 4]
    assert link.result(2) == [0, 1, 2, 3, 4]


def test_what_a_runs_generator_returns_is_its_result(worker: kernel.Worker, code: Write) -> None:
    root = code("def train():\n    yield 0.5\n    yield 0.25\n    return {'loss': 0.25}\n")
    stream = worker.link.execute("steps:train", root, credit=64)
    assert worker.link.result(stream) == {"loss": 0.25}


def test_an_asynchronous_generator_streams_and_is_closed(
    worker: kernel.Worker, code: Write, tmp_path: pathlib.Path
) -> None:
    root = code("""
        import asyncio, pathlib

        async def ticks(ended):
            try:
                for n in range(100):
                    await asyncio.sleep(0)
                    yield n
            finally:
                await asyncio.sleep(0)
                pathlib.Path(ended).touch()
        """)
    arguments = {"ended": kernel.value(str(tmp_path / "ended"))}
    stream = worker.link.execute("steps:ticks", root, arguments=arguments, credit=2, fence=CALL)
    assert [worker.link.item(stream), worker.link.item(stream)] == [0, 1]
    worker.link.cancel(stream, 1)
    assert worker.link.error(stream)["reason"] == "task.cancelled"
    assert (tmp_path / "ended").exists()


def test_an_array_and_a_large_text_ride_along(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        import numpy as np

        def parts():
            yield {"frame": np.arange(6, dtype="f4").reshape(2, 3)}
            yield "x" * 100_000
            yield bytes(20 << 20)
        """)
    stream = worker.link.execute("steps:parts", root, credit=8, fence=CALL)
    payload = msgspec.msgpack.decode(worker.link.take(frames.DATA, stream=stream).body)["payload"]
    (part,) = payload["parts"]
    assert (part["codec"], part["bytes"]) == ("npy", len(part["data"]))
    array: Any = open_carried("npy", part["data"])
    assert np.array_equal(array, np.array([[0, 1, 2], [3, 4, 5]], dtype="f4"))
    assert worker.link.item(stream) == "x" * 100_000
    assert worker.link.error(stream)["reason"] == "frame.size"
    assert worker.link.lends == 1, "who cannot be lent anything is asked once"


def test_what_a_generator_raises_is_the_calls_error(worker: kernel.Worker, code: Write) -> None:
    root = code("def half():\n    yield 1\n    raise ValueError('half way')\n")
    stream = worker.link.execute("steps:half", root, credit=8, fence=CALL)
    assert worker.link.item(stream) == 1
    assert worker.link.error(stream)["message"] == "ValueError: half way"


def test_reports_come_in_their_place_among_the_items(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        from eclosion import current

        def train():
            current().metric("loss", 0.5, 1)
            yield 1
            current().metric("loss", 0.25, 2)
        """)
    stream = worker.link.execute("steps:train", root, credit=8, fence=CALL)
    tags = [msgspec.msgpack.decode(worker.link.take(frames.DATA, stream=stream).body)["tag"] for _ in range(3)]
    assert tags == ["metric", "item", "metric"]
    assert worker.link.result(stream) is None


def test_a_runtime_that_lies_below_the_code_root_is_not_taken_for_its_code(code: Write, tmp_path: pathlib.Path) -> None:
    root = code("""
        from eclosion import current

        def train():
            current().metric("loss", 0.5)
            return 1
        """)
    shutil.copytree(kernel.SOURCES, root / "cache")
    with kernel.worker(tmp_path, {"PYTHONPATH": str(root / "cache")}) as worker:
        worker.link.welcome()
        stream = worker.link.execute("steps:train", root)
        assert msgspec.msgpack.decode(worker.link.take(frames.DATA, stream=stream).body)["tag"] == "metric"
        assert worker.link.result(stream) == 1
