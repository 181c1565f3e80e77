"""A real kernel for tests of the client: the binary in a house of its own, with real workers of this interpreter."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import textwrap
from typing import TYPE_CHECKING, Any

import eclosion

if TYPE_CHECKING:
    from collections.abc import Generator

    from eclosion.client import Client

SOURCES = pathlib.Path(__file__).parent.parent / "src"
ROOT = pathlib.Path(__file__).parents[2]
BINARY = pathlib.Path(os.environ.get("ECLOSION_BINARY") or ROOT / "target/debug/eclosion")
# Nothing here takes so long; a test that hangs must end.
DEADLINE_S = 60


class House:
    """Directories of one kernel, and the kernel in them, once it is up."""

    def __init__(self, folder: pathlib.Path) -> None:
        assert BINARY.exists(), f"there is no {BINARY}: cargo build -p eclosion-cli"
        self.folder = folder
        self.socket = folder / "run/default.sock"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ECLOSION_")},
            "ECLOSION_STATE_DIR": str(folder / "state"),
            "ECLOSION_RUNTIME_DIR": str(folder / "run"),
            "ECLOSION_CACHE_DIR": str(ROOT / "target/test-cache"),
        }

    def say(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BINARY), *words],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def up(self) -> None:
        said = self.say("up")
        assert said.returncode == 0, said.stderr

    def kill(self, client: Client) -> None:
        """What a power cut would do to the kernel, as its clients see it."""
        os.kill(client.kernel.status().pid, signal.SIGKILL)

    def connect(self, **options: Any) -> Client:
        return eclosion.connect(self.socket, **options)

    def write(self, name: str, source: str) -> pathlib.Path:
        path = self.folder / "code" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path


@contextlib.contextmanager
def house(folder: pathlib.Path) -> Generator[House]:
    """A kernel that is down when the block ends."""
    built = House(folder)
    try:
        built.up()
        yield built
    finally:
        built.say("down")
