"""Imports a task's function from its code root, and imports it again when the root's hash has changed.

A function is ``module:qualname`` under a root directory whose ``.py`` files have a hash. One root is loaded at a time:
its directory is first on ``sys.path``. With another root or another hash, every module that came from the old or the
new root is forgotten and imported anew; modules of libraries stay.

Modules of the root are compiled from their source each time and leave no ``.pyc``: Python takes a cached one for
current if size and modification second agree, which an edit that swaps two digits satisfies.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import linecache
import os
import sys
from typing import TYPE_CHECKING, Any, cast

from ._current import import_of
from ._errors import Refused, error
from ._exceptions import folders_of, is_user_file, one_line, remote_exception

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source each time."""

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class Code:
    """What is loaded. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._root = ""
        self._hash = ""
        self._folders: tuple[str, ...] = ()
        self._functions: dict[str, Callable[..., Any]] = {}
        sys.path_hooks.insert(0, self._finder)

    def switch(self, root: str, code_hash: str) -> None:
        """Makes ``root`` the one that modules are imported from, with its contents as of ``code_hash``."""
        if root == self._root and code_hash == self._hash:
            return
        folders = folders_of(root)
        stale = self._folders + folders
        for name, module in list(sys.modules.items()):
            if _lies_in(module, stale):
                del sys.modules[name]
        if self._root in sys.path:
            sys.path.remove(self._root)
        self._functions.clear()
        self._root, self._hash, self._folders = root, code_hash, folders
        sys.path.insert(0, root)
        for path in [path for path in sys.path_importer_cache if is_user_file(path + os.sep, stale)]:
            del sys.path_importer_cache[path]
        importlib.invalidate_caches()
        linecache.checkcache()

    def resolve(self, function: str) -> Callable[..., Any]:
        """The function to call, imported if need be. Raises :class:`Refused` (``task.import``)."""
        found = self._functions.get(function)
        if found is None:
            import_of(function.partition(":")[0])
            try:
                found = self._functions[function] = resolve(self._root, function)
            finally:
                import_of(None)
        return found

    def forget(self) -> None:
        """Takes the root and the hook out of the import system again. For tests in one process."""
        sys.path_hooks.remove(self._finder)
        if self._root in sys.path:
            sys.path.remove(self._root)

    def _finder(self, path: str) -> importlib.machinery.FileFinder:
        if not is_user_file(os.path.join(path, ""), self._folders):
            raise ImportError("not in the code root")
        extensions = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
        sources = (_SourceLoader, importlib.machinery.SOURCE_SUFFIXES)
        return importlib.machinery.FileFinder(path, extensions, sources)


def _lies_in(module: object, folders: tuple[str, ...]) -> bool:
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return is_user_file(file, folders)
    # A namespace package has folders and no file.
    paths = getattr(module, "__path__", None)
    return paths is not None and any(isinstance(p, str) and is_user_file(p + os.sep, folders) for p in list(paths))


def resolve(root: str, function: str) -> Callable[..., Any]:
    module_name, _, qualname = function.partition(":")
    if not module_name or not qualname:
        raise Refused(error("invalid", "task.import", f"`{function}` is not module:qualname"))
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as why:
        raise _import_failed(root, module_name, why) from why
    for name in qualname.split("."):
        parent = found
        found = getattr(parent, name, None)
        if found is None:
            raise _not_found(module_name, qualname, name, parent)
    # A @task wraps its function; in a worker the function itself runs.
    target = getattr(found, "function", found)
    if not callable(target):
        raise Refused(error("invalid", "task.import", f"`{function}` is not callable"))
    return cast("Callable[..., Any]", target)


def _import_failed(root: str, module: str, why: Exception) -> Refused:
    help_text = why.error.get("help") if isinstance(why, Refused) else None
    missing = why.name if isinstance(why, ModuleNotFoundError) else None
    if missing is not None and missing.partition(".")[0] == module.partition(".")[0]:
        help_text = f"is there a {missing.replace('.', '/')}.py below {root}?"
    elif missing is not None:
        help_text = f"add the package that provides `{missing}` to the flow's environment.requirements"
    text = f"module `{module}` cannot be imported: {one_line(why)}"
    return Refused(error("invalid", "task.import", text, help=help_text, remote=remote_exception(why, root)))


def _not_found(module: str, qualname: str, name: str, parent: object) -> Refused:
    near = difflib.get_close_matches(name, [entry for entry in dir(parent) if not entry.startswith("_")], n=1)
    help_text = f"did you mean `{near[0]}`?" if near else None
    text = f"module `{module}` has no `{qualname}`"
    return Refused(error("not_found", "task.import", text, help=help_text))
