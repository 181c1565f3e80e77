from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

import kernel
from eclosion import _frames as frames

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Generator

PR_SET_CHILD_SUBREAPER = 36


class Keeper:
    """The keeper's part: it starts a zygote, asks for workers and, as a subreaper, is their parent."""

    def __init__(self, folder: pathlib.Path, *options: str) -> None:
        self.folder = folder
        self.store = kernel.Store(folder / "store")
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(kernel.DEADLINE_S)
        self._errors = (folder / "zygote").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "eclosion.zygote", "--fd", str(theirs.fileno()), *options],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stderr=self._errors,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join([str(folder / "modules"), str(kernel.SOURCES)]),
                "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
            cwd=folder,
        )
        theirs.close()
        self._lifelines: list[socket.socket] = []

    def hear(self) -> dict[str, Any]:
        return json.loads(self.socket.recv(65536))

    def fork(self, name: str) -> tuple[int, kernel.Link]:
        ours, stream = socket.socketpair()
        lifeline, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lifelines.append(lifeline)
        paths = {key: str(self.folder / f"{name}.{key}") for key in ("stdout", "stderr", "scratch")}
        request = {"fork": {"worker": name, **paths}}
        socket.send_fds(self.socket, [json.dumps(request).encode()], [stream.fileno(), theirs.fileno()])
        stream.close()
        theirs.close()
        said = self.hear()
        assert said["forked"]["worker"] == name, said
        link = kernel.Link(ours, self.store)
        assert link.welcome()["worker"] == name
        return said["forked"]["pid"], link

    def end(self) -> None:
        self.socket.close()
        for lifeline in self._lifelines:
            lifeline.close()
        try:
            assert self.process.wait(kernel.DEADLINE_S) in (0, 1)
        finally:
            self.process.kill()
            self._errors.close()


@pytest.fixture
def keeper(tmp_path: pathlib.Path) -> Generator[Callable[..., Keeper]]:
    """Starts zygotes; reaps what they forked."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> Keeper:
            started = Keeper(tmp_path, *options)
            stack.callback(started.end)
            return started

        yield start
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def module(tmp_path: pathlib.Path) -> Callable[[str, str], None]:
    """Writes a module that a zygote can preload."""
    (tmp_path / "modules").mkdir()

    def write(name: str, source: str) -> None:
        (tmp_path / "modules" / f"{name}.py").write_text(textwrap.dedent(source))

    return write


def test_workers_are_the_keepers_own_children_with_sessions_of_their_own(
    keeper: Callable[..., Keeper], code: Callable[[str], pathlib.Path]
) -> None:
    zygote = keeper("--preload", "numpy", "decimal")
    ready = zygote.hear()["ready"]
    assert ready["pid"] == zygote.process.pid
    assert ready["threads"] == []
    root = code("""
        import os, sys

        def who():
            descriptors = sorted(int(n) for n in os.listdir("/proc/self/fd"))
            return [os.getpid(), os.getppid(), os.getsid(0), "numpy" in sys.modules, len(descriptors)]

        def say():
            print("hello from", os.getpid())
        """)
    workers = [zygote.fork(f"w-1-{n}") for n in (1, 2)]
    for pid, link in workers:
        told = link.result(link.execute("steps:who", root))
        assert told[:4] == [pid, os.getpid(), pid, True]
        # Three standard ones, stream, lifeline, epoll, eventfd, the two files held, and the listing's own.
        assert told[4] == 10
        link.result(link.execute("steps:say", root))
    assert (zygote.folder / "w-1-2.stdout").read_text() == f"hello from {workers[1][0]}\n"


def test_the_keeper_learns_how_a_worker_ended_and_the_zygote_forks_on(
    keeper: Callable[..., Keeper], code: Callable[[str], pathlib.Path]
) -> None:
    zygote = keeper()
    assert "ready" in zygote.hear()
    root = code(
        "import os, signal\n\ndef die():\n    os.kill(os.getpid(), signal.SIGKILL)\n\ndef one():\n    return 1\n"
    )
    pid, link = zygote.fork("w-1-1")
    link.execute("steps:die", root)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == 9
    _, link = zygote.fork("w-1-2")
    assert link.result(link.execute("steps:one", root)) == 1
    link.channel.send(frames.GOAWAY, 0)


def test_workers_outlive_their_zygote(keeper: Callable[..., Keeper], code: Callable[[str], pathlib.Path]) -> None:
    zygote = keeper()
    zygote.hear()
    _, link = zygote.fork("w-1-1")
    zygote.socket.close()
    assert zygote.process.wait(kernel.DEADLINE_S) == 0
    assert link.result(link.execute("steps:one", code("def one():\n    return 1\n"))) == 1


def test_a_preload_that_cannot_be_imported_is_told(keeper: Callable[..., Keeper]) -> None:
    zygote = keeper("--preload", "nowhere")
    assert zygote.hear()["failed"]["error"].startswith("preload `nowhere` cannot be imported")
    assert zygote.process.wait(kernel.DEADLINE_S) == 1


def test_a_preload_that_starts_computing_threads_is_refused(
    keeper: Callable[..., Keeper], module: Callable[[str, str], None]
) -> None:
    # A native thread that Python knows nothing of, as OpenMP's are.
    module(
        "computing",
        """
        import ctypes

        libc = ctypes.CDLL(None)
        thread = ctypes.c_ulong()
        libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)
        """,
    )
    error = keeper("--preload", "computing").hear()["failed"]["error"]
    assert error.startswith("preload `computing` starts 1 computing thread")


def test_a_zygote_with_another_thread_starts_fresh_interpreters_and_says_why(
    keeper: Callable[..., Keeper], module: Callable[[str, str], None], code: Callable[[str], pathlib.Path]
) -> None:
    module("waits", "import threading\n\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    zygote = keeper("--preload", "waits")
    assert len(zygote.hear()["ready"]["threads"]) == 1
    pid, link = zygote.fork("w-1-1")
    root = code("import os, sys\n\ndef who():\n    return [os.getpid(), 'waits' in sys.modules]\n")
    assert link.result(link.execute("steps:who", root)) == [pid, False]
    assert "without the zygote's preloads" in (zygote.folder / "w-1-1.stderr").read_text()


def test_a_fork_that_fails_is_told_and_the_zygote_stays(keeper: Callable[..., Keeper]) -> None:
    zygote = keeper()
    zygote.hear()
    zygote.socket.send(json.dumps({"fork": {"worker": "w-1-1"}}).encode())
    assert zygote.hear()["fork_failed"]["worker"] == "w-1-1"
    zygote.fork("w-1-2")
