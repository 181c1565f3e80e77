"""Thread counts of numeric libraries, from what the attempt's lease holds.

After a fork the environment variables have no effect on libraries that are loaded: they are told by call, through
threadpoolctl if it is installed. That looks through every loaded library, so it is done when something changed.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class ThreadCounts:
    """Sets them; remembers what was set."""

    def __init__(self) -> None:
        self._cpus = 1  # Zygotes and their workers start with one.
        self._modules = 0

    def limit(self, cpus: int) -> None:
        """Sets every numeric library, those to be loaded included, to ``cpus`` threads."""
        if cpus <= 1 == self._cpus:
            return  # What most attempts ask for and find.
        cpus = max(1, cpus)
        if cpus == self._cpus and self._modules == len(sys.modules):
            return
        if cpus != self._cpus:
            for variable in VARIABLES:
                os.environ[variable] = str(cpus)
        self._cpus = cpus
        if "numpy" in sys.modules:
            try:
                limits: Any = importlib.import_module("threadpoolctl")
            except ImportError:
                pass
            else:
                limits.threadpool_limits(limits=cpus)
        self._modules = len(sys.modules)
