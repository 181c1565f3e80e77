"""The zygote: imports once what workers of an environment need, then forks them. Started by the keeper:

    python -m eclosion.zygote --fd 3 --preload numpy --preload pandas

Single-threaded, runs no user code, waits on one SOCK_SEQPACKET socket whose messages are JSON objects:

    → {"ready": {pid, python, threads}} | {"failed": {error}}         once, after the preloads
    ← {"fork": {worker, stdout, stderr, scratch}} + [stream, lifeline]
    → {"forked": {worker, pid}} | {"fork_failed": {worker, error}}

It forks twice, so that each worker is a child of the keeper (a subreaper), which then knows how it ended. The end of
the socket ends it; its workers stay.

A fork copies one thread. A library whose pool of computing threads was started before would wait for it for ever, so a
preload that starts one is refused. Other threads (a Python one, a named one that is not on the list of harmless ones)
make a fork unsafe too: then the worker is a fresh interpreter instead, and says so on its stderr.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import importlib
import json
import os
import platform
import socket
import sys
import traceback
from typing import Any, NamedTuple, NoReturn

from . import worker
from ._exceptions import one_line
from ._process import foreign_threads, process_name, python_threads, runtime_path_last

# Threads that only wait and hold no lock that a worker needs: allocators' background threads.
HARMLESS_THREADS = frozenset({"jemalloc_bg_thd"})
_MESSAGE_BYTES_MAX = 64 * 1024
EXIT_BROKEN = 70


class Fork(NamedTuple):
    """One worker to be made."""

    worker: str
    stdout: str
    stderr: str
    scratch: str | None
    stream: int
    lifeline: int


class Zygote:
    def __init__(self, keeper: socket.socket, harmless: frozenset[str]) -> None:
        self._keeper = keeper
        self._harmless = harmless

    def run(self, preloads: list[str]) -> int:
        """Imports, then forks until the keeper hangs up. Returns the exit status."""
        failure = self._preload(preloads)
        if failure is not None:
            self._say({"failed": {"error": failure}})
            return 1
        # What is there now is shared by all workers: the collector would only touch, and so copy, its pages.
        gc.collect()
        gc.freeze()
        self._say({"ready": {"pid": os.getpid(), "python": platform.python_version(), "threads": foreign_threads()}})
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._keeper, _MESSAGE_BYTES_MAX, 4, socket.MSG_CMSG_CLOEXEC)
            if not data:
                return 0
            self._serve(json.loads(data), descriptors)

    def _preload(self, preloads: list[str]) -> str | None:
        gc.disable()
        for name in preloads:
            try:
                importlib.import_module(name)
            except BaseException as why:
                return f"preload `{name}` cannot be imported: {one_line(why)}"
            computing = self._computing_threads()
            if computing:
                return f"preload `{name}` starts {computing} computing thread(s), which no fork survives: leave it out"
        return None

    def _computing_threads(self) -> int:
        # OpenMP's and BLAS's threads keep the name of the process; Python's own do too, but are known.
        unnamed = foreign_threads().count(process_name())
        return max(0, unnamed - python_threads())

    def _serve(self, message: dict[str, Any], descriptors: list[int]) -> None:
        request: dict[str, Any] = message.get("fork", {})
        name = str(request.get("worker", ""))
        try:
            if not name or len(descriptors) != 2:
                raise ValueError("a fork takes a request and two descriptors")
            fork = Fork(
                name,
                request["stdout"],
                request["stderr"],
                request.get("scratch"),
                descriptors[0],
                descriptors[1],
            )
            pid = self._fork(fork)
        except (OSError, ValueError, KeyError) as why:
            self._say({"fork_failed": {"worker": name, "error": one_line(why)}})
        else:
            self._say({"forked": {"worker": name, "pid": pid}})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _fork(self, fork: Fork) -> int:
        foreign = [thread for thread in foreign_threads() if thread not in self._harmless]
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            _fork_again(self._keeper, fork, foreign, told, tell)
        os.close(tell)
        try:
            pid = os.read(told, 32)
        finally:
            os.close(told)
            os.waitpid(between, 0)
        if not pid:
            raise OSError("the second fork failed")
        return int(pid)

    def _say(self, message: dict[str, Any]) -> None:
        self._keeper.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)


def _fork_again(keeper: socket.socket, fork: Fork, foreign: list[str], told: int, tell: int) -> NoReturn:
    """The process between zygote and worker: it ends at once, which gives its child to the keeper."""
    status = EXIT_BROKEN
    try:
        pid = os.fork()
        if pid == 0:
            os.close(told)
            os.close(tell)
            keeper.close()
            status = _become(fork, foreign)
        else:
            os.write(tell, str(pid).encode())
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Neither of the two may ever return into the zygote's loop.
        os._exit(status)


def _become(fork: Fork, foreign: list[str]) -> int:
    """Makes this process the worker; returns its exit status."""
    # A session of its own, so that the keeper can end the worker with all that it started.
    os.setsid()
    _redirect("/dev/null", os.O_RDONLY, 0)
    _redirect(fork.stdout, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 1)
    _redirect(fork.stderr, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 2)
    if foreign:
        _execute(fork, foreign)
    gc.enable()
    sys.argv = ["eclosion-worker"]
    status = worker.serve(fork.worker, fork.stream, fork.lifeline, fork.scratch)
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _execute(fork: Fork, foreign: list[str]) -> NoReturn:
    """Becomes a worker in a fresh interpreter."""
    names = ", ".join(foreign)
    os.write(2, f"eclosion: started without the zygote's preloads, as it has threads: {names}\n".encode())
    # Out of the way first: either may be the number that the other is to get.
    stream = fcntl.fcntl(fork.stream, fcntl.F_DUPFD_CLOEXEC, 10)
    lifeline = fcntl.fcntl(fork.lifeline, fcntl.F_DUPFD_CLOEXEC, 10)
    os.dup2(stream, 3)
    os.dup2(lifeline, 4)
    arguments = ["-m", "eclosion.worker", "--stream", "3", "--lifeline", "4", "--worker", fork.worker]
    if fork.scratch:
        arguments += ["--scratch", fork.scratch]
    os.execv(sys.executable, [sys.executable, *arguments])


def _redirect(path: str, flags: int, descriptor: int) -> None:
    opened = os.open(path, flags | os.O_CLOEXEC, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eclosion.zygote", description="Forks workers for a keeper.")
    parser.add_argument("--fd", type=int, required=True, help="SOCK_SEQPACKET socket of the keeper")
    parser.add_argument("--preload", nargs="*", action="extend", default=[], metavar="MODULE")
    parser.add_argument("--allow-thread", action="append", default=[], metavar="NAME", help="a harmless thread")
    given = parser.parse_args(arguments)
    runtime_path_last()
    os.set_inheritable(given.fd, False)
    keeper = socket.socket(fileno=given.fd)
    return Zygote(keeper, HARMLESS_THREADS | frozenset(given.allow_thread)).run(given.preload)


if __name__ == "__main__":
    sys.exit(main())
