from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eclosion import Refused, _values
from eclosion._values import INLINE_BYTES_MAX, encode
from eclosion.testing import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


def round_trip(value: object) -> Any:
    store = LocalStore()
    return store.decode(store.encode(value))


@given(plain)
def test_plain_data_comes_back_as_it_was(value: object) -> None:
    assert round_trip(value) == value


@given(plain | st.just("x" * INLINE_BYTES_MAX))
def test_plain_data_is_encoded_as_it_would_be_with_parts(value: object) -> None:
    short, long = encode(value), _values.encode_with_parts(value)
    assert short.body == long.body
    first, second = LocalStore(), LocalStore()
    assert short.stage(first) == long.stage(second)
    assert sorted(os.listdir(first.folder)) == sorted(os.listdir(second.folder))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(100_000, dtype=np.float64),
        np.ones((2, 3)),
        np.asfortranarray(np.ones((3, 4))),
        np.random.default_rng(1).random((2, 3, 4))[:, ::2, 1:],
        np.zeros((0, 4)),
        np.array(3, dtype="f4"),
        np.array(["a", "bc"]),
        np.array([(1, 2.5)], dtype=[("n", "i4"), ("x", "f8")]),
        np.array(["2026-01-01"], dtype="datetime64[D]"),
        np.array([True, False]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_back_equal_and_read_only(array: Any) -> None:
    back = round_trip({"x": array})["x"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert not back.flags.writeable


def test_numpy_scalars_and_subclasses_become_plain_data() -> None:
    value = {"a": np.float64(0.5), "b": np.int32(3), "c": np.bool_(True), "d": (1, 2), "e": range(3)}
    assert round_trip(value) == {"a": 0.5, "b": 3, "c": True, "d": [1, 2], "e": [0, 1, 2]}


def test_a_dataclass_travels_as_a_map_with_its_array_as_a_part() -> None:
    @dataclasses.dataclass
    class Table:
        name: str
        x: Any

    encoded = encode(Table("t", np.ones(3)))
    assert [part.codec for part in encoded.parts] == ["npy"]
    back = round_trip(Table("t", np.ones(3)))
    assert back["name"] == "t"
    assert back["x"].tolist() == [1, 1, 1]


def test_a_large_body_becomes_part_zero_and_keeps_its_own_parts() -> None:
    value = {"text": "x" * INLINE_BYTES_MAX, "x": np.arange(5)}
    encoded = encode(value)
    assert [part.codec for part in encoded.parts] == ["msgpack", "npy"]
    assert len(encoded.body) < 10
    back = round_trip(value)
    assert back["text"] == value["text"]
    assert back["x"].tolist() == [0, 1, 2, 3, 4]


def test_large_bytes_are_a_part_and_small_ones_are_inline() -> None:
    assert [part.codec for part in encode(os.urandom(INLINE_BYTES_MAX + 1)).parts] == ["bytes"]
    assert encode(b"small").parts == []
    data = os.urandom(100_000)
    assert round_trip(data) == data


def test_a_view_with_steps_is_sent_as_its_bytes() -> None:
    assert round_trip(memoryview(bytes(range(6)) * 20_000)[::2]) == bytes((0, 2, 4)) * 20_000


def test_the_way_out_of_a_masked_array_is_said() -> None:
    with pytest.raises(Refused) as caught:
        encode([MASKED])
    assert "filled" in caught.value.error.get("help", "")


def test_a_path_and_an_open_file_travel_with_their_content_and_name(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("<p>hello</p>")
    back = round_trip({"report": path})
    assert back["report"].name == "report.html"
    assert back["report"].read_text() == "<p>hello</p>"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as handle:
        handle.write("not flushed yet")
        assert round_trip([handle.file])[0].read_text() == "not flushed yet"


def test_a_staged_value_is_staged_again_from_its_files_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first")
    encoded = encode({"x": np.arange(3), "file": path})
    first, second = LocalStore(), LocalStore()
    encoded.stage(first)
    path.unlink()
    back = second.decode(second.seal(encoded.stage(second)))
    assert back["x"].tolist() == [0, 1, 2]
    assert back["file"].read_text() == "first"
    encoded.close()


MASKED = cast("Any", np.ma.array([1.0, 999.0], mask=[False, True]))


class Odd(Mapping[str, int]):
    """A mapping that cannot be read."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        raise LookupError("never mind")

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (object(), "builtins.object"),
        ({"f": len}, "builtin_function_or_method"),
        (2**70, "ints"),
        (np.array([object()]), "Python objects"),
        (MASKED, "lose its mask"),
        ({"x": memoryview(b"abcdef")[::2]}, "contiguous"),
        (Odd(), "never mind"),
        (pathlib.Path("/nowhere/x"), "does not exist"),
        (pathlib.Path("/"), "not a file"),
    ],
)
def test_what_cannot_travel_is_refused_by_name(value: object, says: str) -> None:
    with pytest.raises(Refused) as caught:
        encode(value)
    assert caught.value.error.get("reason") == "task.encode"
    assert says in caught.value.error.get("message", "")
    assert "help" in caught.value.error
    with pytest.raises(Refused) as caught:
        _values.encode_named({"x": value})
    assert caught.value.error.get("reason") == "call.arguments"
    assert says in caught.value.error.get("message", "")


def test_nothing_is_left_open_when_encoding_fails(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_text("x")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused):
        encode([path, object()])
    assert len(os.listdir("/proc/self/fd")) == before
