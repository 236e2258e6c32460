"""Lifecycle rules as S3 writes them."""

from typing import Any

from controlplane.domain.dataset import StorageClass
from controlplane.recovery.bucket import LifecycleRule, Transition


def to_wire(rule: LifecycleRule) -> dict[str, Any]:
    wire: dict[str, Any] = {
        "ID": rule.name,
        "Status": "Enabled" if rule.enabled else "Disabled",
        "Filter": _filter(rule),
    }
    if rule.transitions:
        wire["Transitions"] = [{"Days": step.days, "StorageClass": step.storage_class} for step in rule.transitions]
    if rule.expire_days is not None:
        wire["Expiration"] = {"Days": rule.expire_days}
    elif rule.expired_markers:  # S3 does not take both in one rule
        wire["Expiration"] = {"ExpiredObjectDeleteMarker": True}
    if rule.noncurrent_days is not None:
        wire["NoncurrentVersionExpiration"] = {"NoncurrentDays": rule.noncurrent_days}
    if rule.abort_uploads_days is not None:
        wire["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": rule.abort_uploads_days}
    return wire


def from_wire(wire: Any) -> LifecycleRule:
    """What matters here of any rule: conditions that we never write (tags) are left out, so such a rule reads wider."""
    found = wire.get("Filter", {})
    conditions = found.get("And", found)
    expiration = wire.get("Expiration", {})
    return LifecycleRule(
        name=wire.get("ID", ""),
        prefix=conditions.get("Prefix", wire.get("Prefix", "")),
        larger_than_bytes=conditions.get("ObjectSizeGreaterThan"),
        transitions=tuple(
            Transition(days=step["Days"], storage_class=StorageClass(step["StorageClass"]))
            for step in wire.get("Transitions", ())
            if "Days" in step and step["StorageClass"] in set(StorageClass)
        ),
        expire_days=expiration.get("Days"),
        noncurrent_days=wire.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays"),
        expired_markers=expiration.get("ExpiredObjectDeleteMarker", False),
        abort_uploads_days=wire.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation"),
        enabled=wire.get("Status") == "Enabled",
    )


def _filter(rule: LifecycleRule) -> dict[str, Any]:
    if rule.larger_than_bytes is None:
        return {"Prefix": rule.prefix}
    return {"And": {"Prefix": rule.prefix, "ObjectSizeGreaterThan": rule.larger_than_bytes}}
