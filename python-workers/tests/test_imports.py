"""What `import eclosion` costs: each module is one that every worker and every command waits for."""

from __future__ import annotations

import subprocess
import sys

from house import SOURCES

# Ours that whoever names only `@task` and `@flow` waits for.
OURS = {"eclosion", "eclosion._current", "eclosion._errors", "eclosion._wiring", "eclosion.flow", "eclosion.task"}
NEVER = {"asyncio", "cloudpickle", "concurrent", "hashlib", "logging", "multiprocessing", "numpy", "subprocess"}
HEAVY = NEVER | {"dataclasses", "email", "http", "json", "pickle", "socket", "ssl", "tempfile", "unittest"}


def imported(*statements: str) -> list[set[str]]:
    """The modules that each statement brings, in an interpreter of its own."""
    program = "import sys; known = set(sys.modules)\n"
    for statement in statements:
        program += f"{statement}; print(*(set(sys.modules) - known)); known = set(sys.modules)\n"
    # Isolated: what a site has installed to be imported at every start is not ours.
    program = f"import sys; sys.path.insert(0, {str(SOURCES)!r})\n" + program
    said = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in said.stdout.splitlines()]


def test_importing_the_package_brings_itself_and_next_to_nothing() -> None:
    msgspec, eclosion = imported("import msgspec", "import eclosion")
    assert {name for name in eclosion if name.startswith("eclosion")} == OURS
    assert eclosion - OURS <= {"_weakrefset", "atexit", "threading"}
    assert not {name.partition(".")[0] for name in msgspec | eclosion} & HEAVY


def test_the_client_comes_when_it_is_named_and_asyncio_when_that_is() -> None:
    _, client, aio, executor = imported(
        "import eclosion", "eclosion.connect", "import eclosion.client.aio", "eclosion.Executor"
    )
    assert "eclosion.client._client" in client
    assert not {name.partition(".")[0] for name in client} & NEVER
    assert "asyncio" in aio
    assert "eclosion.client.executor" in executor
    assert not {name.partition(".")[0] for name in aio | executor} & {"cloudpickle", "numpy"}
