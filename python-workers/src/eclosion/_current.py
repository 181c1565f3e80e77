"""What a running task knows about itself, and how it reports.

There is one attempt at a time in a process, so the current one is a plain global and the threads that a task starts see
it too. Outside of an attempt :func:`current` gives a harmless local one: a task can be called, tested and debugged as
the function that it is.
"""

from __future__ import annotations

import atexit
import threading
import time
from typing import TYPE_CHECKING, Any

from ._errors import sendable

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

# At most twenty progress lines a second leave a worker; the last one always does.
PROGRESS_INTERVAL_S = 0.05


class Current:
    """The attempt that runs now."""

    # What most attempts never change is the class's: one is made for every warm call.
    _cancelled = False
    _waiting: threading.Event | None = None
    _scratch: pathlib.Path | None = None
    _progress: dict[str, Any] | None = None
    _progress_at = 0.0

    def __init__(
        self,
        *,
        run: str = "local",
        task: str = "local",
        attempt: int = 1,
        idempotency_key: str = "local",
        seed: int = 0,
        timeout_s: float | None = None,
        lease: dict[str, int] | None = None,
        trace: str | None = None,
        scratch_root: pathlib.Path | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.run = run
        """The run's id."""
        self.task = task
        """The task's id in the run; ``train[2]`` is the third of a fan-out."""
        self.attempt = attempt
        """1 for the first."""
        self.idempotency_key = idempotency_key
        """The same in every attempt of this task: hand it to services that a retry must not charge twice."""
        self.seed = seed
        """The same in every attempt; ``random`` and numpy's global generator are seeded with it already."""
        self.lease = lease if lease is not None else {}
        """What the attempt holds: ``cpu`` in cores, ``memory`` in bytes."""
        self.deadline = None if timeout_s is None else time.monotonic() + timeout_s
        """When the kernel cancels the attempt, on the clock of ``time.monotonic()``; None: never."""
        self.trace = trace
        """The W3C traceparent of the attempt: what is traced with it as parent stands below it. None: nobody traces."""
        self._scratch_root = scratch_root
        self._report = report
        self._lock = threading.Lock()

    @property
    def cancelled(self) -> bool:
        """Whether the attempt should stop. A loop that looks at it can stop in order."""
        return self._cancelled

    def wait_cancelled(self, timeout_s: float) -> bool:
        """Waits for at most ``timeout_s``; says whether the attempt should stop. A sleep that a cancel ends."""
        with self._lock:
            if self._waiting is None:
                self._waiting = threading.Event()
            waiting = self._waiting
        return self._cancelled or waiting.wait(timeout_s)

    @property
    def scratch(self) -> pathlib.Path:
        """A directory of this attempt, made on first use and removed after its outcome was sent."""
        # Imported late: few tasks need it, and it would be a third of this package's import.
        import pathlib
        import tempfile

        with self._lock:
            if self._scratch is None:
                root = self._scratch_root
                if root is not None:
                    root.mkdir(parents=True, exist_ok=True)
                self._scratch = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.task}-{self.attempt}-", dir=root))
            return self._scratch

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Says how far it is. Calls in quick succession are conflated, the last one is always sent."""
        if self._report is None:
            return
        value: dict[str, Any] = {"tag": "progress", "done": float(done), "text": sendable(str(text))}
        if total is not None:
            value["total"] = float(total)
        now = time.monotonic()
        with self._lock:
            early = now - self._progress_at < PROGRESS_INTERVAL_S
            self._progress = value if early else None
            if not early:
                self._progress_at = now
        if not early:
            self._report(value)

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Reports a figure, at a step if it is one of a series."""
        if self._report is None:
            return
        data: dict[str, Any] = {"tag": "metric", "name": sendable(str(name)), "value": float(value)}
        if step is not None:
            data["step"] = int(step)
        self._report(data)

    def cancel(self) -> None:
        """Trips ``cancelled``. The runtime calls it; a test may."""
        with self._lock:
            self._cancelled = True
            waiting = self._waiting
        if waiting is not None:
            waiting.set()

    def flush(self) -> None:
        """Sends the progress that was held back."""
        with self._lock:
            value, self._progress = self._progress, None
        if value is not None and self._report is not None:
            self._report(value)

    def clean(self) -> None:
        """Removes the scratch directory, if it was made."""
        with self._lock:
            scratch, self._scratch = self._scratch, None
        if scratch is not None:
            import shutil

            shutil.rmtree(scratch, ignore_errors=True)


_importing: str | None = None
_active: Current | None = None
_local: Current | None = None


def current() -> Current:
    """The attempt that runs now; outside of one, a local stand-in whose reports go nowhere."""
    global _local
    if _active is not None:
        return _active
    if _local is None:
        _local = Current()
        atexit.register(_local.clean)
    return _local


def active() -> Current | None:
    """The attempt that runs now, if this is one. For runtimes."""
    return _active


def activate(attempt: Current | None) -> None:
    """Makes ``attempt`` the current one. For runtimes."""
    global _active
    _active = attempt


def importing() -> str | None:
    """The module that a worker imports now, if it does: what runs is not yet the function. For runtimes."""
    return _importing


def import_of(module: str | None) -> None:
    """Says which module is imported from now on, or none any more. For runtimes."""
    global _importing
    _importing = module
