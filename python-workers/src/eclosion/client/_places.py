"""Which socket is meant: the argument, else ``ECLOSION_SOCKET``, else where the kernel of an instance listens.

The table is that of the kernel's own settings, as far as variables go; files of settings are the binary's to read.
"""

from __future__ import annotations

import os

from .._current import importing
from .._errors import Refused, error


def socket_path(given: str | os.PathLike[str] | None, instance: str | None = None) -> str:
    """The path to connect to. Raises :class:`Refused` where a worker imports a module that connects by itself: what a
    script does would be done again by each of its workers."""
    if given is not None:
        return os.fspath(given)
    module = importing()
    if module is not None:
        text = f"`{module}` connects to a kernel while a worker imports it"
        help = f'put what only the script is to do below: if __name__ == "__main__":  (in {module})'
        raise Refused(error("precondition", "client.importing", text, help=help))
    if instance is None:
        for name in ("ECLOSION_SOCKET", "ECLOSION_LISTEN"):
            path = os.environ.get(name)
            if path:
                return path
    name = instance or os.environ.get("ECLOSION_INSTANCE") or "default"
    return os.path.join(_runtime_dir(), f"{name}.sock")


def up_command(path: str) -> str:
    """What starts the kernel that would listen there."""
    folder, file = os.path.split(path)
    name = file.removesuffix(".sock")
    others = folder == _runtime_dir() and name not in (file, "default")
    return f"eclosion up --instance {name}" if others else "eclosion up"


def _runtime_dir() -> str:
    own = os.environ.get("ECLOSION_RUNTIME_DIR")
    if own:
        return own
    base = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(base, "eclosion") if base else f"/tmp/eclosion-{os.getuid()}"
