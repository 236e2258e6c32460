"""The log of the first bucket, to be carried on: nothing of it is given that was not opened under its key first.

That proves the bytes and the place that they belong to, and that a restore will be able to open them.
"""

from collections.abc import Iterator
from contextlib import suppress

from controlplane.adapters.backup.postgresql.wal_coverage import ranges_in, read_head
from controlplane.adapters.backup.postgresql.wal_keys import EpochKeys, epochs_in
from controlplane.adapters.backup.postgresql.wal_layout import (
    EpochFile,
    HeadFile,
    HistoryObject,
    WalRange,
    decode,
    epoch_key,
    history_prefix,
    key_context,
    parse_history_key,
    segment_prefix,
    wal_prefix,
)
from controlplane.adapters.backup.sealing import unseal
from controlplane.kernel.errors import NotFoundError, TerminalError
from controlplane.recovery.ports import Keyring, ObjectStore


class ProvenLog:
    """Safe for threads. TerminalError or DeniedError, naming the object, for what cannot be proven."""

    def __init__(self, store: ObjectStore, keyring: Keyring, dataset: str) -> None:
        self.store = store
        self._keyring = keyring
        self._dataset = dataset
        self.keys = EpochKeys(store, keyring, dataset)

    # -- what there is
    def ranges(self) -> Iterator[WalRange]:
        return ranges_in(self.store.objects(wal_prefix(self._dataset)))

    def segment(self, segment: str) -> list[WalRange]:
        return list(ranges_in(self.store.objects(segment_prefix(self._dataset, segment))))

    def histories(self) -> Iterator[HistoryObject]:
        for info in self.store.objects(history_prefix(self._dataset)):
            history = parse_history_key(info.key)
            if history is not None:
                yield history

    def epochs(self) -> Iterator[str]:
        return epochs_in(self.store, self._dataset)

    def system(self) -> str | None:
        """The PostgreSQL cluster that wrote it last; None: there is no log, or what says so was changed."""
        newest = max(self.epochs(), default=None)
        with suppress(TerminalError, NotFoundError):
            return None if newest is None else self.keys.file(newest).system_id
        return None

    # -- what it says
    def body(self, found: WalRange) -> bytes:
        """As stored. NotFoundError when it is gone: something longer may have replaced it."""
        key = self._key(found.epoch)
        body = self.store.get(found.key, version=found.version)
        length = len(unseal(key, found.key, body))
        if length != found.end - found.start:
            raise TerminalError(f"{found.key}: found {length} bytes, expected {found.end - found.start}")
        return body

    def is_whole(self, found: WalRange) -> bool:
        """All of its segment."""
        return found.end - found.start == self.keys.file(found.epoch).segment_bytes

    def history(self, history: HistoryObject) -> bytes:
        """As stored."""
        body = self.store.get(history.key)
        unseal(self._key(history.epoch), history.key, body)
        return body

    def wrapped_key(self, epoch: str) -> bytes:
        """Its file, as it is now."""
        key = epoch_key(self._dataset, epoch)
        body = self.store.get(key)
        self._keyring.open(decode(EpochFile, key, body).keys, key_context(self._dataset, epoch))
        return body

    def head(self) -> HeadFile | None:
        return read_head(self.store, self._dataset, self.keys)

    def _key(self, epoch: str) -> bytes:
        try:
            return self.keys.key(epoch)
        except NotFoundError as error:
            raise TerminalError(
                f"{epoch_key(self._dataset, epoch)}: the key of this part of the log: {error}"
            ) from error
