"""``@task``: a function that a kernel can run, and that stays a function.

    @task(timeout="2m")
    def train(table: dict[str, float], model: str) -> float: ...

    train(table, "forest")             # runs here and now, with no kernel
    train.map(["forest", "linear"], table=table)   # one call for each item, given to the first free parameter
    train.submit(table, "forest").result()         # runs on a worker of the kernel that is running

Inside of a ``@flow`` function the same two lines wire the flow. Types survive: a checker sees the function's own.

A single call (``submit``, ``client.submit``, an ``Executor``) is kept to ``timeout``, ``open_files`` and ``file_size``.
What a flow alone can do, such as ``retries`` or ``cache``, is refused there (``client/_options.py``).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, TypeVar, cast, overload

from . import _wiring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .client import Ref

P = ParamSpec("P")
R = TypeVar("R")


_AS_THEY_ARE = frozenset(
    {
        "retries",
        "backoff",
        "priority",
        "processes",
        "open_files",
        "file_size",
        "locks",
        "rates",
        "cache",
        "cache_seed",
    }
)


class TaskOptions(TypedDict, total=False):
    """How a task is run; ``schemas/src/flow.rs`` has the defaults."""

    name: str
    """Its name in the flow; by default the function's."""
    retries: int
    """How often an attempt that raised is tried again."""
    backoff: dict[str, float]
    """``initial_ms``, ``factor`` and ``max_ms`` of the waiting before a retry."""
    timeout: str | float
    """``"30s"``, or seconds; none: no limit."""
    cpu: int
    """Cores, whole ones; 1 by default."""
    memory: str | int
    """``"2GiB"``, or bytes; beyond it the task is killed."""
    processes: int
    """Processes at a time, the worker itself included; with more it is killed."""
    open_files: int
    """Descriptors at a time; opening more raises."""
    file_size: str | int
    """``"1GiB"``, or bytes: how long a file may grow; writing on raises."""
    resources: dict[str, int | str]
    """What else the kernel was told of, such as ``{"gpu0_vram": "8GiB"}``."""
    locks: list[str]
    """Held while it runs: ``"db"`` alone, ``"db:shared"`` with others who share it."""
    rates: dict[str, int]
    """How often of a rate one attempt counts: ``{"openai": 1}``."""
    priority: str
    """``interactive``, ``normal`` or ``batch``."""
    cache: str
    """A version such as ``"v1"``: equal steps of any run share one result. ``"off"`` exempts one from its flow's."""
    cache_seed: bool
    """False: it draws no random numbers, so that a seed that was set does not make it another step."""
    after: list[Any]
    """Outputs of tasks that must have succeeded before, beside those that are arguments."""


class Task(Generic[P, R]):
    """A function with options. Calling it calls the function, or wires it inside of a flow."""

    def __init__(self, function: Callable[P, R], options: TaskOptions) -> None:
        unknown = options.keys() - TaskOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"@task has no option {', '.join(sorted(unknown))}")
        self.function = function
        self._options = options
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        wiring = _wiring.active()
        if wiring is None:
            return self.function(*args, **kwargs)
        return cast("R", wiring.add(cast("Task[..., Any]", self), self._bound(args, kwargs)))

    def __repr__(self) -> str:
        return f"<task {self.__module__}:{self.__qualname__}>"

    def map(self, items: Iterable[Any], **fixed: Any) -> list[R]:
        """Calls the task for each item, given to its first parameter that ``fixed`` does not name; results in order."""
        parameter = self._item_parameter(fixed)
        wiring = _wiring.active()
        if wiring is None:
            function = cast("Callable[..., R]", self.function)
            return [function(**{parameter: item}, **fixed) for item in items]
        arguments = {parameter: _wiring.ITEM, **fixed}
        return cast("list[R]", wiring.add(cast("Task[..., Any]", self), arguments, each=items))

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Ref[R]:
        """Calls the function on a worker of the kernel that is running. Raises :class:`Unreachable` if none is."""
        from .client import default_client

        return default_client().submit(self, *args, **kwargs)

    def options(self, **options: Any) -> Task[P, R]:
        """The same function with other options."""
        return Task(self.function, cast("TaskOptions", {**self._options, **options}))

    @property
    def given(self) -> TaskOptions:
        """The options that were given."""
        return self._options

    @property
    def name(self) -> str:
        """Its name in a flow, unless that is taken."""
        return self._options.get("name") or self.__name__

    @property
    def named(self) -> bool:
        """Whether the name was given and not derived."""
        return "name" in self._options

    def node(self) -> dict[str, Any]:
        """The task as a flow file has it, without its arguments."""
        options = self._options
        node: dict[str, Any] = {"run": self._address()}
        node.update((key, value) for key, value in options.items() if key in _AS_THEY_ARE)
        timeout = options.get("timeout")
        if timeout is not None:
            node["timeout"] = timeout if isinstance(timeout, str) else f"{round(timeout * 1000)}ms"
        resources: dict[str, Any] = dict(options.get("resources", {}))
        resources.update((key, value) for key, value in options.items() if key in ("cpu", "memory"))
        if resources:
            node["resources"] = resources
        after = [_wiring.reference_name(task) for task in options.get("after", [])]
        if None in after:
            raise _wiring.FlowError(f"`after` of `{self.name}` takes what tasks of this flow returned")
        if after:
            node["after"] = after
        return node

    def _address(self) -> str:
        if "<" in self.__qualname__:
            raise _wiring.FlowError(f"`{self.__qualname__}` cannot be imported by a worker; define it at module level")
        return f"{module_name(self.__module__)}:{self.__qualname__}"

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        # Imported late: it costs a third of this package's import, and only wiring needs it.
        import inspect

        try:
            bound = inspect.signature(self.function).bind(*args, **kwargs)
        except TypeError as why:
            raise _wiring.FlowError(f"call of `{self.name}`: {why}") from None
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
                raise _wiring.FlowError(f"`{self.name}` takes `{name}` by position; a flow passes arguments by name")
            if kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            else:
                arguments[name] = value
        return arguments

    def _item_parameter(self, fixed: dict[str, Any]) -> str:
        code = getattr(self.function, "__code__", None)
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code is not None else ()
        for name in names:
            if name not in fixed:
                return name
        raise TypeError(f"`{self.name}` has no parameter left that could take an item")


def module_name(name: str) -> str:
    """The name that a worker imports a module by: a script's is its file's and not ``__main__``."""
    if name != "__main__":
        return name
    file = getattr(sys.modules["__main__"], "__file__", None)
    if not file:
        raise _wiring.FlowError("a task of an interactive session cannot be imported by a worker; put it into a file")
    return file.rpartition("/")[2].removesuffix(".py")


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    name: str = ...,
    retries: int = ...,
    backoff: dict[str, float] = ...,
    timeout: str | float = ...,
    cpu: int = ...,
    memory: str | int = ...,
    processes: int = ...,
    open_files: int = ...,
    file_size: str | int = ...,
    resources: dict[str, int | str] = ...,
    locks: list[str] = ...,
    rates: dict[str, int] = ...,
    priority: str = ...,
    cache: str = ...,
    cache_seed: bool = ...,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(function: Callable[P, R] | None = None, /, **options: Any) -> Any:
    """Makes a function a task; see :class:`TaskOptions` for what it takes."""
    given = cast("TaskOptions", options)
    if function is not None:
        return Task(function, given)

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return Task(function, given)

    return decorate
