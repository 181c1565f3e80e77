"""``concurrent.futures.Executor`` over a kernel's workers, for programs that are written to it.

    with eclosion.Executor() as pool:
        print(list(pool.map(square, range(100))))

Functions are called on warm workers; a worker that dies takes its own call along and no other. A block that Ctrl-C ends
cancels what is left of it instead of waiting.

Futures are settled on a few threads of the executor's own, where their callbacks run too. Never on the thread that
reads the connection: a large result, and how a worker died, are asked for over that same connection.
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .._errors import Cancelled
from .._process import start_thread
from ._client import Client, connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ._calls import Ref

P = ParamSpec("P")
R = TypeVar("R")

# Futures that are settled at the same time. More than one, so that a callback may wait for another future.
SETTLERS = 8


class Executor(concurrent.futures.Executor):
    """Its client is its own and goes with it, unless one is given."""

    def __init__(self, client: Client | None = None) -> None:
        self._owns = client is None
        self._client = connect() if client is None else client
        self._refs: dict[concurrent.futures.Future[Any], Ref[Any]] = {}
        self._settlers = concurrent.futures.ThreadPoolExecutor(SETTLERS, "eclosion-settle")
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
            self._refs.pop(future, None)
            raise

    def _watched(self, ref: Ref[R], future: concurrent.futures.Future[R]) -> concurrent.futures.Future[R]:
        # A future has one value: of a generator, what it returns.
        ref.pass_over()
        refs, settlers = self._refs, self._settlers
        refs[future] = ref

        def settle() -> None:
            _settle(ref, future)
            refs.pop(future, None)

        # Neither holds this executor: with the last future its threads and its client go.
        ref.watch(lambda: _hand_over(settlers, settle))

        def cancelled(future: concurrent.futures.Future[R]) -> None:
            if future.cancelled():
                ref.cancel()

        future.add_done_callback(cancelled)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
        if cancel_futures:
            self._cancel()
        if not wait:
            return
        try:
            concurrent.futures.wait(tuple(self._refs))
        except KeyboardInterrupt:
            self._cancel()
            raise
        self._settlers.shutdown()
        if self._owns:
            self._client.close()

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(cancel_futures=kind is not None and issubclass(kind, KeyboardInterrupt))

    def _cancel(self) -> None:
        for ref in tuple(self._refs.values()):
            ref.cancel()


def _hand_over(settlers: concurrent.futures.ThreadPoolExecutor, settle: Callable[[], None]) -> None:
    try:
        settlers.submit(settle)
    except RuntimeError:  # They are shut down, or the interpreter is; somebody may wait for it all the same.
        start_thread(settle, "eclosion-settle")


def _settle(ref: Ref[R], future: concurrent.futures.Future[R]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(ref.result())
    except Cancelled:
        future.set_exception(concurrent.futures.CancelledError())
    except BaseException as why:
        future.set_exception(why)
