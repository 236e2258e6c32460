"""What the fleet loop does about each node: a pure function of rows and readings.

Only READY and UNKNOWN are turned here: CORDONED and DRAINING are a person's or the site's word and stay. Losing sight
of a node keeps new replicas away from it and does nothing else: no replica is stopped, no node is deleted on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never

from controlplane.domain.node import Node, NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.telemetry import Fresh, Missing, NodeSample, Reading, Stale
from controlplane.kernel.ids import NodeName
from controlplane.kernel.units import format_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLimits:
    lost_after: timedelta = timedelta(seconds=30)
    """A reboot takes minutes and a restart of the agent seconds: this tells one from the other."""
    seen_every: timedelta = timedelta(seconds=5)
    """How old the row's `seen_at` may get while the node is in sight: a write per node per tick would be all noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Change the state, unless the row has changed since it was read."""

    node: NodeName
    generation: int
    state: NodeState
    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """The node has left the site and nothing of ours is left on it."""

    node: NodeName
    sentence: str


type Step = Turn | Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    seen: Mapping[NodeName, datetime]
    """`seen_at` to write; no event."""
    steps: tuple[Step, ...]
    blind: str = ""
    """Why no node is declared lost though none is in sight; empty when that is not so."""


_BLIND_FROM_NODES: Final = 2
"""One lost node is a lost node; when all of several vanish at once it is our own eyes that fail."""


def plan_fleet(
    nodes: Sequence[Node],
    readings: Mapping[NodeName, Reading[NodeSample]],
    replicas_on: Mapping[NodeName, int],
    *,
    now: datetime,
    watching_since: datetime,
    limits: FleetLimits,
) -> FleetPlan:
    """`watching_since`: from when on this instance has looked; before that an old `seen_at` proves nothing."""
    asked = [readings[node.name] for node in nodes if node.name in readings]
    blind = len(asked) >= _BLIND_FROM_NODES and not any(isinstance(reading, Fresh) for reading in asked)
    seen: dict[NodeName, datetime] = {}
    steps: list[Step] = []
    for node in nodes:
        if node.removed_from_site and replicas_on.get(node.name, 0) == 0:
            steps.append(Delete(node=node.name, sentence=f"{node.name} left the site and is empty: forgotten"))
            continue
        match readings.get(node.name):
            case Fresh(value=sample):
                if node.seen_at is None or now - node.seen_at >= limits.seen_every:
                    seen[node.name] = sample.at
                steps.extend(_in_sight(node, sample))
            case Stale() | Missing() as reading if not blind:
                steps.extend(_out_of_sight(node, reading, now, watching_since, limits))
            case _:
                # Not asked yet, or nobody is in sight: nothing is known, so nothing is changed.
                pass
    sentence = f"none of {len(asked)} nodes is in sight: states are held" if blind else ""
    return FleetPlan(seen=seen, steps=tuple(steps), blind=sentence)


def _in_sight(node: Node, sample: NodeSample) -> list[Step]:
    counted = f"{len(sample.gpus)} of {node.spec.gpus} GPUs"
    whole = len(sample.gpus) >= node.spec.gpus
    if whole and node.state is NodeState.UNKNOWN:
        return [_turn(node, NodeState.READY, Reason.NODE_SEEN, f"{node.name} is in sight with {counted}")]
    if not whole and node.state is NodeState.READY:
        sentence = f"{node.name} shows only {counted}: no new replica is placed there until all of them answer"
        return [_turn(node, NodeState.UNKNOWN, Reason.NODE_LOST, sentence)]
    return []


def _out_of_sight(
    node: Node,
    reading: Stale[NodeSample] | Missing,
    now: datetime,
    watching_since: datetime,
    limits: FleetLimits,
) -> list[Step]:
    since = max(node.seen_at, watching_since) if node.seen_at else watching_since
    if node.state is not NodeState.READY or now - since <= limits.lost_after:
        return []
    match reading:
        case Stale(age=age):
            why = f"its last reading is {format_duration(age)} old"
        case Missing(why=reason):
            why = reason
        case _:
            assert_never(reading)
    sentence = (
        f"{node.name} is out of sight for {format_duration(now - since)} ({why}): no new replica is placed there, "
        "running ones stay"
    )
    return [_turn(node, NodeState.UNKNOWN, Reason.NODE_LOST, sentence)]


def _turn(node: Node, state: NodeState, reason: Reason, sentence: str) -> Turn:
    return Turn(node=node.name, generation=node.generation, state=state, reason=reason, sentence=sentence)
