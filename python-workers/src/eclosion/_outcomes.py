"""Outcomes of attempts: told, and kept until they are safe.

    made --wanted--> told --safe_below--> dropped            a call's: dropped once it was told
                      └ the kernel is gone: kept --resume--> told again

For the main thread. Invariants:
1. An outcome is kept until a CALL says that it is safe, with its parts as open files. After a new HELLO those that are
   kept are told again if WELCOME asks for them (``resume``), with parts staged anew: the new kernel does not know the
   old tokens.
2. Who waits for a call dies with its kernel, so that a call's outcome is told once and not kept.

It deliberately knows no calls and no reading: whoever owns it says how the main thread stops to read and begins again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from . import _frames as frames
from ._errors import Refused, error, packed
from ._frames import Disconnected
from ._kernel import CALLS, key_of
from ._values import Encoded

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._errors import ErrorData
    from ._frames import Channel
    from ._kernel import Kernel, Key
    from ._schemas import Fence

_encode = msgspec.msgpack.encode


class Outcome:
    """How an attempt ended, as long as it may have to be told again."""

    __slots__ = ("ended", "envelope", "fence", "key", "sent")

    def __init__(self, fence: Fence, envelope: dict[str, Any], ended: Encoded | ErrorData) -> None:
        self.fence = fence
        self.key = key_of(fence)
        self.envelope = envelope
        self.ended = ended
        self.sent: Channel | None = None
        """Where it was told last."""


class Outcomes:
    """Those of one worker. See the head of this file."""

    def __init__(self, kernel: Kernel, begin: Callable[[], None], main_reads_again: Callable[[], None]) -> None:
        """``begin`` is called before the main thread waits for something, ``main_reads_again`` once it has it."""
        self._kernel = kernel
        self._begin = begin
        self._main_reads_again = main_reads_again
        self._kept: deque[Outcome] = deque()

    def any(self) -> bool:
        return bool(self._kept)

    def fences(self) -> list[Fence]:
        """Those that another kernel may want, oldest first. By any thread."""
        return [outcome.fence for outcome in list(self._kept) if outcome.key[0] != CALLS]

    def tell(self, outcome: Outcome) -> None:
        """Of the attempt that has just ended. Then main reads again."""
        self._kept.append(outcome)
        self._hand_over(outcome)
        if outcome.key[0] == CALLS and outcome in self._kept:
            self._drop(outcome)

    def hand_over_again(self) -> None:
        """Those that are kept, to a kernel that has asked for them."""
        self._kernel.resume = False
        for outcome in list(self._kept):
            if outcome.sent is not self._kernel.channel:
                self._begin()
                self._hand_over(outcome)

    def drop_safe(self, below: Key | None) -> None:
        """What lies below is safe; without a bound, all are."""
        for outcome in list(self._kept):
            if below is None or outcome.key < below:
                self._drop(outcome)

    def _hand_over(self, outcome: Outcome) -> None:
        """Sends an outcome once a kernel wants it, or drops it if the kernel does not. Then main reads again."""
        failed: Channel | None = None
        while (wanted := self._kernel.wanted(outcome.key, failed)) is not None:
            channel, stream = wanted
            try:
                kind, envelope, body = self._frame(outcome)
            except Disconnected:
                # While parts were staged. The watcher reads this stream: it must be the one that closes it.
                channel.hang_up()
                failed = channel
                continue
            self._kernel.keep()
            # Before it is sent, as the next call may be the answer to it and would wake the watcher.
            self._main_reads_again()
            outcome.sent = channel
            try:
                channel.send(kind, stream, envelope, body, flags=frames.END)
            except Disconnected:
                channel.hang_up()  # The next kernel asks for what is held.
            return
        self._kernel.keep()
        self._drop(outcome)
        self._main_reads_again()

    def _frame(self, outcome: Outcome) -> tuple[int, dict[str, Any], bytes]:
        """Type, envelope and body; stages the parts. Raises :class:`Disconnected`."""
        ended = outcome.ended
        if isinstance(ended, Encoded):
            try:
                store = self._kernel.staging(outcome.fence)
                payload = ended.shared(store) if outcome.key[0] == CALLS else None
                body = _encode(ended.stage(store) if payload is None else payload)
                if len(body) <= frames.MESSAGE_BYTES_MAX:
                    return frames.DATA, outcome.envelope, body
                ended = error("exhausted", "task.encode", "the result has too many parts", help="join its arrays")
            except Disconnected:
                raise
            except Refused as why:
                ended = why.error
            except OSError as why:
                ended = error("internal", "task.encode", f"a part of the result cannot be written: {why}", retry=True)
        reason, body = packed(ended)
        return frames.ERROR, {**outcome.envelope, **reason}, body

    def _drop(self, outcome: Outcome) -> None:
        self._kept.remove(outcome)
        self._kernel.streams.pop(outcome.key, None)
        if isinstance(outcome.ended, Encoded):
            outcome.ended.close()
