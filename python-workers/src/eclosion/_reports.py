"""Progress and metrics of one attempt, on their way to the kernel. Any thread of the task may say them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._interrupts import UserCode
    from ._kernel import Kernel


class Reports:
    """The reports of one attempt. Closed before its outcome is sent, as a thread that the task left may go on."""

    def __init__(self, kernel: Kernel, user: UserCode) -> None:
        self._kernel = kernel
        self._user = user
        self._lock = threading.Lock()
        self._open = True

    def __call__(self, value: dict[str, Any]) -> None:
        self._user.shielded(self._send, value)

    def close(self) -> None:
        with self._lock:
            self._open = False

    def _send(self, value: dict[str, Any]) -> None:
        with self._lock:
            if self._open:
                self._kernel.report(value)
