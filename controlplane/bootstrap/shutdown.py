"""The orderly end of everything that serves: nothing is left running, no row is left behind."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from controlplane.bootstrap.compose import Parts
from controlplane.domain.event import GPUS_KEY, HELD_SINCE_KEY, EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.ports import Seen

_LOG = logging.getLogger(__name__)

_IN_FLIGHT_GRACE: Final = timedelta(seconds=10)
"""For requests that are open when a person stops the site: the load has ended, callers see a clean end of most."""
_TERM_AGAIN: Final = timedelta(seconds=5)
_KILL_AFTER: Final = timedelta(seconds=20)
_LOOK: Final = timedelta(milliseconds=100)


async def end_replicas(parts: Parts) -> None:
    """In-flight requests finish within a bound, then SIGTERM, again, SIGKILL; then the rows go, with their usage."""
    await _wait_until_idle(parts)
    async with parts.store.transaction() as tx:
        replicas = await tx.replicas()
    names = await _present(parts)
    await _signal_all(parts, names)
    left = await _wait_until_gone(parts)
    if left:
        _LOG.error("replicas could not be ended", extra={"replicas": sorted(left)})
    await _forget(parts, [replica for replica in replicas if replica.name not in left])


async def _wait_until_idle(parts: Parts) -> None:
    try:
        async with asyncio.timeout(_IN_FLIGHT_GRACE.total_seconds()):
            while sum(route.in_flight + route.queued for route in (await parts.gateway.sample()).routes.values()):
                await parts.clock.sleep(_LOOK)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the gateway, the replicas are ended all the same
        _LOG.info("requests in flight were cut", extra={"error": str(error)})


async def _present(parts: Parts) -> frozenset[ReplicaName]:
    sighting = await parts.launcher.observe()
    return frozenset(sighting.replicas) if isinstance(sighting, Seen) else frozenset()


async def _signal_all(parts: Parts, names: frozenset[ReplicaName]) -> None:
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(parts.launcher.terminate(name), name=f"terminate-{name}")


async def _wait_until_gone(parts: Parts) -> frozenset[ReplicaName]:
    """Who is still there at the very end."""
    started_s = parts.clock.monotonic()
    again = False
    while names := await _present(parts):
        spent = timedelta(seconds=parts.clock.monotonic() - started_s)
        if spent > _KILL_AFTER:
            for name in names:
                await parts.launcher.kill(name)
            return await _present(parts)
        if spent > _TERM_AGAIN and not again:
            again = True
            await _signal_all(parts, names)
        await parts.clock.sleep(_LOOK)
    return frozenset()


async def _forget(parts: Parts, replicas: Sequence[Replica]) -> None:
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
