"""Tasks that keep a ledger outside the kernel's control: one line, in one write, for each start and each end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from eclosion import current


def note(ledger: str, event: str) -> None:
    """Append a line to this worker's own file."""
    here = current()
    line = {
        "event": event,
        "run": here.run,
        "task": here.task,
        "attempt": here.attempt,
        "pid": os.getpid(),
        "ns": time.monotonic_ns(),
    }
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
