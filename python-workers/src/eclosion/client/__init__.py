"""A client of a running kernel.

    import eclosion

    with eclosion.connect() as kernel:
        print(kernel.kernel.status().state)          # typed operations, generated from the schemas
        kernel.call("run.list", {})                  # any operation, as plain data
        refs = kernel.map(square, range(100))        # `@task` functions on the kernel's workers
        print([ref.result() for ref in eclosion.as_completed(refs)])

Reading order: ``_places`` (which socket), ``_connection`` (frames to calls and back), ``_link`` (connecting again),
``_subscriptions`` (views that survive the kernel), ``_functions`` and ``_calls`` (functions on workers), ``_timings``
(where time goes), ``_traces`` (what calls belong to), ``_client`` (what users hold), ``aio`` (the same for asyncio).
Nothing here is imported by ``import eclosion`` itself.
"""

from __future__ import annotations

from ._calls import Ref, as_completed
from ._client import Client, connect, default_client
from ._connection import Stream
from ._leases import Lease, LeaseLost
from ._subscriptions import Reset, Subscription, View
from ._timings import CallTimings, Stage, timed

__all__ = [
    "CallTimings",
    "Client",
    "Lease",
    "LeaseLost",
    "Ref",
    "Reset",
    "Stage",
    "Stream",
    "Subscription",
    "View",
    "as_completed",
    "connect",
    "default_client",
    "timed",
]
