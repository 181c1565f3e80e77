"""What a process knows about itself: identity, threads, and where its modules come from."""

from __future__ import annotations

import os
import pathlib
import sys
import threading


def start_ticks() -> int:
    """When this process started, in clock ticks since boot: with the pid and the boot it names the process."""
    status = pathlib.Path("/proc/self/stat").read_bytes()
    # The second field is the program's name in parentheses, which may itself contain anything.
    return int(status[status.rindex(b")") + 2 :].split()[19])


def boot_id() -> str:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def foreign_threads() -> list[str]:
    """The names of this process's threads, its main thread excepted."""
    main = str(os.getpid())
    names: list[str] = []
    for task in os.listdir("/proc/self/task"):
        if task == main:
            continue
        try:
            names.append(pathlib.Path(f"/proc/self/task/{task}/comm").read_text().strip())
        except OSError:
            continue  # It ended while we looked.
    return sorted(names)


def process_name() -> str:
    return pathlib.Path("/proc/self/comm").read_text().strip()


def python_threads() -> int:
    """How many threads Python knows of beside the calling one."""
    return len(sys._current_frames()) - 1  # pyright: ignore[reportPrivateUsage]


def runtime_path_last() -> None:
    """Moves this package's directory to the end of ``sys.path``, and the working directory out of it.

    The runtime brings its own msgspec; an environment's packages go before it. ``python -m`` puts the working directory
    first, where a stray ``random.py`` would be imported in place of the library.
    """
    runtime = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    here = os.getcwd()
    kept = [path for path in sys.path if path and path not in (runtime, here)]
    sys.path[:] = [*kept, runtime]


def start_thread(target: object, name: str) -> None:
    """Starts a daemon thread of the runtime."""
    threading.Thread(target=target, name=name, daemon=True).start()  # pyright: ignore[reportArgumentType]
