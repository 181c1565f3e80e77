"""What a worker does with a call."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

import kernel
from eclosion import _frames as frames
from eclosion._errors import ERROR_TEXT_MAX

Write = Callable[[str], pathlib.Path]


def test_runs_a_task_and_replies_with_its_result(worker: kernel.Worker, code: Write) -> None:
    root = code("def add(a, b):\n    return {'sum': a + b}\n")
    stream = worker.link.execute("steps:add", root, arguments={"a": kernel.value(2), "b": kernel.value(3)})
    assert worker.link.result(stream) == {"sum": 5}


def test_says_who_it_is(tmp_path: pathlib.Path) -> None:
    with kernel.worker(tmp_path) as worker:
        hello = worker.link.welcome()
    assert hello["worker"] == "w-1-1"
    assert hello["pid"] == worker.process.pid
    assert hello["attempts"] == []
    assert hello["start_ticks"] > 0
    assert hello["boot_id"]


def test_a_list_argument_is_the_outputs_of_a_fan_out(worker: kernel.Worker, code: Write) -> None:
    root = code("def total(xs):\n    return sum(xs)\n")
    payloads = [kernel.value(n)["payload"] for n in (1, 2, 3)]
    stream = worker.link.execute("steps:total", root, arguments={"xs": {"tag": "list", "payloads": payloads}})
    assert worker.link.result(stream) == 6


def test_an_exception_crosses_as_data_with_the_users_frames_marked(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        import json

        def parse():
            try:
                json.loads("{")
            except ValueError as why:
                raise RuntimeError("no table") from why
        """)
    error = worker.link.error(worker.link.execute("steps:parse", root))
    assert (error["code"], error["reason"], error["message"]) == (
        "internal",
        "task.raised",
        "RuntimeError: no table",
    )
    remote = error["remote"]
    assert remote["type"] == "RuntimeError"
    assert [(f["function"], f["user"]) for f in remote["frames"]] == [("parse", True)]
    assert remote["frames"][0]["source"] == 'raise RuntimeError("no table") from why'
    cause = remote["cause"]
    assert cause["type"] == "json.decoder.JSONDecodeError"
    assert {f["user"] for f in cause["frames"]} == {True, False}


def test_an_endless_recursion_is_told_in_bounds(worker: kernel.Worker, code: Write) -> None:
    root = code("def down(n=0):\n    return down(n + 1)\n")
    remote = worker.link.error(worker.link.execute("steps:down", root))["remote"]
    assert remote["type"] == "RecursionError"
    assert remote["truncated"]
    assert len(remote["frames"]) <= 64


@pytest.mark.parametrize(
    "connecting", ["eclosion.connect()", "eclosion.task(one).submit()", "asyncio.run(aio.connect())"]
)
def test_a_script_that_connects_while_it_is_imported_is_told_how_not_to(
    worker: kernel.Worker, code: Write, connecting: str
) -> None:
    root = code(f"""
        import asyncio, eclosion
        from eclosion.client import aio
        def one(): return 1
        {connecting}
    """)
    error = worker.link.error(worker.link.execute("steps:one", root))
    assert error["reason"] == "task.import"
    assert "`steps` connects to a kernel while a worker imports it" in error["message"]
    assert 'if __name__ == "__main__":' in error["help"]


def test_a_function_may_connect_where_its_module_may_not(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        import eclosion
        def one():
            try:
                eclosion.connect(instance="nobody")
            except eclosion.Unreachable as why:
                return why.error["reason"]
    """)
    assert worker.link.result(worker.link.execute("steps:one", root)) == "kernel.unreachable"


@pytest.mark.parametrize(
    ("function", "reason", "says"),
    [
        ("nowhere:f", "task.import", "module `nowhere` cannot be imported"),
        ("steps:squere", "task.import", "has no `squere`"),
        ("steps", "task.import", "is not module:qualname"),
        ("steps:NUMBER", "task.import", "is not callable"),
        ("steps:items", "task.encode", "a generator"),
        ("steps:later", "task.encode", "a coroutine"),
        ("steps:thing", "task.encode", "builtins.object"),
        ("steps:stepped", "task.encode", "contiguous"),
        ("steps:square", "task.arguments", "missing 1 required positional argument"),
        ("steps:leave", "task.raised", "SystemExit: 3"),
        ("steps:interrupt", "task.raised", "KeyboardInterrupt"),
    ],
)
def test_what_a_task_does_wrong_is_an_error_and_the_worker_stays(
    worker: kernel.Worker, code: Write, function: str, reason: str, says: str
) -> None:
    root = code("""
        import sys

        NUMBER = 3

        def square(x):
            return x * x

        def items():
            yield 1

        async def later():
            return 1

        def thing():
            return object()

        def stepped():
            return [memoryview(b"abcdef")[::2]]

        def leave():
            sys.exit(3)

        def interrupt():
            raise KeyboardInterrupt
        """)
    error = worker.link.error(worker.link.execute(function, root))
    assert error["reason"] == reason
    assert says in error["message"]
    stream = worker.link.execute("steps:square", root, arguments={"x": kernel.value(3)})
    assert worker.link.result(stream) == 9


def test_a_text_that_is_no_text_is_escaped_and_the_worker_stays(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        import os
        import pathlib

        from eclosion import Refused, TaskError, current

        NAME = os.fsdecode(b"a\\xe9.csv")

        def fail():
            why = ValueError(f"cannot read {NAME}")
            why.__notes__ = [f"note {NAME}"]
            raise why from KeyError(NAME)

        def notes():
            why = ValueError("odd")
            why.__notes__ = 3
            raise why

        def told():
            raise TaskError(NAME, help=NAME)

        def refuse():
            raise Refused({"code": "invalid", "reason": NAME, "message": NAME, "help": object()})

        def endless():
            raise TaskError("x" * (20 << 20))

        def report():
            current().progress(1, 2, NAME)
            current().metric(NAME, 3)
            print(NAME)

        def file():
            path = pathlib.Path(NAME)
            path.write_text("1")
            return path
        """)
    escaped = "a\\udce9.csv"
    error = worker.link.error(worker.link.execute("steps:fail", root))
    assert error["message"] == f"ValueError: cannot read {escaped}"
    assert error["remote"]["text"] == f"cannot read {escaped}"
    assert error["remote"]["notes"] == [f"note {escaped}"]
    assert error["remote"]["cause"]["type"] == "KeyError"
    assert worker.link.error(worker.link.execute("steps:notes", root))["message"] == "ValueError: odd"
    error = worker.link.error(worker.link.execute("steps:told", root))
    assert (error["message"], error["help"]) == (escaped, escaped)
    assert worker.link.error(worker.link.execute("steps:refuse", root))["reason"] == escaped
    assert len(worker.link.error(worker.link.execute("steps:endless", root))["message"]) == ERROR_TEXT_MAX
    stream = worker.link.execute("steps:report", root)
    reports = [msgspec.msgpack.decode(worker.link.take(frames.DATA, stream=stream).body) for _ in range(2)]
    assert (reports[0]["text"], reports[1]["name"]) == (escaped, escaped)
    assert worker.link.result(stream) is None
    assert worker.link.payload(worker.link.execute("steps:file", root))["parts"][0]["name"] == escaped


def test_a_misspelled_function_and_wrong_arguments_come_with_a_way_out(worker: kernel.Worker, code: Write) -> None:
    root = code("def square(x: int) -> int:\n    return x * x\n")
    assert worker.link.error(worker.link.execute("steps:squere", root))["help"] == "did you mean `square`?"
    error = worker.link.error(worker.link.execute("steps:square", root))
    assert error["help"] == "it takes (x: 'int') -> 'int'" or error["help"] == "it takes (x: int) -> int"


def test_an_error_raised_on_purpose_keeps_its_help_and_says_not_to_retry(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        from eclosion import TaskError

        def read():
            raise TaskError("no column `x`", help="columns: a, b", retry=False)
        """)
    error = worker.link.error(worker.link.execute("steps:read", root))
    assert error["message"] == "no column `x`"
    assert error["help"] == "columns: a, b"
    assert error["retry"] == {"policy": "never"}


def test_progress_and_metrics_arrive_before_the_outcome(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        from eclosion import current

        def train():
            for n in range(1000):
                current().progress(n + 1, 1000, "step")
            current().metric("loss", 0.5, step=3)
            return "done"
        """)
    stream = worker.link.execute("steps:train", root)
    reports: list[dict[str, Any]] = []
    while True:
        frame = worker.link.take(frames.DATA, stream=stream)
        if frame.flags & frames.END:
            break
        reports.append(msgspec.msgpack.decode(frame.body))
    progress = [report for report in reports if report["tag"] == "progress"]
    assert 2 <= len(progress) < 1000
    assert progress[-1] == {"tag": "progress", "done": 1000.0, "total": 1000.0, "text": "step"}
    assert {"tag": "metric", "name": "loss", "value": 0.5, "step": 3} in reports


def test_current_tells_what_the_attempt_is(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        from eclosion import current

        def tell():
            c = current()
            (c.scratch / "x").write_text("1")
            timed = c.deadline is not None
            return [c.run, c.task, c.attempt, c.idempotency_key, c.seed, c.lease, timed, str(c.scratch)]
        """)
    stream = worker.link.execute("steps:tell", root, attempt=2, timeout_ms=5000, lease={"cpu": 1, "memory": 9})
    *told, scratch = worker.link.result(stream)
    assert told == ["r1", "t", 2, "k", 7, {"cpu": 1, "memory": 9}, True]
    assert pathlib.Path(scratch).is_relative_to(worker.folder / "scratch")
    kernel.until(lambda: not os.path.exists(scratch))


def test_generators_are_seeded_alike_for_each_attempt(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        import random
        import numpy as np

        def draw():
            return [random.random(), float(np.random.random()), random.getrandbits(32)]
        """)
    first = worker.link.result(worker.link.execute("steps:draw", root, attempt=1))
    again = worker.link.result(worker.link.execute("steps:draw", root, attempt=2))
    other = worker.link.result(worker.link.execute("steps:draw", root, seed=2**64 - 1))
    assert first == again
    assert first != other


def test_an_array_is_staged_through_a_descriptor_and_mapped_by_its_reader(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        import mmap
        import numpy as np

        def make(n):
            return {"x": np.arange(n, dtype=np.float64)}

        def use(data):
            x = data["x"]
            owner = x
            while isinstance(owner, np.ndarray):
                owner = owner.base
            if isinstance(owner, memoryview):
                owner = owner.obj
            return [float(x.sum()), isinstance(owner, mmap.mmap), x.flags.writeable]
        """)
    payload = worker.link.payload(worker.link.execute("steps:make", root, arguments={"n": kernel.value(100_000)}))
    (part,) = payload["parts"]
    assert part["codec"] == "npy"
    assert part["bytes"] == len(worker.store.read(part["stage"]))
    part["digest"] = str(part.pop("stage"))
    data = {"tag": "value", "payload": payload}
    stream = worker.link.execute("steps:use", root, arguments={"data": data})
    assert worker.link.result(stream) == [float(np.arange(100_000).sum()), True, False]


def test_a_file_goes_out_and_comes_in_with_its_name(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        import subprocess
        from eclosion import current

        def write():
            path = current().scratch / "report.html"
            path.write_text("hello")
            return {"report": path}

        def read(data):
            path = data["report"]
            return [path.name, path.read_text(), subprocess.check_output(["cat", str(path)]).decode()]
        """)
    payload = worker.link.payload(worker.link.execute("steps:write", root))
    (part,) = payload["parts"]
    assert part["name"] == "report.html"
    assert worker.store.read(part["stage"]) == b"hello"
    part["digest"] = str(part.pop("stage"))
    part["name"] = "../../report.html"
    stream = worker.link.execute("steps:read", root, arguments={"data": {"tag": "value", "payload": payload}})
    assert worker.link.result(stream) == ["report.html", "hello", "hello"]


def test_a_large_plain_result_is_staged_and_a_large_argument_arrives_in_fragments(
    worker: kernel.Worker, code: Write
) -> None:
    root = code("def echo(x):\n    return x\n")
    text = "é" * 200_000
    payload = worker.link.payload(worker.link.execute("steps:echo", root, arguments={"x": kernel.value(text)}))
    (part,) = payload["parts"]
    assert part["codec"] == "msgpack"
    assert msgspec.msgpack.decode(worker.store.read(part["stage"])) == text


def test_output_is_told_as_ranges_and_survives_what_a_task_does_to_it(worker: kernel.Worker, code: Write) -> None:
    root = code("""
        import ctypes, os, sys

        def say(text):
            print(text)
            print("oops", file=sys.stderr)

        def wreck():
            sys.stdout.close()
            sys.stdout = object()
            os.close(1)
            os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
            sys.stderr = None

        def from_c():
            ctypes.CDLL(None).printf(b"from C\\n")
        """)
    link = worker.link

    def said(function: str, **arguments: Any) -> bytes:
        frame = link.outcome(link.execute(function, root, **arguments))
        assert frame.kind == frames.DATA
        start, end = frame.envelope["stdout"]
        return worker.stdout.read_bytes()[start:end]

    assert said("steps:say", arguments={"text": kernel.value("one é")}) == "one é\n".encode()
    assert said("steps:wreck") == b""
    assert said("steps:say", arguments={"text": kernel.value("two")}) == b"two\n"
    assert said("steps:from_c") == b"from C\n"
    assert worker.stderr.read_bytes() == b"oops\noops\n"


def test_another_code_hash_imports_the_modules_of_the_root_anew(worker: kernel.Worker, code: Write) -> None:
    root = code("from lib import VALUE\n\ndef value():\n    return VALUE\n")
    (root / "lib.py").write_text("VALUE = 1\n")
    assert worker.link.result(worker.link.execute("steps:value", root, code_hash="a")) == 1
    (root / "lib.py").write_text("VALUE = 2\n")
    assert worker.link.result(worker.link.execute("steps:value", root, code_hash="a")) == 1
    assert worker.link.result(worker.link.execute("steps:value", root, code_hash="b")) == 2
    assert not list(root.rglob("*.pyc"))


def test_another_root_brings_its_own_modules_of_the_same_name(
    worker: kernel.Worker, code: Write, tmp_path: pathlib.Path
) -> None:
    first = code("def where():\n    return 'first'\n")
    second = tmp_path / "second"
    second.mkdir()
    (second / "steps.py").write_text("def where():\n    return 'second'\n")
    assert worker.link.result(worker.link.execute("steps:where", first)) == "first"
    assert worker.link.result(worker.link.execute("steps:where", second)) == "second"
    assert worker.link.result(worker.link.execute("steps:where", first)) == "first"
