"""Typed identifiers and the deterministic names that make a launch idempotent."""

import re
from typing import Final, NewType

DeploymentName = NewType("DeploymentName", str)
ModelId = NewType("ModelId", str)
ServedName = NewType("ServedName", str)
ReplicaName = NewType("ReplicaName", str)
NodeName = NewType("NodeName", str)
PoolName = NewType("PoolName", str)
RevisionId = NewType("RevisionId", str)
TenantName = NewType("TenantName", str)
ClaimToken = NewType("ClaimToken", str)
InstanceId = NewType("InstanceId", str)
DatasetName = NewType("DatasetName", str)
BucketName = NewType("BucketName", str)
PointId = NewType("PointId", str)
"""Of a recovery point: `<UTC time of its start, 20261122T031500.123Z>-<4 random hex digits>`, so names sort by time."""

NAME_PATTERN: Final = re.compile(r"^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$")
"""Names that also work as a DNS label, a Slurm job name and an HAProxy backend: at most 40 characters."""

_REPLICA_PATTERN: Final = re.compile(r"^qd-(?P<deployment>[a-z0-9-]+)-(?P<revision>[0-9a-f]{8})-(?P<ordinal>\d+)$")


def replica_name(deployment: DeploymentName, revision: RevisionId, ordinal: int) -> ReplicaName:
    """`qd-<deployment>-<revision>-<ordinal>`: launching the same name twice is one launch."""
    return ReplicaName(f"qd-{deployment}-{revision}-{ordinal}")


def parse_replica_name(name: str) -> tuple[DeploymentName, RevisionId, int] | None:
    """The parts of a replica's name, or None when the name is not one of ours."""
    match = _REPLICA_PATTERN.match(name)
    if match is None:
        return None
    return DeploymentName(match["deployment"]), RevisionId(match["revision"]), int(match["ordinal"])
