"""Options of a task that is called on its own: kept to, or refused with a way out; never passed over."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pytest

import client_steps as steps
from eclosion import DeadlineExceeded, Executor, Refused, task
from house import DEADLINE_S

if TYPE_CHECKING:
    import pathlib

    from eclosion.client import Client


@pytest.mark.parametrize("timeout", ["200ms", 0.2])
def test_a_task_that_takes_longer_than_its_time_out_is_cancelled(
    client: Client, tmp_path: pathlib.Path, timeout: Any
) -> None:
    gate = steps.gate(tmp_path)
    wait = task(timeout=timeout)(steps.wait)
    with pytest.raises(DeadlineExceeded) as refused:
        client.submit(wait, str(gate)).result(DEADLINE_S)
    assert refused.value.error.get("reason") == "call.timeout"
    assert "timeout" in refused.value.error.get("help", "")
    assert gate.left() == "cancelled"
    # The worker is there for the next one.
    assert client.submit(steps.square, 3).result(DEADLINE_S) == 9


def test_a_function_knows_its_deadline_and_its_limits_end_with_it(client: Client) -> None:
    few = task(open_files=24, timeout="1m")(steps.opens)
    assert client.submit(few, 2).result(DEADLINE_S) == 2
    with pytest.raises(Refused, match="24 open files"):
        client.submit(few, 100).result(DEADLINE_S)
    assert client.submit(steps.opens, 100).result(DEADLINE_S) == 100
    short = task(file_size="1KiB")(steps.writes)
    with pytest.raises(Refused, match="files of 1024 bytes"):
        client.submit(short, 4096).result(DEADLINE_S)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"retries": 2}, "`retries`"),
        ({"cache": "v1"}, "`cache`"),
        ({"memory": "1GiB", "priority": "batch"}, "`memory`, `priority`"),
        ({"resources": {"gpu": 1}}, "`resources`"),
        ({"locks": ["db"], "timeout": "1m"}, "`locks`"),
        ({"processes": 4}, "`processes`"),
    ],
)
def test_what_only_a_flow_can_do_is_refused_before_anything_is_sent(
    client: Client, options: dict[str, Any], named: str
) -> None:
    wished = task(**options)(steps.square)
    calls: list[tuple[Any, Any]] = [(client.submit, wished), (client.iterate, task(**options)(steps.tokens))]
    for call, function in calls:
        with pytest.raises(Refused) as refused:
            call(function, 3)
        assert f"cannot have {named}:" in str(refused.value)
        assert "@flow" in refused.value.error.get("help", "")
        # Whoever reads only the traceback is told, too.
        assert "help: put it into a flow" in "".join(traceback.format_exception(refused.value))
    with pytest.raises(Refused):
        client.map(wished, [1, 2])
    with Executor(client) as pool, pytest.raises(Refused):
        pool.submit(wished, 3)


def test_options_that_wish_for_nothing_do_no_harm(client: Client) -> None:
    plain = task(retries=0, cpu=1, priority="normal", cache="off", locks=[], name="another")(steps.square)
    assert client.submit(plain, 3).result(DEADLINE_S) == 9


def test_a_time_out_that_is_none_is_refused(client: Client) -> None:
    for timeout in ("soon", "5", "3 weeks", 0):
        with pytest.raises(Refused, match="`timeout` is"):
            client.submit(task(timeout=timeout)(steps.square), 3)


def test_what_is_no_function_is_told_apart_from_its_arguments(client: Client) -> None:
    wrong: Any = steps.square(3)
    for call in (client.submit, client.iterate):
        with pytest.raises(TypeError, match=r"submit\(f, x\), not submit\(f\(x\)\); 9 is of type int"):
            call(wrong)
