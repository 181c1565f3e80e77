"""Workers that are started by hand: they compute steps of runs, and are missed by nobody when they go."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import client_steps as steps
from eclosion._schemas import DeathDisconnected, EnvironmentSpec, FlowSpec, TaskSpec
from house import DEADLINE_S, SOURCES, House, house
from kernel import until

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Generator

    from eclosion.client import Client
    from eclosion.client._operations import WorkerView


@contextlib.contextmanager
def by_hand(home: House, *words: str) -> Generator[subprocess.Popen[str]]:
    """``python -m eclosion.worker --connect``, as somebody types it."""
    started = subprocess.Popen(
        [sys.executable, "-m", "eclosion.worker", "--connect", *words],
        env={**home.environment, "PYTHONPATH": str(SOURCES)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate(timeout=DEADLINE_S)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def environment_of(client: Client) -> str:
    """The one whose interpreter is this one, which a call has made known."""
    client.submit(steps.square, 1).result(DEADLINE_S)
    return client.pool.status().workers[0].environment


def attached(client: Client) -> list[WorkerView]:
    return [worker for worker in client.pool.status().workers if worker.attached]


def start(client: Client, folder: pathlib.Path) -> str:
    """A run of one step, which says who computes it and waits for a gate."""
    flow = FlowSpec(
        schema="eclosion/flow/v1",
        name="by_hand",
        code=str(SOURCES.parent / "tests"),
        environment=EnvironmentSpec(python=sys.executable),
        tasks={"step": TaskSpec(run="client_steps:held", with_={"folder": str(folder)})},
    )
    return client.run.start(flow=flow).run


def test_a_step_runs_in_a_worker_started_by_hand_and_elsewhere_once_that_is_killed(
    home: House, client: Client, tmp_path: pathlib.Path
) -> None:
    environment = environment_of(client)
    with by_hand(home, str(home.socket), "--environment", environment) as worker:
        assert first_line(worker).startswith("eclosion.worker: attached as a-")
        run = start(client, tmp_path)
        until(lambda: (tmp_path / str(worker.pid)).exists())
        [view] = attached(client)
        assert (view.pid, view.state, view.environment) == (worker.pid, "busy", environment)
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: len(list(tmp_path.iterdir())) == 2)
    (tmp_path / "open").touch()
    until(lambda: client.run.get(run=run).run.state not in ("running", "cancelling"))
    got = client.run.get(run=run)
    assert got.run.state == "succeeded"
    pids = {int(path.name) for path in tmp_path.iterdir() if path.name != "open"}
    assert len(pids) == 2
    [death] = [died for died in client.pool.status().died if died.worker == view.worker]
    assert isinstance(death.death, DeathDisconnected)
    assert (death.pid, death.attempt) == (worker.pid, 1)
    assert attached(client) == []


def test_a_drained_one_is_told_to_go_and_one_that_is_killed_is_hung_up_on(home: House, client: Client) -> None:
    for act, code in ((client.pool.recycle, 0), (client.pool.kill, 75)):
        with by_hand(home, str(home.socket)) as worker:
            name = first_line(worker).split()[3]
            until(lambda name=name: any(view.worker == name for view in attached(client)))
            act(worker=name, reason="a test")
            assert worker.wait(DEADLINE_S) == code


def test_ctrl_c_ends_one_that_is_idle(home: House) -> None:
    with by_hand(home, str(home.socket)) as worker:
        assert "attached" in first_line(worker)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(DEADLINE_S) == 130


def test_without_a_kernel_it_says_what_to_do(home: House, tmp_path: pathlib.Path) -> None:
    with by_hand(home, str(tmp_path / "nowhere.sock")) as worker:
        assert "eclosion up" in first_line(worker)
        assert worker.wait(DEADLINE_S) == 69


def test_it_ends_with_its_kernel(tmp_path: pathlib.Path) -> None:
    with house(tmp_path) as home, by_hand(home, str(home.socket)) as worker:
        assert "attached" in first_line(worker)
        assert home.say("down").returncode == 0
        assert worker.wait(DEADLINE_S) == 75
