"""Interrupts user code, and nothing else.

The main thread runs user code inside :meth:`UserCode.run`. Two things may raise there: the I/O thread, which sets an
asynchronous exception (rung 2 of the cancel ladder), and the SIGINT handler (rung 3). Outside of it neither has an
effect: a reply half sent or a lock held by the runtime must not be unwound by a cancel that came late.

States: outside → ``run`` → inside ⇄ ``shielded`` → outside. They change under ``_lock``.

Invariants:
1. At most one asynchronous exception is set per run, so at most one can ever be on its way; ``_leave`` returns only
   when it has arrived or was withdrawn.
2. Nothing but ``_inside`` is read by the signal handler: it runs on the main thread, which may hold ``_lock``.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from ._errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_set_async_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
# `signal.getsignal` looks for an enum member first, which costs more than all else that a warm call does here.
_handler_of: Callable[[int], object] = importlib.import_module("_signal").getsignal


_SIGINT = int(signal.SIGINT)
# As a shell says of a process that SIGINT has ended.
EXIT_INTERRUPTED = 130


class UserCode:
    """Says whether the main thread is in user code, and raises there."""

    def __init__(self, *, ends_outside: bool = False) -> None:
        self._ends_outside = ends_outside
        """A SIGINT outside of user code ends the process: somebody sits at its keyboard."""
        self._lock = threading.Lock()
        self._main = threading.main_thread().ident or 0
        self._inside = False
        self._set = False
        self._wanted = False

    def install(self) -> None:
        """Takes SIGINT over, unless that was done. For the main thread."""
        if _handler_of(_SIGINT) != self._interrupted:
            signal.signal(signal.SIGINT, self._interrupted)

    def run(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, BaseException | None]:
        """Calls a function on the main thread; returns its value and what it raised, which may be an exit."""
        value: Any = None
        raised: BaseException | None = None
        try:
            self._enter()
            value = function(*arguments)
        except BaseException as why:
            raised = why
        left = False
        while not left:
            try:
                left = self._leave()
            except BaseException:
                # The one exception that was on its way arrived here. What the function gave stands.
                left = False
        return value, raised

    def cancel(self) -> bool:
        """Raises :class:`Cancelled` in the main thread if it is in user code. For other threads."""
        with self._lock:
            self._wanted = True
            if not self._inside or self._set:
                return False
            self._set = True
            return _set_async_exception(ctypes.c_ulong(self._main), ctypes.py_object(Cancelled)) == 1

    def shielded(self, function: Callable[..., None], *arguments: Any) -> None:
        """Calls a function of the runtime from user code. A cancel that comes meanwhile is raised after it."""
        if threading.get_ident() != self._main or not self._inside:
            function(*arguments)
            return
        try:
            with self._lock:
                self._inside = False
            function(*arguments)
        finally:
            with self._lock:
                self._inside = True
                late = self._wanted and not self._set
                self._set = self._set or late
        if late:
            raise Cancelled

    def _enter(self) -> None:
        with self._lock:
            self._set = self._wanted = False
            self._inside = True

    def _leave(self) -> bool:
        with self._lock:
            self._inside = False
            if self._set:
                _set_async_exception(ctypes.c_ulong(self._main), None)
        return True

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        if self._inside:
            raise Cancelled if self._wanted else KeyboardInterrupt
        if self._ends_outside:
            os._exit(EXIT_INTERRUPTED)
