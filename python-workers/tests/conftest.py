"""A watchdog on every test, and where tests put what they make."""

from __future__ import annotations

import faulthandler
import textwrap
from typing import TYPE_CHECKING

import pytest

import kernel

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

WATCHDOG_S = 120


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Ends a run that hangs, with every thread's stack."""
    faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def code(tmp_path: pathlib.Path) -> Callable[[str], pathlib.Path]:
    """Writes ``steps.py`` of a code root and returns the root."""
    root = tmp_path / "code"

    def write(source: str) -> pathlib.Path:
        root.mkdir(exist_ok=True)
        (root / "steps.py").write_text(textwrap.dedent(source))
        return root

    return write


@pytest.fixture
def worker(tmp_path: pathlib.Path) -> Iterator[kernel.Worker]:
    """A worker that has been welcomed."""
    with kernel.worker(tmp_path) as started:
        started.link.welcome()
        yield started
