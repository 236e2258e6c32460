"""One dataset and one bucket under the real loops, workshop and vault, turned by hand.

The bucket is one in memory, to be damaged; the rows lie in the store in memory. Everything between the two is real:
threads, keys, sealing, scratch folders, verification, evidence.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from controlplane.adapters.backup.archive_reader import open_archive, verify_archive
from controlplane.adapters.backup.archive_writer import ArchiveWriter
from controlplane.adapters.backup.inventory import inventory
from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.manifests import decode_manifest, encode_manifest, key_context, mac_of
from controlplane.adapters.backup.vault import Vault, VaultPlace
from controlplane.adapters.backup.workshop import ThreadWorkshop
from controlplane.adapters.evidence import EvidenceSigner, verify_bundle
from controlplane.adapters.system import UuidIds
from controlplane.domain.dataset import (
    BucketSpec,
    Cadence,
    CheckSpec,
    DatasetKind,
    DatasetSpec,
    DrillSelection,
    KeyPurpose,
    KeysSpec,
    RecoverySpec,
    RetentionPeriod,
    RetentionRule,
    StorageClass,
)
from controlplane.domain.recovery import BackupCause, BackupPhase, BackupRun, Drill, DrillPhase, Inventory
from controlplane.domain.store import Claim, Store, Transaction
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import QuarterdeckError
from controlplane.kernel.ids import BucketName, ClaimToken, DatasetName, InstanceId, PointId
from controlplane.recovery.backups import Backups
from controlplane.recovery.drills import Drills
from controlplane.recovery.evidence import evidence_key
from controlplane.recovery.manifest import Manifest, WrappedKey
from controlplane.recovery.names import point_id
from controlplane.recovery.ports import Keyring, ObjectStore, SilentWatch, SnapshotFacts, SnapshotSink, manifest_key
from controlplane.recovery.rpo import RpoVerdict
from controlplane.recovery.standing import judge_inventory
from controlplane.recovery.surveyor import Surveyor
from controlplane.runtime.reconciler import Reconciler
from controlplane.testing.backups import MemorySink
from controlplane.testing.effects import FakeClock, SeededRng
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.world import NoHints
from tests.unit.backup.bucket import MemoryBucket

if TYPE_CHECKING:
    from controlplane.domain.secret import SecretRef

NAME: Final = DatasetName("data")
BUCKET: Final = BucketName("main")
DAY: Final = timedelta(days=1)
CHUNK, PACK = 8 * 1024, 24 * 1024
"""A database of some hundred kilobytes makes a dozen packs."""
DEADLINE_S: Final = 60.0
"""For one copy or drill: PostgreSQL starts in it, on a machine that has other things to do."""
_POLL_S: Final = 0.002

type Trouble = Callable[[str], None]
"""Asked before each call of a kind, with its name; may raise."""
type Snapshot = Callable[[SnapshotSink], SnapshotFacts]


def no_trouble(_call: str) -> None:
    """Everything goes well."""


def declare(kind: DatasetKind, path: Path | None = None, *checks: CheckSpec) -> DatasetSpec:
    return DatasetSpec(
        name=NAME,
        kind=kind,
        rpo=DAY,
        rto=timedelta(hours=1),
        cadence=Cadence(every=DAY),
        retention=(RetentionRule(period=RetentionPeriod.DAILY, keep=30 * DAY),),
        buckets=(BUCKET,),
        path=None if path is None else str(path),
        checks=checks,
    )


class TroubledKeyring:
    """Implements `controlplane.recovery.ports.Keyring`; `trouble` is asked before each use of a key."""

    def __init__(self, keyring: Keyring, trouble: Trouble) -> None:
        self._keyring = keyring
        self._trouble = trouble

    def new_data_key(self, context: str) -> tuple[bytes, tuple[WrappedKey, ...]]:
        self._trouble("new data key")
        return self._keyring.new_data_key(context)

    def open(
        self, wrapped: Sequence[WrappedKey], context: str, *, only: KeyPurpose | None = None
    ) -> tuple[bytes, WrappedKey]:
        self._trouble("open")
        return self._keyring.open(wrapped, context, only=only)


class LabVault(Vault):
    """The real one, but for the bucket, and for trouble with keys on request."""

    def __init__(self, place: VaultPlace, objects: ObjectStore, trouble: Trouble) -> None:
        super().__init__(place)
        self._scratch = place.state_dir / "scratch"
        self._objects = objects
        self._trouble = trouble

    def store(self, bucket: BucketSpec) -> ObjectStore:
        del bucket
        return self._objects

    def keep_running(self, bucket: BucketSpec) -> None:
        """Nothing runs for a bucket in memory."""

    def keyring(self, keys: KeysSpec) -> SiteKeyring:
        self._trouble("keyring")
        return cast("SiteKeyring", TroubledKeyring(super().keyring(keys), self._trouble))

    def signer(self) -> EvidenceSigner:
        self._trouble("signer")
        return super().signer()

    def scratch_root(self) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def own_keyring(self, keys: KeysSpec) -> SiteKeyring:
        """Without trouble."""
        return super().keyring(keys)

    def own_signer(self) -> EvidenceSigner:
        return super().signer()


class TroubledStore:
    """Implements `controlplane.domain.store.Store`. `trouble` is asked before each transaction and after its end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.trouble: Trouble = no_trouble

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        self.trouble("begin")
        async with self._store.transaction() as tx:
            yield tx
        self.trouble("committed")

    async def close(self) -> None:
        await self._store.close()


class LaterClock:
    """The system's, as if it were another moment: what was written earlier looks as old as a test wants."""

    def __init__(self, begins: datetime) -> None:
        self._begins, self._from_s = begins, time.monotonic()

    def now(self) -> datetime:
        return self._begins + timedelta(seconds=time.monotonic() - self._from_s)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(duration.total_seconds())


class RecoveryLab:
    def __init__(
        self,
        folder: Path,
        dataset: DatasetSpec,
        *,
        objects: MemoryBucket | None = None,
        clock: Clock | None = None,
        keys: KeysSpec | None = None,
        break_glass: Path | None = None,
        url: str = "",
        key_trouble: Trouble = no_trouble,
        seed: int = 0,
    ) -> None:
        """`folder`: state and keys of the site. `clock`: of the loops and of the sources."""
        self.folder = folder
        self.dataset = dataset
        self.bucket = BucketSpec(name=BUCKET, bucket="main")
        self.fake_clock = FakeClock()
        self.clock: Clock = clock or self.fake_clock
        self.objects = objects or MemoryBucket(clock=self.fake_clock)
        self.keys = keys or KeysSpec()
        self.rows = MemoryStore()
        self.store = TroubledStore(self.rows)
        self.ids = UuidIds()
        self.troubles: list[str] = []
        """What ticks raised: the driver logs it, and calls again."""

        def secret(_ref: "SecretRef") -> str:
            return url

        place = VaultPlace(
            state_dir=folder, site_mark=folder.name, secret=secret, now=self.clock.now, break_glass=break_glass
        )
        self.vault = LabVault(place, self.objects, key_trouble)
        self.workshop = ThreadWorkshop(self.vault, clock=self.clock, declared=self.declared)
        store, workshop, clock, hints = self.store, self.workshop, self.clock, NoHints()
        self._surveyor = Surveyor(store=store, workshop=workshop, clock=clock, hints=hints, declared=self.declared)
        self._backups = Backups(
            store=store,
            workshop=workshop,
            clock=clock,
            ids=self.ids,
            hints=hints,
            declared=self.declared,
            lost_after=timedelta(0),
        )
        self._drills = Drills(
            store=store,
            workshop=workshop,
            clock=clock,
            rng=SeededRng(seed),
            ids=self.ids,
            declared=self.declared,
            lost_after=timedelta(0),
        )

    @property
    def source(self) -> Path:
        assert self.dataset.path is not None
        return Path(self.dataset.path)

    def elsewhere(
        self, folder: Path, *, keys: KeysSpec | None = None, break_glass: Path | None = None
    ) -> "RecoveryLab":
        """Another control plane on the same bucket; in another folder it has a site key of its own."""
        return RecoveryLab(
            folder,
            self.dataset,
            objects=self.objects,
            clock=self.clock,
            keys=keys or self.keys,
            break_glass=break_glass,
        )

    def declared(self) -> RecoverySpec:
        return RecoverySpec(buckets=(self.bucket,), datasets=(self.dataset,), keys=self.keys)

    # -- the loops
    async def look(self) -> Inventory | None:
        """What the surveyor sees, by its row; None when it has not got as far."""
        await self._turn(self._surveyor)
        async with self.rows.transaction() as tx:
            return next(iter(await tx.inventories()), None)

    async def verdict(self) -> RpoVerdict:
        return judge_inventory(self.dataset, await self.look(), self.clock.now())

    async def back_up(self) -> BackupRun:
        """As a person asks for it, to its end."""
        now = self.clock.now()
        run = BackupRun(
            run=self.ids.new_id(),
            dataset=NAME,
            cause=BackupCause.PERSON,
            phase=BackupPhase.PENDING,
            phase_since=now,
            asked_at=now,
            asked_by="the test",
        )
        async with self.rows.transaction() as tx:
            await tx.put_backup_run(run)

        async def row() -> BackupRun:
            async with self.rows.transaction() as tx:
                return next(one for one in await tx.backup_runs() if one.run == run.run)

        await self._to_the_end(self._backups, row, lambda one: one.ended, lambda one: one.phase is BackupPhase.PENDING)
        return await row()

    async def drill(
        self,
        *,
        point: PointId | None = None,
        key: KeyPurpose = KeyPurpose.SITE,
        selection: DrillSelection = DrillSelection.LATEST,
        to_time: datetime | None = None,
    ) -> Drill:
        """As a person asks for it, to its end: evidence written, nothing left on the disk."""
        now = self.clock.now()
        drill = Drill(
            drill=self.ids.new_id(),
            name="by hand",
            dataset=NAME,
            selection=selection,
            key=key,
            bucket=BUCKET,
            phase=DrillPhase.PENDING,
            phase_since=now,
            asked_at=now,
            asked_by="the test",
            point=point,
            named=point is not None,
            to_time=to_time,
        )
        async with self.rows.transaction() as tx:
            await tx.put_drill(drill)

        async def row() -> Drill:
            async with self.rows.transaction() as tx:
                return next(one for one in await tx.drills() if one.drill == drill.drill)

        await self._to_the_end(self._drills, row, lambda one: one.ended, lambda one: one.phase is DrillPhase.PENDING)
        ended = await row()
        assert not list(self.vault.scratch_root().iterdir()), "a drill leaves nothing in the scratch folder"
        self._must_have_evidence(ended)
        return ended

    def _must_have_evidence(self, drill: Drill) -> None:
        """Of this very drill, and saying the same; or the drill failed, and says that there is none."""
        key = evidence_key(drill.drill)
        if drill.evidence_key is None:
            assert key not in self.objects.listed()
            assert "its evidence could not be written" in drill.failure
            return
        bundle = self.objects.peek(key)
        assert drill.evidence_key == key
        assert not verify_bundle(bundle, self.vault.own_signer().public_key)
        content = json.loads(bundle)["content"]
        assert content["drill"]["id"] == drill.drill
        assert content["verdict"]["passed"] is (drill.phase is DrillPhase.PASSED)
        assert content["restored"]["point"] == drill.point

    async def _to_the_end[Row](
        self,
        loop: Reconciler,
        read: Callable[[], Awaitable[Row]],
        ended: Callable[[Row], bool],
        waits: Callable[[Row], bool],
    ) -> None:
        until = time.monotonic() + DEADLINE_S
        while not ended(row := await read()):
            assert time.monotonic() < until, f"not within {DEADLINE_S:g} s: {row}; {self.troubles}"
            if not await self._turn(loop):
                if waits(row):
                    await self._turn(self._surveyor)
                await asyncio.sleep(_POLL_S)

    async def _turn(self, loop: Reconciler) -> bool:
        """One tick under a claim; whether it changed something."""
        try:
            return (await loop.tick(NAME, await self._claim(loop))).changed
        except QuarterdeckError as error:
            self.troubles.append(str(error))
            return False

    async def _claim(self, loop: Reconciler) -> Claim:
        now = self.clock.now()
        async with self.rows.transaction() as tx:
            claim = await tx.claim(
                f"{loop.name}/{NAME}",
                token=ClaimToken(self.ids.new_id()),
                holder=InstanceId("lab"),
                now=now,
                expires_at=now + DAY,
            )
        assert claim is not None, "nobody else claims"
        return claim

    # -- copies by hand
    def copy(self, snapshot: Snapshot | None = None) -> Manifest:
        """In small chunks and packs, so that there is something to swap. `snapshot`: instead of the dataset's own."""
        now = self.clock.now()
        point = point_id(now, self.ids.new_id())
        writer = ArchiveWriter(
            self.objects,
            self.vault.own_keyring(self.keys),
            dataset=NAME,
            kind=self.dataset.kind,
            point=point,
            storage_class=StorageClass.STANDARD,
            lock=None,
            watch=SilentWatch(),
            chunk_bytes=CHUNK,
            pack_bytes=PACK,
        )
        facts = snapshot(writer) if snapshot is not None else self._snapshot(writer)
        return writer.commit(facts, started_at=now, finished_at=self.clock.now(), parent=None)

    def _snapshot(self, sink: SnapshotSink) -> SnapshotFacts:
        return self.vault.adapter(self.dataset).snapshot(sink, parent=None, watch=SilentWatch())

    def data_key(self, manifest: Manifest) -> bytes:
        context = key_context(manifest.dataset, manifest.point)
        return self.vault.own_keyring(self.keys).open(manifest.keys, context)[0]

    def forge(self, manifest: Manifest) -> None:
        """Write it as one who holds the keys would: whatever it says now, its MAC is right."""
        true = replace(manifest, mac=mac_of(manifest, self.data_key(manifest)))
        self.objects.change(manifest_key(NAME, manifest.point), encode_manifest(true))

    # -- the truth, found without the loops
    def manifests(self) -> Iterator[Manifest]:
        """Of every copy in the bucket, the oldest first."""
        for key in self.objects.listed():
            if key.endswith("/manifest.json"):
                yield decode_manifest(key, self.objects.get(key))

    def is_whole(self, point: PointId) -> bool:
        found = verify_archive(
            self.objects, self.vault.own_keyring(self.keys), manifest_key(NAME, point), watch=SilentWatch()
        )
        return not found.problems

    def read(self, point: PointId, stream: str) -> bytes:
        archive = open_archive(
            self.objects, self.vault.own_keyring(self.keys), manifest_key(NAME, point), watch=SilentWatch()
        )
        return b"".join(archive.read(stream))

    async def sweep(self) -> None:
        await self.workshop.sweep(self.dataset, writing=frozenset())

    def strays(self) -> list[str]:
        """Objects, of any version, that no copy and no evidence explains."""
        explained = {(pack.key, pack.version) for one in self.manifests() for row in one.streams for pack in row.packs}
        return [
            f"{info.key} {info.version}"
            for info in self.objects.versions(f"{NAME}/")
            if not info.key.endswith("/manifest.json") and (info.key, info.version) not in explained
        ]

    def orphans(self) -> list[str]:
        return [info.key for info in inventory(self.objects, NAME, keyring=None).orphans]


def must_fail(drill: Drill, says: str) -> None:
    assert drill.phase is DrillPhase.FAILED, f"a drill of something damaged passed: {drill.sentence}"
    assert re.search(says, drill.failure), f"the drill says: {drill.failure}"
    assert drill.sentence


def forged_snapshot(lab: RecoveryLab, change: Callable[[dict[str, bytes]], None]) -> Snapshot:
    """The dataset's own copy with other bytes behind its facts: what a tool that lies leaves, or rot before sealing."""
    taken = MemorySink(dataset=NAME, kind=lab.dataset.kind)
    facts = lab.vault.adapter(lab.dataset).snapshot(taken, parent=None, watch=SilentWatch())
    change(taken.streams)

    def write(sink: SnapshotSink) -> SnapshotFacts:
        for name, body in taken.streams.items():
            with sink.stream(name) as writer:
                writer.write(body)
        return facts

    return write
