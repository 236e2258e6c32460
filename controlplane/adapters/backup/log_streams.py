"""WAL streams in threads of their own, each as long as somebody asks for it; and what carries them to further buckets.

A stream writes into the first bucket. A thread for each further bucket carries on what is durable there: one that is
slow or away holds up neither the stream nor the others.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controlplane.adapters.backup.inventory import inventory, recovery_points
from controlplane.adapters.backup.places import buckets_of, lock_in
from controlplane.adapters.backup.postgresql.wal_follower import FollowerStatus, WalFollower
from controlplane.adapters.backup.postgresql.wal_news import WalNews
from controlplane.adapters.backup.postgresql.wal_stream import WalStream
from controlplane.adapters.backup.postgresql.wal_trim import kept_since
from controlplane.adapters.backup.vault import Vault
from controlplane.domain.dataset import (
    BucketSpec,
    DatasetSpec,
    RecoverySpec,
    WalMode,
)
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import BucketName
from controlplane.recovery.locks import lock_until
from controlplane.recovery.ports import Lock, ObjectInfo, ObjectStore
from controlplane.recovery.retention import log_needed_since, plan_retention
from controlplane.recovery.workshop import (
    Streaming,
)

_FLOWING: Final = {"streaming": True, "catching up": True, "waiting": False, "stopped": False}
"""Of a stream's states; one that connects is neither yet."""
_END_WAIT_S: Final = 5.0


@dataclass(slots=True)
class _Thread[Work]:
    work: Work
    stop: threading.Event
    thread: threading.Thread


@dataclass(slots=True)
class _Running:
    """What runs for one dataset."""

    dataset: DatasetSpec
    buckets: Sequence[BucketSpec]
    stream: _Thread[WalStream]
    news: Mapping[BucketName, WalNews]
    """For each bucket after the first."""
    followers: dict[BucketName, _Thread[WalFollower]]
    until: datetime

    def is_as(self, dataset: DatasetSpec, buckets: Sequence[BucketSpec]) -> bool:
        """It streams, as is declared now."""
        declared = (_as_streamed(self.dataset), self.buckets) == (_as_streamed(dataset), buckets)
        return declared and self.stream.thread.is_alive()


class LogStreams:
    """Blocks: for worker threads."""

    def __init__(self, vault: Vault, *, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._vault = vault
        self._clock = clock
        self._declared = declared
        self._streams: dict[str, _Running] = {}

    def stream(self, dataset: DatasetSpec, until: datetime) -> Streaming:
        running, buckets = self._streams.get(dataset.name), buckets_of(dataset, self._declared())
        if running is None or not running.is_as(dataset, buckets):
            _end_all([] if running is None else [running])
            running = self._streams[dataset.name] = self._begin(dataset, buckets, until)
        running.until = until
        self._follow(running)
        status = running.stream.work.status()
        sentence = f"{dataset.name}: the log is {status.state}{f', {status.sentence}' if status.sentence else ''}"
        further = {name: one.work.status() for name, one in running.followers.items()}
        return Streaming(
            running=_FLOWING.get(status.state),
            sentence=sentence,
            further=_all_flow(list(further.values())),
            further_sentence="; ".join(f"{name} {status.sentence}" for name, status in further.items()),
        )

    def _begin(self, dataset: DatasetSpec, buckets: Sequence[BucketSpec], until: datetime) -> _Running:
        first, *others = buckets
        if dataset.embedded:
            self._vault.run_postgresql()
            self._vault.postgresql_adapter(dataset).apply_settings(dataset.wal)
        news = {other.name: WalNews() for other in others}

        def wrote(info: ObjectInfo) -> None:
            for one in news.values():
                one.wrote(info)

        stream = WalStream(
            url=self._vault.postgresql_url(dataset),
            dataset=dataset.name,
            store=self._vault.store(first),
            keyring=self._vault.keyring(self._declared().keys),
            clock=self._clock,
            rpo=dataset.rpo,
            synchronous=dataset.wal is WalMode.SYNCHRONOUS,
            lock_until=lambda: self._lock(dataset, first),
            wrote=wrote,
        )
        return _Running(
            dataset=dataset,
            buckets=buckets,
            stream=_begun(stream, stream.run, f"wal-{dataset.name}"),
            news=news,
            followers={},
            until=until,
        )

    def _follow(self, running: _Running) -> None:
        """Those that are not there, or not any more, begin: what ends one must not end the stream."""
        first, *others = running.buckets
        for other in others:
            there = running.followers.get(other.name)
            if there is None or not there.thread.is_alive():
                made = self._follower(running.dataset, first, other, running.news[other.name])
                name = f"wal-{running.dataset.name}-{other.name}"
                running.followers[other.name] = _begun(made, made.run, name)

    def _follower(self, dataset: DatasetSpec, first: BucketSpec, other: BucketSpec, news: WalNews) -> WalFollower:
        def source() -> ObjectStore:
            return self._vault.store(first)

        def target() -> ObjectStore:
            return self._vault.store(other)

        return WalFollower(
            dataset=dataset.name,
            source=source,
            target=target,
            keyring=self._vault.keyring(self._declared().keys),
            clock=self._clock,
            news=news,
            lock_until=lambda: self._lock(dataset, other),
            kept_since=lambda: self._kept_since(dataset, other),
        )

    def _lock(self, dataset: DatasetSpec, bucket: BucketSpec) -> Lock | None:
        return lock_in(bucket, lock_until(dataset.retention, self._clock.now()))

    def _kept_since(self, dataset: DatasetSpec, bucket: BucketSpec) -> str | None:
        """As retention judges it: what it has deleted there does not come back."""
        found = inventory(self._vault.store(bucket), dataset.name, keyring=self._vault.keyring(self._declared().keys))
        plan = plan_retention(
            recovery_points(found, bucket.name),
            dataset.retention,
            self._clock.now(),
            unread=tuple(why for _, why in found.unreadable),
        )
        since = log_needed_since(plan, dataset.retention)
        return None if since is None else kept_since([seen.seen.manifest for seen in found.points], since=since)

    def end_idle(self) -> None:
        """What nobody asks for any more: another instance has it now, or it is no longer declared."""
        now = self._clock.now()
        for name, running in list(self._streams.items()):
            if running.until < now:
                _end_all([running])
                del self._streams[name]

    def end(self) -> None:
        """They flush what they have."""
        _end_all(list(self._streams.values()))
        self._streams.clear()


def _as_streamed(dataset: DatasetSpec) -> tuple[object, ...]:
    """What of its declaration a stream goes by."""
    return dataset.url, dataset.embedded, dataset.wal, dataset.rpo, dataset.retention


def _begun[Work](work: Work, run: Callable[[threading.Event], None], name: str) -> _Thread[Work]:
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,), name=name, daemon=True)
    thread.start()
    return _Thread(work=work, stop=stop, thread=thread)


def _end_all(running: Sequence[_Running]) -> None:
    """Streams first: their last words follow into the further buckets."""
    _end([one.stream for one in running])
    _end([follower for one in running for follower in one.followers.values()])


def _end[Work](threads: Sequence[_Thread[Work]]) -> None:
    for one in threads:
        one.stop.set()
    for one in threads:
        one.thread.join(_END_WAIT_S)


def _all_flow(followers: Sequence[FollowerStatus]) -> bool | None:
    """None: there is none, or one has only just begun."""
    flows = {one.flows for one in followers}
    if False in flows:
        return False
    return None if None in flows or not flows else True
