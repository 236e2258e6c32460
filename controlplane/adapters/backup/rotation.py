"""A new site key for old copies: the wrapped keys in manifests are replaced, the data are not touched."""

from dataclasses import dataclass, replace

from controlplane.adapters.backup.keyring import SiteKeyring, wrapping_problems
from controlplane.adapters.backup.manifests import check_mac, decode_manifest, encode_manifest, key_context
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
    return Rotation(rewritten=tuple(rewritten), already=tuple(already), problems=tuple(problems))


def _rewrapped(manifest: Manifest, old: Keyring, new: SiteKeyring) -> Manifest | None:
    """None when it needs no change."""
    context = key_context(manifest.dataset, manifest.point)
    kept = [key for key in manifest.keys if _stays(key, new, context)]
    missing = set(new.holders) - {key.key_id for key in kept}
    if not missing and len(kept) == len(manifest.keys):
        return None
    data_key, _ = old.open(manifest.keys, context)
    check_mac(manifest, data_key)
    fresh = [key for key in new.wrap(data_key, context) if key.key_id in missing]
    keys = sorted((*kept, *fresh), key=lambda key: key.purpose is not KeyPurpose.SITE)
    return replace(manifest, keys=tuple(keys))


def _stays(key: WrappedKey, new: SiteKeyring, context: str) -> bool:
    if key.key_id not in new.holders:
        return not any(holder.startswith(f"{key.purpose}:") for holder in new.holders)
    return not wrapping_problems([key], context)
