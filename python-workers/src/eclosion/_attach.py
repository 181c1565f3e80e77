"""A worker that was started by hand dials the kernel, as a debugger, a notebook or a container does:

    python -m eclosion.worker --connect                       # the kernel that a client would find
    python -m eclosion.worker --connect SOCKET --environment ID

It takes attempts of one environment, which `eclosion pool` lists; without a name, of the default one. `breakpoint()` in
a task works, as the terminal is its own. It ends with its connection: nobody kills it, nobody adopts it, and what it
had in hand is tried again elsewhere. Ctrl-C between attempts ends it; inside one it interrupts that.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import ErrorData

EXIT_REFUSED = 69
EXIT_ENDED = 75


class Attached:
    """What a worker does differently when no keeper has started it."""

    def __init__(self, path: str | None, environment: str | None) -> None:
        # Not at the top: a worker of the pool needs no client.
        from .client._places import socket_path

        self._path = socket_path(path)
        self.hello: dict[str, Any] = {} if environment is None else {"environment": environment}
        """What it adds to its HELLO."""
        # Nobody holds the other end but this process, so it ends with it and never before.
        self.lifeline, self._own_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def dial(self) -> socket.socket:
        """Connects; ends the process if nobody is there."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect(self._path)
        except OSError as why:
            say(f"no kernel answers at {self._path}: {why.strerror}; start one with: eclosion up")
            os._exit(EXIT_REFUSED)
        return stream

    def welcomed(self, envelope: dict[str, Any]) -> None:
        name = envelope.get("headers", {}).get("worker", "a worker")
        say(f"attached as {name} to the kernel `{envelope.get('instance', '')}` at {self._path}")

    def refused(self, why: ErrorData) -> None:
        text, advice = why.get("message", ""), why.get("help")
        say(f"refused: {text}; {advice}" if advice else f"refused: {text}")
        os._exit(EXIT_REFUSED)

    def lost(self) -> None:
        """The connection ended. User code that runs is of no use to anybody any more."""
        say("the connection to the kernel ended")
        sys.stdout.flush()
        os._exit(EXIT_ENDED)


def say(text: str) -> None:
    print(f"eclosion.worker: {text}", file=sys.stderr, flush=True)
