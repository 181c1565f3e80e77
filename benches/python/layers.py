"""The 10 x 10 graph: what the kernel runs, and the same by hand with the standard library."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor

WIDTH = 10
LAYERS = 10


def step(i: int, inputs: list[int] | None = None) -> int:
    return i + sum(inputs or [])


def by_hand(pool: ProcessPoolExecutor) -> list[int]:
    results: list[int] | None = None
    for _ in range(LAYERS):
        futures = [pool.submit(step, i, results) for i in range(WIDTH)]
        results = [future.result() for future in futures]
    return results or []


def main() -> None:
    workers, rounds = int(sys.argv[1]), int(sys.argv[2])
    with ProcessPoolExecutor(workers) as pool:
        by_hand(pool)
        took: list[int] = []
        for _ in range(rounds):
            started = time.perf_counter_ns()
            by_hand(pool)
            took.append(time.perf_counter_ns() - started)
    print(json.dumps(took))


if __name__ == "__main__":
    main()
