"""What the package shows: its names, a decorator that is a module as well, errors with their way out."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback

import pytest

import eclosion
from eclosion._errors import Refused, TaskRaised, error, raised
from kernel import SOURCES


@pytest.mark.parametrize(
    "imported",
    [
        "from eclosion import service",
        "from eclosion.service import service",
        "import eclosion; service = eclosion.service",
    ],
)
def test_the_decorator_of_services_is_what_every_import_gives(imported: str) -> None:
    program = f"""
{imported}

@service(address="/desk")
class Desk:
    pass

import eclosion.service
print(eclosion.service.options_of(Desk).address)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (said.stdout, said.stderr) == ("/desk\n", "")


def test_dir_names_what_there_is_to_use() -> None:
    names = [name for name in dir(eclosion) if not name.startswith("__")]
    assert names == sorted(eclosion.__all__)
    assert all(hasattr(eclosion, name) for name in names)


def test_a_traceback_says_the_way_out() -> None:
    refused = Refused(error("conflict", "db.locked", "the lock is held", help="eclosion arb ls"))
    assert "help: eclosion arb ls" in "".join(traceback.format_exception(refused))
    remote = {"type": "ValueError", "text": "no"}
    data = error("internal", "task.raised", "ValueError: no", help="columns: id", remote=remote)
    why = raised(data)
    assert isinstance(why, TaskRaised)
    assert "help: columns: id" in "".join(traceback.format_exception(why))
    silent = Refused(error("conflict", "x", "no"))
    assert "help" not in "".join(traceback.format_exception(silent))
