"""One suite for every way that a large value crosses between a client and a worker, with real ones of a real kernel.

A client takes values by sealed or by named memory, or inline (in frames); its socket is the kernel's listening one. A
worker has inherited its socket from the keeper, or dialed the listening one when it was started by hand. So the
cells are {sealed, named, inline} clients x {inherited, listening} workers, each with an argument, a result and items.
What is not here, and why:

* A *worker by named memory*: a worker speaks frames, over a socket that passes descriptors, so it always has the sealed
  kind; whatever its client reads, it writes the same. An *inline worker* is one to whom nothing is lent, which is
  what the inline client's column is.
* A *client that has inherited its socket*: the kernel forks no clients. A session over an inherited socket, without a
  real client around it, is in `adapters/ipc/tests/sharing.rs`, the memory alone in `adapters/ipc/tests/arenas.rs`.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal

import pytest

from house import DEADLINE_S, SOURCES, House, house
from kernel import until

np = pytest.importorskip("numpy")

if TYPE_CHECKING:
    from collections.abc import Iterator

Memory = Literal["sealed", "named"] | None
MEMORIES: list[Memory] = ["sealed", "named", None]
WAYS: dict[Memory, str] = {"sealed": "/memfd:eclosion-arena", "named": "/dev/shm/ecl.", None: ""}
SIZE = 3 << 20
SOURCE = """
import os
import numpy as np

def mapping_of(address):
    for line in open("/proc/self/maps"):
        words = line.split()
        start, end = (int(edge, 16) for edge in words[0].split("-"))
        if start <= address < end:
            return [words[5] if len(words) > 5 else "", words[4]]

def look(array, small, text):
    \"\"\"Where the argument lies, in this process's own table.\"\"\"
    path, inode = mapping_of(array.ctypes.data)
    last = mapping_of(array.ctypes.data + array.nbytes - 1)
    return {
        "path": path, "whole": [path, inode] == last, "writeable": array.flags.writeable,
        "sum": int(array.sum()), "small": small.tolist(), "text": len(text), "pid": os.getpid(),
        "parent": open("/proc/self/stat").read().rpartition(")")[2].split()[1],
    }

def make(size):
    return {"array": np.arange(size, dtype="u1"), "pid": os.getpid()}

def back(array):
    return array

def items(count, size):
    for n in range(count):
        yield np.full(size, n, dtype="u1")

def whoami():
    return os.getpid()
"""


@pytest.fixture(scope="module", params=["inherited", "listening"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A kernel with one worker, which has come by the named kind of socket."""
    with house(tmp_path_factory.mktemp(request.param)) as built:
        built.write("ways.py", SOURCE)
        if request.param == "inherited":
            yield built
            return
        with built.connect() as client:
            sys.path.insert(0, str(built.folder / "code"))
            try:
                ways: Any = importlib.import_module("ways")
            finally:
                sys.path.pop(0)
            client.submit(ways.whoami).result(DEADLINE_S)
            [worker] = client.pool.status().workers
            words = ["--connect", str(built.socket), "--environment", worker.environment]
            hand = subprocess.Popen(
                [sys.executable, "-m", "eclosion.worker", *words],
                env={**built.environment, "PYTHONPATH": str(SOURCES)},
                stdin=subprocess.DEVNULL,
            )
            try:
                until(lambda: any(view.attached for view in client.pool.status().workers))
                # All but it are told to go, and none is begun while there is it.
                client.pool.recycle(worker=worker.worker, reason="a test")
                until(lambda: [view.attached for view in client.pool.status().workers] == [True])
                yield built
            finally:
                hand.kill()
                hand.wait(DEADLINE_S)


@pytest.fixture
def ways(home: House, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(home.folder / "code"), *sys.path])
    import ways  # pyright: ignore[reportMissingImports]

    return ways


def place_of(ways: Any, array: Any) -> str:
    return ways.mapping_of(array.ctypes.data)[0]


@pytest.mark.parametrize("memory", MEMORIES)
def test_an_argument_lies_at_the_worker_where_the_kernel_has_put_it(home: House, ways: Any, memory: Memory) -> None:
    with home.connect(memory=memory) as client:
        array = np.arange(SIZE, dtype="u1")
        seen = client.submit(ways.look, array, small=np.arange(5), text="x" * 100_000).result(DEADLINE_S)
        # By address: all of the array lies in what the worker has mapped of the kernel's memory, and nobody copied it.
        assert seen["path"].startswith("/memfd:eclosion-arena")
        assert seen["whole"]
        assert not seen["writeable"]
        assert (seen["sum"], seen["small"], seen["text"]) == (int(array.sum()), [0, 1, 2, 3, 4], 100_000)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_result_and_items_lie_where_the_client_reads_them(home: House, ways: Any, memory: Memory) -> None:
    with home.connect(memory=memory) as client:
        made = client.submit(ways.make, SIZE).result(DEADLINE_S)
        assert (made["array"] == np.arange(SIZE, dtype="u1")).all()
        assert place_of(ways, made["array"]).startswith(WAYS[memory])
        for n, item in enumerate(client.iterate(ways.items, 10, SIZE)):
            assert (item == n).all()
            assert place_of(ways, item).startswith(WAYS[memory])
            assert memory or "eclosion" not in place_of(ways, item)


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_goes_there_and_back_is_the_same_and_the_same_again(home: House, ways: Any, memory: Memory) -> None:
    with home.connect(memory=memory) as client:
        values = [np.arange(30_000.0).reshape(100, 300).T, np.zeros((0, 4)), np.array([[True]])]
        for value in values * 10:
            back = client.submit(ways.back, value).result(DEADLINE_S)
            assert (back.shape, back.dtype) == (value.shape, value.dtype)
            assert (back == value).all()


def test_the_worker_came_by_the_socket_that_is_meant(home: House, ways: Any, request: pytest.FixtureRequest) -> None:
    by_hand = request.node.callspec.params["home"] == "listening"
    with home.connect() as client:
        pid = client.submit(ways.whoami).result(DEADLINE_S)
        [view] = [view for view in client.pool.status().workers if view.pid == pid]
        assert view.attached == by_hand


def test_arguments_that_no_message_holds_are_refused_with_a_way_out(home: House, ways: Any) -> None:
    import eclosion

    with home.connect() as client:
        for value in (np.zeros(17 << 20, dtype="u1"), b"x" * (17 << 20)):
            with pytest.raises(eclosion.Refused, match="over the limit") as refused:
                client.submit(ways.back, value)
            assert "path" in refused.value.error.get("help", "")
        assert client.submit(ways.back, 1).result(DEADLINE_S) == 1
