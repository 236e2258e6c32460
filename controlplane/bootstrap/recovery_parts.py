"""Recovery put together: its loops, and what the control plane runs itself for it."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.keyfiles import read_passphrase
from controlplane.adapters.backup.postgresql.demo_writer import DemoWriter
from controlplane.adapters.backup.vault import Vault, VaultPlace
from controlplane.adapters.backup.workshop import ThreadWorkshop
from controlplane.adapters.recovery_metrics import DatasetGauges, RecoveryCollector
from controlplane.domain.dataset import DatasetSpec, RecoverySpec
from controlplane.domain.recovery import Drill, DrillPhase, Inventory
from controlplane.domain.secret import SecretRef
from controlplane.domain.store import Store
from controlplane.kernel.effects import Clock, IdSource, Rng
from controlplane.kernel.errors import QuarterdeckError
from controlplane.recovery.backups import Backups
from controlplane.recovery.drills import Drills
from controlplane.recovery.pruner import LOOK_EVERY, Pruner
from controlplane.recovery.removals import Removals
from controlplane.recovery.rpo import RpoState
from controlplane.recovery.standing import DRILLS_READ, inventory_in, judge_inventory
from controlplane.recovery.streams import Streams
from controlplane.recovery.surveyor import Surveyor
from controlplane.runtime.hints import Hints
from controlplane.runtime.reconciler import Pace, Reconciler

_LOG = logging.getLogger(__name__)

LOOPS: Final = frozenset({"recovery-points", "backups", "drills", "log-streams", "retention"})

_LOOKING: Final = Pace(
    period=timedelta(seconds=60),  # each look says itself when the next is due, by the RPO
    deadline=timedelta(seconds=120),  # a bucket far away is listed a thousand objects at a time
    floor=timedelta(seconds=1),
    claim_ttl=timedelta(seconds=150),
)
_WORKING: Final = Pace(
    period=timedelta(seconds=5),  # the work itself runs beside the loop; this is how soon its end is seen
    deadline=timedelta(seconds=120),  # sweeping and cleaning up are part of a tick
    floor=timedelta(milliseconds=200),
    claim_ttl=timedelta(seconds=150),
)
_STREAMING: Final = Pace(
    period=timedelta(seconds=2),  # a stream that died is begun again; it waits by itself between tries
    deadline=timedelta(seconds=90),  # the first one may start the embedded PostgreSQL
    floor=timedelta(milliseconds=500),
    claim_ttl=timedelta(seconds=100),
)
_PRUNING: Final = Pace(
    period=LOOK_EVERY, deadline=timedelta(seconds=300), floor=timedelta(seconds=10), claim_ttl=timedelta(seconds=330)
)
_JOIN_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryParts:
    vault: Vault
    workshop: ThreadWorkshop
    removals: Removals
    paced: tuple[tuple[Reconciler, Pace], ...]
    embedded: "Embedded"
    gauges: "Gauges"
    collector: RecoveryCollector

    async def evidence(self, drill: Drill) -> str:
        return (await asyncio.to_thread(self.workshop.evidence, drill)).decode()

    def end(self) -> None:
        """Blocks. Copies and drills are given up, streams flush; then what runs for it is stopped."""
        self.embedded.end()
        self.workshop.end()
        self.vault.stop()


def put_recovery_together(
    *,
    store: Store,
    clock: Clock,
    rng: Rng,
    ids: IdSource,
    hints: Hints,
    declared: Callable[[], RecoverySpec],
    state_dir: Path,
    mark: str,
    secret: Callable[[SecretRef], str],
    break_glass: Path | None,
    break_glass_passphrase: Path | None,
) -> RecoveryParts:
    words = break_glass_passphrase
    place = VaultPlace(
        state_dir=state_dir,
        site_mark=mark,
        secret=secret,
        now=clock.now,
        break_glass=break_glass,
        passphrase=None if words is None else lambda: read_passphrase(words),
    )
    vault = Vault(place)
    workshop = ThreadWorkshop(vault, clock=clock, declared=declared)
    surveyor = Surveyor(store=store, workshop=workshop, clock=clock, hints=hints, declared=declared)
    backups = Backups(store=store, workshop=workshop, clock=clock, ids=ids, hints=hints, declared=declared)
    drills = Drills(store=store, workshop=workshop, clock=clock, rng=rng, ids=ids, declared=declared)
    streams = Streams(store=store, workshop=workshop, clock=clock, declared=declared)
    pruner = Pruner(store=store, workshop=workshop, clock=clock, declared=declared)
    paced: Sequence[tuple[Reconciler, Pace]] = (
        (surveyor, _LOOKING),
        (backups, _WORKING),
        (drills, _WORKING),
        (streams, _STREAMING),
        (pruner, _PRUNING),
    )
    embedded = Embedded(vault, workshop, declared=declared)
    collector = RecoveryCollector(clock)
    gauges = Gauges(store=store, clock=clock, declared=declared, collector=collector)
    return RecoveryParts(
        vault=vault,
        workshop=workshop,
        removals=Removals(store=store, workshop=workshop, clock=clock, declared=declared),
        paced=tuple(paced),
        embedded=embedded,
        gauges=gauges,
        collector=collector,
    )


class Embedded:
    """The object store and the PostgreSQL that the control plane runs itself: kept running, adopted after a crash."""

    def __init__(self, vault: Vault, workshop: ThreadWorkshop, *, declared: Callable[[], RecoverySpec]) -> None:
        self._vault = vault
        self._workshop = workshop
        self._declared = declared
        self._writer: tuple[threading.Thread, threading.Event] | None = None
        self._told = ""
        self.writes_per_s = 0.0
        """Of the demo; from the first moment on, since its drills look for what is written."""

    async def keep(self) -> None:
        """The body of a beat."""
        try:
            await asyncio.to_thread(self._keep)
            self._told = ""
        except QuarterdeckError as error:
            if str(error) != self._told:
                _LOG.warning("what the control plane runs itself does not run", extra={"sentence": str(error)})
                self._told = str(error)
        await self._workshop.end_idle()

    def _keep(self) -> None:
        declared = self._declared()
        for bucket in declared.buckets:
            self._vault.keep_running(bucket)
        for dataset in declared.datasets:
            if dataset.of_embedded_postgresql:
                self._vault.run_postgresql()
                self._keep_writing()

    def _keep_writing(self) -> None:
        if self.writes_per_s <= 0.0 or (self._writer is not None and self._writer[0].is_alive()):
            return
        stop = threading.Event()
        writer = DemoWriter(self._vault.postgresql().url, rate_per_s=self.writes_per_s)
        thread = threading.Thread(target=writer.run, args=(stop,), name="demo-writer", daemon=True)
        self._writer = (thread, stop)
        thread.start()

    def end(self) -> None:
        if self._writer is not None:
            thread, stop = self._writer
            stop.set()
            thread.join(_JOIN_S)
            self._writer = None


class Gauges:
    """Tells /metrics how recovery stands, by what every instance reads in the store."""

    def __init__(
        self, *, store: Store, clock: Clock, declared: Callable[[], RecoverySpec], collector: RecoveryCollector
    ) -> None:
        self._store = store
        self._clock = clock
        self._declared = declared
        self._collector = collector

    async def tell(self) -> None:
        """The body of a beat."""
        declared = self._declared()
        if not declared.datasets:
            self._collector.told(())
            return
        async with self._store.transaction() as tx:
            inventories, drills = await tx.inventories(), await tx.drills(limit=DRILLS_READ)
        now = self._clock.now()
        self._collector.told(_gauges(dataset, inventories, drills, now) for dataset in declared.datasets)


def _gauges(
    dataset: DatasetSpec, inventories: Sequence[Inventory], drills: Sequence[Drill], now: datetime
) -> DatasetGauges:
    first = inventory_in(inventories, dataset, dataset.buckets[0])
    verdict = judge_inventory(dataset, first, now)
    ended = [drill for drill in drills if drill.dataset == dataset.name and drill.ended]
    passed = next((drill for drill in ended if drill.phase is DrillPhase.PASSED), None)
    log_bytes = first.log_bytes if first is not None else 0
    points = first.points if first is not None else ()
    return DatasetGauges(
        dataset=dataset.name,
        covered_at=verdict.covered_at,
        rpo_s=dataset.rpo.total_seconds(),
        rto_s=dataset.rto.total_seconds(),
        breached=verdict.state not in {RpoState.OK, RpoState.WARNING},
        points=len(points),
        stored_bytes=sum(point.stored_bytes for point in points) + log_bytes,
        drill_passed_at=None if passed is None else passed.phase_since,
        drill_failing=bool(ended) and ended[0].phase is not DrillPhase.PASSED,
        achieved_rto_s=None if passed is None else passed.times.rto_s,
    )
