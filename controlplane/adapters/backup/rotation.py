"""A new site key for old copies: the wrapped keys in manifests are replaced, the data are not touched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from controlplane.adapters.backup.keyring import SiteKeyring, wrapping_problems
from controlplane.adapters.backup.manifests import check_mac, decode_manifest, encode_manifest, key_context
from controlplane.adapters.backup.postgresql.wal_layout import EpochFile, decode, encode, wal_prefix
from controlplane.adapters.backup.postgresql.wal_layout import key_context as wal_context
from controlplane.domain.dataset import KeyPurpose
from controlplane.kernel.errors import DeniedError, TerminalError
from controlplane.kernel.ids import DatasetName, PointId
from controlplane.recovery.manifest import Manifest, WrappedKey
from controlplane.recovery.ports import Keyring, ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    rewritten: tuple[PointId, ...]
    already: tuple[PointId, ...]
    """Wrapped for the new holders before."""
    problems: tuple[str, ...]
    """Manifests that were left alone, and why."""
    logs: int = 0
    """Keys of the continuous log that were rewritten."""


def rewrap(store: ObjectStore, dataset: DatasetName, old: Keyring, new: SiteKeyring) -> Rotation:
    """Every manifest of the dataset. Interrupted anywhere, the next call does what is left.

    `old` opens what there is (retired keys included). Break-glass copies stay as they are where the new keyring has no
    other break-glass key: a way in is never lost on the way. A locked manifest gets a new version with the same lock;
    the version below keeps the old key until its lock ends. RetryableError when the store fails.
    """
    rewritten: list[PointId] = []
    already: list[PointId] = []
    problems: list[str] = []
    for info in store.objects(f"{dataset}/points/"):
        if not info.key.endswith("/manifest.json"):
            continue
        try:
            manifest = decode_manifest(info.key, store.get(info.key))
            changed = _rewrapped(manifest, old, new)
        except (TerminalError, DeniedError) as error:
            problems.append(str(error))
            continue
        if changed is None:
            already.append(manifest.point)
            continue
        store.put(info.key, encode_manifest(changed), lock=store.head(info.key).lock)
        rewritten.append(manifest.point)
    logs = 0
    for info in store.objects(f"{wal_prefix(dataset)}keys/"):
        try:
            logs += _rewrap_log(store, dataset, info.key, old, new)
        except (TerminalError, DeniedError) as error:
            problems.append(str(error))
    return Rotation(rewritten=tuple(rewritten), already=tuple(already), problems=tuple(problems), logs=logs)


def _rewrap_log(store: ObjectStore, dataset: DatasetName, key: str, old: Keyring, new: SiteKeyring) -> bool:
    """Whether it had to be."""
    file = decode(EpochFile, key, store.get(key))
    keys = _fresh_keys(file.keys, wal_context(dataset, file.epoch), old, new, lambda _: None)
    if keys is None:
        return False
    store.put(key, encode(file.model_copy(update={"keys": keys})), lock=store.head(key).lock)
    return True


def _rewrapped(manifest: Manifest, old: Keyring, new: SiteKeyring) -> Manifest | None:
    """None when it needs no change."""
    context = key_context(manifest.dataset, manifest.point)
    keys = _fresh_keys(manifest.keys, context, old, new, lambda data_key: check_mac(manifest, data_key))
    return None if keys is None else replace(manifest, keys=keys)


def _fresh_keys(
    keys: Sequence[WrappedKey], context: str, old: Keyring, new: SiteKeyring, check: Callable[[bytes], None]
) -> tuple[WrappedKey, ...] | None:
    """`check`: that what the key belongs to is genuine, before anybody else is let in. None: nothing to change."""
    kept = [key for key in keys if _stays(key, new, context)]
    missing = set(new.holders) - {key.key_id for key in kept}
    if not missing and len(kept) == len(keys):
        return None
    data_key, _ = old.open(keys, context)
    check(data_key)
    fresh = [key for key in new.wrap(data_key, context) if key.key_id in missing]
    return tuple(sorted((*kept, *fresh), key=lambda key: key.purpose is not KeyPurpose.SITE))


def _stays(key: WrappedKey, new: SiteKeyring, context: str) -> bool:
    if key.key_id not in new.holders:
        return not any(holder.startswith(f"{key.purpose}:") for holder in new.holders)
    return not wrapping_problems([key], context)
