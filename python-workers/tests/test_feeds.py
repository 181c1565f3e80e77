"""A stream from a program into a function on a worker: credit both ways, cancel and death at either end."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import client_steps as steps
import eclosion
from eclosion.client import _feeds
from house import DEADLINE_S, SOURCES, House
from kernel import until

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Generator

    from eclosion.client import Client

MANY = 1000
# What the function may have asked for, the kernel may hold and the feed may have made beyond what was taken.
AHEAD = 200


class Source:
    """Counts what is taken of it, and says when it is closed."""

    def __init__(self) -> None:
        self.taken = 0
        self.closed = threading.Event()

    def values(self, count: int | None = None) -> Generator[Any, None, None]:
        try:
            for n in itertools.count() if count is None else range(count):
                self.taken = n + 1
                yield n
        finally:
            self.closed.set()


def test_a_function_takes_every_value_in_order_and_the_feed_is_over(client: Client) -> None:
    source = Source()
    assert client.submit(steps.total, client.feed(source.values(MANY))).result(DEADLINE_S) == [MANY, sum(range(MANY))]
    assert source.closed.wait(DEADLINE_S)
    # Its place is free again: more of them than there are places, one after the other.
    for _ in range(70):
        assert client.submit(steps.total, client.feed([1, 2])).result(DEADLINE_S) == [2, 3]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Fewer places than there are, and a number of feeds for which they do not do."""
    monkeypatch.setattr(_feeds, "ADDRESSES", 16)
    return 20


def test_what_nobody_reads_ends_with_its_call(client: Client, few: int) -> None:
    for _ in range(few):
        assert client.submit(steps.kind, client.feed([1])).result(DEADLINE_S) == "InputStream"


def test_what_nobody_reads_ends_when_it_is_refused(client: Client, few: int) -> None:
    kept: list[Any] = []
    for _ in range(few):
        kept.append(client.feed([1]))
        with pytest.raises(eclosion.Refused, match="an argument cannot be sent"):
            client.submit(steps.total, kept[-1], odd=object())


def test_what_nobody_reads_ends_when_nobody_has_it(client: Client, few: int) -> None:
    for _ in range(few):
        client.feed([1])


def test_what_nobody_reads_ends_with_the_client_and_with_what_iterates(home: House, few: int) -> None:
    kept: list[Any] = []
    for _ in range(few // 2):
        with home.connect() as client:
            kept.append(client.feed([1]))
            with client.iterate(steps.ignores, client.feed([1])) as values:
                assert list(values) == [0]


def test_values_go_through_a_function_and_come_back_as_they_do(client: Client) -> None:
    source = Source()
    doubled: Any = iter(client.submit(steps.doubled, client.feed(source.values())))
    for n in range(MANY):
        assert next(doubled) == 2 * n
        assert source.taken <= n + AHEAD
    doubled.close()
    assert source.closed.wait(DEADLINE_S)


def test_a_function_that_stands_still_stops_the_iterator(client: Client, tmp_path: pathlib.Path) -> None:
    gate = steps.gate(tmp_path)
    source = Source()
    ref = client.submit(steps.takes_one, client.feed(source.values()), str(gate))
    gate.entered()
    # It runs as far as there is credit, and no further, however often it could have.
    until(lambda: source.taken > 1)
    seen = -1
    while seen != source.taken:
        seen = source.taken
        for _ in range(20):
            client.kernel.status()
    assert seen <= AHEAD
    gate.open()
    assert ref.result(DEADLINE_S) == 0
    assert source.closed.wait(DEADLINE_S), "the function has left it"


def test_a_cancelled_function_closes_the_iterator(client: Client, tmp_path: pathlib.Path) -> None:
    gate = steps.gate(tmp_path)
    source = Source()
    never = threading.Event()

    def values() -> Generator[int, None, None]:
        try:
            yield from range(3)
            never.wait(DEADLINE_S)
        finally:
            source.closed.set()

    ref = client.submit(steps.takes_all, client.feed(values()), str(gate))
    gate.entered()
    ref.cancel()
    assert gate.left() == "cancelled"
    never.set()
    assert source.closed.wait(DEADLINE_S)


def test_a_worker_that_dies_closes_the_iterator(client: Client) -> None:
    source = Source()
    with pytest.raises(eclosion.TaskDied):
        client.submit(steps.dies_at, client.feed(source.values()), 5).result(DEADLINE_S)
    assert source.closed.wait(DEADLINE_S)


def test_what_the_iterator_raises_is_told_to_the_function(client: Client) -> None:
    def values() -> Generator[int, None, None]:
        yield 1
        raise RuntimeError("no more rows")

    with pytest.raises(eclosion.Refused, match="no more rows"):
        client.submit(steps.total, client.feed(values())).result(DEADLINE_S)


def test_a_program_that_dies_is_told_to_the_function(home: House, client: Client, tmp_path: pathlib.Path) -> None:
    """The function outlives its caller here: it is a step's, or another's."""
    program = """
import sys, itertools, eclosion
client = eclosion.connect(sys.argv[1])
feed = client.feed(itertools.count())
print(*feed.place.values(), flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(home.socket)],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    from eclosion import _values

    feed = _values.Fed()
    feed.place = dict(zip(("socket", "operation"), process.stdout.readline().split(), strict=True))
    gate = steps.gate(tmp_path)
    ref = client.submit(steps.takes_all, feed, str(gate))
    gate.entered()
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    with pytest.raises(eclosion.Refused) as why:
        ref.result(DEADLINE_S)
    assert why.value.error.get("reason") == "service.gone"


def test_an_array_is_a_value_and_a_feed_inside_of_another_argument_is_refused(client: Client) -> None:
    np = pytest.importorskip("numpy")
    arrays = [np.full(1000, n) for n in range(5)]
    assert client.submit(steps.sums, client.feed(arrays), np.arange(4)).result(DEADLINE_S) == [
        6,
        1006,
        2006,
        3006,
        4006,
    ]
    with client.feed([1]) as feed, pytest.raises(eclosion.Refused, match="an argument cannot be sent"):
        client.submit(steps.total, [feed])
