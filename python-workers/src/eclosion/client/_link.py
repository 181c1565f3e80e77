"""The way to a kernel that may be killed and started again: a connection, and the next one when that is gone.

Whoever needs the kernel asks for the connection; if it is lost, a new one is made there and then. Calls that were under
way are answered with the loss, and their callers decide; subscriptions go on from their cursor.
"""

from __future__ import annotations

import os
import threading
import time

from .._errors import Unreachable
from ._connection import Connection

# Between two tries, at first and at most: a kernel that was killed is back within that.
AGAIN_S = 0.01
AGAIN_MAX_S = 0.25


class Link:
    """Any thread may ask."""

    def __init__(self, path: str, role: str | None, memory: str | None) -> None:
        self.path = path
        self._role = role
        self._memory = memory
        self._lock = threading.Lock()
        self._closed = False
        self._connection = Connection(path, role, memory=memory)

    def connection(self, within_s: float = 0.0) -> Connection:
        """A connection that was alive a moment ago. Raises :class:`Unreachable` if there is none within the time."""
        connection = self._connection
        if connection.lost is None and connection.pid == os.getpid():
            return connection
        end = time.monotonic() + within_s
        pause = AGAIN_S
        while True:
            try:
                return self._renewed()
            except Unreachable as why:
                if (
                    self._closed
                    or time.monotonic() + pause > end
                    or why.error.get("retry", {}).get("policy") == "never"
                ):
                    raise
            time.sleep(pause)
            pause = min(pause * 2, AGAIN_MAX_S)

    def _renewed(self) -> Connection:
        with self._lock:
            connection = self._connection
            if self._closed:
                raise Unreachable({"code": "unavailable", "reason": "client.closed", "message": "the client is closed"})
            # After a fork the parent has the reading thread, and the connection is the parent's.
            if connection.lost is not None or connection.pid != os.getpid():
                self._connection = connection = Connection(self.path, self._role, memory=self._memory)
            return connection

    def close(self) -> None:
        self._closed = True
        if self._connection.pid == os.getpid():
            self._connection.close()
