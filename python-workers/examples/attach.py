"""Attaches to the kernel that is up: asks how it is, sends functions to its workers, and sees one of them fail."""

import os

import eclosion
from eclosion import task


@task
def half(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n // 2


@task
def die() -> None:
    os._exit(3)


def main() -> None:
    with eclosion.connect() as kernel:
        print("the kernel is", kernel.kernel.status().state)
        print("halves:", [ref.result() for ref in kernel.map(half, range(0, 10, 2))])
        try:
            kernel.submit(half, 3).result()
        except ValueError as why:
            print("raised in the worker, and here:", why)
        try:
            kernel.submit(die).result()
        except eclosion.TaskDied as died:
            print("how the worker died:", died.certificate and died.certificate.death)
        print("and the next one:", kernel.submit(half, 84).result())


if __name__ == "__main__":
    main()
