"""WAL streams in threads of their own, each as long as somebody asks for it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controlplane.adapters.backup.places import buckets_of, lock_in
from controlplane.adapters.backup.postgresql.wal_stream import WalStream
from controlplane.adapters.backup.vault import Vault
from controlplane.domain.dataset import (
    DatasetSpec,
    RecoverySpec,
    WalMode,
)
from controlplane.kernel.effects import Clock
from controlplane.recovery.locks import lock_until
from controlplane.recovery.workshop import (
    Streaming,
)

_FLOWING: Final = {"streaming": True, "catching up": True, "waiting": False, "stopped": False}
"""Of a stream's states; one that connects is neither yet."""
_END_WAIT_S: Final = 5.0


@dataclass(slots=True)
class _StreamThread:
    stream: WalStream
    stop: threading.Event
    thread: threading.Thread
    until: datetime


class LogStreams:
    """Blocks: for worker threads."""

    def __init__(self, vault: Vault, *, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._vault = vault
        self._clock = clock
        self._declared = declared
        self._streams: dict[str, _StreamThread] = {}

    def stream(self, dataset: DatasetSpec, until: datetime) -> Streaming:
        running = self._streams.get(dataset.name)
        if running is None or not running.thread.is_alive():
            running = self._streams[dataset.name] = self._begin_stream(dataset, until)
        running.until = until
        status = running.stream.status()
        sentence = f"{dataset.name}: the log is {status.state}{f', {status.sentence}' if status.sentence else ''}"
        return Streaming(running=_FLOWING.get(status.state), sentence=sentence)

    def _begin_stream(self, dataset: DatasetSpec, until: datetime) -> _StreamThread:
        bucket = buckets_of(dataset, self._declared())[0]
        if dataset.embedded:
            self._vault.run_postgresql()
            self._vault.postgresql_adapter(dataset).apply_settings(dataset.wal)
        stream = WalStream(
            url=self._vault.postgresql_url(dataset),
            dataset=dataset.name,
            store=self._vault.store(bucket),
            keyring=self._vault.keyring(self._declared().keys),
            clock=self._clock,
            rpo=dataset.rpo,
            synchronous=dataset.wal is WalMode.SYNCHRONOUS,
            lock_until=lambda: lock_in(bucket, lock_until(dataset.retention, self._clock.now())),
        )
        stop = threading.Event()
        thread = threading.Thread(target=stream.run, args=(stop,), name=f"wal-{dataset.name}", daemon=True)
        running = _StreamThread(stream=stream, stop=stop, thread=thread, until=until)
        thread.start()
        return running

    def end_idle(self) -> None:
        """What nobody asks for any more: another instance has it now, or it is no longer declared."""
        now = self._clock.now()
        for name, running in list(self._streams.items()):
            if running.until < now:
                running.stop.set()
                running.thread.join(_END_WAIT_S)
                del self._streams[name]

    def end(self) -> None:
        """They flush what they have."""
        for running in self._streams.values():
            running.stop.set()
        for running in self._streams.values():
            running.thread.join(_END_WAIT_S)
        self._streams.clear()
