"""The way to a kernel that may be killed and started again: a connection, and the next one when that is gone.

Whoever needs the kernel asks for the connection; if it is lost, a new one is made there and then. Calls that were under
way are answered with the loss, and their callers decide; subscriptions go on from their cursor.
"""

from __future__ import annotations

import os
import threading
import time

from .._errors import Unreachable, error
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

    @property
    def last(self) -> Connection:
        """The connection that was made last, be it lost."""
        return self._connection

    def alive(self) -> Connection | None:
        """The connection, if it was alive a moment ago. Never waits."""
        connection = self._connection
        return connection if connection.lost is None and connection.pid == os.getpid() else None

    def connection(self, within_s: float = 0.0) -> Connection:
        """A connection that was alive a moment ago. Raises :class:`Unreachable` if there is none within the time."""
        connection = self.alive()
        if connection is not None:
            return connection
        end = time.monotonic() + within_s
        pause = AGAIN_S
        while True:
            try:
                return self._renewed()
            except Unreachable as why:
                if time.monotonic() + pause > end or not may_come(why):
                    raise
            time.sleep(pause)
            pause = min(pause * 2, AGAIN_MAX_S)

    def _renewed(self) -> Connection:
        with self._lock:
            connection = self._connection
            if self._closed:
                raise Unreachable(error("unavailable", "client.closed", "the client is closed"))
            # After a fork the parent has the reading thread, and the connection is the parent's.
            if connection.lost is not None or connection.pid != os.getpid():
                self._connection = connection = Connection(self.path, self._role, memory=self._memory)
            return connection

    def close(self) -> None:
        self._closed = True
        if self._connection.pid == os.getpid():
            self._connection.close()


def may_come(why: Unreachable) -> bool:
    """Whether a kernel may listen there a little later."""
    return why.error.get("retry", {}).get("policy") != "never"


def within(reconnect_s: float, end: float | None) -> float:
    """How long a call that ends at ``end``, on the monotonic clock, waits for a kernel that is gone."""
    return reconnect_s if end is None else min(reconnect_s, max(0.0, end - time.monotonic()))
