"""The kernel as a worker sees it: a stream that may end at any time, and later the next one.

    absent --connect, HELLO--> connected --WELCOME--> welcomed --lost--> absent

``streams`` says where the reports and the outcome of an attempt go; an attempt that is missing there is wanted by no
kernel. A welcome names the streams anew (``resume``). One thread reads the channel at a time (``worker.py`` says which)
and calls :meth:`connect`, :meth:`lost`, :meth:`welcome` and :meth:`answer`; the main thread waits in the others.

Invariants:
1. Only the reading thread closes a channel. Whoever else finds it ended hangs it up, which the reader sees.
2. Every call that waits for a reply gets one: the reply, :class:`Disconnected` when the stream ends, or a refusal when
   ``ASK_TIMEOUT_S`` has passed.
3. What a call reads in shared memory is the kernel's again once its outcome is sent. What user code keeps of it lies in
   pages of this process's own by then (:meth:`Kernel.keep`), so that it never changes.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any

import msgspec

from . import _frames as frames
from ._errors import Refused, error
from ._frames import Channel, Disconnected, Frame

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ._schemas import Fence, Segment
    from ._values import SegmentData

Key = tuple[int, int]
# The epoch of fences of calls, which nobody journals.
CALLS = 0xFFFF_FFFF


def key_of(fence: Fence) -> Key:
    """A fence in the order of fences."""
    return fence.epoch, fence.counter


# For a file to be made or opened. A large one is preallocated, which takes a slow disk a while.
ASK_TIMEOUT_S = 120
# Arenas that stay mapped: to map one anew costs a request and the first touch of its pages.
MAPPED_MAX = 16
# Of Linux; not every version of Python has it.
MAP_NORESERVE = 0x4000

_encode = msgspec.msgpack.encode
_decode_numbers = msgspec.msgpack.Decoder(dict[str, int]).decode
_decode_lend = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Kernel:
    """The connection, and the artifact store behind it (a ``Store`` of ``_values.py``)."""

    def __init__(self, before_wait: Callable[[], None]) -> None:
        self.before_wait = before_wait
        """Sees to it that somebody reads while the main thread waits for a reply."""
        self.changed = threading.Condition()
        """Notified when a welcome, credit or a cancel has come."""
        self.channel: Channel | None = None
        self.streams: dict[Key, int] = {}
        """Of the attempts that are computed or kept, by :func:`key_of` their fences."""
        self.running: Key | None = None
        """The attempt that is computed."""
        self.resume = False
        """Outcomes that were sent before are wanted once more."""
        self._said: list[Key] = []
        self._welcomed = False
        self._pending: dict[int, queue.SimpleQueue[Frame | None]] = {}
        self._next_stream = 1
        self._mapped: dict[int, mmap.mmap] = {}
        """Arenas of the kernel that is connected, the last attached last. Private, as pages may have to be kept."""
        self._held: list[tuple[weakref.ref[object], mmap.mmap, Segment]] = []
        """What the call that runs was given of them."""
        self._lent: dict[int, mmap.mmap] = {}
        """Arenas that it has lent, mapped for writing."""

    # The reading thread.

    def connect(
        self, stream: socket.socket, envelope: dict[str, Any], hello: dict[str, Any], attempts: list[Fence]
    ) -> None:
        """Takes a fresh stream and says HELLO on it. An end of it is met by the next read."""
        channel = Channel(stream)
        with self.changed:
            self.channel = channel
            self._said = [key_of(fence) for fence in attempts]
        try:
            channel.send(frames.HELLO, 0, envelope, _encode({**hello, "attempts": attempts}))
        except Disconnected:
            channel.hang_up()

    def lost(self) -> None:
        """Lets go of a stream that is at its end. Whoever waits for a reply is told."""
        with self.changed:
            channel, self.channel = self.channel, None
            self._welcomed = False
            waiting, self._pending = self._pending, {}
            # The next kernel counts its arenas anew. Who still reads one has it mapped as long.
            self._mapped = {}
            self._lent = {}
        for answer in waiting.values():
            answer.put(None)
        if channel is not None:
            channel.close()

    def welcome(self, resume: list[int], *, kept: bool) -> None:
        """The kernel has said on which streams it wants the attempts that HELLO named, if it does.

        ``kept`` says that outcomes are kept.
        """
        with self.changed:
            self.streams = dict(zip(self._said, resume, strict=False))
            self._welcomed = True
            self.resume = kept and bool(resume)
            self.changed.notify_all()

    def answer(self, frame: Frame) -> None:
        """A reply has come."""
        with self.changed:
            waiting = self._pending.pop(frame.stream, None)
        if waiting is not None:
            waiting.put(frame)
            return
        for descriptor in frame.descriptors:
            os.close(descriptor)

    def send(self, kind: int, stream: int, envelope: dict[str, Any], body: bytes = b"", *, flags: int = 0) -> None:
        """Sends one frame, if a kernel is there to read it."""
        channel = self.channel
        if channel is None:
            return
        try:
            channel.send(kind, stream, envelope, body, flags=flags)
        except Disconnected:
            pass  # The next read finds the end.

    # The main thread; `report` by any.

    def wanted(self, attempt: Key | None, failed: Channel | None) -> tuple[Channel, int] | None:
        """Waits for a kernel's welcome on another channel than ``failed``; None if it does not want the attempt."""
        channel = self.channel
        if self._welcomed and channel is not failed:
            # As long as the channel stays the same, its welcome is the one that named the streams.
            stream = None if attempt is None else self.streams.get(attempt)
            if channel is not None and stream is not None and channel is self.channel:
                return channel, stream
        with self.changed:
            # No deadline: without a kernel there is nothing else to do, and the lifeline's end ends the process.
            self.changed.wait_for(lambda: self._welcomed and self.channel is not failed)
            stream = None if attempt is None else self.streams.get(attempt)
            if self.channel is None or stream is None:
                return None
            return self.channel, stream

    def report(self, value: dict[str, Any]) -> None:
        """Sends a report of the attempt if the kernel is there and keeps up."""
        channel, running = self.channel, self.running
        stream = None if running is None else self.streams.get(running)
        if channel is None or not self._welcomed or stream is None:
            return
        try:
            channel.send_if_room(frames.DATA, stream, _encode(value))
        except (Disconnected, ValueError):
            pass  # It ended, or was closed just now. The outcome will meet the same and knows what to do.

    def staging(self, fence: Fence) -> Staging:
        """The store as this attempt has it: the kernel knows whose files they are, as it may have others in hand."""
        return Staging(self, fence)

    def stage(self, size_bytes: int, fence: Fence | None = None) -> tuple[int, int]:
        request: dict[str, Any] = {"bytes": size_bytes}
        if fence is not None:
            request["fence"] = fence
        reply = self._ask(self.channel, "artifact.stage", request)
        return _decode_numbers(reply.body)["stage"], _only_descriptor(reply)

    def open(self, digest: str) -> tuple[int, int]:
        """As a store does. If the kernel goes meanwhile, the next one is asked."""
        failed: Channel | None = None
        while True:
            wanted = self.wanted(self.running, failed)
            if wanted is None:
                raise Refused(error("cancelled", "task.cancelled", "no kernel wants this attempt any more"))
            try:
                reply = self._ask(wanted[0], "artifact.open", {"digest": digest})
                return _only_descriptor(reply), _decode_numbers(reply.body)["bytes"]
            except Disconnected:
                failed = wanted[0]
                failed.hang_up()

    def attach(self, arena: int) -> mmap.mmap:
        """As a store does. Only of the kernel that has sent the call: with it, what lies there is gone."""
        mapped = self._mapped
        memory = mapped.get(arena)
        if memory is None:
            try:
                reply = self._ask(self.channel, "arena.attach", {"arena": arena})
                descriptor = _only_descriptor(reply)
            except Disconnected as why:
                raise Refused(error("cancelled", "task.cancelled", f"nobody waits for the call: {why}")) from None
            try:
                # Written to by `keep` alone, so that nothing is to be reserved for it.
                flags = mmap.MAP_PRIVATE | MAP_NORESERVE
                memory = mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            finally:
                os.close(descriptor)
            while len(mapped) >= MAPPED_MAX:
                del mapped[next(iter(mapped))]
            mapped[arena] = memory
        return memory

    def hold(self, value: object, memory: mmap.mmap, segment: Segment) -> None:
        self._held.append((weakref.ref(value), memory, segment))

    def keep(self) -> None:
        """Before an outcome is sent: whatever user code still has of shared memory gets pages of its own."""
        held, self._held = self._held, []
        for reference, memory, segment in held:
            value = reference()
            if value is None:
                continue
            # Others may lie on the same pages, and are to be seen as they are: they are mapped anew.
            if self._mapped.get(segment.arena) is memory:
                del self._mapped[segment.arena]
            first = segment.offset - segment.offset % mmap.PAGESIZE
            for at in range(first, segment.offset + segment.length, mmap.PAGESIZE):
                memory[at] = memory[at]

    def lend(self, size_bytes: int, fence: Fence) -> tuple[memoryview, SegmentData]:
        """A place in shared memory to write, as a ``Lender`` of ``_values.py`` gives it.

        Raises :class:`Refused` where there is none, or nobody who could read it, and :class:`Disconnected`.
        """
        channel = self.channel
        reply = self._ask(channel, "arena.lend", {"bytes": size_bytes, "fence": fence})
        granted = _decode_lend(reply.body)
        lent = self._lent
        for arena in granted.get("gone", ()):
            lent.pop(arena, None)
        segment = granted["segment"]
        memory = lent.get(segment["arena"])
        if memory is None:
            descriptor = _only_descriptor(reply)
            try:
                memory = mmap.mmap(descriptor, 0)
            finally:
                os.close(descriptor)
            # From now on nobody else can map it for writing, and others may read it.
            self._ask(channel, "arena.mapped", {"arena": segment["arena"]})
            lent[segment["arena"]] = memory
        start = segment["offset"]
        return memoryview(memory)[start : start + segment["length"]], segment

    def _ask(self, channel: Channel | None, method: str, request: dict[str, Any]) -> Frame:
        self.before_wait()
        with self.changed:
            if channel is None or self.channel is not channel:
                raise Disconnected("the kernel is gone")
            stream = self._next_stream
            self._next_stream += 2
            answer = self._pending[stream] = queue.SimpleQueue()
        channel.send(frames.CALL, stream, {"method": method}, _encode(request))
        try:
            reply = answer.get(timeout=ASK_TIMEOUT_S)
        except queue.Empty:
            text = f"the kernel did not answer `{method}` within {ASK_TIMEOUT_S} s"
            raise Refused(error("deadline", "worker.ask", text, retry=True)) from None
        if reply is None:
            raise Disconnected("the kernel is gone")
        if reply.kind == frames.ERROR:
            raise Refused(msgspec.msgpack.decode(reply.body))
        return reply


def _only_descriptor(reply: Frame) -> int:
    if len(reply.descriptors) != 1:
        for descriptor in reply.descriptors:
            os.close(descriptor)
        raise Disconnected(f"a reply carries {len(reply.descriptors)} descriptors where one belongs")
    return reply.descriptors[0]


class Staging:
    """A ``Stager``, a ``Store`` and a ``Lender`` of ``_values.py`` for one attempt."""

    def __init__(self, kernel: Kernel, fence: Fence) -> None:
        self._kernel = kernel
        self._fence = fence
        self._is_shared = True
        """Until it is known that nobody reads this attempt's values in shared memory."""

    def stage(self, size_bytes: int) -> tuple[int, int]:
        return self._kernel.stage(size_bytes, self._fence)

    def lend(self, size_bytes: int) -> tuple[memoryview, SegmentData] | None:
        if not self._is_shared:
            return None
        try:
            return self._kernel.lend(size_bytes, self._fence)
        except Refused as why:
            # If it is for want of room, there may be some later.
            self._is_shared = why.error.get("reason") == "arena.full"
            return None

    def open(self, digest: str) -> tuple[int, int]:
        return self._kernel.open(digest)
