"""What happened, as a row that is never changed."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from controlplane.domain.reason import Reason

HELD_SINCE_KEY: Final = "held_since"
"""Data of the event with which a replica's row goes: when its GPUs were reserved, ISO 8601. Usage is computed of it."""
GPUS_KEY: Final = "gpus"
"""Data of the same event: how many GPUs it held."""


class EventKind(StrEnum):
    SITE = "site"
    NODE = "node"
    DEPLOYMENT = "deployment"
    REPLICA = "replica"
    GATEWAY = "gateway"
    DECISION = "decision"
    CONTROL_PLANE = "control_plane"
    RECOVERY = "recovery"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event before the store gave it its sequence number."""

    at: datetime
    kind: EventKind
    subject: str
    """Name of the deployment, replica, node... it is about."""
    reason: Reason
    sentence: str
    deployment: str | None = None
    data: tuple[tuple[str, str | int | float | bool], ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    sequence: int
    """Ascending, gaps allowed; the SSE stream's event id."""
    event: NewEvent
