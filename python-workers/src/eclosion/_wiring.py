"""What a flow function does when it is wired: calls of tasks become nodes, and what they return references.

While a :class:`Wiring` is active, a task that is called notes itself and returns a :class:`Reference`; parameters are
references too. Flow files have one grammar for both (``schemas/src/flow.rs``): a text that is exactly ``${NAME}`` is a
task's output, ``${param.NAME}`` a parameter, and parameters may stand inside a longer text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, cast

import msgspec

if TYPE_CHECKING:
    from .task import Task

# Marks a parameter inside a text until the text's own `${` are escaped. No flow file can contain it.
_MARK = "\x00"


class FlowError(ValueError):
    """A flow that cannot be written down."""


class Reference:
    """Stands for a value that is known when the flow runs: ``load`` for a task's output, ``param.seed``."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __format__(self, spec: str) -> str:
        if not self._name.startswith("param.") or spec:
            self._unknown("be part of a text")
        return f"{_MARK}{self._name}{_MARK}"

    def __str__(self) -> str:
        return format(self)

    def __repr__(self) -> str:
        return f"<{self._name}>"

    def __bool__(self) -> bool:
        self._unknown("be tested")

    def __iter__(self) -> NoReturn:
        self._unknown("be looped over; use TASK.map(…)")

    def __getitem__(self, _key: object) -> NoReturn:
        self._unknown("be indexed; do that in a task")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._unknown(f"be asked for `.{name}`; do that in a task")

    def _unknown(self, what: str) -> NoReturn:
        raise FlowError(f"`{self._name}` is not known while the flow is wired: it cannot {what}")


ITEM = Reference("item")


def reference_name(value: object) -> str | None:
    """The name that a reference stands for; None for any other value."""
    return object.__getattribute__(value, "_name") if isinstance(value, Reference) else None


class Wiring:
    """The nodes of one flow, in the order of their calls."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.functions: dict[str, Task[..., Any]] = {}

    def add(self, task: Task[..., Any], arguments: dict[str, Any], each: object = None) -> Reference:
        """Notes a call and returns what stands for its output."""
        name = self._free_name(task)
        node = task.node()
        if arguments:
            node["with"] = {key: _value(value, f"argument `{key}` of `{name}`") for key, value in arguments.items()}
        if each is not None:
            node["each"] = _value(
                list(cast("tuple[object]", each)) if isinstance(each, (range, tuple)) else each, f"items of `{name}`"
            )
        self.tasks[name] = node
        self.functions[name] = task
        return Reference(name)

    def _free_name(self, task: Task[..., Any]) -> str:
        if task.name not in self.tasks:
            return task.name
        if task.named:
            raise FlowError(f"two tasks of the flow are named `{task.name}`")
        n = 2
        while f"{task.name}_{n}" in self.tasks:
            n += 1
        return f"{task.name}_{n}"


def _value(value: object, place: str) -> Any:
    """A value as a flow file has it. An output can only be an argument by itself, not a part of one."""
    name = reference_name(value)
    return f"${{{name}}}" if name is not None else _literal(value, place)


def _literal(value: object, place: str) -> Any:
    name = reference_name(value)
    if name is not None:
        if not name.startswith("param.") and name != "item":
            raise FlowError(f"{place}: the output of `{name}` cannot stand inside another value; pass it by itself")
        return f"${{{name}}}"
    if isinstance(value, os.PathLike):
        return _text(os.fspath(cast("os.PathLike[str]", value)))
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_literal(entry, place) for entry in cast("list[object]", value)]
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return {str(key): _literal(entry, place) for key, entry in entries.items()}
    if hasattr(type(value), "__dataclass_fields__") or isinstance(value, msgspec.Struct):
        return _literal(msgspec.to_builtins(value), place)
    kind = type(value)
    raise FlowError(
        f"{place} is a {kind.__module__}.{kind.__qualname__}; a flow holds plain data, so make it in a task"
    )


def _text(text: str) -> str:
    pieces = text.replace("${", "$${").split(_MARK)
    # Every second piece is a marked parameter's name.
    return "".join(f"${{{piece}}}" if n % 2 else piece for n, piece in enumerate(pieces))


_active: Wiring | None = None


def active() -> Wiring | None:
    """The wiring under way; None where tasks are plain functions."""
    return _active


def activate(wiring: Wiring | None) -> None:
    global _active
    _active = wiring
