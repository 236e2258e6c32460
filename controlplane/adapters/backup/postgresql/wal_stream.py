"""The log, from the server straight into the bucket: no local copy, and nothing is acknowledged before it is durable.

With the stream's name in `synchronous_standby_names`, PostgreSQL itself waits for the bucket before it acknowledges a
commit. Without, commits are acknowledged at once, and what is younger than about a quarter of a second may be lost.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import psycopg

from controlplane.adapters.backup.postgresql.lsn import Position
from controlplane.adapters.backup.postgresql.replication import (
    Replication,
    ServerFacts,
    TimelineEndedError,
    WalRemovedError,
)
from controlplane.adapters.backup.postgresql.wal_coverage import read_listing
from controlplane.adapters.backup.postgresql.wal_keys import Epoch, EpochKeys, new_epoch
from controlplane.adapters.backup.postgresql.wal_layout import WalRange
from controlplane.adapters.backup.postgresql.wal_pieces import (
    CHUNK_BYTES,
    LINGER_S,
    LINGER_SYNCHRONOUS_S,
    WalCutter,
)
from controlplane.adapters.backup.postgresql.wal_pump import Clock, WalPump
from controlplane.adapters.backup.postgresql.wal_resume import Resume, resume_after_loss, resume_at
from controlplane.adapters.backup.postgresql.wal_upload import WalUploader
from controlplane.kernel.errors import QuarterdeckError, RetryableError, TerminalError
from controlplane.recovery.ports import Keyring, Lock, ObjectInfo, ObjectStore

HEADS_PER_RPO: Final = 60
"""An idle log is vouched for so often within its RPO, so the gauge's own staleness is a small share of it."""
HEAD_S_MIN: Final = 0.7
"""With the questions of the pump in between, the gauge of an idle dataset is less than a second behind the truth."""
HEAD_S_MAX: Final = 60.0
STOP_S: Final = 10.0
"""For a store that answers slowly; what it has not taken by then is received again by the next stream."""
EPOCH: Final = timedelta(days=1)
"""A key is used for so long at most."""
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BACKOFF_TERMINAL_S: Final = 30.0
"""A person has to change something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalStatus:
    """For people and metrics; what counts for the RPO is read from the bucket (`wal_coverage`)."""

    state: str
    """`connecting`, `catching up`, `streaming`, `waiting` (to try again), `stopped`."""
    sentence: str = ""
    timeline: int = 0
    received: int = 0
    durable: int = 0
    server_end: int = 0
    covered_at: datetime | None = None
    pending_bytes: int = 0
    objects: int = 0
    stored_bytes: int = 0
    """Since this stream began."""
    gaps: tuple[str, ...] = ()
    reconnects: int = 0


def slot_name(dataset: str) -> str:
    """Of the replication slot, and the `application_name` for `synchronous_standby_names`."""
    return "quarterdeck_" + dataset.replace("-", "_")


class WalStream:
    """`run` blocks until told to stop; `status` may be asked from any thread."""

    def __init__(
        self,
        *,
        url: str,
        dataset: str,
        store: ObjectStore,
        keyring: Keyring,
        clock: Clock,
        rpo: timedelta,
        synchronous: bool = False,
        linger_s: float | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        stop_s: float = STOP_S,
        lock_until: Callable[[], Lock | None] = lambda: None,
        wrote: Callable[[ObjectInfo], None] = lambda _info: None,
    ) -> None:
        """`synchronous`: commits wait for the bucket, so pieces are cut at once. The server's settings are not touched.

        `stop_s`: for what is on its way when told to stop. `lock_until`: of each whole segment, None for no lock.
        `wrote`: told of every part of the log that is durable, from several threads; it must not wait.
        """
        self._url = url
        self._dataset = dataset
        self._store = store
        self._keyring = keyring
        self._clock = clock
        self._linger_s = linger_s if linger_s is not None else LINGER_SYNCHRONOUS_S if synchronous else LINGER_S
        self._eager = synchronous
        self._chunk_bytes = chunk_bytes
        self._stop_s = stop_s
        self._lock_until = lock_until
        self._wrote = wrote
        self._head_s = min(max(rpo.total_seconds() / HEADS_PER_RPO, HEAD_S_MIN), HEAD_S_MAX)
        self._status = WalStatus(state="connecting")
        self._durable: Position | None = None
        self._looked = False
        self._tail: list[WalRange] = []
        self._epoch: Epoch | None = None
        self._histories: set[int] = set()
        self._lost = False

    def status(self) -> WalStatus:
        return self._status

    def run(self, stop: threading.Event) -> None:
        """Connects again after everything that goes wrong; what, is in the status."""
        failures = 0
        while not stop.is_set():
            try:
                self._follow(stop)
                failures = 0
                continue
            except TimelineEndedError:
                stop.wait(_BACKOFF_S[0])
                continue
            except WalRemovedError as error:
                self._lost = True
                sentence, pause_s = _line(error), _BACKOFF_S[0]
            except TerminalError as error:
                sentence, pause_s = _line(error), _BACKOFF_TERMINAL_S
            except (psycopg.Error, QuarterdeckError) as error:
                sentence, pause_s = _line(error), _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            failures = 0 if self._status.state in {"streaming", "catching up"} else failures + 1
            self._tell(state="waiting", sentence=sentence, reconnects=self._status.reconnects + 1)
            stop.wait(pause_s)
        self._tell(state="stopped", sentence="")

    def _follow(self, stop: threading.Event) -> None:
        """One connection: returns when told to stop or at the end of a timeline."""
        with Replication(self._url, application_name=slot_name(self._dataset)) as server:
            if server.is_standby:
                raise TerminalError("found a standby, expected the primary: point the dataset's url at the primary")
            facts = server.facts()
            self._look(facts)
            resume = self._resume(server, facts)
            with WalUploader(
                self._store,
                self._dataset,
                segment_bytes=facts.segment_bytes,
                lock_until=self._lock_until,
                wrote=self._wrote,
            ) as uploader:
                self._prepare(server, facts, uploader)
                server.start_wal(slot_name(self._dataset), Position(resume.timeline, resume.begin))
                self._pump(server, uploader, resume, facts, stop)

    def _look(self, facts: ServerFacts) -> None:
        """Once, what the bucket has; from then on we know what we put there."""
        if self._looked:
            return
        listing = read_listing(self._store, self._dataset)
        if listing.ranges:
            newest = max(listing.ranges, key=lambda found: (found.timeline, found.end))
            self._refuse_foreign(newest, facts)
            self._durable = Position(newest.timeline, newest.end)
            self._tail = [
                found
                for found in listing.ranges
                if found.segment == newest.segment and found.end - found.start < facts.segment_bytes
            ]
        self._looked = True

    def _refuse_foreign(self, newest: WalRange, facts: ServerFacts) -> None:
        owner = EpochKeys(self._store, self._keyring, self._dataset).file(newest.epoch)
        if owner.system_id != facts.system_id:
            raise TerminalError(
                f"the bucket has the log of system {owner.system_id} as dataset {self._dataset}, the server is system "
                f"{facts.system_id}: another cluster needs another dataset name"
            )

    def _resume(self, server: Replication, facts: ServerFacts) -> Resume:
        name = slot_name(self._dataset)
        server.create_slot(name)
        kept = server.slot(name)
        if kept is None:
            # The server gave it up (max_slot_wal_keep_size): it keeps nothing any more.
            server.drop_slot(name)
            server.create_slot(name)
            kept = server.slot(name)
        if kept is None:
            raise RetryableError(f"the replication slot {name} keeps no position yet")
        if self._lost:
            found, self._lost = resume_after_loss(self._durable, kept, facts), False
        else:
            _, switches = server.history(facts.timeline) if facts.timeline > 1 else ("", ())
            found = resume_at(self._durable, kept, facts, switches)
        if found.gap:
            self._tell(gaps=(*self._status.gaps, found.gap))
        return found

    def _prepare(self, server: Replication, facts: ServerFacts, uploader: WalUploader) -> None:
        """The key of this epoch, and the history that leads to this timeline, are durable before any log is."""
        now = self._clock.now()
        if self._epoch is None or now - self._epoch.began_at > EPOCH:
            self._epoch = new_epoch(
                self._store,
                self._keyring,
                self._dataset,
                system_id=facts.system_id,
                segment_bytes=facts.segment_bytes,
                now=now,
            )
        uploader.use(self._epoch)
        uploader.know(self._tail)
        self._tail = []
        for timeline in range(2, facts.timeline + 1):
            if timeline not in self._histories:
                text, _ = server.history(timeline)
                uploader.send_history(timeline, text)
                self._histories.add(timeline)

    def _pump(
        self,
        server: Replication,
        uploader: WalUploader,
        resume: Resume,
        facts: ServerFacts,
        stop: threading.Event,
    ) -> None:
        cutter = WalCutter(
            timeline=resume.timeline,
            begin=resume.begin,
            durable=resume.durable,
            segment_bytes=facts.segment_bytes,
            chunk_bytes=self._chunk_bytes,
            linger_s=self._linger_s,
            live=resume.live,
        )
        pump = WalPump(
            server,
            uploader,
            cutter,
            self._clock,
            head_s=self._head_s,
            eager=self._eager,
            stop_s=self._stop_s,
            tell=self._tell,
        )
        try:
            pump.run(stop, until=self._clock.now() + EPOCH)
        finally:
            # The server may be gone for good: what was received from it may exist nowhere else.
            pump.settle(stop)
            if pump.ledger.durable > resume.begin:
                self._durable = Position(resume.timeline, max(pump.ledger.durable, resume.durable))

    def _tell(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type] # fields of the dataclass, by name


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
