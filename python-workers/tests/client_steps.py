"""What tests of the client have computed on workers, and a gate that says how far such a function has come."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import tempfile
import time
from typing import TYPE_CHECKING, Any

import eclosion
from eclosion import current, task

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable


def square(x: int) -> int:
    return x * x


@functools.lru_cache
def cached(x: int, *, plus: int = 0) -> int:
    return x + plus


@dataclasses.dataclass
class Point:
    x: int
    y: int = 2

    def far(self) -> int:
        return self.x + self.y

    @classmethod
    def origin(cls) -> str:
        return cls.__name__


class Deep(Point):
    """Inherits what is found at its base."""


def join(start: str, *, end: str) -> str:
    return f"{start}-{end}"


def slow(n: int) -> int:
    """Long enough that a kernel is killed while it runs."""
    time.sleep(0.1)
    return n


def large(count: int) -> str:
    return "x" * count


def fail() -> None:
    raise KeyError("no such thing")


def fail_oddly() -> str:
    return b"\xff".decode()


def stop() -> int:
    raise StopIteration(3)


def stop_async() -> int:
    raise StopAsyncIteration(3)


def die() -> None:
    os._exit(3)


def wait(gate: str) -> str:
    """Says that it has begun, waits until the gate is opened, and says how that ended."""
    folder = pathlib.Path(gate)
    current().progress(0, 1, "waiting")
    try:
        # A cancel may come as soon as somebody sees this.
        (folder / "entered").touch()
        while not (folder / "open").exists():
            time.sleep(0.005)
    except eclosion.Cancelled:
        _left(gate, "cancelled")
        raise
    _left(gate, "opened")
    return "opened"


wait_task = task(wait)


def opens(count: int) -> int:
    """So many files at a time."""
    with contextlib.ExitStack() as files:
        for _ in range(count):
            files.enter_context(open(os.devnull))
    return count


def writes(length: int) -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"x" * length)
        file.write(b"x")


def tokens(count: int) -> Generator[str, None, int]:
    for n in range(count):
        yield f"token {n}"
    return count


@functools.wraps(tokens)
def logged_tokens(count: int) -> Generator[str, None, int]:
    """A generator, which its own code does not show."""
    print(count)
    return tokens(count)


def breaks_off(count: int) -> Generator[int, None, None]:
    yield from range(count)
    raise KeyError("no more")


def endless(gate: str) -> Generator[int, None, None]:
    """Says how it ended, if it does."""
    try:
        yield from itertools.count()
    finally:
        _left(gate, "closed")


def stuck(gate: str) -> Generator[int, None, None]:
    """Yields once, and never again."""
    try:
        yield 0
        while True:
            time.sleep(0.005)
    finally:
        _left(gate, "closed")


def total(values: Iterable[int]) -> list[int]:
    taken = list(values)
    return [len(taken), sum(taken)]


def kind(value: object) -> str:
    return type(value).__name__


def ignores(values: Iterable[int]) -> Generator[int, None, None]:
    yield 0


def doubled(values: Iterable[int]) -> Generator[int, None, None]:
    for value in values:
        yield 2 * value


def takes_one(values: Iterable[int], gate: str) -> int:
    """Takes one, and nothing more until the gate is opened."""
    first = next(iter(values))
    (pathlib.Path(gate) / "entered").touch()
    while not (pathlib.Path(gate) / "open").exists():
        time.sleep(0.005)
    return first


def takes_all(values: Iterable[int], gate: str) -> None:
    try:
        for _ in values:
            (pathlib.Path(gate) / "entered").touch()
    except eclosion.Cancelled:
        _left(gate, "cancelled")
        raise


def dies_at(values: Iterable[int], last: int) -> None:
    for value in values:
        if value == last:
            os._exit(3)


def sums(values: Iterable[Any], more: Any) -> list[int]:
    return [int(value.sum() + more.sum()) for value in values]


def reads(paths: Iterable[pathlib.Path]) -> list[list[str]]:
    """What each is, where it lies, and how long its content is."""
    return [[type(path).__name__, str(path), str(len(path.read_bytes()))] for path in paths]


def reads_one(path: pathlib.Path) -> list[str]:
    return reads([path])[0]


def _left(gate: str, how: str) -> None:
    """Whole from the moment that it is seen."""
    part = pathlib.Path(gate) / "left.part"
    part.write_text(how)
    part.rename(part.with_suffix(""))


def held(folder: str) -> int:
    """Says which process computes it, and returns that once it is let go."""
    root = pathlib.Path(folder)
    (root / str(os.getpid())).touch()
    while not (root / "open").exists():
        time.sleep(0.005)
    return os.getpid()


class Gate:
    """The test's end of :func:`wait`. Another process's files are all that tells."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __str__(self) -> str:
        return str(self.folder)

    def entered(self) -> None:
        self._until("entered")

    def open(self) -> None:
        (self.folder / "open").touch()

    def left(self) -> str:
        self._until("left")
        return (self.folder / "left").read_text()

    def _until(self, name: str) -> None:
        end = time.monotonic() + 30
        while not (self.folder / name).exists():
            assert time.monotonic() < end, f"the function has not {name}"
            time.sleep(0.002)


def gate(folder: pathlib.Path) -> Gate:
    return Gate(folder / "gate")
