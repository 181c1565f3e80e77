"""What a service answers, whatever its methods give or raise: it goes on with its state."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eclosion import _frames as frames
from eclosion._frames import Channel, Frame
from eclosion.service import Server, methods_of, service

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 30


@service(address="/desk")
class Desk:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def fail(self) -> None:
        raise ValueError("cannot read \udce9.csv")

    def large(self) -> bytes:
        return bytes(20 << 20)

    def stepped(self) -> memoryview:
        return memoryview(b"abcdef")[::2]

    def thing(self) -> object:
        return object()


class Caller:
    """The kernel's end of a service's connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        self.channel = Channel(sock)
        self._next_stream = 2

    def call(self, method: str) -> Frame:
        """The frame that ends the call."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        envelope = {"method": f"desk.{method}", "deadline_ms": DEADLINE_S * 1000}
        self.channel.send(frames.CALL, stream, envelope, msgspec.msgpack.encode({}))
        while True:
            for frame in self.channel.receive():
                assert frame.stream == stream
                if frame.flags & frames.END or frame.kind == frames.ERROR:
                    return frame

    def result(self, method: str) -> Any:
        frame = self.call(method)
        assert frame.kind == frames.DATA, msgspec.msgpack.decode(frame.body)
        return msgspec.msgpack.decode(frame.body)

    def error(self, method: str) -> dict[str, Any]:
        frame = self.call(method)
        assert frame.kind == frames.ERROR
        error = msgspec.msgpack.decode(frame.body)
        assert frame.envelope["reason"] == error["reason"]
        return error


@pytest.fixture
def desk() -> Iterator[Caller]:
    ours, theirs = socket.socketpair()
    server = Server(Desk(), Channel(theirs), methods_of(Desk))
    serving = threading.Thread(target=server.run, daemon=True)
    serving.start()
    caller = Caller(ours)
    try:
        yield caller
    finally:
        caller.channel.close()
        serving.join(DEADLINE_S)
    assert not serving.is_alive()


def test_a_text_that_is_no_text_is_escaped_and_the_object_stays(desk: Caller) -> None:
    assert desk.result("add") == 1
    error = desk.error("fail")
    assert error["reason"] == "service.raised"
    assert error["message"] == "ValueError: cannot read \\udce9.csv"
    assert error["remote"]["text"] == "cannot read \\udce9.csv"
    assert desk.result("add") == 2


@pytest.mark.parametrize(
    ("method", "says"), [("large", "over the limit"), ("stepped", "contiguous"), ("thing", "type object")]
)
def test_what_cannot_be_sent_is_refused_and_the_object_stays(desk: Caller, method: str, says: str) -> None:
    assert desk.result("add") == 1
    error = desk.error(method)
    assert error["reason"] == "reply.encode"
    assert says in error["message"]
    assert desk.result("add") == 2
