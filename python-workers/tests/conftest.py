"""A watchdog on every test, where tests put what they make, and a kernel for those of the client."""

from __future__ import annotations

import faulthandler
import textwrap
from typing import TYPE_CHECKING

import pytest

import kernel
from house import House, house

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from eclosion.client import Client

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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A real kernel for the tests of one file."""
    with house(tmp_path_factory.mktemp("house")) as built:
        yield built


@pytest.fixture
def client(home: House) -> Iterator[Client]:
    with home.connect() as connected:
        yield connected
