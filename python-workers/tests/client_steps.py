"""What tests of the client have computed on workers, and a gate that says how far such a function has come."""

from __future__ import annotations

import os
import pathlib
import time

import eclosion
from eclosion import current, task


def square(x: int) -> int:
    return x * x


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


def die() -> None:
    os._exit(3)


def wait(gate: str) -> str:
    """Says that it has begun, waits until the gate is opened, and says how that ended."""
    folder = pathlib.Path(gate)
    current().progress(0, 1, "waiting")
    (folder / "entered").touch()
    try:
        while not (folder / "open").exists():
            time.sleep(0.005)
    except eclosion.Cancelled:
        (folder / "left").write_text("cancelled")
        raise
    (folder / "left").write_text("opened")
    return "opened"


wait_task = task(wait)


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
