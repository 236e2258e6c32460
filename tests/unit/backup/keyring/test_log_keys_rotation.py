"""A new site key opens the log too."""

from datetime import UTC, datetime

from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.postgresql.wal_layout import (
    EpochFile,
    decode,
    encode,
    epoch_key,
    key_context,
)
from controlplane.adapters.backup.rotation import rewrap
from controlplane.kernel.ids import DatasetName
from controlplane.testing.effects import FakeClock
from controlplane.testing.s3 import FakeS3

ORDERS = DatasetName("orders")


def test_keys_of_the_log_are_rewrapped_once() -> None:
    store, old = FakeS3(FakeClock()), SiteKeyring(b"o" * 32)
    data_key, wrapped = old.new_data_key(key_context(ORDERS, "e1"))
    file = EpochFile(
        epoch="e1", system_id="7", segment_bytes=2**24, began_at=datetime(2026, 5, 1, tzinfo=UTC), keys=wrapped
    )
    key = epoch_key(ORDERS, "e1")
    store.put(key, encode(file))
    new = SiteKeyring(b"n" * 32, [b"o" * 32])
    assert rewrap(store, ORDERS, new, new).logs == 1
    after = decode(EpochFile, key, store.get(key))
    assert SiteKeyring(b"n" * 32).open(after.keys, key_context(ORDERS, "e1"))[0] == data_key
    assert after.model_copy(update={"keys": file.keys}) == file
    assert rewrap(store, ORDERS, new, new).logs == 0
