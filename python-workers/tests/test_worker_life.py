"""Cancelling, draining, dying and changing kernels."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

import kernel
from eclosion import _frames as frames
from eclosion.testing import LocalStore

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    Write = Callable[[str], pathlib.Path]

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
    assert link.welcome(2)["attempts"] == [fence]
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
    assert len(link.welcome(2)["attempts"]) == 1
    (part,) = link.payload(2)["parts"]
    assert worker.store.staged == 1
    # This kernel dies too, after the outcome was sent: it is sent again, its part in a file of the third.
    link.close()
    link = worker.adopt()
    assert len(link.welcome(6)["attempts"]) == 1
    (again,) = link.payload(6)["parts"]
    assert worker.store.staged == 2
    assert worker.store.read(again["stage"]) == worker.store.read(part["stage"])


def test_outcomes_are_kept_until_a_call_says_that_they_are_safe(worker: kernel.Worker, code: Write) -> None:
    root = code(WAITING)
    fences = [{"epoch": 1, "counter": counter} for counter in range(1, 5)]
    for fence in fences[:3]:
        stream = worker.link.execute("steps:quick", root, fence=fence, safe_below=fences[0])
        assert worker.link.result(stream) == 1
    worker.link.close()
    link = worker.adopt()
    assert link.welcome(2, 4, 6)["attempts"] == fences[:3]
    assert [link.result(stream) for stream in (2, 4, 6)] == [1, 1, 1]
    link._next_stream = 8  # pyright: ignore[reportPrivateUsage]
    assert link.result(link.execute("steps:quick", root, fence=fences[3], safe_below=fences[2])) == 1
    link.close()
    assert worker.adopt().welcome()["attempts"] == fences[2:]


def test_a_call_that_has_not_begun_is_given_back_and_one_that_has_goes_on(
    worker: kernel.Worker, code: Write, tmp_path: pathlib.Path
) -> None:
    root, gate = code(WAITING), tmp_path / "gate"
    first = worker.link.execute("steps:wait_for", root, arguments={"path": kernel.value(str(gate))})
    started(worker.link, first)
    second = worker.link.execute("steps:quick", root)
    for stream in (first, second):
        worker.link.channel.send(frames.CANCEL, stream, {"rung": 0})
    assert worker.link.error(second)["reason"] == "task.returned"
    gate.touch()
    assert worker.link.result(first) == [worker.process.pid, 1]


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
    assert link.welcome()["attempts"] == []
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
    link.welcome(4)
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
