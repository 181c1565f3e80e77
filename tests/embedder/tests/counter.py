"""A service that the tests call, kill and start again."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator

from eclosion.service import service


@service(address="/counter", concurrency=2, waiting_max=4)
class Counter:
    """Counts as long as it lives."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: int, note: str = "") -> int:
        """Adds to the total."""
        self.total += amount
        return self.total

    def fail(self) -> None:
        """Raises."""
        raise ValueError("as it was asked to")

    def hang(self, began: str) -> None:
        """Says that it runs, and never ends."""
        pathlib.Path(began).touch()
        while True:
            time.sleep(0.01)

    def upto(self, count: int) -> Iterator[int]:
        """Streams the numbers below ``count``."""
        yield from range(count)
