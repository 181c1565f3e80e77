"""The parts of a value: bytes, arrays, tables and files, as they are written and as they are read.

A part knows its codec and its size before anything is copied. Written, it goes into a staged file, into shared memory
or along with the message; read, an array or a table lies where the bytes do, and is not copied.
"""

from __future__ import annotations

import io
import mmap
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any, Protocol, cast

from ._errors import sendable

if TYPE_CHECKING:
    from ._schemas import Segment

_WRITE_BYTES = 64 << 20
_ARRAY_HEAD_BYTES_MAX = 64 * 1024


class NoData(TypeError):  # noqa: N818
    """What is to be sent is no data; ``help`` says what is instead."""

    def __init__(self, text: str, help: str) -> None:
        super().__init__(text)
        self.help = help


class Content(Protocol):
    """A part before it is staged."""

    @property
    def codec(self) -> str: ...

    @property
    def name(self) -> str | None: ...

    @property
    def size_bytes(self) -> int: ...

    def write(self, descriptor: int) -> None: ...

    def copy_to(self, memory: memoryview) -> None: ...

    def read(self) -> bytes: ...

    def close(self) -> None: ...


class BytesContent:
    """Bytes in memory."""

    name = None

    def __init__(self, codec: str, *pieces: bytes | memoryview) -> None:
        self.codec = codec
        self._pieces = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        self.size_bytes = sum(piece.nbytes for piece in self._pieces)

    def write(self, descriptor: int) -> None:
        offset = 0
        for piece in self._pieces:
            for start in range(0, piece.nbytes, _WRITE_BYTES):
                offset = _write_at(descriptor, piece[start : start + _WRITE_BYTES], offset)

    def copy_to(self, memory: memoryview) -> None:
        offset = 0
        for piece in self._pieces:
            memory[offset : offset + piece.nbytes] = piece
            offset += piece.nbytes

    def read(self) -> bytes:
        return b"".join(self._pieces)

    def close(self) -> None:
        self._pieces = []


class FileContent:
    """An open file's bytes, from its start. Owns the descriptor."""

    def __init__(self, descriptor: int, codec: str, name: str | None) -> None:
        self._descriptor = descriptor
        self.codec = codec
        self.name = None if name is None else sendable(name)
        self.size_bytes = os.fstat(descriptor).st_size

    def write(self, descriptor: int) -> None:
        offset = 0
        os.lseek(descriptor, 0, os.SEEK_SET)
        while offset < self.size_bytes:
            sent = os.sendfile(descriptor, self._descriptor, offset, self.size_bytes - offset)
            if not sent:
                raise OSError(f"the file became shorter than {self.size_bytes} bytes while it was read")
            offset += sent

    def copy_to(self, memory: memoryview) -> None:
        offset = 0
        while offset < self.size_bytes:
            count = os.preadv(self._descriptor, [memory[offset : self.size_bytes]], offset)
            if not count:
                raise OSError(f"the file became shorter than {self.size_bytes} bytes while it was read")
            offset += count

    def read(self) -> bytes:
        return read_part(self._descriptor, self.size_bytes)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def content_of(item: object) -> Content | None:
    """The part that ``item`` becomes, or None if it is to be plain data."""
    if isinstance(item, os.PathLike):
        return _file_content(pathlib.Path(cast("os.PathLike[str]", item)))
    if isinstance(item, io.IOBase):
        return _handle_content(item)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(item, numpy.ndarray):
        return _array_content(numpy, item)
    return _arrow_content(item)


def _file_content(path: pathlib.Path) -> Content:
    if not path.exists():
        raise ValueError(f"the file {path} does not exist (a path in a result stands for its content)")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; pack a directory into an archive first")
    return FileContent(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "file", path.name)


def _handle_content(handle: io.IOBase) -> Content:
    if handle.writable():
        handle.flush()
    name = getattr(handle, "name", None)
    shown = pathlib.PurePath(name).name if isinstance(name, str) else None
    if isinstance(handle, io.BytesIO):
        return BytesContent("bytes", handle.getvalue())
    # Opened anew: the handle may have been opened for writing only, and its position is not ours to move.
    return FileContent(os.open(f"/proc/self/fd/{handle.fileno()}", os.O_RDONLY | os.O_CLOEXEC), "file", shown)


def _array_content(numpy: Any, item: Any) -> Content:
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(item, masked.MaskedArray):
        raise NoData("a masked array would lose its mask", "send array.filled(…), or array.data and array.mask")
    if item.dtype.hasobject:
        raise TypeError(f"an array of dtype {item.dtype} holds Python objects; convert it to a plain dtype")
    # Plain subclasses and strides have no place in the format: a C- or Fortran-ordered array has.
    whole = numpy.asarray(item)
    if not (whole.flags.c_contiguous or whole.flags.f_contiguous):
        whole = numpy.ascontiguousarray(whole)
    head = io.BytesIO()
    numpy.lib.format.write_array_header_2_0(head, numpy.lib.format.header_data_from_array_1_0(whole))
    flat = whole.reshape(-1, order="F" if not whole.flags.c_contiguous else "C")
    data = memoryview(flat.view(numpy.uint8)) if flat.nbytes else b""
    return BytesContent("npy", head.getvalue(), data)


def map_array(descriptor: int) -> Any:
    return _array_over(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))


def _array_over(buffer: bytes | memoryview | mmap.mmap) -> Any:
    """An array that lies where ``buffer`` does. Its header is read from a copy, as a buffer may be shared."""
    import numpy

    head = io.BytesIO(buffer[:_ARRAY_HEAD_BYTES_MAX])
    version = numpy.lib.format.read_magic(head)
    read_header = (
        numpy.lib.format.read_array_header_1_0 if version == (1, 0) else numpy.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read_header(head)
    if dtype.hasobject:
        raise ValueError("an array of Python objects is not read")
    order = "F" if fortran else "C"
    return numpy.ndarray(shape, dtype=dtype, buffer=buffer, offset=head.tell(), order=order)


def _arrow_content(item: object) -> Content | None:
    arrow: Any = sys.modules.get("pyarrow")
    if arrow is None or not isinstance(item, (arrow.Table, arrow.RecordBatch)):
        return None
    table: Any = item
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_file(sink, table.schema) as writer:
        writer.write(table)
    return BytesContent("arrow", memoryview(sink.getvalue()))


def open_arrow(descriptor: int) -> object:
    return _table_over(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))


def _table_over(buffer: bytes | memoryview | mmap.mmap) -> object:
    import importlib

    arrow: Any = importlib.import_module("pyarrow")
    return arrow.ipc.open_file(arrow.py_buffer(buffer)).read_all()


def read_part(descriptor: int, size_bytes: int) -> bytes:
    pieces: list[bytes] = []
    offset = 0
    while offset < size_bytes:
        piece = os.pread(descriptor, min(size_bytes - offset, _WRITE_BYTES), offset)
        if not piece:
            raise ValueError(f"a part ends after {offset} of {size_bytes} bytes")
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def _write_at(descriptor: int, data: memoryview, offset: int) -> int:
    while data.nbytes:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written
    return offset


def open_carried(codec: str, data: bytes | memoryview) -> object:
    """What a part stands for whose bytes ride along, or lie in shared memory.

    An array shares them, and cannot be written to; anything else that is to outlive shared memory is given a copy.
    """
    if codec == "npy":
        return _array_over(data)
    if codec in ("msgpack", "bytes", "file"):
        return data
    if codec == "arrow":
        return _table_over(data)
    raise ValueError(f"a part of unknown codec `{codec}`")


def open_shared(memory: mmap.mmap, segment: Segment) -> memoryview:
    """The bytes of a segment, where they lie."""
    end = segment.offset + segment.length
    if segment.offset < 0 or segment.length < 0 or end > len(memory):
        raise ValueError(f"a segment ends at {end} of {len(memory)} bytes of shared memory")
    return memoryview(memory).toreadonly()[segment.offset : end]
