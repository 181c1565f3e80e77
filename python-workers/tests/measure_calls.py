"""Measures a warm call beside its floor: ``python tests/measure_calls.py [CALLS]`` prints one JSON object.

The floor is a bare Python process that decodes a frame's msgpack and sends it back; the peer is a ProcessPoolExecutor's
worker. All three answer the same client in turns, so that a busy machine is equally busy for each.
"""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

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
    body = msgspec.msgpack.encode(value["arguments"]["x"]["payload"])
    sock.sendall(header.pack(12 + len(body), 1, 4, 1, 2, stream, 0, 0, 0) + body)
"""
STEPS = "def echo(x):\n    return x\n"
BATCH = 50


def echo(x: Any) -> Any:
    return x


def main(calls: int) -> None:
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1) as pool:
        # Before any socket is made: its worker is forked at the first call and would hold the other ends open.
        pool.submit(echo, 0).result()
        folder = pathlib.Path(name)
        (folder / "steps.py").write_text(STEPS)
        ours, theirs = socket.socketpair()
        floor = subprocess.Popen([sys.executable, "-c", FLOOR, str(theirs.fileno())], pass_fds=(theirs.fileno(),))
        theirs.close()
        with kernel.worker(folder) as worker:
            worker.link.welcome()
            figures = measure(worker.link, ours, folder, pool, calls)
        ours.close()
        floor.wait()
    print(json.dumps(figures))


def measure(
    link: kernel.Link, floor: socket.socket, folder: pathlib.Path, pool: ProcessPoolExecutor, calls: int
) -> dict[str, Any]:
    argument = {"x": kernel.value([1, 2, 3])}
    # Floor and worker get the same bytes from the same client.
    _, data = link.call("steps:echo", folder, arguments=argument)
    link.socket.settimeout(None)

    def call(sock: socket.socket) -> None:
        sock.sendall(data)
        reply = sock.recv(65536)
        msgspec.msgpack.decode(reply[16 + int.from_bytes(reply[12:14], "big") :])

    def call_floor() -> None:
        call(floor)

    def call_worker() -> None:
        call(link.socket)

    def call_pool() -> None:
        pool.submit(echo, [1, 2, 3]).result()

    ways: dict[str, Callable[[], None]] = {
        "floor": call_floor,
        "worker": call_worker,
        "process_pool": call_pool,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(calls // BATCH + 2):
        for name, way in ways.items():
            taken = [_timed(way) for _ in range(BATCH)]
            if n >= 2:  # The first batches warm up.
                times[name] += taken
    figures: dict[str, Any] = {"schema": "eclosion/measure-calls/v1", "calls": calls}
    for name, taken in times.items():
        taken.sort()
        figures[name] = {
            "p50_us": round(taken[len(taken) // 2] * 1e6, 1),
            "p99_us": round(taken[-len(taken) // 100] * 1e6, 1),
        }
    figures["worker_per_floor"] = round(figures["worker"]["p50_us"] / figures["floor"]["p50_us"], 2)
    return figures


def _timed(way: Callable[[], None]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
