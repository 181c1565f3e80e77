"""Limits of files: set around user code, taken back after it, named when they are gone beyond."""

from __future__ import annotations

import errno
import pathlib
import resource

import pytest

from eclosion import _limits
from eclosion._schemas import AttemptLimits

NOFILE, FSIZE = resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE


def test_a_limit_holds_within_and_is_gone_after(tmp_path: pathlib.Path) -> None:
    before = resource.getrlimit(NOFILE), resource.getrlimit(FSIZE)
    with _limits.kept(AttemptLimits(open_files=64, file_bytes=1 << 20)):
        assert resource.getrlimit(NOFILE)[0] == 64
        with pytest.raises(OSError, match="too large") as raised:
            (tmp_path / "much").write_bytes(b"x" * (64 << 20))
    assert raised.value.errno == errno.EFBIG
    assert (resource.getrlimit(NOFILE), resource.getrlimit(FSIZE)) == before


def test_no_limit_changes_nothing() -> None:
    before = resource.getrlimit(NOFILE), resource.getrlimit(FSIZE)
    for nothing in (None, AttemptLimits(processes=3)):
        with _limits.kept(nothing):
            assert (resource.getrlimit(NOFILE), resource.getrlimit(FSIZE)) == before


def test_a_limit_is_never_raised() -> None:
    soft, hard = resource.getrlimit(NOFILE)
    with _limits.kept(AttemptLimits(open_files=soft + 1000)):
        assert resource.getrlimit(NOFILE) == (soft, hard)


def test_a_worker_can_be_adopted_when_its_task_has_used_up_its_descriptors() -> None:
    with _limits.kept(AttemptLimits(open_files=64)):
        with pytest.raises(OSError, match="Too many open files"):
            _ = [pathlib.Path("/dev/null").open() for _ in range(64)]
        with _limits.lifted():
            pathlib.Path("/dev/null").open().close()
        assert resource.getrlimit(NOFILE)[0] == 64


@pytest.mark.parametrize(
    ("number", "limits", "reason"),
    [
        (errno.EMFILE, AttemptLimits(open_files=9), "limit.open_files"),
        (errno.EFBIG, AttemptLimits(file_bytes=9), "limit.file_size"),
        (errno.EMFILE, AttemptLimits(file_bytes=9), None),
        (errno.ENOENT, AttemptLimits(open_files=9, file_bytes=9), None),
        (errno.EMFILE, None, None),
    ],
)
def test_only_a_limit_that_was_set_is_blamed(number: int, limits: AttemptLimits | None, reason: str | None) -> None:
    raised = ValueError("cannot load")
    raised.__cause__ = OSError(number, "no")
    blamed = _limits.blamed(raised, limits, "/")
    assert (blamed or {}).get("reason") == reason
