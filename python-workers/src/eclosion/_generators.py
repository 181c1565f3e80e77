"""The global generators of random numbers, ``random`` and numpy's: each attempt begins with both seeded alike.

One that is not imported yet is seeded when it is, by a finder that stands before all others: a task that draws no
numbers pays nothing, where seeding would be a tenth of a small call. What a module draws while it is imported is
promised nothing: it is imported once, by whichever attempt comes first.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# With the bits of a seed that each takes.
_MASKS = {"random": -1, "numpy.random": 0xFFFF_FFFF}


class Generators:
    """Seeds them. A finder of the import system too, from the first seed on."""

    def __init__(self) -> None:
        self._seed = 0

    def seed(self, seed: int) -> None:
        """Seeds what is imported, and what will be."""
        self._seed = seed
        for name in _MASKS:
            if name in sys.modules:
                self.seed_module(name)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def seed_module(self, name: str) -> None:
        seed: Any = getattr(sys.modules[name], "seed", None)
        if seed is not None:  # It may be another module of that name, from the code root.
            seed(self._seed & _MASKS[name])

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, with a loader that seeds; None for a module that is no generator."""
        if name not in _MASKS:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _SeedingLoader(name, spec.loader, self))
        return spec


class _SeedingLoader:
    """The loader that was found, in all but one thing."""

    def __init__(self, name: str, loader: Loader, generators: Generators) -> None:
        self._name = name
        self._loader = loader
        self._generators = generators

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._generators.seed_module(self._name)
