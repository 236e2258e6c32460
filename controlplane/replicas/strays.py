"""Processes that carry our mark but have no row: left by a row deleted too early, or by a state folder that was wiped.

A row is written before its launch, so a process without a row is never one that is just being started; a grace covers
what remains (a list read before a row was). Processes without our mark are never in the list at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from controlplane.kernel.ids import ReplicaName
from controlplane.kernel.units import format_duration
from controlplane.replicas.ports import Seen, SeenReplica

STRAY_GRACE: Final = timedelta(seconds=15)
"""Without a row for so long before it is asked to stop: several ticks, in case a row is only late to be seen."""
STRAY_KILL_AFTER: Final = timedelta(seconds=30)
"""From SIGTERM to SIGKILL: nobody routes to it, so nothing is lost."""
STRAYS_PER_TICK: Final = 4
"""A wrong row list (an emptied store) must not end a whole fleet between two looks of a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    first_seen_at: datetime
    terminated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayPlan:
    """Names to signal, and the memory for the next tick."""

    terminate: tuple[ReplicaName, ...]
    kill: tuple[ReplicaName, ...]
    suspects: Mapping[ReplicaName, Suspect] = field(default_factory=dict)
    sentence: str = "no stray processes"


def plan_strays(
    seen: Seen, rows: frozenset[ReplicaName], suspects: Mapping[ReplicaName, Suspect], now: datetime
) -> StrayPlan:
    """`rows` must have been read after `seen`: a replica launched in between is then in both or in neither."""
    strays: Mapping[ReplicaName, SeenReplica] = {
        name: replica for name, replica in sorted(seen.replicas.items()) if name not in rows
    }
    known = {name: suspects.get(name, Suspect(first_seen_at=now)) for name in strays}
    kill = [name for name, suspect in known.items() if _must_die(strays[name], suspect, now)]
    terminate = [
        name
        for name, suspect in known.items()
        if strays[name].alive and suspect.terminated_at is None and now - suspect.first_seen_at >= STRAY_GRACE
    ]
    kill, terminate = kill[:STRAYS_PER_TICK], terminate[:STRAYS_PER_TICK]
    known |= {name: Suspect(first_seen_at=known[name].first_seen_at, terminated_at=now) for name in terminate}
    return StrayPlan(terminate=tuple(terminate), kill=tuple(kill), suspects=known, sentence=_sentence(known, now))


def _must_die(replica: SeenReplica, suspect: Suspect, now: datetime) -> bool:
    if not replica.alive:
        return now - suspect.first_seen_at >= STRAY_GRACE
    return suspect.terminated_at is not None and now - suspect.terminated_at >= STRAY_KILL_AFTER


def _sentence(known: Mapping[ReplicaName, Suspect], now: datetime) -> str:
    if not known:
        return "no stray processes"
    oldest = min(suspect.first_seen_at for suspect in known.values())
    return f"{len(known)} processes without a row ({', '.join(known)}), the first for {format_duration(now - oldest)}"
