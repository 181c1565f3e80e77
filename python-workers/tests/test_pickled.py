"""Functions that no worker can import travel by cloudpickle, to workers of an equal environment alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import eclosion
from eclosion.client import Client, _pickled
from house import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_lambda_and_a_closure_are_called_with_what_they_hold(client: Client) -> None:
    factor = 3

    def scaled(x: int, *, by: int = factor) -> int:
        return x * by + factor

    assert client.submit(scaled, 2).result(DEADLINE_S) == 9
    assert client.submit(scaled, 2, by=5).result(DEADLINE_S) == 13
    shifted: Callable[[int], int] = lambda x: x + factor  # noqa: E731
    refs = client.map(shifted, range(3))
    assert [ref.result(DEADLINE_S) for ref in refs] == [3, 4, 5]
    with eclosion.Executor(client) as pool:
        assert pool.submit(lambda: factor).result(DEADLINE_S) == 3


def test_what_such_a_function_raises_is_raised_here(client: Client) -> None:
    def refuse() -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        client.submit(refuse).result(DEADLINE_S)


def test_without_cloudpickle_the_way_out_is_said(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(eclosion.Refused, match="cannot be imported by a worker") as refused:
        client.submit(lambda: 1)
    assert refused.value.error.get("reason") == "call.pickle"
    assert "pip install cloudpickle" in refused.value.error.get("help", "")


def test_bytes_of_another_environment_are_not_opened() -> None:
    with pytest.raises(eclosion.TaskError, match="packed by cpython-27 /elsewhere"):
        _pickled.call(b"not to be read", "cpython-27 /elsewhere")
