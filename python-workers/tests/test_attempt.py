"""What an attempt finds set up: generators, threads, output streams. And that short cuts give what long ways do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

import kernel
from eclosion import _threads, _values
from eclosion._schemas import Payload
from eclosion.testing import LocalStore

if TYPE_CHECKING:
    import pathlib


def run(source: str) -> list[str]:
    """Runs a program in a fresh process, as what is imported here is imported for good; returns its lines."""
    environment = {**os.environ, "PYTHONPATH": str(kernel.SOURCES)}
    program = [sys.executable, "-c", textwrap.dedent(source)]
    done = subprocess.run(program, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(("module", "draw"), [("random", "random.random()"), ("numpy.random", "numpy.random.random()")])
def test_a_generator_that_is_imported_late_draws_what_an_early_one_does(module: str, draw: str) -> None:
    late, again, early = run(f"""
        import sys
        from eclosion._generators import Generators
        assert {module!r} not in sys.modules
        generators = Generators()
        generators.seed(2**63 + 12345)
        import {module}
        print({draw})
        for _ in range(2):
            generators.seed(2**63 + 12345)
            print({draw})
        assert sys.meta_path.count(generators) == 1
        """)
    assert late == again == early


def test_a_late_generator_is_the_module_that_it_would_be_otherwise() -> None:
    found = run("""
        import importlib.util, inspect, sys
        from eclosion._generators import Generators
        Generators().seed(1)
        import random
        print(random.__spec__.origin == random.__file__, random.__spec__.has_location)
        print(inspect.getsource(random).startswith('\"\"\"Random variable generators.'))
        print(importlib.reload(random) is random, importlib.util.find_spec("nowhere"))
        """)
    assert found == ["True True", "True", "True None"]


def test_a_module_of_the_users_called_random_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "random.py").write_text("VALUE = 3\n")
    found = run(f"""
        import sys
        from eclosion._generators import Generators
        generators = Generators()
        generators.seed(1)
        sys.path.insert(0, {str(tmp_path)!r})
        import random
        generators.seed(2)
        print(random.VALUE)
        """)
    assert found == ["3"]


def test_a_worker_imports_no_generator_of_its_own() -> None:
    assert run("import eclosion.worker, sys; print('random' in sys.modules)") == ["False"]


def test_a_list_of_payloads_decodes_to_what_each_does_alone() -> None:
    store = LocalStore()
    values: list[Any] = [1, {"a": [None, 2.5]}, "x" * (_values.INLINE_BYTES_MAX + 1), b"y", b"z" * 100_000]
    payloads = [store.encode(value) for value in values]
    assert [bool(payload.parts) for payload in payloads] == [False, False, True, False, True]
    inputs = _values.Inputs(store, lambda: store.folder)
    assert _values.decode_all(payloads, inputs.open_part) == values
    assert [_values.decode(payload, inputs.open_part) for payload in payloads] == values
    inputs.close()


def test_a_malformed_payload_among_many_is_refused_as_it_is_alone() -> None:
    # Two values in one body: joined with its neighbors it would pass.
    payloads = [Payload(body=b"\x01"), Payload(body=b"\x02\x03"), Payload(body=b"\x04")]
    with pytest.raises(ValueError, match="trailing"):
        _values.decode_all(payloads, lambda part: part)


def test_thread_counts_are_set_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in _threads.VARIABLES:
        monkeypatch.setenv(variable, "1")
    threads = _threads.ThreadCounts()
    shown: list[str] = []
    for cpus in (1, 0, 3, 3, 0, 1):
        threads.limit(cpus)
        shown.append(os.environ["OMP_NUM_THREADS"])
    assert shown == ["1", "1", "3", "3", "1", "1"]


def test_streams_are_led_back_from_another_opening_of_the_same_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "out"
    run(f"""
        import os
        os.dup2(os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        from eclosion._output import Output
        output = Output()
        output.begin()
        print("first")
        assert output.end()["stdout"] == [0, 6]
        os.dup2(os.open({str(path)!r}, os.O_WRONLY), 1)  # It would write over what is there.
        output.begin()
        print("second")
        assert output.end()["stdout"] == [6, 13]
        """)
    assert path.read_text() == "first\nsecond\n"
