from __future__ import annotations

import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eclosion import _frames as frames
from eclosion._frames import Channel, Decoder, Disconnected, decode_frames

if TYPE_CHECKING:
    import random


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200_000)), min_size=1, max_size=5), st.randoms())
def test_messages_survive_any_split_of_their_bytes(messages: list[tuple[int, int]], chance: random.Random) -> None:
    data = b"".join(
        frames.encode(frames.DATA, stream, {"attempt": n}, bytes([n]) * size, flags=frames.END)
        for n, (stream, size) in enumerate(messages)
    )
    decoder = Decoder()
    found: list[frames.Frame] = []
    while data:
        cut = chance.randint(1, max(1, len(data) // 2))
        found += decoder.push(data[:cut])
        data = data[cut:]
    assert [(f.stream, len(f.body), f.envelope, f.flags) for f in found] == [
        (stream, size, {"attempt": n}, frames.END) for n, (stream, size) in enumerate(messages)
    ]
    assert decoder.pending() == 0


@given(st.binary(max_size=400))
def test_any_bytes_give_frames_or_the_end_of_the_connection(data: bytes) -> None:
    decoder = Decoder()
    try:
        decoder.push(data)
    except Disconnected:
        return
    assert decoder.pending() <= len(data)


def test_a_body_over_the_fragment_size_is_cut_and_only_the_last_frame_ends() -> None:
    body = os.urandom(frames.FRAGMENT_BYTES * 2 + 1)
    data = frames.encode(frames.DATA, 4, {"rung": 1}, body, flags=frames.END)
    marks: list[tuple[int, int]] = []
    at = 0
    while at < len(data):
        length, _, kind, flags, *_ = frames.HEADER.unpack_from(data, at)
        marks.append((kind, flags))
        at += 4 + length
    assert marks == [(frames.DATA, frames.MORE), (frames.DATA, frames.MORE), (frames.DATA, frames.END)]
    assert decode_frames(data)[0].body == body


def test_descriptors_reach_the_frame_that_claims_them() -> None:
    left, right = socket.socketpair()
    read, write = os.pipe()
    plain = frames.encode(frames.DATA, 1, None, b"x")
    claiming = frames.encode(frames.DATA, 3, None, b"y", descriptors=1)
    left.sendall(plain)
    socket.send_fds(left, [claiming + plain], [write])
    os.close(write)
    channel = Channel(right)
    found: list[frames.Frame] = []
    while len(found) < 3:
        found += channel.receive()
    assert [len(f.descriptors) for f in found] == [0, 1, 0]
    os.write(found[1].descriptors[0], b"through")
    assert os.read(read, 10) == b"through"
    os.close(found[1].descriptors[0])
    os.close(read)
    left.close()
    with pytest.raises(Disconnected):
        channel.receive()
    channel.close()


def test_a_message_that_was_interrupted_half_sent_is_the_last_one() -> None:
    left, right = socket.socketpair()

    def interrupt() -> None:
        # It has begun to arrive, and cannot end: nobody reads.
        select.select([right], [], [])
        signal.pthread_kill(sender, signal.SIGUSR1)

    with left, right:
        sender = threading.get_ident()
        earlier = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        try:
            interrupter = threading.Thread(target=interrupt)
            interrupter.start()
            with pytest.raises(KeyboardInterrupt):
                Channel(left).send(frames.CALL, 1, {}, b"x" * (8 << 20))
            interrupter.join()
        finally:
            signal.signal(signal.SIGUSR1, earlier)
        with pytest.raises(Disconnected):
            Channel(left).send(frames.CALL, 3, {}, b"")
        while right.recv(1 << 20):
            pass
