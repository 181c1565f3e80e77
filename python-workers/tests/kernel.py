"""A kernel of a hundred lines, for tests: it starts a real worker over real sockets and speaks frames with it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from eclosion import _frames as frames
from eclosion._frames import Channel, Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

SOURCES = pathlib.Path(__file__).parent.parent / "src"
# Nothing here takes so long; a test that hangs must end.
DEADLINE_S = 30

encode = msgspec.msgpack.encode


def value(data: object) -> dict[str, Any]:
    """An argument holding plain data."""
    return {"tag": "value", "payload": {"body": encode(data)}}


class Store:
    """Artifacts as files of a directory, named by a counter in place of a hash."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.staged = 0
        self.opened = 0

    def stage(self, size_bytes: int) -> tuple[int, int]:
        self.staged += 1
        descriptor = os.open(self._path(self.staged), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
        return self.staged, descriptor

    def open(self, digest: str) -> tuple[int, int]:
        self.opened += 1
        descriptor = os.open(self._path(int(digest)), os.O_RDONLY)
        return descriptor, os.fstat(descriptor).st_size

    def read(self, stage: int) -> bytes:
        return self._path(stage).read_bytes()

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / str(number)


class Link:
    """The kernel's end of a worker's stream."""

    def __init__(self, sock: socket.socket, store: Store) -> None:
        sock.settimeout(DEADLINE_S)
        self.socket = sock
        self.channel = Channel(sock)
        self.store = store
        self._arrived: list[Frame] = []
        self._next_stream = 2
        self.lends = 0
        """Requests for memory to write."""

    def welcome(self, *resume: int) -> dict[str, Any]:
        """Takes HELLO, says WELCOME with the streams of what is wanted; returns HELLO's body."""
        hello = self.take(frames.HELLO)
        assert hello.envelope["role"] == "worker"
        envelope: dict[str, Any] = {"server": "test", "instance": "t", "epoch": 1, "api": 1, "role": "worker"}
        if resume:
            envelope["resume"] = list(resume)
        self.channel.send(frames.WELCOME, 0, envelope)
        return msgspec.msgpack.decode(hello.body)

    def execute(self, function: str, code: pathlib.Path, /, **fields: Any) -> int:
        """Sends one attempt; returns its stream. Arguments are ``arguments={name: argument}``."""
        stream, data = self.call(function, code, **fields)
        self.socket.sendall(data)
        return stream

    def call(
        self,
        function: str,
        code: pathlib.Path,
        /,
        safe_below: dict[str, int] | None = None,
        credit: int | None = None,
        **fields: Any,
    ) -> tuple[int, bytes]:
        """A fresh stream, and the frames that ask for an attempt on it."""
        request: dict[str, Any] = {
            "run": "r1",
            "task": "t",
            "attempt": 1,
            "fence": {"epoch": 1, "counter": self._next_stream},
            "function": function,
            "code": str(code),
            "code_hash": "h",
            "arguments": {},
            "seed": 7,
            "idempotency_key": "k",
            **fields,
        }
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        envelope: dict[str, Any] = {"method": "task.execute"}
        if safe_below is not None:
            envelope["safe_below"] = safe_below
        if credit is not None:
            envelope["credit"] = credit
        return stream, frames.encode(frames.CALL, stream, envelope, encode(request))

    def take(self, *kinds: int, stream: int | None = None) -> Frame:
        """The next frame of one of these types, serving the store's calls on the way."""
        while True:
            for frame in self._arrived:
                if frame.kind in kinds and stream in (None, frame.stream):
                    self._arrived.remove(frame)
                    return frame
            for frame in self.channel.receive():
                if frame.kind == frames.CALL:
                    self.serve(frame)
                else:
                    self._arrived.append(frame)

    def outcome(self, stream: int) -> Frame:
        """The frame that ends a stream; reports before it stay to be taken."""
        while True:
            frame = self.take(frames.DATA, frames.ERROR, stream=stream)
            if frame.kind == frames.ERROR or frame.flags & frames.END:
                return frame

    def result(self, stream: int) -> Any:
        """The plain value that an attempt returned."""
        return msgspec.msgpack.decode(self.payload(stream)["body"])

    def payload(self, stream: int) -> dict[str, Any]:
        frame = self.outcome(stream)
        assert frame.kind == frames.DATA, msgspec.msgpack.decode(frame.body)
        return msgspec.msgpack.decode(frame.body)

    def error(self, stream: int) -> dict[str, Any]:
        frame = self.outcome(stream)
        assert frame.kind == frames.ERROR, msgspec.msgpack.decode(frame.body)
        error = msgspec.msgpack.decode(frame.body)
        assert frame.envelope["reason"] == error["reason"]
        return error

    def item(self, stream: int) -> Any:
        """The next plain value that a generator yields."""
        report = msgspec.msgpack.decode(self.take(frames.DATA, stream=stream).body)
        assert report["tag"] == "item", report
        return msgspec.msgpack.decode(report["payload"]["body"])

    def grant(self, stream: int, total: int) -> None:
        self.channel.send(frames.CREDIT, stream, {"credit": total})

    def cancel(self, stream: int, rung: int) -> None:
        self.channel.send(frames.CANCEL, stream, {"rung": rung})

    def serve(self, call: Frame) -> None:
        request = msgspec.msgpack.decode(call.body)
        if call.envelope["method"] == "artifact.stage":
            stage, descriptor = self.store.stage(request["bytes"])
            body = encode({"stage": stage})
        elif call.envelope["method"] == "arena.lend":
            # As of a caller that reads no shared memory.
            self.lends += 1
            why = {"code": "precondition", "reason": "arena.unshared", "message": "nobody reads it there"}
            self.channel.send(frames.ERROR, call.stream, {"reason": why["reason"]}, encode(why), flags=frames.END)
            return
        else:
            descriptor, size_bytes = self.store.open(request["digest"])
            body = encode({"bytes": size_bytes})
        data = frames.encode(frames.DATA, call.stream, None, body, flags=frames.END, descriptors=1)
        socket.send_fds(self.socket, [data], [descriptor])
        os.close(descriptor)

    def close(self) -> None:
        self.channel.close()


class Worker:
    """A worker process with both of its sockets."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        ours, theirs = socket.socketpair()
        self.lifeline, lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            sys.executable,
            "-m",
            "eclosion.worker",
            "--worker",
            "w-1-1",
            "--scratch",
            str(folder / "scratch"),
        ]
        command += ["--stream", str(theirs.fileno()), "--lifeline", str(lifeline.fileno())]
        with self.stdout.open("ab") as stdout, self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(theirs.fileno(), lifeline.fileno()),
                env={**os.environ, "PYTHONPATH": str(SOURCES), **(environment or {})},
                cwd=folder,
            )
        theirs.close()
        lifeline.close()
        self.link = Link(ours, self.store)

    def adopt(self) -> Link:
        """Hands the worker a fresh stream over the lifeline, as the keeper does for the next kernel."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self.lifeline, [json.dumps({"adopt": {}}).encode()], [theirs.fileno()])
        theirs.close()
        self.link = Link(ours, self.store)
        return self.link

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def end(self) -> None:
        self.lifeline.close()
        self.link.close()
        try:
            self.wait()
        finally:
            self.process.kill()


@contextlib.contextmanager
def worker(folder: pathlib.Path, environment: dict[str, str] | None = None) -> Generator[Worker]:
    """A worker that is gone when the block ends."""
    started = Worker(folder, environment)
    try:
        yield started
    finally:
        started.end()


def until(holds: Callable[[], bool]) -> None:
    """Waits for something that no event tells: another process's file."""
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, "it did not come to pass in time"
        os.sched_yield()
