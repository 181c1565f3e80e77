"""A real notebook kernel: cells that wait, cells that await, and a cell that is interrupted."""

from __future__ import annotations

import importlib
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

import client_steps as steps
from house import DEADLINE_S, SOURCES, House

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

# Neither has types that a strict checker could follow.
nbclient: Any = importlib.import_module("nbclient")
cells: Any = importlib.import_module("nbformat.v4")
run_sync: Any = importlib.import_module("nbclient.util").run_sync


class Notebook:
    """Cells are added and executed one by one, as somebody at a keyboard would."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, source: str) -> list[str]:
        """What the cell has printed, line by line."""
        cell = cells.new_code_cell(source)
        self._client.nb.cells.append(cell)
        self._client.execute_cell(cell, len(self._client.nb.cells) - 1)
        printed: list[str] = [output["text"] for output in cell["outputs"] if output["output_type"] == "stream"]
        text: str = "".join(printed)
        return text.splitlines()

    def interrupt(self, source: str, gate: steps.Gate) -> str:
        """Begins a cell, presses the stop button once a worker has entered the gate; says what the cell ended with."""
        ended: list[BaseException | None] = [None]

        def execute() -> None:
            try:
                self.run(source)
            except BaseException as why:
                ended[0] = why

        executing = threading.Thread(target=execute)
        executing.start()
        gate.entered()
        run_sync(self._client.km.interrupt_kernel)()
        executing.join(DEADLINE_S)
        assert not executing.is_alive(), "the cell goes on"
        return getattr(ended[0], "ename", repr(ended[0]))


@pytest.fixture(scope="module")
def notebook(home: House) -> Iterator[Notebook]:
    environment = {
        **home.environment,
        "ECLOSION_SOCKET": str(home.socket),
        "HOME": str(home.folder),
        "JUPYTER_RUNTIME_DIR": str(home.folder / "jupyter"),
        "IPYTHONDIR": str(home.folder / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(SOURCES), os.path.dirname(__file__)]),
    }
    client = nbclient.NotebookClient(cells.new_notebook(), kernel_name="python3", timeout=DEADLINE_S)
    with pytest.MonkeyPatch.context() as patch:
        # Of this end too: it writes the file that the kernel finds its ports in.
        patch.setenv("JUPYTER_RUNTIME_DIR", environment["JUPYTER_RUNTIME_DIR"])
        with client.setup_kernel(env=environment, cwd=str(home.folder)):
            opened = Notebook(client)
            opened.run("import eclosion, client_steps as steps\nfrom eclosion.client import aio")
            opened.run("kernel, here = await aio.connect(), eclosion.connect()")
            yield opened


def test_a_cell_awaits_at_its_top_level(notebook: Notebook) -> None:
    assert notebook.run("print((await kernel.kernel.status()).state)") == ["ready"]
    source = "import asyncio\nprint(await asyncio.gather(*kernel.map(steps.square, range(4))))"
    assert notebook.run(source) == ["[0, 1, 4, 9]"]
    source = """\
        async for delivery in kernel.subscribe("**"):
            print(type(delivery).__name__)
            break
        """
    assert notebook.run(source) == ["DeliveryAcknowledged"]


def test_a_cell_waits_with_the_plain_client_though_a_loop_runs(notebook: Notebook) -> None:
    assert notebook.run("print(here.kernel.status().state)") == ["ready"]
    assert notebook.run("print(here.submit(steps.square, 7).result())") == ["49"]
    source = "print(sorted(ref.result() for ref in eclosion.as_completed(here.map(steps.square, range(3)))))"
    assert notebook.run(source) == ["[0, 1, 4]"]


def test_what_a_cell_defines_runs_in_a_worker_with_the_names_that_it_uses(notebook: Notebook) -> None:
    notebook.run("import os\nfactor = 3\ndef scaled(x):\n    return x * factor, os.getpid()")
    source = "value, pid = here.submit(scaled, 7).result()\nprint(value, pid != os.getpid())"
    assert notebook.run(source) == ["21 True"]
    # As it is now, and not as it was when the function was first sent.
    assert notebook.run("factor = 4\nprint((await kernel.submit(scaled, 7))[0])") == ["28"]
    assert notebook.run("@eclosion.task\ndef half(x): return x / 2\nprint(here.submit(half, 5).result())") == ["2.5"]


@pytest.mark.parametrize(
    "source",
    [
        "here.submit(steps.wait, {gate!r}).result()",
        "await kernel.submit(steps.wait, {gate!r})",
        "for ref in eclosion.as_completed([here.submit(steps.wait, {gate!r})]): ...",
        "with eclosion.Executor(here) as pool: pool.submit(steps.wait, {gate!r}).result()",
    ],
    ids=["result", "await", "as_completed", "executor"],
)
def test_a_cell_that_is_interrupted_cancels_what_it_waits_for(
    notebook: Notebook, tmp_path: pathlib.Path, source: str
) -> None:
    gate = steps.gate(tmp_path)
    assert notebook.interrupt(source.format(gate=str(gate)), gate) in {"KeyboardInterrupt", "CancelledError"}
    assert gate.left() == "cancelled"
    assert notebook.run("print(here.submit(steps.square, 2).result(), await kernel.submit(steps.square, 3))") == ["4 9"]
