"""Lifecycle rules to S3's form and back."""

from typing import Any

import pytest

from controlplane.adapters.objectstore.lifecycle import from_wire, to_wire
from controlplane.domain.dataset import StorageClass
from controlplane.recovery.bucket import LifecycleRule, Transition

TIDY = LifecycleRule(
    name="quarterdeck-tidy", prefix="qd/", noncurrent_days=30, expired_markers=True, abort_uploads_days=7
)
CLASSES = LifecycleRule(
    name="quarterdeck-class-db",
    prefix="qd/db/points/",
    larger_than_bytes=1024,
    transitions=(
        Transition(days=30, storage_class=StorageClass.STANDARD_IA),
        Transition(days=90, storage_class=StorageClass.DEEP_ARCHIVE),
    ),
)


@pytest.mark.parametrize("rule", [TIDY, CLASSES, LifecycleRule(name="x", expire_days=3, enabled=False)])
def test_a_rule_survives_the_wire(rule: LifecycleRule) -> None:
    assert from_wire(to_wire(rule)) == rule


def test_the_wire_is_what_s3_reads() -> None:
    assert to_wire(CLASSES) == {
        "ID": "quarterdeck-class-db",
        "Status": "Enabled",
        "Filter": {"And": {"Prefix": "qd/db/points/", "ObjectSizeGreaterThan": 1024}},
        "Transitions": [{"Days": 30, "StorageClass": "STANDARD_IA"}, {"Days": 90, "StorageClass": "DEEP_ARCHIVE"}],
    }
    assert to_wire(TIDY)["Expiration"] == {"ExpiredObjectDeleteMarker": True}


@pytest.mark.parametrize(
    "wire",
    [
        {"ID": "old", "Status": "Enabled", "Prefix": "logs/", "Expiration": {"Days": 9}},
        {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 9}},
        {
            "ID": "old",
            "Status": "Enabled",
            "Filter": {"And": {"Prefix": "logs/", "Tags": [{"Key": "a", "Value": "b"}]}},
            "Expiration": {"Days": 9},
            "Transitions": [{"Date": "2030-01-01", "StorageClass": "GLACIER"}, {"Days": 1, "StorageClass": "NEW"}],
        },
    ],
)
def test_rules_of_others_are_understood_as_far_as_they_matter(wire: dict[str, Any]) -> None:
    assert from_wire(wire) == LifecycleRule(name="old", prefix="logs/", expire_days=9)
