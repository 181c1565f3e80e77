"""Calls of one function: what the kernel runs, the same loop with nothing around it, and the standard library."""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from typing import Any

HEADER = struct.Struct(">IIQ")


def echo(value: str) -> str:
    return value


def ends(value: Any = None) -> Any:
    return None if value is None else [len(value), int(value[0]), int(value[-1])]


def floor() -> None:
    """Serves frames on standard input: 16 bytes with the body's length first, then msgpack, decoded and encoded."""
    import msgspec

    stream = socket.socket(fileno=0)
    decode, encode = msgspec.msgpack.decode, msgspec.msgpack.encode
    while header := stream.recv(HEADER.size, socket.MSG_WAITALL):
        size, kind, number = HEADER.unpack(header)
        body = encode(echo(**decode(stream.recv(size, socket.MSG_WAITALL))))
        stream.sendall(HEADER.pack(len(body), kind, number) + body)


def pipelined_floor() -> None:
    """The same for frames that come many at a time: what has arrived whole is answered together."""
    import msgspec

    stream = socket.socket(fileno=0)
    decode, encode = msgspec.msgpack.decode, msgspec.msgpack.encode
    held = b""
    while chunk := stream.recv(1 << 16):
        held += chunk
        start, answers = 0, []
        while len(held) - start >= HEADER.size:
            size, kind, number = HEADER.unpack_from(held, start)
            end = start + HEADER.size + size
            if end > len(held):
                break
            body = encode(echo(**decode(held[start + HEADER.size : end])))
            answers.append(HEADER.pack(len(body), kind, number) + body)
            start = end
        held = held[start:]
        stream.sendall(b"".join(answers))


def peer() -> None:
    """A line with a count asks for as many calls; answered with a line of nanoseconds."""
    value = "x" * 64
    with ProcessPoolExecutor(1) as pool:
        for line in sys.stdin:
            took = []
            for _ in range(int(line)):
                started = time.perf_counter_ns()
                pool.submit(echo, value).result()
                took.append(time.perf_counter_ns() - started)
            print(json.dumps(took), flush=True)


def pipelined_peer() -> None:
    """A line with a count asks for as many calls with 64 under way; answered with what all of them took."""
    value = "x" * 64
    with ProcessPoolExecutor(1) as pool:
        for line in sys.stdin:
            started = time.perf_counter_ns()
            waiting = deque(pool.submit(echo, value) for _ in range(64))
            for _ in range(int(line) - 64):
                waiting.popleft().result()
                waiting.append(pool.submit(echo, value))
            while waiting:
                waiting.popleft().result()
            print(json.dumps([time.perf_counter_ns() - started]), flush=True)


if __name__ == "__main__":
    {f.__name__: f for f in (floor, pipelined_floor, peer, pipelined_peer)}[sys.argv[1]]()
