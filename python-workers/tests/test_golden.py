"""The golden frames, as this side of the wire reads and writes them. ``schemas/golden`` is the contract."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from eclosion import _frames, _schemas

GOLDEN = Path(__file__).parents[2] / "schemas" / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.hex"))
ACCEPTED = [name for name in NAMES if not name.startswith("refused-")]
REFUSED = [name for name in NAMES if name.startswith("refused-")]
FLAGS = {"END": 1, "MORE": 2, "IGNORE": 4, "URGENT": 8}

BODIES = {
    "call-execute": [_schemas.Execute],
    "data-end": [_schemas.Payload],
    "data-reports": [_schemas.TaskReport, _schemas.TaskReport],
    "hello-worker": [_schemas.WorkerUpRequest],
    "hello-worker-running": [_schemas.WorkerUpRequest],
    "call-stage": [_schemas.StageRequest],
    "reply-stage": [_schemas.StageReply],
    "call-open": [_schemas.OpenRequest],
    "reply-open": [_schemas.OpenReply],
    "error-raised": [_schemas.Error],
    "error-busy": [_schemas.Error],
    "error-connection": [_schemas.Error],
    "subscription": [_schemas.SubscribeRequest, *[_schemas.Delivery] * 5],
}


def bytes_of(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{name}.hex").read_text())


def stated(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / f"{name}.json").read_text())["frames"]


def whole(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins stated fragments: the first with MORE and the DATA frames behind it."""
    messages: list[dict[str, Any]] = []
    for frame in frames:
        if messages and "MORE" in messages[-1]["flags"]:
            first = messages[-1]
            first["body_hex"] += frame["body_hex"]
            first["flags"] = [flag for flag in first["flags"] if flag != "MORE"] + frame["flags"]
        else:
            messages.append(dict(frame))
    return messages


def shown(value: Any) -> Any:
    """As the golden files show it: bytes in base64."""
    if isinstance(value, bytes):
        return {"$b64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        entries = cast("dict[Any, Any]", value)
        return {key: shown(item) for key, item in entries.items()}
    if isinstance(value, list):
        return [shown(item) for item in cast("list[Any]", value)]
    return value


def decode(name: str) -> list[_frames.Frame]:
    """Decodes a golden file; each descriptor that it claims is a fresh one."""
    wanted = sum(frame["descriptors"] for frame in stated(name))
    decoder = _frames.Decoder()
    frames = decoder.push(bytes_of(name), [os.open(os.devnull, os.O_RDONLY) for _ in range(wanted)])
    assert decoder.pending() == 0
    for frame in frames:
        for descriptor in frame.descriptors:
            os.close(descriptor)
    return frames


@pytest.mark.parametrize("name", ACCEPTED)
def test_golden_frames_decode_to_what_is_stated(name: str) -> None:
    messages = whole(stated(name))
    frames = decode(name)
    assert len(frames) == len(messages)
    for frame, says in zip(frames, messages, strict=True):
        assert frame.kind == says["type"]
        assert frame.flags & 0x0F == sum(FLAGS[flag] for flag in says["flags"])
        assert (frame.codec, frame.stream) == (says["codec"], says["stream"])
        assert len(frame.descriptors) == says["descriptors"]
        assert frame.envelope == says["envelope"]
        assert frame.body == bytes.fromhex(says["body_hex"])
        if says["value"] is not None:
            assert shown(msgspec.msgpack.decode(frame.body)) == says["value"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_golden_frames_encode_to_frames_that_say_the_same(name: str) -> None:
    for frame in decode(name):
        data = _frames.encode(
            frame.kind, frame.stream, frame.envelope, frame.body, flags=frame.flags, codec=frame.codec
        )
        assert _frames.decode_frames(data) == [msgspec.structs.replace(frame, descriptors=())]


@pytest.mark.parametrize("name", [name for name in REFUSED if not name.startswith("refused-envelope-")])
def test_golden_frames_that_must_be_refused_are_refused(name: str) -> None:
    with pytest.raises(_frames.Disconnected):
        _frames.decode_frames(bytes_of(name))


@pytest.mark.parametrize("name", sorted(BODIES))
def test_golden_bodies_are_the_types_that_they_are_called_by(name: str) -> None:
    for frame, kind in zip(decode(name), BODIES[name], strict=True):
        value = msgspec.msgpack.decode(frame.body, type=kind)
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind)
        assert again == value


@pytest.mark.parametrize("name", ACCEPTED)
def test_golden_envelopes_have_the_shape_that_is_generated(name: str) -> None:
    for frame in decode(name):
        envelope = msgspec.convert(frame.envelope, _schemas.Envelope)
        assert set(frame.envelope) <= {field.name for field in msgspec.structs.fields(envelope)}


def test_constants_are_those_of_the_schemas() -> None:
    assert [getattr(_frames, kind.name) for kind in _schemas.FrameType] == list(_schemas.FrameType)
    assert [getattr(_frames, flag) for flag in FLAGS] == [1, 2, 4, 8]
    assert _frames.FRAGMENT_BYTES == _schemas.FRAGMENT_BYTES
    assert _frames.MESSAGE_BYTES_MAX == _schemas.FRAME_BYTES_MAX
