"""The client at a real kernel with real workers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import fractions
import functools
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import client_steps as steps
import eclosion
from eclosion._frames import Channel
from eclosion._schemas import DeathExited, ReportProgress
from eclosion.client import Client, Ref, aio, timed
from eclosion.client._connection import Exchange
from eclosion.client._functions import Roots
from house import DEADLINE_S, SOURCES, House
from kernel import until

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Generator


def test_typed_operations_and_plain_calls_say_the_same(client: Client) -> None:
    status = client.kernel.status()
    assert status.state == "ready"
    assert client.call("kernel.status")["pid"] == status.pid
    assert client.welcome["role"] == "admin"
    names = [operation["name"] for operation in client.kernel.describe().operations]
    assert "run.start" in names


def test_a_refusal_is_raised_with_all_that_it_said(client: Client) -> None:
    with pytest.raises(eclosion.Refused) as refused:
        client.run.get(run="nowhere7")
    assert refused.value.error.get("code") == "not_found"
    with pytest.raises(eclosion.Refused, match=r"no operation `run\.gte`") as refused:
        client.call("run.gte")
    assert refused.value.error.get("help") == "did you mean run.get?"


def test_less_than_this_user_may_have_is_given_on_request(home: House) -> None:
    with home.connect(role="view") as viewer, pytest.raises(eclosion.Refused) as refused:
        viewer.kernel.stop()
    assert refused.value.error.get("code") == "denied"


def test_nobody_there_is_said_at_once_with_the_way_out(tmp_path: pathlib.Path) -> None:
    with pytest.raises(eclosion.Unreachable) as refused:
        eclosion.connect(tmp_path / "nobody.sock")
    assert refused.value.error.get("help") == "eclosion up"


def test_the_kernel_of_another_instance_is_started_by_its_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECLOSION_RUNTIME_DIR", str(tmp_path))
    for instance, command in {"other": "eclosion up --instance other", "default": "eclosion up"}.items():
        with pytest.raises(eclosion.Unreachable) as refused:
            eclosion.connect(instance=instance)
        assert refused.value.error.get("help") == command


def test_a_submitted_function_returns_what_it_returns_here(client: Client) -> None:
    assert client.submit(steps.square, 3).result(DEADLINE_S) == steps.square(3)
    assert client.submit(steps.join, "a", end="z").result(DEADLINE_S) == "a-z"


def test_a_cached_function_a_class_and_its_methods_are_called_by_name(client: Client) -> None:
    cached: Any = steps.cached
    assert client.submit(cached, 3, plus=1).result(DEADLINE_S) == 4
    assert client.submit(steps.Point, 1).result(DEADLINE_S) == {"x": 1, "y": 2}
    assert client.submit(steps.Point.origin).result(DEADLINE_S) == "Point"
    # Of a library: found without a root, whose files would all be hashed.
    for known in (fractions.Fraction, functools.reduce):
        target = Roots().target(known)
        assert target is not None
        assert target.code == os.sep


@pytest.mark.parametrize("method", [steps.Point(1).far, steps.Deep.origin])
def test_a_method_without_its_object_is_refused_by_name(client: Client, method: Any) -> None:
    with pytest.raises(eclosion.Refused, match=r"`Point\.\w+` is a method") as refused:
        client.submit(method)
    assert "help" in refused.value.error


def test_a_map_gives_results_in_order_and_as_completed_each_once(client: Client) -> None:
    refs = client.map(steps.square, range(300))
    assert [ref.result(DEADLINE_S) for ref in refs] == [n * n for n in range(300)]
    again = client.map(steps.square, range(20))
    assert sorted(ref.result() for ref in eclosion.as_completed(again, DEADLINE_S)) == [n * n for n in range(20)]


def test_what_a_function_raises_is_raised_here_as_its_builtin_kind(client: Client) -> None:
    with pytest.raises(LookupError, match="no such thing") as raised:
        client.submit(steps.fail).result(DEADLINE_S)
    assert isinstance(raised.value, eclosion.TaskRaised)
    assert "raise KeyError" in str(raised.value.__cause__)
    with pytest.raises(eclosion.TaskRaised) as raised:
        client.submit(steps.fail_oddly).result(DEADLINE_S)
    assert raised.value.remote["type"] == "UnicodeDecodeError"


@pytest.mark.parametrize("function", [steps.stop, steps.stop_async])
def test_what_would_end_a_loop_here_is_raised_as_an_error(home: House, client: Client, function: Any) -> None:
    async def main() -> None:
        async with aio.connect(home.socket) as kernel:
            await kernel.submit(function)

    with pytest.raises(RuntimeError) as raised:
        asyncio.run(asyncio.wait_for(main(), DEADLINE_S))
    assert isinstance(raised.value, eclosion.TaskRaised)
    assert raised.value.remote["type"] in ("StopIteration", "StopAsyncIteration")
    with pytest.raises(RuntimeError):
        list(map(Ref[Any].result, [client.submit(function)]))


def test_a_worker_that_dies_resolves_its_call_with_a_certificate(client: Client) -> None:
    with pytest.raises(eclosion.TaskDied) as died:
        client.submit(steps.die).result(DEADLINE_S)
    assert died.value.certificate is not None
    assert died.value.certificate.death == DeathExited(code=3)


def test_a_cancelled_call_ends_here_and_at_the_worker(client: Client, tmp_path: pathlib.Path) -> None:
    gate = steps.gate(tmp_path)
    ref = client.submit(steps.wait, str(gate))
    gate.entered()
    assert ref.cancel()
    with pytest.raises(eclosion.Cancelled):
        ref.result()
    assert gate.left() == "cancelled"
    assert ref.cancelled()
    assert not ref.cancel()


def test_a_time_out_leaves_the_function_running(client: Client, tmp_path: pathlib.Path) -> None:
    gate = steps.gate(tmp_path)
    ref = client.submit(steps.wait, str(gate))
    with pytest.raises(eclosion.DeadlineExceeded):
        ref.result(0.01)
    gate.entered()
    gate.open()
    assert ref.result(DEADLINE_S) == "opened"


def test_reports_come_while_the_function_runs(client: Client, tmp_path: pathlib.Path) -> None:
    gate = steps.gate(tmp_path)
    ref = client.submit(steps.wait, str(gate))
    assert next(ref.reports()) == ReportProgress(done=0, total=1, text="waiting")
    gate.open()
    assert ref.result(DEADLINE_S) == "opened"


def test_coroutines_hear_reports_and_may_stop_waiting_for_them(home: House, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with aio.connect(home.socket) as client:
            gate = steps.gate(tmp_path)
            ref = client.submit(steps.wait, str(gate))
            reports = aiter(ref.reports())
            assert await anext(reports) == ReportProgress(done=0, total=1, text="waiting")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(reports), 0.01)
            gate.open()
            assert [report async for report in reports] == []
            assert await ref == "opened"

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_an_argument_that_is_no_data_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(eclosion.Refused, match="an argument cannot be sent"):
        client.submit(steps.join, object())  # pyright: ignore[reportArgumentType]


def test_a_file_is_a_path_to_a_copy_as_long_as_the_call(client: Client, tmp_path: pathlib.Path) -> None:
    """Small it rides along, large it lies in shared memory."""
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    small.write_bytes(b"x")
    large.write_bytes(bytes(1 << 20))
    kind, place, size = client.submit(steps.reads_one, large).result(DEADLINE_S)
    assert (kind, os.path.basename(place), size) == (type(large).__name__, "large.csv", str(1 << 20))
    assert place != str(large)
    both = client.submit(steps.reads, [small, large, small]).result(DEADLINE_S)
    assert [size for _, _, size in both] == ["1", str(1 << 20), "1"]
    fed = client.submit(steps.reads, client.feed([small, large])).result(DEADLINE_S)
    assert [os.path.basename(place) for _, place, _ in fed] == ["small.csv", "large.csv"]
    # The worker removes them after the outcome was sent.
    until(lambda: not any(os.path.exists(read[1]) for read in [*both, *fed]))
    until(lambda: not os.path.exists(place))


def test_the_loop_over_a_stream_raises_what_the_call_ended_with(client: Client) -> None:
    with pytest.raises(eclosion.Refused, match=r"no operation `nope\.nope`"):
        list(client.stream("nope.nope"))
    with client.artifact.get(name="nope") as pieces:
        with pytest.raises(eclosion.Refused) as refused:
            list(pieces)
        assert refused.value.error.get("code") == "not_found"
        with pytest.raises(eclosion.Refused):
            pieces.reply()


def test_a_stream_that_was_closed_here_just_ends(client: Client) -> None:
    for _ in (events := client.stream("bus.subscribe", {"filter": "**"})):
        events.close()
    with pytest.raises(eclosion.Cancelled):
        events.reply()


def test_the_same_of_streams_in_coroutines(home: House) -> None:
    async def main() -> None:
        async with aio.connect(home.socket) as client:
            with pytest.raises(eclosion.Refused, match=r"no operation `nope\.nope`"):
                [item async for item in client.stream("nope.nope")]
            pieces = client.artifact.get(name="nope")
            with pytest.raises(eclosion.Refused):
                [piece async for piece in pieces]
            with pytest.raises(eclosion.Refused):
                await pieces.reply()
            async for _ in (events := client.stream("bus.subscribe", {"filter": "**"})):
                events.close()

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_large_results_are_fetched(client: Client) -> None:
    assert client.submit(steps.large, 100_000).result(DEADLINE_S) == "x" * 100_000


def test_threads_share_a_client(client: Client) -> None:
    def work(n: int) -> int:
        return client.submit(steps.square, n).result(DEADLINE_S) + len(client.call("run.list", {})["runs"])

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(40))) == [n * n for n in range(40)]


WAITS = {
    "result": "def main(): client_steps.wait_task.submit(sys.argv[1]).result()",
    "map": "def main(): list(eclosion.as_completed(eclosion.connect().map(client_steps.wait, [sys.argv[1]])))",
    "executor": """
def main():
    with eclosion.Executor() as pool:
        pool.submit(client_steps.wait, sys.argv[1]).result()
""",
    "asyncio": """
async def wait():
    async with await aio.connect() as kernel:
        await kernel.submit(client_steps.wait, sys.argv[1])
def main(): asyncio.run(wait())
""",
}


@pytest.mark.parametrize("source", WAITS.values(), ids=WAITS)
def test_ctrl_c_in_a_wait_cancels_the_call(home: House, tmp_path: pathlib.Path, source: str) -> None:
    gate = steps.gate(tmp_path)
    program = f"import asyncio, eclosion, client_steps, signal, sys\nfrom eclosion.client import aio\n{source}\n"
    # What was begun in the background of a shell ignores it, and so does what it begins.
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "try: main()\nexcept KeyboardInterrupt: print('interrupted')\n"
    path = os.pathsep.join([str(SOURCES), os.path.dirname(__file__)])
    started = subprocess.Popen(
        [sys.executable, "-c", program, str(gate)],
        env={**home.environment, "ECLOSION_SOCKET": str(home.socket), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    gate.entered()
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=DEADLINE_S)[0] == "interrupted\n"
    assert gate.left() == "cancelled"


INTERRUPTED = {
    "sending": (Channel, "send"),
    "telling the Ref": (Ref, "sent"),
    "watching": (Exchange, "watch"),
    "afterwards": (Ref, "watch"),
}


@pytest.mark.parametrize(("owner", "name"), INTERRUPTED.values(), ids=INTERRUPTED)
def test_a_submit_that_ctrl_c_ends_leaves_nothing_behind(
    client: Client, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    monkeypatch.setattr("eclosion.client._calls.UNDER_WAY_MAX", 1)
    gate = steps.gate(tmp_path)
    pool = eclosion.Executor(client)
    with monkeypatch.context() as patch:
        real = getattr(owner, name)

        def interrupted(*arguments: Any, **named: Any) -> None:
            real(*arguments, **named)
            patch.undo()
            gate.entered()
            raise KeyboardInterrupt

        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(steps.wait, str(gate))
    assert gate.left() == "cancelled"
    # The only room is free again.
    assert client.submit(steps.square, 3).result(DEADLINE_S) == 9


def test_a_map_that_fails_half_way_takes_back_what_it_sent(client: Client, tmp_path: pathlib.Path) -> None:
    gate = steps.gate(tmp_path)

    def gates() -> Generator[str]:
        yield str(gate)
        gate.entered()
        raise KeyError("no more gates")

    with pytest.raises(KeyError):
        client.map(steps.wait, gates())
    assert gate.left() == "cancelled"


def test_an_executor_is_one(home: House, client: Client, tmp_path: pathlib.Path) -> None:
    with eclosion.Executor(client) as pool:
        assert list(pool.map(steps.square, range(5))) == [0, 1, 4, 9, 16]
        failed = pool.submit(steps.fail)
        assert isinstance(failed.exception(DEADLINE_S), KeyError)
        gate = steps.gate(tmp_path)
        waiting = pool.submit(steps.wait, str(gate))
        gate.entered()
        gate.open()
        assert waiting.result(DEADLINE_S) == "opened"
    with pytest.raises(RuntimeError):
        pool.submit(steps.square, 1)


def test_an_executor_asks_the_kernel_for_what_its_futures_need(client: Client) -> None:
    with eclosion.Executor(client) as pool:
        # In shared memory, which has to be mapped first.
        assert len(pool.submit(steps.large, 300_000).result(DEADLINE_S)) == 300_000
        died = pool.submit(steps.die).exception(DEADLINE_S)
        assert isinstance(died, eclosion.TaskDied)
        assert died.certificate is not None


def test_a_callback_of_a_future_may_wait_for_another_one(client: Client) -> None:
    with eclosion.Executor(client) as pool:
        waited: concurrent.futures.Future[int] = concurrent.futures.Future()
        first = pool.submit(steps.square, 2)
        first.add_done_callback(lambda _: waited.set_result(pool.submit(steps.square, 3).result(DEADLINE_S)))
        assert waited.result(DEADLINE_S) == 9


def test_an_executor_that_nobody_has_any_more_leaves_no_thread(client: Client) -> None:
    before = set(threading.enumerate())
    last = eclosion.Executor(client).submit(steps.slow, 3)
    assert last.result(DEADLINE_S) == 3
    del last
    until(lambda: not [left for left in set(threading.enumerate()) - before if left.name.startswith("eclosion-settle")])


def test_coroutines_wait_without_blocking_the_loop(home: House, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with await aio.connect(home.socket) as client:
            gate = steps.gate(tmp_path)
            ref = client.submit(steps.wait, str(gate))
            squares = await asyncio.gather(*client.map(steps.square, range(10)))
            assert squares == [n * n for n in range(10)]
            assert (await client.kernel.status()).state == "ready"
            await asyncio.to_thread(gate.entered)
            waiting = asyncio.ensure_future(aio.done(ref))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await asyncio.to_thread(gate.left) == "cancelled"
            with pytest.raises(KeyError):
                await client.submit(steps.fail)

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_a_coroutine_can_do_what_a_thread_can(home: House) -> None:
    async def main() -> None:
        async with aio.connect(home.socket) as client:
            assert client.welcome["role"] == "admin"
            assert [token async for token in client.iterate(steps.tokens, 3)] == ["token 0", "token 1", "token 2"]
            with pytest.raises(TypeError, match="no generator function"):
                client.iterate(steps.square, 3)
            assert await client.value({"body": msgspec.msgpack.encode([1])}) == [1]
        # What is to be awaited may be a task as well.
        async with await asyncio.create_task(aio.connect(home.socket)) as client:
            assert (await client.kernel.status()).state == "ready"

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_a_call_under_way_is_told_when_the_client_closes(home: House, tmp_path: pathlib.Path) -> None:
    client = home.connect()
    gate = steps.gate(tmp_path)
    ref = client.submit(steps.wait, str(gate))
    gate.entered()
    threading.Thread(target=client.close).start()
    with pytest.raises(eclosion.Unreachable):
        ref.result(DEADLINE_S)
    assert gate.left() == "cancelled"


def test_the_readme_says_what_the_example_prints(home: House) -> None:
    root = SOURCES.parent.parent
    section = (root / "README.md").read_text().split("## Attach to it\n")[1].split("\n## ")[0]
    blocks = [block.strip("\n") for block in section.split("\n\n")]
    command, output = [block for block in blocks if block.startswith("    ")]
    path, python, example = command.split()
    assert (path, python) == ("PYTHONPATH=python-workers/src", "python")
    said = subprocess.run(
        [sys.executable, root / example],
        env={**home.environment, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert said.stdout.splitlines() == [line.strip() for line in output.splitlines()], said.stderr


def test_calls_inside_of_timed_say_where_their_time_went(client: Client) -> None:
    client.submit(steps.square, 2).result(DEADLINE_S)
    with timed() as calls:
        assert client.submit(steps.square, 3).result(DEADLINE_S) == 9
        assert client.kernel.status().state == "ready"
    client.kernel.status()
    assert [call.method for call in calls] == ["pool.call", "kernel.status"]
    names = [stage.name for stage in calls[0].stages]
    assert names == ["queued", "handled", "worker", "sent", "python", "back", "answered", "encoded"]
    for call in calls:
        assert all(stage.took_ns >= 0 for stage in call.stages)
        assert sum(stage.took_ns for stage in call.stages) <= call.total_ns


def test_timed_counts_for_its_own_coroutine_alone(home: House) -> None:
    async def counted() -> tuple[int, int]:
        async with await aio.connect(home.socket) as kernel:

            async def one() -> int:
                with timed() as calls:
                    await kernel.kernel.status()
                return len(calls)

            with timed() as calls:
                inner = await asyncio.gather(one(), one())
            return sum(inner), len(calls)

    assert asyncio.run(counted()) == (2, 0)
