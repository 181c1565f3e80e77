"""Runs tasks and whole flows in this process, with no kernel: for tests, notebooks and debuggers.

    from eclosion.testing import run_flow, run_task

    assert run_task(square, x=3) == 9
    outcome = run_flow("flow.toml", seed=1)
    outcome.value, outcome.outputs["train"], outcome.reports["train[0]"]

What a kernel would do to values is done here too: arguments and results are encoded and decoded, arrays and files pass
through a directory, generators are seeded for each task and alike for each attempt, fan-outs run in order, attempts
that raise are retried (without waiting). What is different: one task after another, in this process, with modules as
they are imported here, and seeds that are derived by another hash than the kernel's.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from . import _code, _values
from ._attempt import current_of, perform
from ._errors import ErrorData, Refused
from ._interrupts import UserCode
from ._schemas import ArgumentList, ArgumentValue, Execute, Fence, Part, Payload
from .flow import Flow, FlowError
from .task import Task

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    from ._schemas import Argument, Segment

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}")


class TaskFailed(Exception):  # noqa: N818
    """A task failed for good; ``error`` is what a kernel would show."""

    def __init__(self, task: str, error: ErrorData) -> None:
        help_text = f"\nhelp: {error['help']}" if "help" in error else ""
        super().__init__(f"task `{task}`: {error.get('message')} ({error.get('reason')}){help_text}")
        self.task = task
        self.error = error


class Outcome(NamedTuple):
    """What a flow gave."""

    value: Any
    """The run's result."""
    outputs: dict[str, Any]
    """Each task's output by its name; a list for a fan-out."""
    reports: dict[str, list[dict[str, Any]]]
    """Progress and metrics by task id, ``train[0]`` for the first of a fan-out."""


class LocalStore:
    """Parts as files of a temporary directory, which goes when the process does. Digests are counters."""

    def __init__(self) -> None:
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="eclosion-testing-"))
        self._count = 0
        # At the end of the process, as paths in results lead into it.
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def folder(self) -> pathlib.Path:
        return self._folder

    def stage(self, size_bytes: int) -> tuple[int, int]:
        self._count += 1
        descriptor = os.open(self._folder / str(self._count), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(descriptor, size_bytes)
        return self._count, descriptor

    def open(self, digest: str) -> tuple[int, int]:
        descriptor = os.open(self._folder / digest, os.O_RDONLY)
        return descriptor, os.fstat(descriptor).st_size

    def attach(self, arena: int) -> mmap.mmap:
        raise ValueError(f"there is no shared memory in a test: {arena}")

    def hold(self, value: object, memory: mmap.mmap, segment: Segment) -> None:
        raise ValueError(f"there is no shared memory in a test: {segment.arena}, {len(memory)} bytes for {value!r:.80}")

    def seal(self, staged: _values.PayloadData) -> Payload:
        """The payload that the kernel would commit: parts by digest."""
        parts = [
            Part(digest=str(part["stage"]), bytes=part["bytes"], codec=part["codec"], name=part.get("name"))  # pyright: ignore[reportTypedDictNotRequiredAccess]
            for part in staged.get("parts", [])
        ]
        return Payload(body=staged["body"], parts=parts)  # pyright: ignore[reportTypedDictNotRequiredAccess]

    def encode(self, value: object) -> Payload:
        encoded = _values.encode(value)
        try:
            return self.seal(encoded.stage(self))
        finally:
            encoded.close()

    def decode(self, payload: Payload) -> Any:
        """The value, for a reader that outlives every attempt. Files are paths in the store's directory."""
        inputs = _values.Inputs(self, lambda: self._folder)

        def open_part(part: Part) -> object:
            if part.codec != "file" or part.digest is None:
                return inputs.open_part(part)
            folder = self._folder / f"file-{part.digest}"
            folder.mkdir(exist_ok=True)
            path = folder / (pathlib.PurePosixPath(part.name or "file").name)
            if not path.exists():
                os.link(self._folder / part.digest, path)
            return path

        try:
            return _values.decode(payload, open_part)
        finally:
            inputs.close()


def run_task(task: Task[..., Any] | Callable[..., Any], /, *, seed: int = 0, **arguments: Any) -> Any:
    """Runs one attempt of a task as a worker would, and returns its result. Raises :class:`TaskFailed`."""
    function = cast("Callable[..., Any]", task.function if isinstance(task, Task) else task)
    store = LocalStore()
    name = getattr(function, "__name__", "task")
    runner = _Runner(store, {f"here:{name}": function}, "")
    given: dict[str, Argument] = {key: ArgumentValue(payload=store.encode(item)) for key, item in arguments.items()}
    return store.decode(runner.attempt(name, f"here:{name}", given, seed=seed, retries=0))


def run_flow(flow: Flow[..., Any] | Mapping[str, Any] | str | os.PathLike[str], /, **parameters: Any) -> Outcome:
    """Runs a flow: a ``@flow``, its spec, or a ``flow.toml`` (Python 3.11 and later) or JSON file.

    ``parameters`` override the flow's, as ``--set`` does. Raises :class:`TaskFailed` for a task that fails for good,
    and :class:`FlowError` for a flow that is none.
    """
    functions: dict[str, Callable[..., Any]] = {}
    if isinstance(flow, Flow):
        spec, wiring = flow.wire()
        for name, task in wiring.functions.items():
            functions[spec["tasks"][name]["run"]] = task.function
    elif isinstance(flow, Mapping):
        spec = dict(flow)
    else:
        spec = load_spec(flow)
    return _Run(spec, functions, parameters).run()


def load_spec(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a flow file; the root of its code becomes absolute."""
    path = pathlib.Path(path)
    text = path.read_text()
    spec = json.loads(text) if path.suffix == ".json" else importlib.import_module("tomllib").loads(text)
    spec["code"] = str((path.parent / spec.get("code", ".")).resolve())
    return spec


class _ImportedCode:
    """Functions as they are imported in this process: nothing is forgotten, so a test can patch them."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        self._functions = functions
        self._root = ""

    def switch(self, root: str, code_hash: str) -> None:
        del code_hash
        self._root = root
        if root and root not in sys.path:
            sys.path.insert(0, root)

    def resolve(self, function: str) -> Callable[..., Any]:
        return self._functions.get(function) or _code.resolve(self._root, function)


class _Runner:
    """Runs attempts against a store."""

    def __init__(self, store: LocalStore, functions: dict[str, Callable[..., Any]], root: str) -> None:
        self._store = store
        self._code = _ImportedCode(functions)
        self._root = root
        self._user = UserCode()
        self.reports: dict[str, list[dict[str, Any]]] = {}

    def attempt(self, task: str, function: str, arguments: dict[str, Argument], *, seed: int, retries: int) -> Payload:
        """The payload of the first attempt that succeeds."""
        for attempt in range(1, retries + 2):
            execute = Execute(
                run="local",
                task=task,
                attempt=attempt,
                fence=Fence(epoch=1, counter=attempt),
                function=function,
                code=self._root,
                code_hash="",
                arguments=arguments,
                seed=seed,
                idempotency_key=f"local/{task}",
            )
            reports = self.reports.setdefault(task, [])
            current = current_of(execute, self._store.folder / "scratch", reports.append)
            ended = perform(execute, current, self._code, self._store, self._user)
            current.flush()
            try:
                if isinstance(ended, _values.Encoded):
                    try:
                        return self._store.seal(ended.stage(self._store))
                    finally:
                        ended.close()
            finally:
                current.clean()
            if attempt > retries or ended.get("retry") == {"policy": "never"}:
                raise TaskFailed(task, ended)
        raise AssertionError("a loop over at least one attempt ended")


class _Run:
    """One flow from start to end."""

    def __init__(self, spec: dict[str, Any], functions: dict[str, Callable[..., Any]], given: dict[str, Any]) -> None:
        self._tasks: dict[str, dict[str, Any]] = spec["tasks"]
        self._parameters: dict[str, Any] = {**spec.get("parameters", {})}
        unknown = given.keys() - self._parameters.keys()
        if unknown:
            raise FlowError(f"the flow has no parameter {', '.join(sorted(unknown))}")
        self._parameters.update(given)
        seed = self._parameters.get("seed")
        self._seed = seed if isinstance(seed, int) else 0
        self._result: str | None = spec.get("result")
        self._store = LocalStore()
        self._runner = _Runner(self._store, functions, spec.get("code", ""))
        self._done: dict[str, Payload | list[Payload]] = {}

    def run(self) -> Outcome:
        for name in self._order():
            self._done[name] = self._run_task(name, self._tasks[name])
        outputs = {name: self._decoded(name) for name in self._done}
        result = self._result or self._only_leaf()
        return Outcome(outputs[result], outputs, self._runner.reports)

    def _run_task(self, name: str, task: dict[str, Any]) -> Payload | list[Payload]:
        if "each" not in task:
            return self._attempt(name, task, None)
        items = self._items(name, task["each"])
        return [self._attempt(f"{name}[{n}]", task, item) for n, item in enumerate(items)]

    def _attempt(self, task_id: str, task: dict[str, Any], item: Any) -> Payload:
        arguments = {key: self._argument(value, item) for key, value in task.get("with", {}).items()}
        digest = hashlib.blake2b(f"{self._seed}/{task_id}".encode(), digest_size=4).digest()
        return self._runner.attempt(
            task_id,
            task["run"],
            arguments,
            seed=int.from_bytes(digest, "big"),
            retries=task.get("retries", 0),
        )

    def _items(self, name: str, each: Any) -> list[Any]:
        source = _whole_reference(each)
        items = self._filled(each, None) if source is None or source.startswith("param.") else self._decoded(source)
        if not isinstance(items, list):
            raise FlowError(f"`each` of task `{name}` is no list")
        return cast("list[Any]", items)

    def _argument(self, value: Any, item: Any) -> Argument:
        source = _whole_reference(value)
        output = self._done.get(source) if source is not None else None
        if output is None:
            return ArgumentValue(payload=self._store.encode(self._filled(value, item)))
        return ArgumentList(payloads=output) if isinstance(output, list) else ArgumentValue(payload=output)

    def _filled(self, value: Any, item: Any) -> Any:
        if isinstance(value, str):
            whole = _whole_reference(value)
            if whole is not None:
                return self._lookup(whole, item)
            return _REFERENCE.sub(lambda m: "${" if m[1] is None else _shown(self._lookup(m[1], item)), value)
        if isinstance(value, Mapping):
            entries = cast("Mapping[str, Any]", value)
            return {key: self._filled(entry, item) for key, entry in entries.items()}
        if isinstance(value, list):
            return [self._filled(entry, item) for entry in cast("list[Any]", value)]
        return value

    def _lookup(self, name: str, item: Any) -> Any:
        if name == "item":
            return item
        if name.startswith("param.") and name[6:] in self._parameters:
            return self._parameters[name[6:]]
        raise FlowError(f"`${{{name}}}` refers to nothing that can stand there")

    def _decoded(self, name: str) -> Any:
        output = self._done[name]
        if isinstance(output, list):
            return [self._store.decode(payload) for payload in output]
        return self._store.decode(output)

    def _order(self) -> list[str]:
        """Tasks after what they need, otherwise as they are written."""
        order: list[str] = []
        under_way: list[str] = []

        def visit(name: str) -> None:
            if name in order:
                return
            if name in under_way:
                raise FlowError(f"the flow has a cycle: {' → '.join([*under_way, name])}")
            if name not in self._tasks:
                raise FlowError(f"the flow has no task `{name}`")
            under_way.append(name)
            for needed in self._needs(self._tasks[name]):
                visit(needed)
            under_way.remove(name)
            order.append(name)

        for name in self._tasks:
            visit(name)
        return order

    def _needs(self, task: dict[str, Any]) -> list[str]:
        values = [*task.get("with", {}).values(), task.get("each")]
        names = [_whole_reference(value) for value in values]
        named = [name for name in names if name is not None and name != "item" and not name.startswith("param.")]
        return [*task.get("after", []), *named]

    def _only_leaf(self) -> str:
        needed = {need for task in self._tasks.values() for need in self._needs(task)}
        leaves = [name for name in self._tasks if name not in needed]
        if len(leaves) != 1:
            raise FlowError(f"`result` must name one of the tasks that nobody needs: {', '.join(leaves)}")
        return leaves[0]


def _whole_reference(value: object) -> str | None:
    """``load`` for a text that is exactly ``${load}``."""
    if not isinstance(value, str) or value.startswith("$${"):
        return None
    match = _REFERENCE.fullmatch(value)
    return match[1] if match else None


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


__all__ = ["FlowError", "LocalStore", "Outcome", "Refused", "TaskFailed", "load_spec", "run_flow", "run_task"]
