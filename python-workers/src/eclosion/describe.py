"""Prints a flow as the JSON of its model: ``python -m eclosion.describe FILE.py:flow``.

The name may be left out if the file has one flow. Whatever the file prints while it is imported goes to stderr, so that
stdout is the JSON alone; where the file raises, that is ``{"raised": …}``, the exception as data. Exit status: 0, 1 if
the flow cannot be written down or imported, 2 for a wrong call.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import sys
import traceback
from typing import Any, cast

from ._exceptions import remote_exception
from ._process import runtime_path_last
from .flow import Flow, FlowError


class UsageError(Exception):
    """The file or the flow in it is not there."""


def load(target: str) -> Flow[..., Any]:
    """Imports ``FILE.py:flow`` and returns the flow. Raises :class:`UsageError`, or what the import raises."""
    file_name, _, name = target.rpartition(":") if ".py:" in target else (target, "", "")
    file = pathlib.Path(file_name).resolve()
    if file.suffix != ".py" or not file.is_file():
        raise UsageError(f"`{file_name}` is no Python file; write FILE.py:FLOW")
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    # Under its own name and never as `__main__`, as that is what workers import.
    module = importlib.import_module(file.stem)
    flows: dict[str, Flow[..., Any]] = {}
    for key, value in vars(module).items():
        if isinstance(value, Flow):
            flows[key] = cast("Flow[..., Any]", value)
    if not name and len(flows) == 1:
        return next(iter(flows.values()))
    if name not in flows:
        known = ", ".join(sorted(flows)) or "none"
        raise UsageError(f"{file.name} has no flow `{name}`; flows in it: {known}" if name else f"name one of: {known}")
    return flows[name]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m eclosion.describe FILE.py:FLOW", file=sys.stderr)
        return 2
    runtime_path_last()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec = load(arguments[0]).spec()
        text = json.dumps(spec, indent=2)
    except UsageError as why:
        print(why, file=sys.stderr)
        return 2
    except (FlowError, TypeError) as why:
        print(f"the flow cannot be written down: {why}", file=sys.stderr)
        return 1
    except Exception as why:
        traceback.print_exc()
        # The same as data, for a program that shows the user's own frames.
        print(json.dumps({"raised": remote_exception(why, str(pathlib.Path(arguments[0]).resolve().parent))}))
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
