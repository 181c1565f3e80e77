"""Which socket is meant: the argument, else ``ECLOSION_SOCKET``, else where the kernel of an instance listens.

The table is that of the kernel's own settings, as far as variables go; files of settings are the binary's to read.
"""

from __future__ import annotations

import os


def socket_path(given: str | os.PathLike[str] | None, instance: str | None = None) -> str:
    """The path to connect to."""
    if given is not None:
        return os.fspath(given)
    if instance is None:
        for name in ("ECLOSION_SOCKET", "ECLOSION_LISTEN"):
            path = os.environ.get(name)
            if path:
                return path
    name = instance or os.environ.get("ECLOSION_INSTANCE") or "default"
    return os.path.join(_runtime_dir(), f"{name}.sock")


def _runtime_dir() -> str:
    own = os.environ.get("ECLOSION_RUNTIME_DIR")
    if own:
        return own
    base = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(base, "eclosion") if base else f"/tmp/eclosion-{os.getuid()}"
