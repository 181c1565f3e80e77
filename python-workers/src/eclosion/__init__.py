"""Eclosion in Python: tasks, flows, and what a running task knows about itself.

    from eclosion import current, flow, task

    @task(timeout="30s")
    def square(x: int) -> int:
        current().progress(1, 1)
        return x * x

    square(3)  # 9: a task is its function, with no kernel needed

With a kernel running, functions go to its workers, and everything it does can be asked for (``eclosion.client``):

    refs = [square.submit(n) for n in range(10)]
    print([ref.result() for ref in refs])

    with eclosion.connect() as kernel:
        print(kernel.kernel.status().state)

A worker is ``python -m eclosion.worker``; ``eclosion.testing`` runs tasks and whole flows in process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._current import Current, current
from ._errors import (
    Cancelled,
    DeadlineExceeded,
    Refused,
    Rejected,
    TaskDied,
    TaskError,
    TaskRaised,
    Unreachable,
)
from .flow import Flow, flow
from .task import Task, task

if TYPE_CHECKING:
    from .client import Client, Ref, as_completed, connect
    from .client.executor import Executor
    from .service import service

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "Client",
    "Current",
    "DeadlineExceeded",
    "Executor",
    "Flow",
    "Ref",
    "Refused",
    "Rejected",
    "Task",
    "TaskDied",
    "TaskError",
    "TaskRaised",
    "Unreachable",
    "as_completed",
    "connect",
    "current",
    "flow",
    "service",
    "task",
]

# Of the client, which a worker has no use for: imported when it is first named.
_CLIENT = frozenset({"Client", "Ref", "as_completed", "connect"})


def __getattr__(name: str) -> Any:
    if name in _CLIENT:
        from . import client

        return getattr(client, name)
    if name == "Executor":
        from .client.executor import Executor

        return Executor
    if name == "service":
        import importlib

        # A module that is its decorator, too.
        return importlib.import_module(".service", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
