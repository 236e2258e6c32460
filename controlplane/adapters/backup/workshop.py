"""Copies, drills and streams as they are really made: the loops' `Workshop` over a vault."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from controlplane.adapters.backup.copy_work import CopyWork
from controlplane.adapters.backup.drill_work import DrillWork
from controlplane.adapters.backup.evidence_watch import look_for_evidence
from controlplane.adapters.backup.inventory import NOTHING_KNOWN, ManifestSeen
from controlplane.adapters.backup.jobs import Jobs
from controlplane.adapters.backup.log_streams import LogStreams
from controlplane.adapters.backup.restore_claims import running_restores
from controlplane.adapters.backup.survey import survey_bucket
from controlplane.adapters.backup.vault import Vault
from controlplane.domain.dataset import (
    BucketSpec,
    DatasetKind,
    DatasetSpec,
    KeyPurpose,
    RecoverySpec,
)
from controlplane.domain.recovery import Drill, Inventory
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import QuarterdeckError, RetryableError
from controlplane.kernel.ids import PointId
from controlplane.recovery.locks import LockExtension
from controlplane.recovery.ports import manifest_key
from controlplane.recovery.proofs import watch_due
from controlplane.recovery.workshop import (
    LEASE,
    Broken,
    CopyMade,
    CopyOrder,
    DrillMade,
    DrillOrder,
    Finished,
    PointContents,
    Streaming,
    Thawing,
    Unknown,
    Working,
)

_END_WAIT_S: Final = 5.0


@dataclass(slots=True)
class _Seen:
    """Remembered between looks: a manifest is read once."""

    known: dict[tuple[str, str], Mapping[str, ManifestSeen]] = field(default_factory=dict)


class ThreadWorkshop:
    """Implements `controlplane.recovery.workshop.Workshop`."""

    def __init__(self, vault: Vault, *, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._vault = vault
        self._clock = clock
        self._declared = declared
        self._copy_work = CopyWork(vault, clock=clock, declared=declared)
        self._drill_work = DrillWork(vault, clock=clock, declared=declared)
        self._logs = LogStreams(vault, clock=clock, declared=declared)
        self._copies: Jobs[CopyMade] = Jobs("copy")
        self._drills: Jobs[DrillMade] = Jobs("drill")
        self._seen = _Seen()

    # -- looking
    async def survey(
        self, dataset: DatasetSpec, bucket: BucketSpec, before: Inventory | None, *, proofs: Sequence[Drill]
    ) -> Inventory:
        return await asyncio.to_thread(self._survey, dataset, bucket, before, proofs)

    def _survey(
        self, dataset: DatasetSpec, bucket: BucketSpec, before: Inventory | None, proofs: Sequence[Drill]
    ) -> Inventory:
        now = self._clock.now()
        try:
            self._vault.keep_running(bucket)
            place = (dataset.name, bucket.name)
            found = survey_bucket(
                self._vault.store(bucket),
                self._vault.keyring(self._declared().keys),
                dataset,
                bucket,
                known=self._seen.known.get(place, NOTHING_KNOWN),
                before=before,
                now=now,
            )
            seen = found.inventory
            if dataset.kind is DatasetKind.PGBACKREST:
                seen = replace(seen, coverage=self._vault.pgbackrest_coverage(dataset))
            seen = self._watched(seen, bucket, before, proofs)
        except QuarterdeckError as error:
            unread = Inventory(dataset=dataset.name, bucket=bucket.name, observed_at=now, points=())
            return replace(before or unread, problem=str(error), unreadable=(), since=None, rpo_state="")
        self._seen.known[place] = found.known
        return seen

    def _watched(
        self, seen: Inventory, bucket: BucketSpec, before: Inventory | None, proofs: Sequence[Drill]
    ) -> Inventory:
        """With restores that run, and the evidence that counts; as they were, where nothing is due yet."""
        now, store = seen.observed_at, self._vault.store(bucket)
        known = () if before is None else before.evidence
        if before is not None and not watch_due(before, now):
            counting = {drill.drill for drill in proofs}
            evidence = tuple(one for one in known if one.drill in counting)
            return replace(seen, watched_at=before.watched_at, restoring=before.restoring, evidence=evidence)
        return replace(
            seen,
            watched_at=now,
            restoring=running_restores(store, seen.dataset, now),
            evidence=look_for_evidence(store, lambda: self._vault.signer().public_key, proofs, known, now),
        )

    # -- copies
    def makes_increments(self, dataset: DatasetSpec) -> bool:
        return dataset.kind is DatasetKind.POSTGRESQL

    def begin_copy(self, work: str, order: CopyOrder) -> None:
        self._copies.begin(work, lambda watch: self._copy_work.copy(order, watch))

    def look_copy(self, work: str) -> Working | Finished[CopyMade] | Broken | Unknown:
        return self._copies.look(work)

    async def sweep(self, dataset: DatasetSpec, *, writing: frozenset[PointId]) -> Sequence[str]:
        return await asyncio.to_thread(self._copy_work.sweep, dataset, writing)

    async def remove(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> None:
        await asyncio.to_thread(self._copy_work.remove, dataset, bucket, point)

    async def contents(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> PointContents:
        return await asyncio.to_thread(self._copy_work.contents, dataset, bucket, point)

    async def lengthen(self, dataset: DatasetSpec, bucket: BucketSpec, extension: LockExtension) -> None:
        await asyncio.to_thread(self._copy_work.lengthen, dataset, bucket, extension)
        # Locking changes nothing that a listing shows: the next look has to read that manifest's lock again.
        place, key = (dataset.name, bucket.name), manifest_key(dataset.name, extension.point)
        known = self._seen.known.get(place, NOTHING_KNOWN)
        self._seen.known[place] = {name: seen for name, seen in known.items() if name != key}

    async def trim_log(self, dataset: DatasetSpec, bucket: BucketSpec, *, since: datetime) -> int:
        return await asyncio.to_thread(self._copy_work.trim_log, dataset, bucket, since)

    # -- drills
    def keys(self) -> frozenset[KeyPurpose]:
        return frozenset({KeyPurpose.SITE, *((KeyPurpose.BREAK_GLASS,) if self._vault.has_break_glass else ())})

    async def reserve(self, drill: Drill, *, needed_bytes: int) -> str:
        return await asyncio.to_thread(self._drill_work.reserve, drill, needed_bytes)

    async def thaw(self, order: DrillOrder) -> Thawing:
        return await asyncio.to_thread(self._drill_work.thaw, order)

    def begin_drill(self, drill: Drill, order: DrillOrder) -> None:
        self._drills.begin(f"{drill.drill}/{drill.attempt}", lambda watch: self._drill_work.drill(drill, order, watch))

    def look_drill(self, drill: Drill) -> Working | Finished[DrillMade] | Broken | Unknown:
        return self._drills.look(f"{drill.drill}/{drill.attempt}")

    async def clean(self, drill: Drill, dataset: DatasetSpec | None) -> tuple[str, ...]:
        if not await asyncio.to_thread(self._drills.cancel_all, _END_WAIT_S, prefix=f"{drill.drill}/"):
            raise RetryableError(f"the work of drill {drill.drill} has not ended yet")
        return await asyncio.to_thread(self._drill_work.clean, drill, dataset)

    async def record(self, drill: Drill) -> str:
        return await asyncio.to_thread(self._drill_work.record, drill)

    def evidence(self, drill: Drill) -> bytes:
        """The bundle, from the bucket."""
        return self._drill_work.evidence(drill)

    # -- logs
    async def stream(self, dataset: DatasetSpec, *, until: datetime) -> Streaming:
        return await asyncio.to_thread(self._logs.stream, dataset, until)

    async def end_idle(self) -> None:
        """What nobody asks for any more: another instance has it now, or it is no longer declared."""
        self._copies.cancel_idle(LEASE)
        self._drills.cancel_idle(LEASE)
        await asyncio.to_thread(self._logs.end_idle)

    def end(self) -> None:
        """Everything of this process: streams flush what they have, copies and drills are given up."""
        self._logs.end()
        self._copies.cancel_all(_END_WAIT_S)
        self._drills.cancel_all(_END_WAIT_S)
