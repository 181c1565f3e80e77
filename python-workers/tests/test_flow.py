from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import kernel
from eclosion import TaskError, current, flow, task
from eclosion.flow import FlowError
from eclosion.testing import TaskFailed, run_flow, run_task

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = str(pathlib.Path(__file__).parent)


@task
def numbers(count: int) -> list[int]:
    return list(range(count))


@task(
    retries=2,
    timeout=1.5,
    memory="1GiB",
    cpu=2,
    priority="batch",
    resources={"licences": 1},
    locks=["db", "index:shared"],
    rates={"openai": 1},
)
def square(x: int, plus: int = 0) -> int:
    current().metric("x", x)
    return x * x + plus


@task
def total(xs: list[int], label: str = "sum") -> str:
    return f"{label}: {sum(xs)}"


@flow(name="squares", requirements=["numpy==2.4.6"], preload=["numpy"])
def squares(seed: int = 7, count: int = 3) -> str:
    """Sums squares.

    At some length.
    """
    found = square.map(numbers(count), plus=seed)
    return total(found, label=f"with {seed}, ${{this}} kept")


def test_a_flow_function_becomes_the_model_of_a_flow_file() -> None:
    assert squares.spec() == {
        "schema": "eclosion/flow/v1",
        "name": "squares",
        "description": "Sums squares.",
        "code": FOLDER,
        "environment": {"requirements": ["numpy==2.4.6"], "preload": ["numpy"]},
        "parameters": {"seed": 7, "count": 3},
        "tasks": {
            "numbers": {"run": "test_flow:numbers", "with": {"count": "${param.count}"}},
            "square": {
                "run": "test_flow:square",
                "with": {"x": "${item}", "plus": "${param.seed}"},
                "each": "${numbers}",
                "retries": 2,
                "timeout": "1500ms",
                "resources": {"licences": 1, "memory": "1GiB", "cpu": 2},
                "locks": ["db", "index:shared"],
                "rates": {"openai": 1},
                "priority": "batch",
            },
            "total": {
                "run": "test_flow:total",
                "with": {"xs": "${square}", "label": "with ${param.seed}, $${this} kept"},
            },
        },
        "result": "total",
    }


def test_a_task_and_a_flow_are_their_functions() -> None:
    assert square(3) == 9
    assert square.map([1, 2], plus=1) == [2, 5]
    assert squares(seed=1) == "with 1, ${this} kept: 8"


def test_a_task_that_is_wired_twice_gets_two_names() -> None:
    @flow
    def twice() -> str:
        first = numbers(1)
        second = numbers.options(name="more")(2)
        third = numbers.options(after=[first, second])(3)
        return total(third)

    tasks = twice.spec()["tasks"]
    assert list(tasks) == ["numbers", "more", "numbers_2", "total"]
    assert tasks["numbers_2"]["after"] == ["numbers", "more"]


# Wrong calls, which a type checker sees too.
total_of: Any = total
numbers_to: Any = numbers


def nested(seed: int = 1) -> Any:
    return total_of([numbers(2)])


def inside_a_text(seed: int = 1) -> Any:
    return total(numbers(2), label=f"{numbers(1)}")


def looped_over(seed: int = 1) -> Any:
    return [total_of(x) for x in numbers(2)]


def branched_on(seed: int = 1) -> Any:
    return total(numbers(2)) if seed else ""


def no_data(seed: int = 1) -> Any:
    return numbers_to(object())


def misspelled(seed: int = 1) -> Any:
    return total_of(numbers(1), lable="x")


def no_output(seed: int = 1) -> Any:
    return 3


def no_default(seed: int) -> Any:
    return numbers(seed)


@pytest.mark.parametrize(
    ("wired", "says"),
    [
        (nested, "cannot stand inside another value"),
        (inside_a_text, "cannot be part of a text"),
        (looped_over, "use TASK.map"),
        (branched_on, "cannot be tested"),
        (no_data, "plain data"),
        (misspelled, "unexpected keyword argument 'lable'"),
        (no_output, "must return the output"),
        (no_default, "needs a default"),
    ],
)
def test_what_no_flow_file_can_say_is_refused_with_its_place(wired: Callable[..., Any], says: str) -> None:
    with pytest.raises(FlowError, match=says):
        flow(wired).spec()
    # A refusal leaves tasks the functions that they were.
    assert square(2) == 4


def test_a_task_that_no_worker_could_import_is_refused() -> None:
    @task
    def inner() -> int:
        return 1

    @flow
    def wired() -> int:
        return inner()

    with pytest.raises(FlowError, match="module level"):
        wired.spec()


def describe(*arguments: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "eclosion.describe", *arguments],
        env={**os.environ, "PYTHONPATH": str(kernel.SOURCES)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_describe_prints_the_flow_and_nothing_else(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from eclosion import flow, task\nprint('imported')\n\n@task\ndef f(x: int) -> int:\n    return x\n\n"
        "@flow\ndef main(seed: int = 1) -> int:\n    return f(seed)\n"
    )
    shown = describe("mine.py:main", folder=tmp_path)
    spec = json.loads(shown.stdout)
    assert spec["tasks"] == {"f": {"run": "mine:f", "with": {"x": "${param.seed}"}}}
    assert spec["code"] == str(tmp_path)
    assert shown.stderr == "imported\n"
    assert json.loads(describe("mine.py", folder=tmp_path).stdout) == spec


def test_describe_says_what_is_wrong(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text("from eclosion import flow\n\n@flow\ndef main():\n    return 1\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    assert describe("gone.py:main", folder=tmp_path).returncode == 2
    other = describe("mine.py:mian", folder=tmp_path)
    assert (other.returncode, other.stderr) == (2, "mine.py has no flow `mian`; flows in it: main\n")
    wrong = describe("mine.py:main", folder=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "must return the output of one of its tasks" in wrong.stderr
    broken = describe("broken.py", folder=tmp_path)
    assert broken.returncode == 1
    assert "ZeroDivisionError" in broken.stderr
    raised = json.loads(broken.stdout)["raised"]
    assert raised["type"] == "ZeroDivisionError"
    assert [frame["source"] for frame in raised["frames"] if frame["user"]] == ["1 / 0"]


attempts: list[tuple[int, int]] = []


@task(retries=2)
def flaky() -> int:
    attempts.append((current().attempt, current().seed))
    if current().attempt < 3:
        raise RuntimeError("not yet")
    return current().attempt


def test_a_flow_runs_in_process_with_fan_out_seeds_and_reports() -> None:
    outcome = run_flow(squares, seed=1, count=4)
    assert outcome.value == "with 1, ${this} kept: 18"
    assert outcome.outputs["square"] == [1, 2, 5, 10]
    assert outcome.reports["square[3]"] == [{"tag": "metric", "name": "x", "value": 3.0}]


def test_a_flow_runs_from_its_spec_alone() -> None:
    assert run_flow(squares.spec()).value == run_flow(squares).value


def test_attempts_are_retried_with_one_seed() -> None:
    attempts.clear()
    spec = {"tasks": {"flaky": {"run": "test_flow:flaky", "retries": 2}}, "code": FOLDER}
    assert run_flow(spec).value == 3
    # The module may have been imported under this name beside pytest's own.
    seen = attempts or sys.modules["test_flow"].attempts
    assert [attempt for attempt, _ in seen] == [1, 2, 3]
    assert len({seed for _, seed in seen}) == 1


def test_a_task_that_fails_for_good_is_raised_with_its_error() -> None:
    def fails() -> None:
        raise TaskError("no column `x`", help="columns: a, b")

    with pytest.raises(TaskFailed, match="help: columns: a, b") as caught:
        run_task(fails)
    assert caught.value.error.get("reason") == "task.raised"


def test_a_cycle_is_named() -> None:
    tasks = {"a": {"run": "m:f", "with": {"x": "${b}"}}, "b": {"run": "m:f", "after": ["a"]}}
    with pytest.raises(FlowError, match="a → b → a"):
        run_flow({"tasks": tasks})


def test_outside_of_an_attempt_current_is_harmless() -> None:
    attempt = current()
    attempt.progress(1, 2, "x")
    attempt.metric("loss", 1)
    assert (attempt.run, attempt.attempt, attempt.cancelled, attempt.deadline) == ("local", 1, False, None)
    assert attempt.scratch.is_dir()
