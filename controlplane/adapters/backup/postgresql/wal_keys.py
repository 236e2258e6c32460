"""Keys of the log: a fresh one for each epoch (a stream's start, a day), opened again from their wrapped form."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from threading import Lock

from controlplane.adapters.backup.postgresql.wal_layout import (
    EpochFile,
    decode,
    encode,
    epoch_key,
    epoch_prefix,
    key_context,
)
from controlplane.domain.dataset import KeyPurpose
from controlplane.recovery.ports import Keyring, ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    name: str
    data_key: bytes
    began_at: datetime


def new_epoch(
    store: ObjectStore, keyring: Keyring, dataset: str, *, system_id: str, segment_bytes: int, now: datetime
) -> Epoch:
    """Its wrapped key is durable in the bucket before anything is sealed under it."""
    name = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    data_key, wrapped = keyring.new_data_key(key_context(dataset, name))
    file = EpochFile(epoch=name, system_id=system_id, segment_bytes=segment_bytes, began_at=now, keys=wrapped)
    store.put(epoch_key(dataset, name), encode(file), if_absent=True)
    return Epoch(name=name, data_key=data_key, began_at=now)


def epochs_in(store: ObjectStore, dataset: str) -> Iterator[str]:
    """The oldest first: names begin with their time."""
    prefix = epoch_prefix(dataset)
    for info in store.objects(prefix):
        yield info.key.removeprefix(prefix).removesuffix(".json")


class EpochKeys:
    """Opens each epoch's key once. Safe for threads. DeniedError where no key at hand opens it."""

    def __init__(self, store: ObjectStore, keyring: Keyring, dataset: str, *, only: KeyPurpose | None = None) -> None:
        self._store = store
        self._keyring = keyring
        self._dataset = dataset
        self._only = only
        self._files: dict[str, EpochFile] = {}
        self._keys: dict[str, bytes] = {}
        self._lock = Lock()

    def file(self, epoch: str) -> EpochFile:
        with self._lock:
            return self._file(epoch)

    def key(self, epoch: str) -> bytes:
        with self._lock:
            if epoch not in self._keys:
                wrapped = self._file(epoch).keys
                context = key_context(self._dataset, epoch)
                self._keys[epoch], _ = self._keyring.open(wrapped, context, only=self._only)
            return self._keys[epoch]

    def _file(self, epoch: str) -> EpochFile:
        if epoch not in self._files:
            key = epoch_key(self._dataset, epoch)
            self._files[epoch] = decode(EpochFile, key, self._store.get(key))
        return self._files[epoch]
