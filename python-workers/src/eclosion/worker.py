"""The worker: a process that runs one attempt at a time for a kernel. Started by a zygote, or by hand:

    python -m eclosion.worker --connect

(``_attach.py`` says what that changes), or with what a zygote hands over:

    python -m eclosion.worker --stream 3 --lifeline 4 --worker w-1-1

Two threads. The *main* thread runs user code. The *watcher* waits on the lifeline always, and on the stream while the
main thread is busy for longer, so that cancel, ping and adoption work while user code runs. While the main thread is
idle it reads the stream itself, and quick attempts end before the watcher looks: they need no hand-over between
threads, and nobody fights with them for the interpreter lock.

    idle (main reads) --CALL--> busy (nobody reads) --5 ms--> busy (watcher reads) --outcome sent, or held--> idle

The watcher looks every 5 ms as long as there are attempts, and sleeps when there are none until the next one pokes it.

    stream: connected --end--> lost --adopted over the lifeline--> connected, HELLO --WELCOME--> welcomed

Invariants:
1. One thread reads at a time: main unless it is ``_busy``, the watcher while ``_watched``. That ends under
   ``_reading``, and so does what the watcher does with a stream.
2. Outcomes are kept and handed over by ``_outcomes.py``. Calls that wait when the stream ends are dropped, as the next
   kernel sends its own.
3. The end of the stream ends nothing: user code goes on and the outcome waits. The end of the lifeline ends the process
   at once, as then nobody is left who would.
4. Reports are lossy, outcomes are not: a report is dropped if the kernel is gone or does not keep up.

Deliberately absent: journaling, hashing and retries (the kernel's), signals other than SIGINT (the keeper's), and
pickle.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import queue
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from . import _frames as frames
from ._attach import Attached
from ._attempt import current_of, perform
from ._code import Code
from ._errors import ErrorData, error, packed
from ._frames import Disconnected, Frame
from ._interrupts import UserCode
from ._items import Items
from ._kernel import CALLS, Kernel, Key, key_of
from ._limits import lifted
from ._outcomes import Outcome, Outcomes
from ._output import Output
from ._process import boot_id, runtime_path_last, start_thread, start_ticks
from ._reports import Reports
from ._schemas import Execute

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._current import Current

CLIENT = "eclosion-python/0.1.0"
API = 1
# An attempt that takes longer can be cancelled.
LOOK_S = 0.005
# The watcher looks this often in vain before it sleeps: to be poked costs the attempt that does it more than a look.
LOOKS_MIN = 20
# Calls that wait behind the running one.
WAITING_MAX = 4
# The keeper is gone: nobody is left to report to.
EXIT_ORPHANED = 75
EXIT_BROKEN = 70

_decode_execute = msgspec.msgpack.Decoder(Execute).decode


class Call(NamedTuple):
    """A CALL that was accepted."""

    credit: int | None
    """Items that a generator may yield at first; None: nobody takes any."""

    stream: int
    execute: Execute
    safe_below: Key | None
    """Outcomes of attempts below it are safe; None: all of them."""


class Worker:
    """One worker process's state. ``run`` belongs to the main thread, ``_watch`` to the watcher."""

    def __init__(
        self,
        name: str,
        stream: socket.socket,
        lifeline: socket.socket,
        scratch: pathlib.Path | None,
        attached: Attached | None = None,
    ) -> None:
        self._name = name
        self._attached = attached
        self._lifeline = lifeline
        self._scratch_root = scratch
        self._code = Code()
        self._user = UserCode(ends_outside=attached is not None)
        self._output = Output()
        self._identity = {
            "worker": name,
            "pid": os.getpid(),
            "start_ticks": start_ticks(),
            "boot_id": boot_id(),
            **(attached.hello if attached is not None else {}),
        }

        self._epoll = select.epoll()
        self._reading = threading.Lock()
        self._busy = False
        self._watched = False
        self._turn = 0
        """Counts attempts, so that the watcher sees whether it is still the same."""
        self._asleep = True
        """The watcher waits for a poke, or for the stream."""
        self._poke = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._arrivals: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

        self._kernel = Kernel(self._watch_stream)
        self._calls: deque[Call] = deque()
        self._running: Call | None = None
        self._current: Current | None = None
        self._items: Items | None = None
        """Of the attempt that runs, if somebody takes them."""
        self._outcomes = Outcomes(self._kernel, self._begin, self._main_reads_again)
        self._leaving = False
        self._handlers: dict[int, Callable[[Frame], None]] = {
            frames.CALL: self._on_call,
            frames.DATA: self._on_reply,
            frames.ERROR: self._on_reply,
            frames.CANCEL: self._on_cancel,
            frames.WELCOME: self._on_welcome,
            frames.PING: self._on_ping,
            frames.PONG: self._on_nothing,
            frames.CREDIT: self._on_credit,
            frames.GOAWAY: self._on_go_away,
        }
        self._connect(stream)

    # The main thread.

    def run(self) -> int:
        """Serves calls until told to go; returns the exit status."""
        self._user.install()
        self._epoll.register(self._lifeline, select.EPOLLIN)
        self._epoll.register(self._poke, select.EPOLLIN)
        start_thread(self._watch_or_die, "eclosion-watcher")
        while True:
            call = self._next()
            if call is None:
                return 0
            self._attempt(call)

    def _next(self) -> Call | None:
        while True:
            if self._kernel.resume:
                self._outcomes.hand_over_again()
            if self._calls:
                return self._calls.popleft()
            if self._leaving:
                return None
            channel = self._kernel.channel
            if channel is None:
                arrival = self._arrivals.get()
                with self._reading:
                    self._connect(arrival)
                continue
            try:
                arrived = channel.receive()
            except Disconnected:
                with self._reading:
                    self._lost()
                continue
            for frame in arrived:
                self._dispatch(frame)

    def _attempt(self, call: Call) -> None:
        self._outcomes.drop_safe(call.safe_below)
        timed = call.execute.timings or call.execute.trace is not None
        began_ns = time.time_ns() if timed else 0
        self._running = call
        key = self._kernel.running = key_of(call.execute.fence)
        self._kernel.streams[key] = call.stream
        report = Reports(self._kernel, self._user)
        current = self._current = current_of(call.execute, self._scratch_root, report)
        items = self._items = self._items_of(call, current)
        self._output.begin()
        self._begin()
        ended = perform(call.execute, current, self._code, self._kernel, self._user, items)
        current.flush()
        report.close()
        envelope: dict[str, Any] = self._output.end()
        if timed:
            envelope["ran"] = [began_ns, time.time_ns()]
        self._outcomes.tell(Outcome(call.execute.fence, envelope, ended))
        current.clean()
        self._current = None
        self._items = None
        self._running = None
        self._kernel.running = None
        self._user.install()

    def _items_of(self, call: Call, current: Current) -> Items | None:
        if call.credit is None:
            return None
        keeps = call.execute.fence.epoch != CALLS
        lender = self._kernel.staging(call.execute.fence)
        return Items(self._kernel, self._user, call.stream, call.credit, lender, lambda: current.cancelled, keeps=keeps)

    def _begin(self) -> None:
        """The main thread does not read from now on."""
        with self._reading:
            self._turn += 1
            self._busy = True
            # A stream that came just before; the watcher connects those that come later.
            if not self._arrivals.empty():
                self._connect(self._arrivals.get())
        # After that is said: the watcher says that it sleeps, and then looks whether this is so.
        if self._asleep:
            os.eventfd_write(self._poke, 1)

    def _main_reads_again(self) -> None:
        with self._reading:
            self._busy = False
            channel = self._kernel.channel
            if self._watched and channel is not None:
                self._epoll.unregister(channel.fileno())
            self._watched = False

    # The watcher.

    def _watch_or_die(self) -> None:
        # Signals are the main thread's: one that is delivered here would not wake it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._watch()
        except BaseException:
            traceback.print_exc()
            os._exit(EXIT_BROKEN)

    def _watch(self) -> None:
        lifeline = self._lifeline.fileno()
        last, looks = 0, 0
        while True:
            turn = self._turn
            looks = looks + 1 if turn == last else 0
            last = turn
            for descriptor, _ in self._epoll.poll(self._patience(turn, looks)):
                if descriptor == lifeline:
                    self._read_lifeline()
                elif descriptor == self._poke:
                    os.eventfd_read(self._poke)
                else:
                    self._read_stream(descriptor)
            self._asleep = False
            if self._busy and self._turn == turn:
                self._watch_stream()

    def _patience(self, turn: int, looks: int) -> float | None:
        """How long the watcher may sleep; None until it is poked or the stream has something for it."""
        if self._busy != self._watched or looks < LOOKS_MIN:
            return LOOK_S
        self._asleep = True
        # An attempt that began before that was said has not poked.
        if self._turn == turn:
            return None
        self._asleep = False
        return LOOK_S

    def _watch_stream(self) -> None:
        """From now on the watcher reads. Main asks for it before it waits for a reply."""
        with self._reading:
            if self._busy and not self._watched:
                self._watched = True
                channel = self._kernel.channel
                if channel is not None:
                    self._epoll.register(channel.fileno(), select.EPOLLIN)

    def _read_stream(self, descriptor: int) -> None:
        with self._reading:
            channel = self._kernel.channel
            if not self._watched or channel is None or channel.fileno() != descriptor:
                return
            try:
                arrived = channel.receive(wait=False)
            except Disconnected:
                self._lost()
                return
            for frame in arrived:
                self._dispatch(frame)

    def _read_lifeline(self) -> None:
        try:
            with lifted():
                data, descriptors, _, _ = socket.recv_fds(self._lifeline, 64 * 1024, 4, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data, descriptors = b"", []
        if not data:
            os._exit(EXIT_ORPHANED)
        message = json.loads(data)
        if "adopt" not in message or not descriptors:
            return
        stream = socket.socket(fileno=descriptors[0])
        with self._reading:
            if self._busy:
                self._connect(stream)
                return
            # The main thread is waiting on the old stream, or for this one.
            self._arrivals.put(stream)
            channel = self._kernel.channel
            if channel is not None:
                channel.hang_up()

    # The connection. By whichever thread reads.

    def _connect(self, stream: socket.socket) -> None:
        """Takes a fresh stream and says HELLO on it."""
        if self._kernel.channel is not None:
            self._lost()
        running = self._running
        attempts = self._outcomes.fences()
        if running is not None and running.execute.fence not in attempts:
            attempts.append(running.execute.fence)
        envelope = {"client": CLIENT, "api": API, "role": "worker"}
        self._kernel.connect(stream, envelope, self._identity, attempts)
        channel = self._kernel.channel
        if channel is not None and self._busy:
            self._epoll.register(channel.fileno(), select.EPOLLIN)
            self._watched = True

    def _lost(self) -> None:
        """The stream is at its end, and with it the calls that wait: the next kernel will send its own."""
        self._kernel.lost()
        if self._attached is not None:
            self._attached.lost()
        if self._items is not None:
            self._items.move(None)
        self._watched = False
        self._calls.clear()

    # Frames.

    def _dispatch(self, frame: Frame) -> None:
        handler = self._handlers.get(frame.kind)
        if handler is not None:
            handler(frame)
        elif not frame.flags & frames.IGNORE:
            self._refuse(frame, error("unimplemented", "frame.type", f"a worker takes no frame of type {frame.kind}"))

    def _on_welcome(self, frame: Frame) -> None:
        resume = frame.envelope.get("resume", [])
        if self._attached is not None:
            self._attached.welcomed(frame.envelope)
        self._kernel.welcome(resume, kept=self._outcomes.any())
        running = self._kernel.running
        if self._items is not None and running is not None:
            self._items.move(self._kernel.streams.get(running))
        if not resume and self._current is not None:
            # Nobody wants what is being computed.
            self._cancel(self._current)

    def _cancel(self, current: Current) -> None:
        current.cancel()
        if self._items is not None:
            # It may wait for credit.
            with self._kernel.changed:
                self._kernel.changed.notify_all()

    def _on_call(self, frame: Frame) -> None:
        method = frame.envelope.get("method")
        if method != "task.execute":
            self._refuse(frame, error("unimplemented", "worker.method", f"a worker does not serve `{method}`"))
            return
        if self._leaving:
            self._refuse(frame, _draining())
            return
        if len(self._calls) >= WAITING_MAX:
            self._refuse(
                frame,
                error("exhausted", "worker.queue", f"{WAITING_MAX} calls are waiting already", retry=True),
            )
            return
        try:
            execute = _decode_execute(frame.body)
        except (msgspec.MsgspecError, RecursionError) as why:
            self._refuse(frame, error("invalid", "task.malformed", f"the call cannot be read: {why}"))
            return
        safe = frame.envelope.get("safe_below")
        below = None if safe is None else (safe["epoch"], safe["counter"])
        self._calls.append(Call(frame.envelope.get("credit"), frame.stream, execute, below))

    def _on_cancel(self, frame: Frame) -> None:
        rung = frame.envelope.get("rung", 1)
        running, current = self._kernel.running, self._current
        if running is not None and self._kernel.streams.get(running) == frame.stream:
            if rung >= 1 and current is not None:
                self._cancel(current)
            if rung >= 2:
                self._user.cancel()
            return
        for call in self._calls:
            if call.stream == frame.stream:
                self._calls.remove(call)
                reason = "task.returned" if rung == 0 else "task.cancelled"
                self._refuse(frame, error("cancelled", reason, "taken back before it began"))
                return

    def _on_credit(self, frame: Frame) -> None:
        items, total = self._items, frame.envelope.get("credit", 0)
        if items is not None:
            items.grant(frame.stream, total)
        for at, call in enumerate(self._calls):
            if call.stream == frame.stream and call.credit is not None:
                self._calls[at] = call._replace(credit=max(call.credit, total))

    def _on_reply(self, frame: Frame) -> None:
        if frame.stream == 0 and frame.kind == frames.ERROR and self._attached is not None:
            self._attached.refused(msgspec.msgpack.decode(frame.body))
        if frame.flags & frames.END or frame.kind == frames.ERROR:
            self._kernel.answer(frame)
            return
        for descriptor in frame.descriptors:
            os.close(descriptor)

    def _on_ping(self, frame: Frame) -> None:
        began = time.monotonic()
        # Gives the interpreter lock away and takes it back: as long as that took, a pending call waits for it.
        self._epoll.poll(0)
        lag = time.monotonic() - began
        envelope: dict[str, Any] = {"gil_lag_ms": int(lag * 1000)}
        running = self._running
        if running is not None:
            envelope["running"] = running.execute.fence
        self._kernel.send(frames.PONG, frame.stream, envelope)

    def _on_go_away(self, _frame: Frame) -> None:
        self._leaving = True
        while self._calls:
            waiting = self._calls.popleft()
            self._send_error(waiting.stream, _draining())

    def _on_nothing(self, _frame: Frame) -> None:
        """A frame that asks for nothing."""

    def _refuse(self, frame: Frame, why: ErrorData) -> None:
        for descriptor in frame.descriptors:
            os.close(descriptor)
        self._send_error(frame.stream, why)

    def _send_error(self, stream: int, why: ErrorData) -> None:
        self._kernel.send(frames.ERROR, stream, *packed(why), flags=frames.END)


def _draining() -> ErrorData:
    return error("unavailable", "worker.draining", "the worker was told to go", retry=True)


def serve(name: str, stream: int, lifeline: int, scratch: str | None) -> int:
    """Runs a worker on two inherited descriptors until it is told to go."""
    runtime_path_last()
    for descriptor in (stream, lifeline):
        os.set_inheritable(descriptor, False)
    worker = Worker(
        name,
        socket.socket(fileno=stream),
        socket.socket(fileno=lifeline),
        pathlib.Path(scratch) if scratch else None,
    )
    return worker.run()


def connect(path: str | None, environment: str | None, scratch: str | None) -> int:
    """Runs a worker of a kernel that is up, until one of them ends."""
    runtime_path_last()
    attached = Attached(path or None, environment)
    root = pathlib.Path(scratch) if scratch else None
    return Worker("w-0-0", attached.dial(), attached.lifeline, root, attached).run()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eclosion.worker", description="Runs attempts for a kernel.")
    parser.add_argument("--connect", nargs="?", const="", metavar="SOCKET", help="attach to a kernel that is up")
    parser.add_argument("--environment", metavar="ID", help="with --connect: whose attempts it takes")
    parser.add_argument("--stream", type=int, metavar="FD", help="socket that frames cross")
    parser.add_argument("--lifeline", type=int, metavar="FD", help="socket of the keeper")
    parser.add_argument("--worker", default="w-0-0", metavar="ID", help="this worker's id")
    parser.add_argument("--scratch", metavar="DIR", help="where attempts' scratch directories are made")
    given = parser.parse_args(arguments)
    if given.connect is not None:
        return connect(given.connect, given.environment, given.scratch)
    if given.stream is None or given.lifeline is None:
        parser.error("either --connect, or --stream and --lifeline")
    return serve(given.worker, given.stream, given.lifeline, given.scratch)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a thread or an exit handler that a task left behind must not hold up a drain.
    os._exit(status)
