from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

import kernel
from eclosion import _frames as frames
from eclosion.testing import LocalStore

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
    assert hello["running"] is None
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
    ("function", "reason", "says"),
    [
        ("nowhere:f", "task.import", "module `nowhere` cannot be imported"),
        ("steps:squere", "task.import", "has no `squere`"),
        ("steps", "task.import", "is not module:qualname"),
        ("steps:NUMBER", "task.import", "is not callable"),
        ("steps:items", "task.encode", "a generator"),
        ("steps:later", "task.encode", "a coroutine"),
        ("steps:thing", "task.encode", "builtins.object"),
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


WAITING = """
    import os, time
    from eclosion import Cancelled, current

    def cooperative():
        current().metric("started", 1)
        while not current().cancelled:
            current().wait_cancelled(10)
        return "stopped in order"

    def stubborn():
        current().metric("started", 1)
        while True:
            try:
                for _ in range(1_000_000):
                    pass
            except Exception:
                pass

    def reporting():
        current().metric("started", 1)
        while True:
            current().metric("x", 1)

    def asleep():
        current().metric("started", 1)
        time.sleep(60)

    def quick():
        return 1

    def wait_for(path):
        current().metric("started", 1)
        while not os.path.exists(path):
            time.sleep(0.001)
        return [os.getpid(), current().attempt]
    """


def started(link: kernel.Link, stream: int) -> None:
    """Waits until user code runs."""
    link.take(frames.DATA, stream=stream)


def test_rung_one_trips_the_token(worker: kernel.Worker, code: Write) -> None:
    stream = worker.link.execute("steps:cooperative", code(WAITING))
    started(worker.link, stream)
    worker.link.cancel(stream, 1)
    assert worker.link.result(stream) == "stopped in order"


@pytest.mark.parametrize("function", ["steps:stubborn", "steps:reporting"])
def test_rung_two_raises_in_code_that_does_not_look(worker: kernel.Worker, code: Write, function: str) -> None:
    root = code(WAITING)
    stream = worker.link.execute(function, root)
    started(worker.link, stream)
    worker.link.cancel(stream, 2)
    error = worker.link.error(stream)
    assert (error["code"], error["reason"]) == ("cancelled", "task.cancelled")
    assert worker.link.result(worker.link.execute("steps:quick", root)) == 1


def test_rung_three_ends_a_sleep(worker: kernel.Worker, code: Write) -> None:
    root = code(WAITING)
    stream = worker.link.execute("steps:asleep", root)
    started(worker.link, stream)
    worker.link.cancel(stream, 2)
    ping(worker.link)
    worker.process.send_signal(signal.SIGINT)
    assert worker.link.error(stream)["reason"] == "task.cancelled"
    assert worker.link.result(worker.link.execute("steps:quick", root)) == 1


def test_an_interrupt_or_a_cancel_of_an_idle_worker_does_nothing(worker: kernel.Worker, code: Write) -> None:
    root = code(WAITING)
    for _ in range(20):
        stream = worker.link.execute("steps:quick", root)
        worker.link.result(stream)
        worker.process.send_signal(signal.SIGINT)
        worker.link.cancel(stream, 2)
    assert worker.link.result(worker.link.execute("steps:quick", root)) == 1


def test_a_cancel_that_races_the_end_leaves_a_worker_that_works(worker: kernel.Worker, code: Write) -> None:
    root = code(WAITING)
    for n in range(200):
        stream = worker.link.execute("steps:quick", root)
        if n % 2:
            worker.link.cancel(stream, 2)
        frame = worker.link.outcome(stream)
        if frame.kind == frames.ERROR:
            assert frame.envelope["reason"] == "task.cancelled"
    assert worker.link.result(worker.link.execute("steps:quick", root)) == 1


def test_a_call_that_waits_is_cancelled_and_more_than_four_are_refused(worker: kernel.Worker, code: Write) -> None:
    root = code(WAITING)
    running = worker.link.execute("steps:cooperative", root)
    started(worker.link, running)
    waiting = [worker.link.execute("steps:quick", root) for _ in range(4)]
    assert worker.link.error(worker.link.execute("steps:quick", root))["code"] == "exhausted"
    worker.link.cancel(waiting[1], 1)
    assert worker.link.error(waiting[1])["code"] == "cancelled"
    worker.link.cancel(running, 1)
    assert worker.link.result(running) == "stopped in order"
    assert [worker.link.result(stream) for stream in (waiting[0], waiting[2], waiting[3])] == [1, 1, 1]


def ping(link: kernel.Link) -> dict[str, Any]:
    link.channel.send(frames.PING, 0)
    return link.take(frames.PONG).envelope


def test_a_ping_is_answered_idle_and_while_user_code_runs(worker: kernel.Worker, code: Write) -> None:
    assert "running" not in ping(worker.link)
    stream = worker.link.execute("steps:stubborn", code(WAITING), fence={"epoch": 3, "counter": 9})
    started(worker.link, stream)
    answer = ping(worker.link)
    assert answer["running"] == {"epoch": 3, "counter": 9}
    assert answer["gil_lag_ms"] >= 0
    worker.link.cancel(stream, 2)
    worker.link.error(stream)


def test_what_a_worker_does_not_serve_is_refused(worker: kernel.Worker) -> None:
    link = worker.link
    link.channel.send(frames.CALL, 2, {"method": "task.dance"})
    assert link.error(2)["code"] == "unimplemented"
    link.channel.send(frames.CALL, 4, {"method": "task.execute"}, b"\x93\x01\x02\x03")
    assert link.error(4)["reason"] == "task.malformed"
    link.channel.send(99, 6)
    assert link.error(6)["reason"] == "frame.type"
    link.channel.send(99, 8, flags=frames.IGNORE)
    assert "gil_lag_ms" in ping(link)


def test_go_away_finishes_what_is_in_hand_and_exits(worker: kernel.Worker, code: Write) -> None:
    root = code(WAITING)
    stream = worker.link.execute("steps:cooperative", root)
    started(worker.link, stream)
    waiting = worker.link.execute("steps:quick", root)
    worker.link.channel.send(frames.GOAWAY, 0)
    assert worker.link.error(waiting)["reason"] == "worker.draining"
    worker.link.cancel(stream, 1)
    assert worker.link.result(stream) == "stopped in order"
    assert worker.wait() == 0


def test_an_idle_worker_told_to_go_exits(worker: kernel.Worker) -> None:
    worker.link.channel.send(frames.GOAWAY, 0)
    assert worker.wait() == 0


def test_the_end_of_the_lifeline_ends_the_worker_at_once(worker: kernel.Worker, code: Write) -> None:
    stream = worker.link.execute("steps:stubborn", code(WAITING))
    started(worker.link, stream)
    worker.lifeline.close()
    assert worker.wait() == 75


def test_a_computing_worker_is_adopted_and_reports_to_the_next_kernel(
    worker: kernel.Worker, code: Write, tmp_path: pathlib.Path
) -> None:
    gate = tmp_path / "gate"
    fence = {"epoch": 1, "counter": 5}
    stream = worker.link.execute(
        "steps:wait_for", code(WAITING), arguments={"path": kernel.value(str(gate))}, fence=fence
    )
    started(worker.link, stream)
    worker.link.close()
    link = worker.adopt()
    assert link.welcome(resume=2)["running"] == fence
    gate.touch()
    assert link.result(2) == [worker.process.pid, 1]


def test_an_outcome_waits_for_the_next_kernel_and_its_parts_are_staged_anew(
    worker: kernel.Worker, code: Write, tmp_path: pathlib.Path
) -> None:
    gate, done = tmp_path / "gate", tmp_path / "done"
    root = code("""
        import os, time
        import numpy as np
        from eclosion import current

        def make(gate, done):
            current().metric("started", 1)
            while not os.path.exists(gate):
                time.sleep(0.001)
            open(done, "w").close()
            return np.arange(1000)
        """)
    arguments = {"gate": kernel.value(str(gate)), "done": kernel.value(str(done))}
    stream = worker.link.execute("steps:make", root, arguments=arguments)
    started(worker.link, stream)
    worker.link.close()
    gate.touch()
    kernel.until(done.exists)
    link = worker.adopt()
    assert link.welcome(resume=2)["running"] is not None
    (part,) = link.payload(2)["parts"]
    assert worker.store.staged == 1
    # This kernel dies too, after the outcome was sent: it is sent again, its part in a file of the third.
    link.close()
    link = worker.adopt()
    assert link.welcome(resume=6)["running"] is not None
    (again,) = link.payload(6)["parts"]
    assert worker.store.staged == 2
    assert worker.store.read(again["stage"]) == worker.store.read(part["stage"])


def test_an_outcome_that_nobody_wants_is_dropped_and_the_worker_serves_on(worker: kernel.Worker, code: Write) -> None:
    root = code(WAITING)
    stream = worker.link.execute("steps:cooperative", root)
    started(worker.link, stream)
    worker.link.close()
    link = worker.adopt()
    link.welcome()
    assert link.result(link.execute("steps:quick", root)) == 1


def test_an_idle_worker_is_adopted_after_and_before_the_end_of_its_stream(worker: kernel.Worker, code: Write) -> None:
    root = code(WAITING)
    worker.link.close()
    link = worker.adopt()
    assert link.welcome()["running"] is None
    assert link.result(link.execute("steps:quick", root)) == 1
    old = link
    link = worker.adopt()
    link.welcome()
    assert link.result(link.execute("steps:quick", root)) == 1
    old.close()


def test_an_argument_is_opened_again_by_the_next_kernel(worker: kernel.Worker, code: Write) -> None:
    root = code("def total(x):\n    return int(x.sum())\n")
    local = LocalStore()
    payload = local.encode(np.arange(2000))
    digest = payload.parts[0].digest or ""
    (worker.store.folder / "77").write_bytes((local.folder / digest).read_bytes())
    data = msgspec.to_builtins(payload, builtin_types=(bytes,))
    data["parts"][0]["digest"] = "77"
    worker.link.execute("steps:total", root, arguments={"x": {"tag": "value", "payload": data}})
    # The call is in its hands: it asks for the part. This kernel dies instead of answering.
    while True:
        if any(frame.kind == frames.CALL for frame in worker.link.channel.receive()):
            break
    worker.link.close()
    link = worker.adopt()
    link.welcome(resume=4)
    assert link.result(4) == sum(range(2000))


def test_a_store_that_refuses_becomes_the_attempts_error(worker: kernel.Worker, code: Write) -> None:
    root = code("import numpy as np\n\ndef make():\n    return np.arange(10)\n")
    stream = worker.link.execute("steps:make", root)
    refused = {
        "code": "exhausted",
        "reason": "store.full",
        "message": "the disk is full",
        "retry": {"policy": "never"},
    }

    def serve(call: frames.Frame) -> None:
        worker.link.channel.send(frames.ERROR, call.stream, {}, msgspec.msgpack.encode(refused), flags=frames.END)

    worker.link.serve = serve
    assert worker.link.error(stream) == refused
