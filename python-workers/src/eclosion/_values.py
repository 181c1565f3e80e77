"""Values between steps: a msgpack body and, beside it, parts too large or too special to ride along.

In the body a part is the msgpack extension type 1 whose data is the part's index, a big-endian u32. Plain data and
dataclasses are msgpack, numpy arrays become ``npy`` parts that a reader maps, a ``pathlib.Path`` or an open file
becomes a ``file`` part with its content, large bytes a ``bytes`` part. A body over ``INLINE_BYTES_MAX`` becomes
part 0 itself.

Encoding is pure: :func:`encode` gives an :class:`Encoded` whose parts know their size and how to write themselves;
:meth:`Encoded.stage` then asks a :class:`Store` for files and fills them. After that the parts are descriptors, so a
result that must be handed over again, to a kernel that knows nothing of the first hand-over, costs no memory while it
waits.

What does not survive: tuples and sets come back as lists, dataclasses as maps, a file as a path to read from.
Deliberately absent: pickle in any form, and ``multiprocessing.shared_memory`` (its tracker unlinks what it never
owned).
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

import msgspec

from ._errors import Refused, error
from ._parts import (
    BytesContent,
    Content,
    FileContent,
    NoData,
    content_of,
    map_array,
    open_arrow,
    open_carried,
    open_shared,
    read_part,
)

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    from ._inputs import InputStream
    from ._schemas import Part, Payload, Segment

INLINE_BYTES_MAX = 32 * 1024
PART_EXTENSION = 1
# An argument that is a stream: where the values are that a program feeds.
FEED_EXTENSION = 2
# Below it, a frame is quicker than to ask for a place in shared memory and to find out where it lies.
SHARED_BYTES_MIN = 64 * 1024
# Small parts that ride along with one value, in sum.
RIDING_BYTES_MAX = 1 << 20

_BYTES = (bytes, bytearray, memoryview)
_encode_plain = msgspec.msgpack.Encoder().encode
_decode_plain = msgspec.msgpack.Decoder().decode


class SegmentData(TypedDict):
    arena: int
    offset: int
    length: int
    generation: int


class PartData(TypedDict, total=False):
    stage: int
    segment: SegmentData
    digest: str
    data: bytes
    bytes: int
    codec: str
    name: str


class PayloadData(TypedDict, total=False):
    """A payload as it travels; ``parts`` is left out if there are none."""

    body: bytes
    parts: list[PartData]


class Stager(Protocol):
    """Where parts are put."""

    def stage(self, size_bytes: int) -> tuple[int, int]:
        """Makes a file of this size; returns its token and a descriptor to write it, the caller's to close."""
        ...


class Lender(Protocol):
    """Where values lie that nobody keeps: who waits for them reads them there."""

    def lend(self, size_bytes: int) -> tuple[memoryview, SegmentData] | None:
        """Gives a place in shared memory to write; None if there is none, or nobody could read it."""
        ...


class Store(Protocol):
    """Where parts of arguments lie: with the kernel, or in a directory of a test."""

    def open(self, digest: str) -> tuple[int, int]:
        """Returns a descriptor to read a sealed file, the caller's to close, and its size in bytes."""
        ...

    def attach(self, arena: int) -> mmap.mmap:
        """Returns shared memory, mapped for reading."""
        ...

    def hold(self, value: object, memory: mmap.mmap, segment: Segment) -> None:
        """Says that ``value`` lies in a segment of what :meth:`attach` has returned."""
        ...


class Fed:
    """The client's end of a stream into a function; as an argument, its ``place`` is sent."""

    place: dict[str, Any]

    def end_unread(self) -> None:
        """Ends it unless it is being read."""


def feeds_of(arguments: dict[str, Any]) -> list[Fed]:
    """The streams among arguments."""
    return [value for value in arguments.values() if isinstance(value, Fed)]


class Encoded:
    """A value ready to be staged and sent."""

    __slots__ = ("body", "parts")

    def __init__(self, body: bytes, parts: list[Content]) -> None:
        self.body = body
        self.parts = parts

    def stage(self, store: Stager) -> PayloadData:
        """Writes every part into a file of ``store``. May be called again, with another store."""
        if not self.parts:
            return {"body": self.body}
        staged: list[PartData] = []
        for index, part in enumerate(self.parts):
            token, descriptor = store.stage(part.size_bytes)
            try:
                part.write(descriptor)
                data = PartData(stage=token, bytes=part.size_bytes, codec=part.codec)
                if part.name is not None:
                    data["name"] = part.name
                staged.append(data)
                if not isinstance(part, FileContent) or part.codec == "file":
                    # From now on the staged file is the part: the value itself need not be kept, nor a user's file.
                    # Opened anew for reading, as nobody should be able to write a file that the kernel has hashed.
                    kept = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
                    self.parts[index] = FileContent(kept, part.codec, part.name)
                    part.close()
            finally:
                os.close(descriptor)
        return {"body": self.body, "parts": staged}

    def shared(self, lender: Lender) -> PayloadData | None:
        """The payload of a call, which nobody keeps: large parts in shared memory, small ones riding along.

        None if a large part finds no place there; then nothing was let go of.
        """
        if not self.parts:
            return {"body": self.body}
        sizes = [part.size_bytes for part in self.parts]
        if max(sizes) < SHARED_BYTES_MIN and sum(sizes) <= RIDING_BYTES_MAX:
            return self.carried()
        placed: list[PartData] = []
        riding = 0
        for part in self.parts:
            data = PartData(bytes=part.size_bytes, codec=part.codec)
            if part.name is not None:
                data["name"] = part.name
            if part.size_bytes >= SHARED_BYTES_MIN:
                lent = lender.lend(part.size_bytes)
                if lent is None:
                    return None
                memory, data["segment"] = lent
                part.copy_to(memory)
            else:
                data["data"] = part.read()
                riding += part.size_bytes
            if riding > RIDING_BYTES_MAX:
                return None
            placed.append(data)
        self.close()
        return {"body": self.body, "parts": placed}

    def carried(self) -> PayloadData:
        """The payload with its parts riding along, for what nobody stores. Lets go of the parts."""
        try:
            contents = [part.read() for part in self.parts]
            if self.body == _FIRST and [part.codec for part in self.parts] == ["msgpack"]:
                # It became a part for its size alone, which is no matter here.
                return {"body": contents[0]}
            if not contents:
                return {"body": self.body}
            return {"body": self.body, "parts": [_carried(*each) for each in zip(self.parts, contents, strict=True)]}
        finally:
            self.close()

    def close(self) -> None:
        """Lets go of the parts."""
        for part in self.parts:
            part.close()
        self.parts = []


def encode(value: object) -> Encoded:
    """Encodes a value. Raises :class:`Refused` (``task.encode``) naming what cannot travel."""
    try:
        if isinstance(value, _BYTES) and len(data := bytes(cast("bytes", value))) > INLINE_BYTES_MAX:
            return Encoded(_reference(0), [BytesContent("bytes", data)])
        body = _encode_plain(value)
    except Exception:
        # It has something in it that becomes a part, or that cannot travel.
        return encode_with_parts(cast("object", value))
    if len(body) > INLINE_BYTES_MAX:
        return Encoded(_reference(0), [BytesContent("msgpack", body)])
    return Encoded(body, [])


def encode_with_parts(value: object) -> Encoded:
    """As :func:`encode`, for what may have arrays, files or odd objects in it."""
    parts: list[Content] = []
    try:
        body = _body(value, parts, first=0)
        if len(body) > INLINE_BYTES_MAX:
            # The body becomes part 0, so the indexes in it shift by one: encoded again, as that is rare.
            parts = _closed(parts)
            body = _body(value, parts, first=1)
            parts.insert(0, BytesContent("msgpack", body))
            body = _reference(0)
        return Encoded(body, parts)
    except BaseException:
        _closed(parts)
        raise


def placed(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments, with the places of streams among them."""
    if not any(isinstance(value, Fed) for value in values.values()):
        return values

    def sent(value: object) -> object:
        return msgspec.msgpack.Ext(FEED_EXTENSION, _encode_plain(value.place)) if isinstance(value, Fed) else value

    return {name: sent(value) for name, value in values.items()}


def encode_named(values: Mapping[str, object]) -> Encoded:
    """The arguments of a call: one map whatever its size, as names are found in it, with parts for arrays and files.

    Raises :class:`Refused` (``call.arguments``) naming what cannot travel.
    """
    parts: list[Content] = []
    try:
        return Encoded(_packed(values, parts, first=0), parts)
    except Exception as why:
        _closed(parts)
        advice = _way_out(why) or (
            "pass plain data, dataclasses, numpy arrays, bytes or a pathlib.Path, or make the value in the function"
        )
        raise Refused(error("invalid", "call.arguments", f"an argument cannot be sent: {why}", help=advice)) from why


def decode(payload: Payload, open_part: Callable[[Part], object]) -> Any:
    """Decodes a value; ``open_part`` gives what stands for a part whose codec is not ``msgpack``."""
    if not payload.parts:
        return _decode_plain(payload.body)
    opened: dict[int, object] = {}

    def hook(code: int, data: memoryview) -> object:
        if code == FEED_EXTENSION:
            return msgspec.msgpack.Ext(code, bytes(data))
        if code != PART_EXTENSION or len(data) != 4:
            raise ValueError(f"unknown msgpack extension {code}")
        index = int.from_bytes(data, "big")
        if index >= len(payload.parts):
            raise ValueError(f"part {index} of {len(payload.parts)}")
        if index not in opened:
            part = payload.parts[index]
            value = open_part(part)
            opened[index] = decoder.decode(cast("bytes", value)) if part.codec == "msgpack" else value
        return opened[index]

    decoder = msgspec.msgpack.Decoder(ext_hook=hook)
    try:
        return decoder.decode(payload.body)
    finally:
        # Hook and decoder hold each other, and are to hold nothing that lies in shared memory.
        opened.clear()


def decode_all(payloads: list[Payload], open_part: Callable[[Part], object]) -> list[Any]:
    """Decodes the values of a fan-out. As :func:`decode` of each, without a call for each that has no parts."""
    return [decode(payload, open_part) if payload.parts else _decode_plain(payload.body) for payload in payloads]


class Inputs:
    """Opens the parts of an attempt's arguments, and closes what was opened when the attempt is over.

    Arrays are mapped read-only, straight from the store's file, or lie where the caller of a call has put them into
    shared memory. One that the function keeps stays as it is, as its pages are copied at the end of the call. A file
    is a path in the attempt's scratch that leads to the descriptor, so that it has its name and is not copied; of a
    call, it is a file there.
    """

    def __init__(self, store: Store, scratch: Callable[[], pathlib.Path]) -> None:
        self._store = store
        self._scratch = scratch
        self._descriptors: list[int] = []
        self._streams: list[InputStream] = []

    def open(self, payload: Payload) -> Any:
        """One argument."""
        value = decode(payload, self.open_part)
        if type(value) is not msgspec.msgpack.Ext or value.code != FEED_EXTENSION:
            return value
        # Not at the top: few tasks need it.
        from ._inputs import InputStream

        stream = InputStream(_decode_plain(value.data))
        self._streams.append(stream)
        return stream

    def open_part(self, part: Part) -> object:
        if part.data is not None:
            if part.codec == "file":
                return write_file(self._scratch(), part.name, part.data)
            return open_carried(part.codec, part.data)
        if part.segment is not None:
            memory = self._store.attach(part.segment.arena)
            view = open_shared(memory, part.segment)
            if part.codec == "file":
                return write_file(self._scratch(), part.name, view)
            # An array or a table lies there itself; the segment is used again after the call.
            if part.codec not in ("npy", "arrow"):
                return open_carried(part.codec, bytes(view))
            value = open_carried(part.codec, view)
            # As for a client: what is made of an array without a copy keeps the array, a table's buffers the view.
            self._store.hold(value if part.codec == "npy" else view, memory, part.segment)
            return value
        if not part.digest:
            raise ValueError("an input's part has no digest")
        descriptor, size_bytes = self._store.open(part.digest)
        self._descriptors.append(descriptor)
        if part.codec == "npy":
            return map_array(descriptor)
        if part.codec in ("msgpack", "bytes"):
            return read_part(descriptor, size_bytes)
        if part.codec == "file":
            return self._link(descriptor, part.name)
        if part.codec == "arrow":
            return open_arrow(descriptor)
        raise ValueError(f"a part of unknown codec `{part.codec}`")

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def _link(self, descriptor: int, name: str | None) -> pathlib.Path:
        path = _place(self._scratch(), name)
        # By process id and not `self`, so that a task's own children can read it too.
        path.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        return path


def write_file(scratch: pathlib.Path, name: str | None, content: bytes | memoryview) -> pathlib.Path:
    """A file of its own in the attempt's scratch, with this content."""
    path = _place(scratch, name)
    path.write_bytes(content)
    return path


def _place(scratch: pathlib.Path, name: str | None) -> pathlib.Path:
    # Imported late: few tasks need it, and it draws random numbers.
    import tempfile

    inputs = scratch / "inputs"
    inputs.mkdir(exist_ok=True)
    # Only the last component: a name that came over the wire must not reach another directory.
    return pathlib.Path(tempfile.mkdtemp(dir=inputs)) / (pathlib.PurePosixPath(name or "").name or "file")


def _packed(value: object, parts: list[Content], *, first: int) -> bytes:
    def hook(item: object) -> object:
        content = content_of(item)
        if content is not None:
            parts.append(content)
            return msgspec.msgpack.Ext(PART_EXTENSION, (first + len(parts) - 1).to_bytes(4, "big"))
        return plain(item)

    return msgspec.msgpack.encode(value, enc_hook=hook)


def _body(value: object, parts: list[Content], *, first: int) -> bytes:
    try:
        return _packed(value, parts, first=first)
    except Exception as why:  # A mapping or a path may be user code, and raise anything.
        help = _way_out(why) or "return plain data, dataclasses, numpy arrays, bytes or a pathlib.Path to a file"
        raise Refused(
            error(
                "invalid",
                "task.encode",
                f"the result cannot be sent: {why}",
                help=help,
            )
        ) from why


def _way_out(why: Exception) -> str | None:
    if isinstance(why, BufferError):
        return "of a memoryview with steps: bytes(view)"
    return why.help if isinstance(why, NoData) else None


def _reference(index: int) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(PART_EXTENSION, index.to_bytes(4, "big")))


_FIRST = _reference(0)


def _carried(part: Content, content: bytes) -> PartData:
    data = PartData(data=content, bytes=len(content), codec=part.codec)
    if part.name is not None:
        data["name"] = part.name
    return data


def plain(item: object) -> object:
    """Data that msgspec knows in place of ``item``."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(item, numpy.generic):
        scalar: object = cast("Any", item).item()
        if type(scalar) is type(item):
            raise TypeError(f"a numpy scalar of type {type(item).__name__} has no plain form")
        return scalar
    for base in (bool, int, float, str):
        if isinstance(item, base):
            return base(item)
    if isinstance(item, Mapping):
        return dict(cast("Mapping[object, object]", item))
    if isinstance(item, range):
        return list(item)
    kind = type(item)
    raise TypeError(f"a value of type {kind.__module__}.{kind.__qualname__} is no data")


def _closed(parts: list[Content]) -> list[Content]:
    for part in parts:
        part.close()
    return []
