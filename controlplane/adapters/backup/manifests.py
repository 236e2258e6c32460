"""Manifests as files: one way to write each, so a byte that differs is a byte that was changed."""

import hmac
from datetime import UTC, datetime
from typing import Final

import orjson
from pydantic import TypeAdapter, ValidationError

from controlplane.adapters.backup.sealing import derived_key
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.ids import PointId
from controlplane.recovery.manifest import FORMAT, Manifest
from controlplane.recovery.ports import manifest_key

_ADAPTER: Final = TypeAdapter(Manifest)
_UNDER_NO_MAC: Final = {"keys", "mac"}
_FILE: Final = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE


def key_context(dataset: str, point: PointId) -> str:
    """What the data key of a recovery point is wrapped for."""
    return f"{dataset}/points/{point}"


def point_prefix(dataset: str, point: PointId) -> str:
    """Of the keys of everything that belongs to a recovery point."""
    return f"{dataset}/points/{point}/"


def encode_manifest(manifest: Manifest) -> bytes:
    return orjson.dumps(_ADAPTER.dump_python(manifest, mode="json"), option=_FILE)


def decode_manifest(key: str, data: bytes) -> Manifest:
    """TerminalError, naming the key, unless it is a manifest exactly as we write it, of the point that the key names.

    Whether its contents are genuine, only `check_mac` tells.
    """
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise TerminalError(f"{key}: is no JSON ({error}), expected a manifest; use another copy") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise TerminalError(f"{key}: found format {version}, this program reads up to {FORMAT}: use a newer one")
    try:
        manifest = _ADAPTER.validate_python(raw, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TerminalError(f"{key}: no manifest: {place}: {first['msg']}; use another copy") from error
    if encode_manifest(manifest) != data or not all(moment.tzinfo for moment in _moments(manifest)):
        raise TerminalError(f"{key}: is not written as manifests are: it was changed by hand; use another copy")
    if key != (expected := manifest_key(manifest.dataset, manifest.point)):
        raise TerminalError(f"{key}: is the manifest of another recovery point, {expected}; use another copy")
    return manifest


def mac_of(manifest: Manifest, data_key: bytes) -> str:
    fields = _ADAPTER.dump_python(manifest, mode="json", exclude=_UNDER_NO_MAC)
    return hmac.digest(
        derived_key(data_key, "manifest"), orjson.dumps(fields, option=orjson.OPT_SORT_KEYS), "sha256"
    ).hex()


def check_mac(manifest: Manifest, data_key: bytes) -> None:
    """TerminalError when a field is not what was written under this data key."""
    if not hmac.compare_digest(manifest.mac, mac_of(manifest, data_key)):
        key = manifest_key(manifest.dataset, manifest.point)
        raise TerminalError(f"{key}: its fields are not those that were written (MAC); use another copy")


def utc(moment: datetime) -> datetime:
    assert moment.tzinfo is not None, "times are aware"
    return moment.astimezone(UTC)


def _moments(manifest: Manifest) -> tuple[datetime, ...]:
    return manifest.started_at, manifest.consistent_at, manifest.finished_at
