"""The orderly end of everything that serves: nothing is left running, no row is left behind."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Protocol

from controlplane.domain.event import GPUS_KEY, HELD_SINCE_KEY, EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica
from controlplane.domain.store import Store
from controlplane.domain.telemetry import GatewaySample
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.ports import Launcher, Seen

_LOG = logging.getLogger(__name__)

_IN_FLIGHT_GRACE: Final = timedelta(seconds=10)
"""For requests that are open when a person stops the site: the load has ended, callers see a clean end of most."""
_TERM_AGAIN: Final = timedelta(seconds=5)
_KILL_AFTER: Final = timedelta(seconds=20)
_LOOK: Final = timedelta(milliseconds=100)


class Sampled(Protocol):
    """Of the gateway: what it sees."""

    async def sample(self) -> GatewaySample: ...


class Serving(Protocol):
    """Of a control plane put together: what is needed to end it."""

    @property
    def store(self) -> Store: ...
    @property
    def launcher(self) -> Launcher: ...
    @property
    def gateway(self) -> Sampled: ...
    @property
    def clock(self) -> Clock: ...


async def end_replicas(parts: Serving) -> None:
    """In-flight requests finish within a bound, then SIGTERM, again, SIGKILL; then the rows go, with their usage.

    The row of a replica that could not be ended, or not be seen to end, stays: the next start finds it.
    """
    await _wait_until_idle(parts)
    async with parts.store.transaction() as tx:
        replicas = await tx.replicas()
    rows = frozenset(replica.name for replica in replicas)
    await _signal_all(parts, await _present(parts, rows))
    left = await _wait_until_gone(parts, rows)
    if left:
        _LOG.error("replicas could not be ended", extra={"replicas": sorted(left)})
    await _forget(parts, [replica for replica in replicas if replica.name not in left])


async def _wait_until_idle(parts: Serving) -> None:
    give_up_at = parts.clock.monotonic() + _IN_FLIGHT_GRACE.total_seconds()
    try:
        async with asyncio.timeout(_IN_FLIGHT_GRACE.total_seconds()):
            while parts.clock.monotonic() < give_up_at:
                routes = (await parts.gateway.sample()).routes.values()
                if not sum(route.in_flight + route.queued for route in routes):
                    return
                await parts.clock.sleep(_LOOK)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the gateway, the replicas are ended all the same
        _LOG.info("requests in flight cannot be seen", extra={"error": str(error)})
        return
    _LOG.info("requests in flight are cut")


async def _present(parts: Serving, rows: frozenset[ReplicaName]) -> frozenset[ReplicaName]:
    """What runs; all that should, when nothing can be seen: unseen is not gone."""
    sighting = await parts.launcher.observe()
    return frozenset(sighting.replicas) if isinstance(sighting, Seen) else rows


async def _signal_all(parts: Serving, names: frozenset[ReplicaName]) -> None:
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(parts.launcher.terminate(name), name=f"terminate-{name}")


async def _wait_until_gone(parts: Serving, rows: frozenset[ReplicaName]) -> frozenset[ReplicaName]:
    """Who is still there at the very end."""
    started_s = parts.clock.monotonic()
    again = False
    while names := await _present(parts, rows):
        spent = timedelta(seconds=parts.clock.monotonic() - started_s)
        if spent > _KILL_AFTER:
            for name in names:
                await parts.launcher.kill(name)
            return await _present(parts, rows)
        if spent > _TERM_AGAIN and not again:
            again = True
            await _signal_all(parts, names)
        await parts.clock.sleep(_LOOK)
    return frozenset()


async def _forget(parts: Serving, replicas: Sequence[Replica]) -> None:
    now = parts.clock.now()
    async with parts.store.transaction() as tx:
        for replica in replicas:
            await tx.delete_replica(replica.name)
        await tx.append_events(
            [
                NewEvent(
                    at=now,
                    kind=EventKind.REPLICA,
                    subject=replica.name,
                    deployment=replica.deployment,
                    reason=Reason.STOPPED,
                    sentence=f"replica {replica.name} ended with the control plane",
                    data=((GPUS_KEY, len(replica.gpus)), (HELD_SINCE_KEY, replica.created_at.isoformat())),
                )
                for replica in replicas
            ]
        )
