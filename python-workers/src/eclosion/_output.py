"""A worker's stdout and stderr: append files that were put on descriptors 1 and 2 before it started.

What an attempt wrote is a range of bytes in each. A task may close, replace or redirect its streams as it likes: the
files are held under descriptors of our own, and before each attempt everything is put back. The descriptors
unconditionally: looking where one leads costs three times as much as leading it back.
"""

from __future__ import annotations

import ctypes
import io
import os
import stat
import sys
from typing import Any, TextIO

_fflush = ctypes.CDLL(None).fflush


class Output:
    """Both streams."""

    def __init__(self) -> None:
        self._stdout = _Stream(1, "stdout")
        self._stderr = _Stream(2, "stderr")
        self._from = (0, 0)

    def begin(self) -> None:
        """Starts an attempt's ranges, with the streams as they were at first."""
        self._from = self._stdout.restore(), self._stderr.restore()

    def end(self) -> dict[str, list[int]]:
        """Flushes Python's and C's buffers and returns ``{"stdout": [from, to], "stderr": [from, to]}``."""
        stdout, stderr = self._stdout, self._stderr
        stdout.flush()
        stderr.flush()
        _fflush(None)
        from_stdout, from_stderr = self._from
        return {"stdout": [from_stdout, stdout.size()], "stderr": [from_stderr, stderr.size()]}


class _Stream:
    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self._descriptor = descriptor
        self._held = os.dup(descriptor)
        self._regular = stat.S_ISREG(os.fstat(self._held).st_mode)
        self._text = _open(descriptor)
        setattr(sys, name, self._text)
        setattr(sys, f"__{name}__", self._text)

    def restore(self) -> int:
        """Puts the stream back, wherever it was moved; returns its size."""
        if self._text.closed:
            self._text = _open(self._descriptor)
        setattr(sys, self.name, self._text)
        os.dup2(self._held, self._descriptor)
        return self.size()

    def flush(self) -> None:
        _flush(self._text)
        other = getattr(sys, self.name, None)
        if other is not self._text:
            _flush(other)

    def size(self) -> int:
        # Cheaper than a whole status; whoever appends does not care where the position is.
        return os.lseek(self._held, 0, os.SEEK_END) if self._regular else 0


def _flush(stream: Any) -> None:
    # The task may have put anything there, and our own stream may have lost its descriptor.
    try:
        stream.flush()
    except Exception:
        pass


def _open(descriptor: int) -> TextIO:
    raw = io.FileIO(descriptor, "w", closefd=False)
    # By lines, so that the kernel can show them while the task runs.
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
