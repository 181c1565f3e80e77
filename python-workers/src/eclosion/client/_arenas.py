"""Shared memory of one connection: what is mapped of it, and what was read and goes back.

    named in a reply or an item --open--> read where it lies --nobody has the value any more--> given back

The kernel tells where a large value lies (a segment of an arena). An array or a table lies there itself, read-only; all
else is copied. It is given back once the last array over it is gone, whichever thread lets go of it: that is noted
without a lock, and a thread of its own tells the kernel. A value by shared memory is right as long as the connection
lasts: after that its place may be used again. So a client that is closed ends its calls, and the connection lasts until
the last such value is gone.

Invariants: (1) at most :data:`MAPPED_MAX` arenas stay mapped beside those that somebody reads; (2) a stream that is
left early gives back whatever was on its way.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any

import msgspec

from .._errors import Refused, error, raised
from .._parts import open_carried, open_shared
from .._process import start_thread

if TYPE_CHECKING:
    from .._schemas import Part, Segment
    from ._connection import Connection

SEALED = "arena.sealed"
NAMED = "arena.named"
MAPPED_MAX = 8
# How long the kernel may take to say where an arena is.
ATTACH_S = 10.0
# Told at once.
GATHERED_MAX = 64

# What the thread that gives back is told beside that.
_RETIRE = "retire"
_END = "end"

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode
Key = tuple[int, int]


class Arenas:
    """See the head of this file."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._mapped: dict[int, mmap.mmap] = {}
        self._held: dict[Key, Segment] = {}
        self._done: queue.SimpleQueue[Segment | str] = queue.SimpleQueue()
        self._releasing = False
        self._retired = False

    def open(self, part: Part) -> object:
        """What a part stands for whose bytes lie in shared memory. Raises one that is gone as :class:`Refused`."""
        segment = part.segment
        if segment is None:
            raise ValueError("a part without a segment")
        key = (segment.arena, segment.generation)
        with self._lock:
            if not self._releasing:
                self._releasing = True
                start_thread(self._release, "eclosion-release")
            self._held[key] = segment
        try:
            # After it is noted: either this is seen by whoever closes the connection, or that is seen here.
            if self._connection.lost is not None:
                raise raised(self._connection.lost)
            view = open_shared(self._memory(segment.arena), segment)
            if part.codec not in ("npy", "arrow"):
                return open_carried(part.codec, bytes(view))
            value = open_carried(part.codec, view)
            # Whatever is made of an array without a copy keeps that array, and not the view: numpy refers to what a
            # view is of. A table's buffers keep the view.
            last: Any = value if part.codec == "npy" else view
            weakref.finalize(last, self._done.put, segment).atexit = False
            key = None
            return value
        finally:
            if key is not None:
                self._done.put(segment)

    def left(self, stream: int) -> None:
        """A stream was cancelled: what came on it and nobody took goes back."""
        with self._lock:
            keep = list(self._held.values())
        self._tell({"stream": stream, "keep": keep})

    def retire(self) -> bool:
        """The client is closed, perhaps by the garbage collector, so that no lock is taken here. Whether anything lies
        in what was lent: then the thread that gives back ends the calls at once, and the connection after the last."""
        if not self._held:
            return False
        self._done.put(_RETIRE)
        return True

    def close(self) -> None:
        """The connection is gone, and with it all holds. What is mapped stays so as long as somebody reads it."""
        with self._lock:
            self._mapped = {}
            self._held = {}
        self._done.put(_END)

    def _memory(self, arena: int) -> mmap.mmap:
        with self._lock:
            memory = self._mapped.get(arena)
        if memory is not None:
            return memory
        exchange = self._connection.open("arena.attach", _encode({"arena": arena}), deadline_s=ATTACH_S)
        reply = _decode(exchange.reply())
        memory = _map(exchange.take_descriptors(), reply.get("name"))
        with self._lock:
            while len(self._mapped) >= MAPPED_MAX:
                del self._mapped[next(iter(self._mapped))]
            self._mapped[arena] = memory
        return memory

    def _release(self) -> None:
        while True:
            gathered = [self._done.get()]
            while len(gathered) < GATHERED_MAX and not self._done.empty():
                gathered.append(self._done.get())
            segments = [segment for segment in gathered if not isinstance(segment, str)]
            with self._lock:
                for segment in segments:
                    self._held.pop((segment.arena, segment.generation), None)
            if _END in gathered:
                return
            if segments:
                self._tell({"segments": segments})
            if _RETIRE in gathered:
                self._retired = True
                self._connection.leave_all()
            if self._retired and not self._held:
                self._connection.hang_up()

    def _tell(self, request: dict[str, Any]) -> None:
        self._connection.tell("arena.release", _encode(request), ATTACH_S)


def _map(descriptors: tuple[int, ...], name: str | None) -> mmap.mmap:
    if name is not None:
        # Never by `multiprocessing.shared_memory`, whose tracker removes names that are the kernel's.
        descriptors = (*descriptors, os.open(f"/dev/shm/{os.path.basename(name)}", os.O_RDONLY | os.O_CLOEXEC))
    if len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise Refused(error("internal", "arena.attach", f"{len(descriptors)} descriptors came where one belongs"))
    try:
        return mmap.mmap(descriptors[0], 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptors[0])
