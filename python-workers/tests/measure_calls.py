"""Measures warm calls beside their floor: ``PYTHONPATH=src python tests/measure_calls.py [CALLS]`` prints JSON.

Two cases: one small argument, and a fan-out's ten payloads as a list. The floor is a bare Python process that decodes a
frame's msgpack and sends the argument back; the peer is a ProcessPoolExecutor's worker. All three answer the same
client in turns, so that a busy machine is equally busy for each.

``p50_us`` and ``p99_us`` are what the client waits for a call. ``cpu_us`` is what a call costs the process that answers
it, all its threads, user and system time: the lower quartile of batches, as neighbors on a busy machine can only add.
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

import kernel

if TYPE_CHECKING:
    from collections.abc import Callable

FLOOR = """
import socket, struct, sys, msgspec
sock = socket.socket(fileno=int(sys.argv[1]))
header = struct.Struct(">IBBBBIHBB")
while data := sock.recv(65536):
    length, _, _, _, _, stream, envelope, _, _ = header.unpack_from(data)
    value = msgspec.msgpack.decode(data[16 + envelope:])
    body = msgspec.msgpack.encode(value["arguments"]["x"])
    sock.sendall(header.pack(12 + len(body), 1, 4, 1, 2, stream, 0, 0, 0) + body)
"""
STEPS = "def echo(x):\n    return x\n"
BATCH = 50
VALUES: dict[str, list[int]] = {"one_value": [1, 2, 3], "ten_payloads": list(range(10))}


class Way(NamedTuple):
    """One of those that answer."""

    call: Callable[[], None]
    pid: int


class Figures:
    """What was measured of one way."""

    def __init__(self) -> None:
        self._waits_s: list[float] = []
        self._cpu_s: list[float] = []

    def add_batch(self, way: Way) -> None:
        before = cpu_s(way.pid)
        self._waits_s += [_timed(way.call) for _ in range(BATCH)]
        self._cpu_s.append((cpu_s(way.pid) - before) / BATCH)

    def shown(self) -> dict[str, float]:
        waits_s = sorted(self._waits_s)
        return {
            "p50_us": round(waits_s[len(waits_s) // 2] * 1e6, 1),
            "p99_us": round(waits_s[-len(waits_s) // 100] * 1e6, 1),
            "cpu_us": round(statistics.quantiles(self._cpu_s)[0] * 1e6, 1),
        }


def echo(x: Any) -> Any:
    return x


def cpu_s(pid: int) -> float:
    """What a process has used. By its CPU clock, whose number is made as the C library's ``clock_getcpuclockid`` does:
    what ``/proc`` tells of all threads is in ticks of a hundredth of a second."""
    return time.clock_gettime(~pid << 3 | 2)


def main(calls: int) -> None:
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1) as pool:
        # Before any socket is made: its worker is forked at the first call and would hold the other ends open.
        pool_pid = pool.submit(os.getpid).result()
        folder = pathlib.Path(name)
        (folder / "steps.py").write_text(STEPS)
        ours, theirs = socket.socketpair()
        floor = subprocess.Popen([sys.executable, "-c", FLOOR, str(theirs.fileno())], pass_fds=(theirs.fileno(),))
        theirs.close()
        figures: dict[str, Any] = {"schema": "eclosion/measure-calls/v2", "calls": calls}
        with kernel.worker(folder) as worker:
            worker.link.welcome()
            worker.link.socket.settimeout(None)
            for case, value in VALUES.items():
                data = request(worker.link, folder, case, value)
                ways = {
                    "floor": Way(partial(call, ours, data), floor.pid),
                    "worker": Way(partial(call, worker.link.socket, data), worker.process.pid),
                    "process_pool": Way(partial(call_pool, pool, value), pool_pid),
                }
                figures[case] = measure(ways, calls)
        ours.close()
        floor.wait()
    print(json.dumps(figures))


def request(link: kernel.Link, folder: pathlib.Path, case: str, value: list[int]) -> bytes:
    """The frames of a call. Floor and worker get the same bytes from the same client."""
    argument = kernel.value(value)
    if case == "ten_payloads":
        argument = {"tag": "list", "payloads": [kernel.value(item)["payload"] for item in value]}
    # A seed of 64 bits and a lease, as the kernel sends them.
    _, data = link.call("steps:echo", folder, arguments={"x": argument}, seed=2**63 + 12345, lease={"cpu": 1})
    return data


def call(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    reply = sock.recv(65536)
    msgspec.msgpack.decode(reply[16 + int.from_bytes(reply[12:14], "big") :])


def call_pool(pool: ProcessPoolExecutor, value: list[int]) -> None:
    assert pool.submit(echo, value).result() == value


def measure(ways: dict[str, Way], calls: int) -> dict[str, Any]:
    measured = {name: Figures() for name in ways}
    for n in range(calls // BATCH + 2):
        for name, way in ways.items():
            if n < 2:  # The first batches warm up.
                Figures().add_batch(way)
            else:
                measured[name].add_batch(way)
    shown: dict[str, Any] = {name: figures.shown() for name, figures in measured.items()}
    for figure in ("p50_us", "cpu_us"):
        per_floor = shown["worker"][figure] / shown["floor"][figure]
        shown[f"worker_per_floor_{figure.removesuffix('_us')}"] = round(per_floor, 2)
    return shown


def _timed(way: Callable[[], None]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
