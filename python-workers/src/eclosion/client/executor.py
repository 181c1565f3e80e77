"""``concurrent.futures.Executor`` over a kernel's workers, for programs that are written to it.

    with eclosion.Executor() as pool:
        print(list(pool.map(square, range(100))))

Functions are called on warm workers; a worker that dies takes its own call along and no other. A block that Ctrl-C ends
cancels what is left of it instead of waiting.
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .._errors import Cancelled
from ._client import Client, connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ._calls import Ref

P = ParamSpec("P")
R = TypeVar("R")


class Executor(concurrent.futures.Executor):
    """Its client is its own and goes with it, unless one is given."""

    def __init__(self, client: Client | None = None) -> None:
        self._owns = client is None
        self._client = connect() if client is None else client
        self._refs: set[Ref[Any]] = set()
        self._closed = False

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[R]:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: concurrent.futures.Future[R] = concurrent.futures.Future()
        ref = self._client.submit(fn, *args, **kwargs)
        try:
            return self._watched(ref, future)
        except BaseException:  # Ctrl-C: nobody will ever have the future.
            ref.cancel()
            raise

    def _watched(self, ref: Ref[R], future: concurrent.futures.Future[R]) -> concurrent.futures.Future[R]:
        # A future has one value: of a generator, what it returns.
        ref.pass_over()
        self._refs.add(ref)
        ref.watch(lambda: self._settle(ref, future))

        def cancelled(future: concurrent.futures.Future[R]) -> None:
            if future.cancelled():
                ref.cancel()

        future.add_done_callback(cancelled)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
        for ref in tuple(self._refs):
            if cancel_futures:
                ref.cancel()
            elif wait:
                ref.exception()
        if self._owns and wait:
            self._client.close()

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(cancel_futures=kind is not None and issubclass(kind, KeyboardInterrupt))

    def _settle(self, ref: Ref[R], future: concurrent.futures.Future[R]) -> None:
        self._refs.discard(ref)
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(ref.result())
        except Cancelled:
            future.set_exception(concurrent.futures.CancelledError())
        except BaseException as why:
            future.set_exception(why)
