"""Frames: what crosses a worker's stream. ``schemas/PROTOCOL.md`` is the contract.

    | len u32 | ver u8 | type u8 | flags u8 | codec u8 | stream u32 | hlen u16 | nfds u8 | 0 | envelope | body |

Three layers, each usable alone: :func:`encode` gives a message's frames as bytes, :class:`Decoder` takes bytes and
descriptors and gives whole messages, :class:`Channel` owns a connected socket and does both.

Invariants:
1. A message is sent whole or the connection is at its end: senders are serialized, and an error while sending is a
   :class:`Disconnected`, after which nothing more is sent.
2. A body over ``FRAGMENT_BYTES`` travels in fragments: the first frame has type, envelope and codec, the others are
   DATA and have none; all but the last have MORE, only the last has END.
3. Memory follows what arrived, never what was claimed; a message has at most ``MESSAGE_BYTES_MAX``.
4. Descriptors belong to whoever takes the message; those of an unread one are closed with the channel.

Deliberately absent: streams' states, calls and their replies; see ``worker.py``.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from array import array
from typing import Any

import msgspec

HEADER = struct.Struct(">IBBBBIHBB")
VERSION = 1
HELLO, WELCOME, CALL, DATA, ERROR, CANCEL, CREDIT, PUB, PING, PONG, GOAWAY = range(1, 12)
END, MORE, IGNORE, URGENT = 1, 2, 4, 8
NONE, JSON, MSGPACK, BYTES, ARROW_IPC, SHM, UTF8, BINCODE = range(8)

FRAGMENT_BYTES = 64 * 1024
MESSAGE_BYTES_MAX = (1 << 24) - 1
# Messages that may be unfinished at once; the kernel sends a worker one call and small control frames.
UNFINISHED_MAX = 64
# Bytes of the header that `len` counts.
_COUNTED = HEADER.size - 4
# A read takes at most one full fragment: its memory is taken anew each time.
_RECEIVE_BYTES = 64 * 1024
# A Unix socket takes so much in one piece or not at all.
_WHOLE_BYTES = 32 * 1024
_DESCRIPTORS_MAX = 16
_ANCILLARY_BYTES = socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4)
# Plain integers: `&` and `|` of the enum's members are calls into Python, dear on the path of each message.
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC)
_RECEIVE_AT_ONCE = _RECEIVE | int(socket.MSG_DONTWAIT)
_CUT = int(socket.MSG_CTRUNC)
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)

_HEADER_BYTES = HEADER.size
_header = HEADER.unpack_from
_pack = msgspec.msgpack.encode
_unpack_map = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Disconnected(ConnectionError):  # noqa: N818
    """The other end is gone, or what it sent was no frame."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One whole message: fragments are joined. A struct, as it is made faster than any other class."""

    kind: int
    flags: int
    codec: int
    stream: int
    envelope: dict[str, Any]
    body: bytes
    descriptors: tuple[int, ...] = ()


def encode(
    kind: int,
    stream: int,
    envelope: dict[str, Any] | None = None,
    body: bytes = b"",
    *,
    flags: int = 0,
    codec: int | None = None,
    descriptors: int = 0,
) -> bytes:
    """Returns the frames of one message. ``codec`` defaults to msgpack if there is a body."""
    head = _pack(envelope) if envelope else b""
    if codec is None:
        codec = MSGPACK if body else NONE
    if len(body) <= FRAGMENT_BYTES:
        length = _COUNTED + len(head) + len(body)
        return HEADER.pack(length, VERSION, kind, flags, codec, stream, len(head), descriptors, 0) + head + body
    if len(body) > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {len(body)} bytes is over the limit of {MESSAGE_BYTES_MAX}")
    pieces: list[bytes] = []
    for start in range(0, len(body), FRAGMENT_BYTES):
        piece = body[start : start + FRAGMENT_BYTES]
        last = start + FRAGMENT_BYTES >= len(body)
        mark = flags if last else flags & ~END | MORE
        length = _COUNTED + len(head) + len(piece)
        pieces.append(HEADER.pack(length, VERSION, kind, mark, codec, stream, len(head), descriptors, 0))
        pieces += (head, piece)
        kind, head, descriptors = DATA, b"", 0
    return b"".join(pieces)


class Decoder:
    """Takes bytes as they arrive and gives whole messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._descriptors: list[int] = []
        self._unfinished: dict[int, list[Frame]] = {}

    def push(self, data: bytes, descriptors: list[int] | None = None) -> list[Frame]:
        """Returns the messages that ``data`` completes. Raises :class:`Disconnected` if it is malformed."""
        if descriptors:
            self._descriptors += descriptors
        # Whole frames are read where they lie; only what is left of one is kept, until its rest has come.
        held = self._bytes
        buffer: bytes | bytearray = data
        if held:
            held += data
            buffer = held
        frames: list[Frame] = []
        start = 0
        while len(buffer) - start >= _HEADER_BYTES:
            length, version, kind, flags, codec, stream, head, count, zero = _header(buffer, start)
            if version != VERSION or zero != 0 or length > MESSAGE_BYTES_MAX or length < _COUNTED + head:
                raise Disconnected(f"malformed frame header {buffer[start : start + _HEADER_BYTES].hex()}")
            end = start + 4 + length
            if len(buffer) < end:
                break
            body_at = start + _HEADER_BYTES + head
            envelope = _envelope(buffer[start + _HEADER_BYTES : body_at]) if head else {}
            taken = self._take_descriptors(count) if count else ()
            frame = Frame(kind, flags, codec, stream, envelope, bytes(buffer[body_at:end]), taken)
            whole = self._join(frame) if flags & MORE or self._unfinished else frame
            if whole is not None:
                frames.append(whole)
            start = end
        if buffer is held:
            del held[:start]
        elif start < len(buffer):
            held += buffer[start:]
        return frames

    def pending(self) -> int:
        """How many bytes wait for the rest of their frame or message."""
        held = (len(piece.body) for pieces in self._unfinished.values() for piece in pieces)
        return len(self._bytes) + sum(held)

    def close(self) -> None:
        """Closes the descriptors that no message claimed."""
        unclaimed = [fd for pieces in self._unfinished.values() for piece in pieces for fd in piece.descriptors]
        for descriptor in self._descriptors + unclaimed:
            os.close(descriptor)
        self._descriptors.clear()
        self._unfinished.clear()

    def _take_descriptors(self, count: int) -> tuple[int, ...]:
        if len(self._descriptors) < count:
            raise Disconnected(f"a frame claims {count} descriptors, {len(self._descriptors)} came")
        taken = tuple(self._descriptors[:count])
        del self._descriptors[:count]
        return taken

    def _join(self, frame: Frame) -> Frame | None:
        pieces = self._unfinished.get(frame.stream)
        if pieces is None or frame.kind != DATA:
            # Anything but DATA ends what was underway on its stream.
            self._unfinished.pop(frame.stream, None)
            if not frame.flags & MORE:
                return frame
            if len(self._unfinished) >= UNFINISHED_MAX:
                raise Disconnected(f"more than {UNFINISHED_MAX} messages are unfinished")
            self._unfinished[frame.stream] = [frame]
            return None
        pieces.append(frame)
        if sum(len(piece.body) for piece in pieces) > MESSAGE_BYTES_MAX:
            raise Disconnected(f"a message in fragments is over the limit of {MESSAGE_BYTES_MAX} bytes")
        if frame.flags & MORE:
            return None
        del self._unfinished[frame.stream]
        flags = (pieces[0].flags | frame.flags) & ~MORE
        return msgspec.structs.replace(pieces[0], flags=flags, body=b"".join(piece.body for piece in pieces))


def decode_frames(data: bytes) -> list[Frame]:
    """Decodes whole messages, as a test or a tool does that holds all their bytes. Descriptors cannot be among them."""
    decoder = Decoder()
    frames = decoder.push(data)
    if decoder.pending():
        raise Disconnected(f"{decoder.pending()} bytes are left that make no whole message")
    return frames


def _envelope(data: bytes | bytearray) -> dict[str, Any]:
    try:
        return _unpack_map(data)
    except (msgspec.MsgspecError, RecursionError) as why:
        raise Disconnected(f"malformed envelope: {why}") from None


class Channel:
    """A connected stream socket. Any thread may send; one at a time may receive."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = Decoder()
        self._sending = threading.Lock()
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(
        self,
        kind: int,
        stream: int,
        envelope: dict[str, Any] | None = None,
        body: bytes = b"",
        *,
        flags: int = 0,
        codec: int | None = None,
    ) -> None:
        """Sends one message. Raises :class:`Disconnected`."""
        self._send(encode(kind, stream, envelope, body, flags=flags, codec=codec))

    def send_if_room(self, kind: int, stream: int, body: bytes) -> bool:
        """Sends a small message unless the other end does not keep up; says whether it was sent."""
        if not self._writable.poll(0):
            return False
        self._send(encode(kind, stream, None, body))
        return True

    def receive(self, *, wait: bool = True) -> list[Frame]:
        """Returns the messages that the next bytes complete, perhaps none. Raises :class:`Disconnected` at the end."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                _RECEIVE_BYTES, _ANCILLARY_BYTES, _RECEIVE if wait else _RECEIVE_AT_ONCE
            )
        except BlockingIOError:
            return []
        except OSError as why:
            raise Disconnected(str(why)) from None
        descriptors = descriptors_of(ancillary) if ancillary else None
        if not data:
            raise Disconnected("the other end closed the stream")
        if flags & _CUT:
            raise Disconnected("more descriptors came than a message may carry")
        return self._decoder.push(data, descriptors)

    def hang_up(self) -> None:
        """Ends both directions, so that whoever is receiving sees the end. The descriptor stays until :meth:`close`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It was at its end already.

    def close(self) -> None:
        self._decoder.close()
        with self._sending:
            self._socket.close()

    def _send(self, data: bytes) -> None:
        with self._sending:
            try:
                self._socket.sendall(data, _NO_SIGNAL)
            except OSError as why:
                raise Disconnected(str(why)) from None
            except BaseException:  # Ctrl-C, and nobody knows how much went: what follows would be read as the rest.
                if len(data) > _WHOLE_BYTES:
                    self.hang_up()
                raise


def descriptors_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors among what came beside a message's bytes."""
    found = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()
