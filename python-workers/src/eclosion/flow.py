"""``@flow``: a function that wires tasks. What it gives is the model of a flow file (``schemas/src/flow.rs``).

    @flow(requirements=["scikit-learn==1.9.1"], preload=["numpy"])
    def compare(seed: int = 7, data: str = "iris") -> str:
        table = load(data)
        scores = train.map(["forest", "linear"], table=table)
        return report(scores)

    compare(seed=8)      # runs here and now, task by task
    compare.spec()       # the flow as data; `python -m eclosion.describe FILE.py:compare` prints it as JSON

Its parameters become the flow's and need defaults, which are plain data. What it returns must be a task's output: the
run's result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, TypeVar, cast, overload

from . import _wiring
from ._wiring import FlowError, Reference, Wiring, reference_name

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

FLOW_SCHEMA = "eclosion/flow/v1"


class FlowOptions(TypedDict, total=False):
    name: str
    python: str
    """An interpreter, by path or by name on PATH."""
    requirements: list[str]
    """PEP 508; none: the interpreter is used as it is."""
    preload: list[str]
    """Modules that are imported once, before workers are forked. They may only be imported, never compute."""
    cache: str
    """The ``cache`` of every task that has none of its own."""
    code: str
    """The root that modules are imported from; by default the directory that the function's module is found in."""


class Flow(Generic[P, R]):
    """A flow function. Calling it runs it here, as the plain function that it is."""

    def __init__(self, function: Callable[P, R], options: FlowOptions) -> None:
        unknown = options.keys() - FlowOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"@flow has no option {', '.join(sorted(unknown))}")
        self.function = function
        self._options = options
        self.name = options.get("name") or function.__name__
        self.__name__ = function.__name__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<flow {self.name}>"

    def spec(self) -> dict[str, Any]:
        """The flow as data, the root of its code absolute. Raises :class:`FlowError`."""
        return self.wire()[0]

    def wire(self) -> tuple[dict[str, Any], Wiring]:
        """The flow as data, and what it was made from."""
        parameters = self._parameters()
        wiring = Wiring()
        before = _wiring.active()
        _wiring.activate(wiring)
        try:
            references: Any = {name: Reference(f"param.{name}") for name in parameters}
            result = cast("Callable[..., R]", self.function)(**references)
        finally:
            _wiring.activate(before)
        name = reference_name(result)
        if name is None or name not in wiring.tasks:
            raise FlowError(f"flow `{self.name}` must return the output of one of its tasks")
        spec: dict[str, Any] = {"schema": FLOW_SCHEMA, "name": self.name}
        if self.__doc__:
            spec["description"] = self.__doc__.strip().partition("\n")[0]
        spec["code"] = str(self._code())
        spec["environment"] = {key: value for key, value in self._options.items() if key in _ENVIRONMENT}
        spec["parameters"] = parameters
        spec["tasks"] = wiring.tasks
        spec["result"] = name
        if "cache" in self._options:
            spec["cache"] = self._options["cache"]
        return spec, wiring

    def _parameters(self) -> dict[str, Any]:
        # Imported late, as only wiring needs it.
        import inspect

        found: dict[str, Any] = {}
        for parameter in inspect.signature(self.function).parameters.values():
            if parameter.default is inspect.Parameter.empty:
                raise FlowError(f"parameter `{parameter.name}` of flow `{self.name}` needs a default")
            found[parameter.name] = parameter.default
        return found

    def _code(self) -> pathlib.Path:
        import pathlib

        given = self._options.get("code")
        file = pathlib.Path(self.function.__code__.co_filename).resolve()
        if given is not None:
            return (file.parent / given).resolve()
        # `a.b` is found two directories up from a/b.py, and one more from a/b/__init__.py.
        up = self.__module__.count(".") + (file.name == "__init__.py")
        return file.parents[up]


_ENVIRONMENT = frozenset({"python", "requirements", "preload"})


@overload
def flow(function: Callable[P, R], /) -> Flow[P, R]: ...
@overload
def flow(
    *,
    name: str = ...,
    python: str = ...,
    requirements: list[str] = ...,
    preload: list[str] = ...,
    code: str = ...,
    cache: str = ...,
) -> Callable[[Callable[P, R]], Flow[P, R]]: ...
def flow(function: Callable[P, R] | None = None, /, **options: Any) -> Any:
    """Makes a function a flow; see :class:`FlowOptions` for what it takes."""
    given: Any = options
    if function is not None:
        return Flow(function, given)

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        return Flow(function, given)

    return decorate
