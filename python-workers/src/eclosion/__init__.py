"""Eclosion in Python: tasks, flows, and what a running task knows about itself.

    from eclosion import current, flow, task

    @task(retries=2)
    def square(x: int) -> int:
        current().progress(1, 1)
        return x * x

    square(3)  # 9: a task is its function, with no kernel needed

A worker is ``python -m eclosion.worker``; ``eclosion.testing`` runs tasks and whole flows in process.
"""

from __future__ import annotations

from ._current import Current, current
from ._errors import Cancelled, Refused, TaskError
from .flow import Flow, flow
from .task import Task, task

__version__ = "0.1.0"

__all__ = ["Cancelled", "Current", "Flow", "Refused", "Task", "TaskError", "current", "flow", "task"]
