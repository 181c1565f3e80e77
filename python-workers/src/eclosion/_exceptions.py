"""An exception as data: it crosses processes, languages and versions, and nobody ever unpickles it.

Frames are outermost first, as Python prints them; those of this package at the outer end are left out, those that lie
in the user's own code root are marked, so that a terminal can show them alone. Everything is bounded, and what was cut
is said (``truncated``): a recursion's ten thousand frames must not become a message of a megabyte.
"""

from __future__ import annotations

import linecache
import os
import traceback
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from types import TracebackType

FRAMES_MAX = 64
CAUSES_MAX = 6
NOTES_MAX = 16
TEXT_MAX = 8 * 1024
SOURCE_MAX = 240

_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
# The runtime is laid out in the cache: below the code root, if that is a home directory.
_RUNTIME_FOLDERS = (_OWN_FOLDER, os.path.dirname(os.path.abspath(msgspec.__file__)) + os.sep)


def remote_exception(raised: BaseException, code_root: str) -> dict[str, Any]:
    """``RemoteException`` of ``schemas/src/error.rs``. ``code_root`` tells whose frames are the user's."""
    return _remote(raised, folders_of(code_root), CAUSES_MAX)


def one_line(raised: BaseException) -> str:
    """``ValueError: what it says``, one sentence for a person."""
    text, _ = _text(raised)
    first = text.strip().partition("\n")[0]
    name = type(raised).__name__
    return f"{name}: {first}" if first else name


def folders_of(root: str) -> tuple[str, ...]:
    """A code root as its files' names may begin: as given, and with links resolved."""
    if not root:
        return ()
    return os.path.join(os.path.abspath(root), ""), os.path.join(os.path.realpath(root), "")


def is_user_file(path: str, folders: tuple[str, ...]) -> bool:
    """Whether a source file belongs to the code root and not to a library, or to the runtime, that lies below it."""
    if not folders or not path.startswith(folders):
        return False
    return "site-packages" not in path and not path.startswith(_RUNTIME_FOLDERS)


def _remote(raised: BaseException, folders: tuple[str, ...], causes_left: int) -> dict[str, Any]:
    kind = type(raised)
    text, truncated = _text(raised)
    frames, cut_frames = _frames(raised.__traceback__, folders)
    notes, cut_notes = _notes(raised)
    data: dict[str, Any] = {
        "lang": "python",
        "type": kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        "text": text,
        "frames": frames,
    }
    if notes:
        data["notes"] = notes
    cause = raised.__cause__ or (None if raised.__suppress_context__ else raised.__context__)
    if cause is not None and cause is not raised:
        if causes_left:
            data["cause"] = _remote(cause, folders, causes_left - 1)
        else:
            truncated = True
    data["truncated"] = truncated or cut_frames or cut_notes
    return data


def _text(raised: BaseException) -> tuple[str, bool]:
    try:
        text = str(raised)
    except Exception as why:  # User code, which may itself raise.
        text = f"<its text cannot be shown: {type(why).__name__}>"
    return text[:TEXT_MAX], len(text) > TEXT_MAX


def _notes(raised: BaseException) -> tuple[list[str], bool]:
    try:
        notes = [str(note) for note in getattr(raised, "__notes__", ())]
    except Exception as why:  # User code as well.
        notes = [f"<its notes cannot be shown: {type(why).__name__}>"]
    # A group's members have no place of their own in the shape; a line for each tells most of it.
    members: tuple[BaseException, ...] = getattr(raised, "exceptions", ()) if _is_group(raised) else ()
    notes += [f"[{n}] {one_line(member)}" for n, member in enumerate(members)]
    return [note[:TEXT_MAX] for note in notes[:NOTES_MAX]], len(notes) > NOTES_MAX


def _is_group(raised: BaseException) -> bool:
    return any(base.__name__ == "BaseExceptionGroup" for base in type(raised).__mro__)


def _frames(trace: TracebackType | None, folders: tuple[str, ...]) -> tuple[list[dict[str, Any]], bool]:
    places = [(frame.f_code.co_filename, line, frame.f_code) for frame, line in traceback.walk_tb(trace)]
    while places and places[0][0].startswith(_OWN_FOLDER):
        del places[0]
    cut = len(places) > FRAMES_MAX
    if cut:
        places = places[: FRAMES_MAX // 2] + places[-FRAMES_MAX // 2 :]
    frames = [
        {
            "file": file,
            "line": line,
            "function": getattr(code, "co_qualname", code.co_name),
            "source": linecache.getline(file, line).strip()[:SOURCE_MAX],
            "user": is_user_file(file, folders),
        }
        for file, line, code in places
    ]
    return frames, cut
