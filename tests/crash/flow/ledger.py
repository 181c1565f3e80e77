"""Tasks that keep a ledger outside the kernel's control: one line, in one write, for each start and each end."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from eclosion import current


def note(ledger: str, event: str, **more: object) -> None:
    """Append a line about the attempt in hand to this worker's own file."""
    here = current()
    append(ledger, event, run=here.run, task=here.task, attempt=here.attempt, **more)


def append(ledger: str, event: str, **more: object) -> None:
    """Append a line to this process's own file."""
    line = {"event": event, "pid": os.getpid(), "ns": time.monotonic_ns(), **more}
    path = Path(ledger) / f"{os.getpid()}.jsonl"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)


def items(ledger: str, width: int) -> list[int]:
    note(ledger, "start")
    note(ledger, "end")
    return list(range(1, width + 1))


def is_open(gate: str, task: str) -> bool:
    return (Path(gate) / "all").exists() or (Path(gate) / task).exists()


def work(ledger: str, item: int, work_ms: int, gate: str = "") -> int:
    # Printed first: whoever finds the start in the ledger may look for the line.
    print(f"working on {item}", flush=True)
    note(ledger, "start")
    here = current()
    # Removed after the outcome; whoever is killed does not get there.
    (here.scratch / "half").write_text("done")
    deadline = time.monotonic() + work_ms / 1000
    while time.monotonic() < deadline or (gate and not is_open(gate, here.task)):
        here.progress(0.5, 1.0, "working")
        if here.wait_cancelled(0.01):
            break
    note(ledger, "end")
    return item * 2


def quick(ledger: str, item: int, blocks: int, gate: str) -> int:
    note(ledger, "start")
    here = current()
    while item == blocks and not (Path(gate) / f"crowd-{here.run}").exists():
        if here.wait_cancelled(0.01):
            break
    note(ledger, "end")
    return item


def join(ledger: str, items: list[int]) -> list[int]:
    note(ledger, "start")
    note(ledger, "end")
    return items


def finish(ledger: str, items: list[int]) -> int:
    note(ledger, "start")
    note(ledger, "end")
    return sum(items)


def hold(ledger: str) -> None:
    """No task of the flow: a call that lasts until it is cancelled."""
    note(ledger, "called")
    while not current().wait_cancelled(10):
        pass
    note(ledger, "cancelled")


def count(ledger: str, label: str, items: int, fill: int) -> Iterator[dict[str, object]]:
    """A generator that says how far it is, and that it was closed."""
    try:
        for index in range(items):
            note(ledger, "made", label=label, index=index)
            yield {"index": index, "fill": "x" * fill}
    finally:
        note(ledger, "closed", label=label)


def look(ledger: str, label: str, data: bytes, holds: bool) -> int:
    """Says what it was given and where that lies, and keeps it until it is cancelled."""
    shared = "memfd:eclosion-arena" in Path("/proc/self/maps").read_text()
    total = sum(data)
    note(ledger, "mapped", label=label, sum=total, shared=shared)
    while holds and not current().wait_cancelled(10):
        pass
    note(ledger, "let go", label=label)
    return total


def blob(ledger: str, item: int) -> bytes:
    """What no store can pack."""
    note(ledger, "start")
    made = random.Random(item).randbytes(40_000)
    note(ledger, "end")
    return made


def span(ledger: str, first: int, width: int) -> list[int]:
    note(ledger, "start")
    note(ledger, "end")
    return list(range(first, first + width))


def kept(ledger: str, blobs: list[bytes], gate: str, holds: int) -> int:
    """Has everything in hand until it is let go."""
    note(ledger, "start")
    while holds and not (Path(gate) / f"blobs-{current().run}").exists():
        if current().wait_cancelled(0.01):
            break
    note(ledger, "end")
    return len(blobs)


def beat(ledger: str) -> int:
    note(ledger, "start")
    note(ledger, "end")
    return 1
