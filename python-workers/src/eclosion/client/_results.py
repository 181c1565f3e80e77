"""The parts of a result: what was too large, or too special, to ride along is fetched from the artifact store."""

from __future__ import annotations

import io
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

from .._values import map_array, open_arrow

if TYPE_CHECKING:
    from .._schemas import Part
    from ._client import Client


def open_part(client: Client, part: Part) -> object:
    """What stands for a part in the value: an array, a table, bytes, or the path of a file that is the caller's."""
    if part.codec in ("msgpack", "bytes"):
        content = io.BytesIO()
        _fetch(client, part, content)
        return content.getvalue()
    if part.codec == "file":
        path = pathlib.Path(tempfile.mkdtemp(prefix="eclosion-")) / (pathlib.PurePosixPath(part.name or "file").name)
        with path.open("wb") as file:
            _fetch(client, part, file)
        return path
    if part.codec not in ("npy", "arrow"):
        raise ValueError(f"a part of unknown codec `{part.codec}`")
    with tempfile.TemporaryFile() as file:
        _fetch(client, part, file)
        file.flush()
        return map_array(file.fileno()) if part.codec == "npy" else open_arrow(file.fileno())


def _fetch(client: Client, part: Part, into: Any) -> None:
    if not part.digest:
        raise ValueError("a part of the result has no digest")
    with client.artifact.read(digest=part.digest) as pieces:
        for piece in pieces:
            into.write(piece.bytes)
        pieces.reply()
    if into.tell() != part.bytes:
        raise ValueError(f"a part has {into.tell()} of {part.bytes} bytes")
    into.seek(0, os.SEEK_SET)
