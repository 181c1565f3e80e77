"""What an attempt may open and write: soft limits of this process, set before user code and taken back after it.

Going beyond one raises an ``OSError`` in the task, as it would anywhere; what is reported then names the limit. Memory
and processes are the kernel's to watch.

``file_bytes`` counts from the end of the worker's own output, which is a file too: a task can always print as much as
it may write. Descriptors are needed to be adopted by another kernel, so that moment is free of the limit (`lifted`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING

from ._errors import ErrorData, error
from ._exceptions import one_line, remote_exception

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._schemas import AttemptLimits

_STDOUT, _STDERR = 1, 2
_CAUSES_MAX = 8


_FREE = contextlib.nullcontext()


def kept(limits: AttemptLimits | None) -> contextlib.AbstractContextManager[None]:
    """Within, this process and what it starts keep to the limits."""
    return _FREE if limits is None else _kept(limits)


@contextlib.contextmanager
def _kept(limits: AttemptLimits) -> Generator[None]:
    before: list[tuple[int, tuple[int, int]]] = []
    try:
        if limits.open_files is not None:
            before.append((resource.RLIMIT_NOFILE, _lower(resource.RLIMIT_NOFILE, limits.open_files)))
        if limits.file_bytes is not None:
            bound = limits.file_bytes + max(_size(_STDOUT), _size(_STDERR))
            before.append((resource.RLIMIT_FSIZE, _lower(resource.RLIMIT_FSIZE, bound)))
        yield
    finally:
        for which, limit in before:
            resource.setrlimit(which, limit)


@contextlib.contextmanager
def lifted() -> Generator[None]:
    """Within, descriptors are there for the worker itself."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def blamed(raised: BaseException, limits: AttemptLimits | None, code_root: str) -> ErrorData | None:
    """The error that names a limit, if the exception or one of its causes comes of it."""
    number = _errno(raised) if limits is not None else None
    if limits is None or number is None:
        return None
    if number == errno.EMFILE and limits.open_files is not None:
        reason, what, key = "limit.open_files", f"{limits.open_files} open files", "open_files"
    elif number == errno.EFBIG and limits.file_bytes is not None:
        reason, what, key = "limit.file_size", f"files of {limits.file_bytes} bytes", "file_size"
    else:
        return None
    text = f"the task may have {what} and wanted more: {one_line(raised)}"
    remote = remote_exception(raised, code_root)
    return error("exhausted", reason, text, help=f"raise `{key}` of the task", retry=True, remote=remote)


def _errno(raised: BaseException | None) -> int | None:
    for _ in range(_CAUSES_MAX):
        if raised is None:
            return None
        if isinstance(raised, OSError):
            return raised.errno
        raised = raised.__cause__ or raised.__context__
    return None


def _lower(which: int, bound: int) -> tuple[int, int]:
    before = resource.getrlimit(which)
    soft, hard = before
    room = min(limit for limit in (bound, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(which, (room, hard))
    return before


def _size(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_size
    except OSError:
        return 0
