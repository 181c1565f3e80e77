"""A function that no worker can import: of a notebook, a lambda, a closure.

It travels by cloudpickle (the extra ``eclosion[notebook]``), as bytes that the kernel passes on and never opens, to a
worker of this user's whose environment is equal: the same interpreter, which is what makes the bytes readable there.
:func:`call` is what runs in the worker.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, cast

from .._errors import Refused, TaskError, error
from ..task import Task
from ._functions import Target

if TYPE_CHECKING:
    from collections.abc import Callable


def pickled(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Target, dict[str, Any]]:
    """What to call instead, and with what. Raises :class:`Refused` without cloudpickle."""
    try:
        import cloudpickle  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError:
        name = getattr(function, "__qualname__", repr(function))
        text = f"`{name}` cannot be imported by a worker, and cloudpickle is not installed"
        raise Refused(
            error("precondition", "call.pickle", text, help="put it into a file, or: pip install cloudpickle")
        ) from None
    plain = cast("Task[..., Any]", function).function if isinstance(function, Task) else function
    dumps = cast("Callable[[object], bytes]", cloudpickle.dumps)
    request = {"pickle": dumps((plain, args, kwargs)), "python": environment()}
    # Its code comes along; nothing is to be imported from a root.
    return Target("eclosion.client._pickled:call", os.devnull, ""), request


def environment() -> str:
    """What must be equal where the bytes are read."""
    return f"{sys.implementation.cache_tag} {sys.prefix}"


def call(pickle: bytes, python: str) -> Any:
    """Runs in the worker: calls what was packed."""
    if python != environment():
        text = f"the function was packed by {python}, and this worker is {environment()}"
        raise TaskError(text, help="submit it from the environment that the workers have", retry=False)
    import pickle as reader

    function, args, kwargs = reader.loads(pickle)
    return function(*args, **kwargs)
