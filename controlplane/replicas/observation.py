"""Looks at the world and at the fleet's rows, shared between deployments: 100 ticks do not scan 100 times."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from controlplane.domain.node import Node
from controlplane.domain.store import Store
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import NodeName
from controlplane.replicas.ledger import GpuLedger
from controlplane.replicas.ports import Launcher, Sighting, Unseen

OBSERVE_DEADLINE: Final = timedelta(seconds=5)
"""A list of processes takes milliseconds here and some 10 ms on a cluster; after this we are blind and say so."""
SIGHTING_AGE_MAX: Final = timedelta(milliseconds=250)
"""Deployments that tick together share one look; a death is noticed at most so much later."""
FLEET_AGE_MAX: Final = timedelta(milliseconds=500)
"""Rows of other deployments matter for free GPUs only, and the store refuses a GPU given twice: old is safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    began_s: float
    sighting: Sighting


class ObservationCache:
    """One look at a time; late comers take the one in progress only if it began after their own last act."""

    def __init__(self, launcher: Launcher, clock: Clock, *, deadline: timedelta = OBSERVE_DEADLINE) -> None:
        self._launcher = launcher
        self._clock = clock
        self._deadline_s = deadline.total_seconds()
        self._lock = asyncio.Lock()
        self._last: _Look | None = None

    async def observe(self, *, not_before_s: float) -> Sighting:
        """A sighting that began after `not_before_s` (monotonic seconds) and is at most SIGHTING_AGE_MAX old."""
        async with self._lock:
            last, now_s = self._last, self._clock.monotonic()
            if last is not None and _is_young(last.began_s, now_s, SIGHTING_AGE_MAX) and last.began_s > not_before_s:
                return last.sighting
            look = _Look(began_s=now_s, sighting=await self._look())
            self._last = look
            return look.sighting

    async def _look(self) -> Sighting:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._launcher.observe()
        except TimeoutError:
            return Unseen(f"no list of running replicas within {self._deadline_s:g}s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Nodes, and who holds what on them."""

    nodes: Mapping[NodeName, Node]
    ledger: GpuLedger


class FleetCache:
    """Nodes and the ledger of all rows; dropped when a reservation of ours changed it or met a conflict."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last: tuple[float, Fleet] | None = None

    async def fleet(self) -> Fleet:
        async with self._lock:
            last, now_s = self._last, self._clock.monotonic()
            if last is not None and _is_young(last[0], now_s, FLEET_AGE_MAX):
                return last[1]
            async with self._store.transaction() as tx:
                nodes = await tx.nodes()
                rows = await tx.replicas()
            fleet = Fleet(nodes={node.name: node for node in nodes}, ledger=GpuLedger(nodes, rows))
            self._last = (now_s, fleet)
            return fleet

    def drop(self) -> None:
        self._last = None


def _is_young(began_s: float, now_s: float, age_max: timedelta) -> bool:
    return now_s - began_s <= age_max.total_seconds()
