"""Values of payloads: their parts ride along, lie in shared memory, or are fetched from the artifact store."""

from __future__ import annotations

import io
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

from .._errors import Refused, error
from .._parts import map_array, open_arrow, open_carried
from .._values import decode

if TYPE_CHECKING:
    from .._schemas import Part, Payload
    from ._client import Client
    from ._connection import Connection


def value_of(client: Client, payload: Payload, connection: Connection) -> Any:
    """The value of a payload that came over ``connection``."""
    return decode(payload, lambda part: open_part(client, part, connection))


def open_part(client: Client, part: Part, connection: Connection) -> object:
    """What stands for a part in the value: an array, a table, bytes, or the path of a file that is the caller's."""
    if part.segment is not None or part.data is not None:
        return _open_here(part, connection)
    if part.codec in ("msgpack", "bytes"):
        content = io.BytesIO()
        _fetch(client, part, content)
        return content.getvalue()
    if part.codec == "file":
        path = _place_of(part)
        with path.open("wb") as file:
            _fetch(client, part, file)
        return path
    if part.codec not in ("npy", "arrow"):
        raise ValueError(f"a part of unknown codec `{part.codec}`")
    with tempfile.TemporaryFile() as file:
        _fetch(client, part, file)
        file.flush()
        return map_array(file.fileno()) if part.codec == "npy" else open_arrow(file.fileno())


def _open_here(part: Part, connection: Connection) -> object:
    if part.data is not None:
        content = open_carried(part.codec, part.data)
    elif connection.arenas is not None:
        content = connection.arenas.open(part)
    else:
        raise Refused(error("precondition", "arena.none", "this connection shares no memory with the kernel"))
    if part.codec != "file" or not isinstance(content, bytes):
        return content
    path = _place_of(part)
    path.write_bytes(content)
    return path


def _place_of(part: Part) -> pathlib.Path:
    # Only the last component: a name that came over the wire must not reach another directory.
    return pathlib.Path(tempfile.mkdtemp(prefix="eclosion-")) / (pathlib.PurePosixPath(part.name or "file").name)


def _fetch(client: Client, part: Part, into: Any) -> None:
    if not part.digest:
        raise ValueError("a part of the result has no digest")
    with client.artifact.read(digest=part.digest) as pieces:
        for piece in pieces:
            into.write(piece.bytes)
    if into.tell() != part.bytes:
        raise ValueError(f"a part has {into.tell()} of {part.bytes} bytes")
    into.seek(0, os.SEEK_SET)
