"""Which function is meant, in words that a worker understands: ``module:qualname``, the root of its code, and the
hash of that code. A function that no worker could import (of a notebook, a lambda) is the business of ``_pickled.py``.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .. import _wiring
from .._errors import Refused, error
from ..task import Task, module_name

if TYPE_CHECKING:
    from collections.abc import Callable

# More `.py` files are no function's own code.
FILES_MAX = 10_000


class Target(NamedTuple):
    function: str
    code: str
    code_hash: str


class Roots:
    """Hashes of code roots, each made again when the file of the function that is called has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, str]] = {}

    def target(self, function: Callable[..., Any]) -> Target | None:
        """None for a function that cannot be imported elsewhere."""
        if isinstance(function, Task):
            function = cast("Task[..., Any]", function).function
        qualname = getattr(function, "__qualname__", "")
        module = sys.modules.get(getattr(function, "__module__", None) or "")
        if module is None or "<" in qualname or not qualname:
            return None
        name, file = _importable(module, function)
        if file is None:
            # Of the library, or built in: it is found without a root.
            return Target(f"{name}:{qualname}", os.sep, "") if module.__name__ != "__main__" else None
        _check_unbound(function, qualname)
        up = name.count(".") + (os.path.basename(file) == "__init__.py")
        root = os.path.dirname(file)
        for _ in range(up):
            root = os.path.dirname(root)
        return Target(f"{name}:{qualname}", root, self._hash(root, file))

    def _hash(self, root: str, file: str) -> str:
        changed_ns = os.stat(file).st_mtime_ns
        known = self._known.get(root)
        if known is not None and known[0] >= changed_ns:
            return known[1]
        made = _hash_of(root)
        self._known[root] = (max(changed_ns, known[0] if known else 0), made)
        return made


def _importable(module: Any, function: Callable[..., Any]) -> tuple[str, str | None]:
    """The name that a worker imports the module by, and its source file."""
    try:
        name = module_name(module.__name__)
    except _wiring.FlowError:
        return module.__name__, None
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return name, None
    file = os.path.realpath(file)
    # A class, or what a decorator of a library has made of a function. Of a library, it needs no root.
    if not hasattr(function, "__code__") and _is_of_library(file):
        return name, None
    return name, file


def _is_of_library(file: str) -> bool:
    if "site-packages" in file or "dist-packages" in file:
        return True
    return file.startswith(os.path.join(os.path.dirname(os.path.realpath(os.__file__)), ""))


def _check_unbound(function: Any, qualname: str) -> None:
    """A method is found by its name at the worker, without its object. A class method is, by its class's."""
    owner = getattr(function, "__self__", None)
    if owner is None or isinstance(owner, ModuleType):
        return
    if isinstance(owner, type) and qualname == f"{owner.__qualname__}.{function.__name__}":
        return
    text = f"`{qualname}` is a method of an object that does not travel with it"
    help = "submit a function that makes the object and calls its method"
    raise Refused(error("invalid", "call.function", text, help=help))


def _hash_of(root: str) -> str:
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    files = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        for name in sorted(names):
            if not name.endswith(".py"):
                continue
            files += 1
            if files > FILES_MAX:
                raise ValueError(
                    f"{root} has more than {FILES_MAX} .py files; put the function into a folder of its own"
                )
            path = os.path.join(folder, name)
            try:
                with open(path, "rb") as source:
                    content = source.read()
            except OSError:
                continue  # A link to nowhere, or gone meanwhile.
            digest.update(f"{os.path.relpath(path, root)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()
