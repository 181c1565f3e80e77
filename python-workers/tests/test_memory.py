"""Large values to a client in shared memory, with real workers of a real kernel."""

from __future__ import annotations

import contextlib
import gc
import glob
import json
import os
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from eclosion import Unreachable
from house import DEADLINE_S, SOURCES, House, house
from kernel import until

np = pytest.importorskip("numpy")

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from eclosion.client import Client

BYTES = 8 << 20
SOURCE = """
import os, zlib
import numpy as np

def array(n, size):
    return np.full(size, n % 251, dtype="u1")

def both(size):
    return {"array": np.arange(size, dtype="f8"), "text": "x" * size, "small": np.arange(3)}

def frames(count, size):
    for n in range(count):
        yield np.full(size, n % 251, dtype="u1")
    return count

def endless(size):
    n = 0
    while True:
        yield np.full(size, n % 251, dtype="u1")
        n += 1

def arenas():
    found = set()
    for line in open("/proc/self/maps"):
        if "memfd:eclosion-arena" in line:
            found.add(line.split()[4])
    return sorted(found)

KEPT = {}

def keeps(n, array):
    KEPT[n] = array[1:]
    return int(array[0])

def kept():
    return {str(n): [int(array.min()), int(array.max())] for n, array in KEPT.items()}

def own():
    # Bytes of arenas that are pages of this process alone.
    count, arena = 0, False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if not words[0].endswith(":"):
            arena = "memfd:eclosion-arena" in line
        elif arena and words[0] == "Anonymous:":
            count += int(words[1]) * 1024
    return count

def same(array):
    return array

def file(path):
    import pathlib
    return pathlib.Path(path)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("memory")) as built:
        built.write("made.py", SOURCE)
        yield built


@pytest.fixture
def made(home: House, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(home.folder / "code"), *sys.path])
    import made  # pyright: ignore[reportMissingImports]

    return made


def mapping_of(address: int) -> tuple[str, str]:
    """What is mapped there, and its inode."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            words = line.split()
            start, end = (int(edge, 16) for edge in words[0].split("-"))
            if start <= address < end:
                return (words[5] if len(words) > 5 else ""), words[4]
    raise AssertionError("nothing is mapped there")


def place_of(array: Any) -> str:
    return mapping_of(array.ctypes.data)[0]


def test_a_large_result_lies_where_the_worker_wrote_it(home: House, made: Any) -> None:
    with home.connect() as client:
        array = client.submit(made.array, 7, BYTES).result(DEADLINE_S)
        assert array.nbytes == BYTES
        assert (array == 7).all()
        assert not array.flags.writeable
        path, inode = mapping_of(array.ctypes.data)
        assert path.startswith("/memfd:eclosion-arena")
        # The same memory in both processes: nothing was copied between them.
        assert inode in client.submit(made.arenas).result(DEADLINE_S)


@pytest.mark.parametrize("memory", ["sealed", "named", None])
def test_values_are_the_same_by_whatever_way_they_come(home: House, made: Any, memory: Any) -> None:
    with home.connect(memory=memory) as client:
        value = client.submit(made.both, 100_000).result(DEADLINE_S)
        assert (value["array"] == np.arange(100_000)).all()
        assert value["text"] == "x" * 100_000
        assert value["small"].tolist() == [0, 1, 2]
        place = place_of(value["array"])
        assert place.startswith({"sealed": "/memfd:eclosion-arena", "named": "/dev/shm/ecl.", None: ""}[memory])
        assert memory or "eclosion" not in place
        checks = [zlib.crc32(frame) for frame in client.iterate(made.frames, 20, 1 << 20)]
        assert checks == [zlib.crc32(bytes([n % 251]) * (1 << 20)) for n in range(20)]


def test_what_nobody_has_any_more_is_used_again(home: House, made: Any) -> None:
    with home.connect() as client:
        arenas: set[str] = set()
        for n in range(100):
            array = client.submit(made.array, n, BYTES).result(DEADLINE_S)
            assert array[-1] == n % 251
            path, inode = mapping_of(array.ctypes.data)
            assert path.startswith("/memfd:eclosion-arena"), f"{n}: it was given back, so that there is room"
            arenas.add(inode)
        assert len(arenas) <= 8, "a hundred times 8 MiB went through a few arenas"


def test_what_is_kept_stays_as_it_is_and_more_than_a_client_may_hold_rides_along(home: House, made: Any) -> None:
    with home.connect() as client:
        kept = list(client.iterate(made.frames, 80, 100_000))
        assert [int(frame[0]) for frame in kept] == list(range(80))
        assert all((frame == n).all() for n, frame in enumerate(kept))
        places = [place_of(frame).startswith("/memfd:eclosion-arena") for frame in kept]
        assert 0 < sum(places) < 80


@pytest.mark.parametrize("memory", ["sealed", "named"])
def test_as_long_as_anything_lies_there_its_place_is_not_used_again(home: House, made: Any, memory: Any) -> None:
    with home.connect(memory=memory) as client:
        parts: list[Callable[[Any], Any]] = [
            lambda array: array,
            lambda array: array[10:][::2],
            lambda array: memoryview(array)[5:],
            lambda array: array.reshape(2, -1).T.view("i1"),
        ]
        for part in parts:
            kept = part(client.submit(made.array, 7, BYTES).result(DEADLINE_S))
            # Each would take the first place that is free.
            for n in range(20, 26):
                assert (client.submit(made.array, n, BYTES).result(DEADLINE_S) == n).all()
            assert (np.asarray(kept) == 7).all()


def test_an_argument_that_a_function_keeps_stays_as_it_is(home: House, made: Any) -> None:
    """Its place in shared memory is used again for the calls after it."""
    with home.connect() as client:
        for n in range(4):
            array = np.full(BYTES - n, n, dtype="u1")
            assert client.submit(made.keeps, n, array).result(DEADLINE_S) == n
            assert (client.submit(made.same, np.full(BYTES, 99, dtype="u1")).result(DEADLINE_S) == 99).all()
        assert client.submit(made.kept).result(DEADLINE_S) == {str(n): [n, n] for n in range(4)}
        # And what it does not keep was not copied.
        assert 4 * (BYTES - 4) <= client.submit(made.own).result(DEADLINE_S) < 5 * BYTES


def test_what_is_kept_stays_as_it_is_after_its_client_is_gone(home: House, made: Any) -> None:
    kept: list[Any] = []
    for n in range(3):
        with home.connect() as client:
            kept.append(client.submit(made.array, n, 300_000).result(DEADLINE_S))
        kept.append(home.connect().submit(made.array, n, 300_000).result(DEADLINE_S))
    # A client that was not closed goes when the collector finds it.
    gc.collect()
    with home.connect() as other:
        others = [other.submit(made.array, n, 300_000).result(DEADLINE_S) for n in range(100, 140)]
        assert [set(array.tolist()) for array in kept] == [{n // 2} for n in range(6)]
        del others
        assert other.kernel.status().traffic.connections == 1 + len(kept)
        kept.clear()
        # Their connections go with them.
        until(lambda: other.kernel.status().traffic.connections == 1)


def test_calls_end_with_their_client_though_its_memory_is_kept(home: House, made: Any) -> None:
    client = home.connect()
    kept = client.submit(made.array, 7, BYTES).result(DEADLINE_S)
    values, deliveries = client.iterate(made.endless, 100), client.subscribe("**")
    next(values)
    client.close()
    with pytest.raises(Unreachable):
        list(values)
    with pytest.raises(Unreachable):
        list(deliveries)
    with pytest.raises(Unreachable):
        client.submit(made.array, 0, 1)
    assert (kept == 7).all()


def test_a_program_that_keeps_an_array_ends(home: House) -> None:
    source = f"""
import sys
sys.path[:0] = [{str(home.folder / "code")!r}, {str(SOURCES)!r}]
import eclosion, made
with eclosion.connect({str(home.socket)!r}) as client:
    kept = client.submit(made.array, 7, {BYTES}).result({DEADLINE_S})
print(set(kept.tolist()))
"""
    said = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (said.stdout, said.returncode) == ("{7}\n", 0), said.stderr


def test_a_stream_that_is_left_gives_everything_back(home: House, made: Any) -> None:
    with home.connect() as client:
        for _ in range(10):
            with client.iterate(made.endless, 100_000) as values:
                first = next(values)
                assert int(first[0]) == 0
            assert (first == 0).all(), "what was taken is still ours"
        # Ten streams were ahead by more than a client may hold: had they kept it, this would ride along.
        last = client.submit(made.array, 9, 100_000).result(DEADLINE_S)
        assert place_of(last).startswith("/memfd:eclosion-arena")


def test_names_are_this_users_alone_and_go_with_the_client_and_its_last_value(home: House, made: Any) -> None:
    def names() -> list[str]:
        return [name for name in os.listdir("/dev/shm") if name.startswith(f"ecl.{tag}.")]

    client: Client
    with home.connect(memory="named") as client:
        array = client.submit(made.array, 3, BYTES).result(DEADLINE_S)
        path = place_of(array)
        tag = path.split(".")[1]
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert names() == [os.path.basename(path)]
    assert (array == 3).all(), "who has it mapped reads on"
    del array
    with home.connect() as other, contextlib.closing(other.link):
        status = other.kernel.status
        until(lambda: status().traffic.connections == 1 and not names())


def test_a_file_of_a_call_comes_with_its_name(home: House, made: Any) -> None:
    path = home.write("note.txt", "a few words\n")
    large = home.write("large.txt", "x" * 200_000)
    with home.connect() as client:
        for source in (path, large):
            got = client.submit(made.file, str(source)).result(DEADLINE_S)
            assert (got.name, got.read_text()) == (source.name, source.read_text())


def test_names_of_a_killed_kernel_are_removed_by_the_next(tmp_path: pathlib.Path, made: Any) -> None:
    with house(tmp_path) as other:
        with other.connect(memory="named") as client:
            array = client.submit(made.array, 5, BYTES).result(DEADLINE_S)
            path = place_of(array)
            other.kill(client)
        assert os.path.exists(path), "nobody was left who could"
        other.up()
        # Once it has taken over what survived.
        until(lambda: not os.path.exists(path))
        assert (array == 5).all()


def test_names_of_a_kernel_that_never_came_back_are_collected_by_any_other(tmp_path: pathlib.Path, made: Any) -> None:
    for name in ("gone", "other"):
        (tmp_path / name).mkdir()
    before = set(glob.glob("/dev/shm/ecl-trash-*"))
    with house(tmp_path / "gone") as gone, gone.connect(memory="named") as client:
        path = place_of(client.submit(made.array, 5, BYTES).result(DEADLINE_S))
        item = f"segment/{os.path.basename(path)}"
        other = House(tmp_path / "other")
        other.environment["ECLOSION_RETENTION_LEFTOVER_MS"] = "0"
        other.environment["ECLOSION_RETENTION_INTERVAL_MS"] = "0"

        def planned() -> list[str]:
            plan = json.loads(other.say("gc", "plan", "--json").stdout)
            return [f"{found['item']['kind']}/{found['item']['id']}" for found in plan["items"]]

        try:
            other.up()
            assert item not in planned(), "its kernel is alive"
            gone.kill(client)
            until(lambda: item in planned())
            assert other.say("gc", "apply", "--yes", "--reason", "a test").returncode == 0
            assert not os.path.exists(path)
            assert other.say("gc", "trash", "--empty", "--reason", "a test").returncode == 0
            assert item not in planned()
            until(lambda: set(glob.glob("/dev/shm/ecl-trash-*")) <= before)
        finally:
            other.say("down")
