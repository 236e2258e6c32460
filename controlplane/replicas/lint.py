"""An independent check of a plan, written from the rules and not from the planner: what it finds stops the tick.

It shares no code with the modules that make plans (only the values they pass around), so that one mistake is not made
twice. Each rule is a function that yields sentences.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from controlplane.domain.health import ProbeVerdict
from controlplane.domain.node import NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import REPLICA_TRANSITIONS, Replica, ReplicaPhase
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.ports import PortHolder, Seen, TrafficSeen
from controlplane.replicas.standing import Situation
from controlplane.replicas.steps import (
    Adopt,
    Drain,
    Forget,
    Hold,
    Kill,
    Launch,
    MarkAsleep,
    MarkReady,
    Release,
    ReplicaPlan,
    Reserve,
    Retire,
    Sleep,
    Step,
    Terminate,
    Undrain,
    Wake,
)

_ROW_STEPS: Final = (Adopt, MarkReady, Drain, Undrain, MarkAsleep, Wake, Release, Terminate, Kill)
_TRUTH_STEPS: Final = (Adopt, MarkReady, Release, Terminate, Kill, Forget, Hold)
"""Allowed while paused: they record what is, or finish a stop."""
_OUT_OF_ROUTING: Final = ("DRAIN", "MAINT", "DOWN", "NOLB")


def lint_plan(situation: Situation, plan: ReplicaPlan) -> tuple[str, ...]:
    """Every rule broken, as a sentence; empty for a sound plan."""
    rows = {replica.name: replica for replica in situation.replicas}
    rules = (
        _only_holds_when_blind,
        _nothing_new_when_paused,
        _bounded,
        _one_step_each,
        _transitions_allowed,
        _places_allowed,
        _places_free,
        _launch_is_reserved,
        _ready_only_on_its_own_port,
        _capacity_kept,
        _stops_in_order,
        _forgets_only_the_gone,
    )
    return tuple(sentence for rule in rules for sentence in rule(situation, plan, rows))


type _Rows = dict[ReplicaName, Replica]


def _only_holds_when_blind(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    del rows
    if not isinstance(situation.sighting, Seen) and plan.changes:
        yield "the list of what runs is not whole, yet the plan changes something"


def _nothing_new_when_paused(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    if not situation.deployment.intent.paused:
        return
    for step in plan.steps:
        if not isinstance(step, _TRUTH_STEPS):
            yield f"paused, yet the plan has a {type(step).__name__}"
        elif isinstance(step, Terminate) and rows[step.row.name].phase in (ReplicaPhase.READY, ReplicaPhase.DRAINING):
            yield f"paused, yet {step.row.name} is stopped while it serves or drains"


def _bounded(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    limits = situation.limits
    launches = sum(isinstance(step, Launch | Wake) for step in plan.steps)
    rewakes = sum(isinstance(step, Wake) and rows[step.row.name].phase is ReplicaPhase.WAKING for step in plan.steps)
    if launches - rewakes > limits.launches_per_tick:
        yield f"{launches - rewakes} launches and wakes in one tick, at most {limits.launches_per_tick} allowed"
    drains = sum(isinstance(step, Drain) for step in plan.steps)
    allowed = limits.removals_per_tick + limits.sick_removals_per_tick
    if drains > allowed:
        yield f"{drains} drains in one tick, at most {allowed} allowed"


def _one_step_each(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    del situation
    names = Counter(name for step in plan.steps if (name := _subject(step)) is not None)
    for name, times in names.items():
        if times > 1:
            yield f"{name} has {times} steps in one tick"
        if name not in rows and not any(isinstance(step, Reserve) and step.row.name == name for step in plan.steps):
            yield f"{name} has a step but neither a row nor a reservation"


def _transitions_allowed(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    del situation
    for step in plan.steps:
        match step:
            case Launch(pending_row=before, done_row=after) | Sleep(draining_row=before, done_row=after):
                pass
            case _ if isinstance(step, _ROW_STEPS) and step.row.name in rows:
                before, after = rows[step.row.name], step.row
            case _:
                continue
        if not REPLICA_TRANSITIONS.may(before.phase, after.phase):
            yield f"{before.name} may not go from {before.phase} to {after.phase}"
        if (before.node, before.gpus, before.port, before.ordinal) != (
            after.node,
            after.gpus,
            after.port,
            after.ordinal,
        ):
            yield f"{before.name} would move from {before.node} {before.gpus}:{before.port} without a new launch"


def _places_allowed(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    seen = situation.sighting.replicas if isinstance(situation.sighting, Seen) else {}
    wanted = situation.deployment.plan
    for row in _reserved(plan):
        if row.name in rows or row.name in seen:
            yield f"{row.name} is reserved although that name is in use"
        if len(set(row.gpus)) != wanted.gpus_per_replica or len(set(row.gpus)) != len(row.gpus):
            yield f"{row.name} gets GPUs {row.gpus}, the plan needs {wanted.gpus_per_replica}"
        node = situation.nodes.get(row.node)
        if node is None or node.state is not NodeState.READY:
            yield f"{row.name} is placed on {row.node}, which is not READY"
            continue
        if node.spec.gpu_model not in wanted.gpu_models:
            yield f"{row.name} is placed on a {node.spec.gpu_model}, allowed are {', '.join(wanted.gpu_models)}"
        if situation.deployment.spec.pool not in (None, node.spec.pool):
            yield f"{row.name} is placed in pool {node.spec.pool}, allowed is {situation.deployment.spec.pool}"


def _places_free(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    """Against the ledger of all deployments, and new replicas against each other."""
    del rows
    taken: set[tuple[str, int]] = set()
    for row in _reserved(plan):
        node = situation.nodes.get(row.node)
        if node is None:
            continue
        free = situation.ledger.free_mask(row.node)
        places = [*((row.node, gpu) for gpu in row.gpus), (f"port of {node.spec.address}", row.port)]
        held = any(not free >> gpu & 1 for gpu in row.gpus)
        held = held or not situation.ledger.port_is_free(node.spec.address, row.port)
        if held or not taken.isdisjoint(places):
            yield f"{row.name} is given GPUs {row.gpus} and port {row.port} of {row.node}, of which some are held"
        taken.update(places)


def _reserved(plan: ReplicaPlan) -> list[Replica]:
    return [step.row for step in plan.steps if isinstance(step, Reserve)]


def _launch_is_reserved(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    reserved = {row.name: row for row in _reserved(plan)}
    for step in plan.steps:
        if not isinstance(step, Launch):
            continue
        row = reserved.get(step.spec.name) or rows.get(step.spec.name)
        if row is None or row.phase is not ReplicaPhase.PENDING:
            yield f"{step.spec.name} is launched without a PENDING row"
        elif (row.node, row.gpus, row.port) != (step.spec.node, step.spec.gpus, step.spec.port):
            yield f"{step.spec.name} is launched elsewhere than reserved"
        elif row.revision != situation.deployment.plan.revision:
            yield f"{step.spec.name} of revision {row.revision} is launched with another revision's template"


def _ready_only_on_its_own_port(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    """What answered a probe must have been the replica."""
    del rows
    for step in plan.steps:
        if not isinstance(step, MarkReady | Undrain) or not isinstance(situation.sighting, Seen):
            continue
        seen = situation.sighting.replicas.get(step.row.name)
        if seen is not None and seen.port_holder in (PortHolder.OTHER, PortHolder.NOBODY):
            yield f"{step.row.name} would serve although {seen.port_holder} listens on its port {step.row.port}"


def _capacity_kept(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    """The count of READY rows falls below min(target, what it was) only by failures that were seen."""
    if not isinstance(situation.sighting, Seen):
        return
    ready = {name for name, row in rows.items() if row.phase is ReplicaPhase.READY}
    failed = {name for name in ready if _failure_seen(situation, rows[name])}
    leaving = {
        step.row.name
        for step in plan.steps
        if isinstance(step, Drain | Terminate | Kill | Release) and step.row.name in ready
    }
    healthy_before = len(ready - failed)
    healthy_after = len(ready - failed - leaving)
    floor = min(situation.deployment.replicas_target, healthy_before)
    if healthy_after < floor:
        yield f"{healthy_after} healthy replicas would be left of {healthy_before}, at least {floor} must stay"


def _failure_seen(situation: Situation, row: Replica) -> bool:
    assert isinstance(situation.sighting, Seen), "checked by the caller"
    seen = situation.sighting.replicas.get(row.name)
    if seen is None or not seen.alive or seen.port_holder is PortHolder.OTHER:
        return True
    pulse = situation.memory.pulses.get(row.name)
    probe = situation.probes.get(row.name)
    asleep = probe is not None and probe.verdict is ProbeVerdict.ASLEEP
    return asleep or (pulse is not None and pulse.probe_failures >= situation.limits.probe_failures)


def _stops_in_order(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    """READY is never signalled; DRAINING only when empty or late; a node out of sight is no reason."""
    for step in plan.steps:
        if isinstance(step, Sleep) and not _may_stop_draining(situation, step.draining_row):
            yield f"{step.draining_row.name} is put to sleep while requests may be in flight"
        if not isinstance(step, Terminate | Kill) or step.row.name not in rows:
            continue
        row = rows[step.row.name]
        if isinstance(situation.sighting, Seen) and row.name not in situation.sighting.replicas:
            yield f"{row.name} is signalled although no process of it was seen"
        alive = isinstance(situation.sighting, Seen) and any(
            seen.name == row.name and seen.alive for seen in situation.sighting.replicas.values()
        )
        if row.phase is ReplicaPhase.READY and alive:
            yield f"{row.name} is signalled while READY: it must drain first"
        if row.phase is ReplicaPhase.DRAINING and alive and not _may_stop_draining(situation, row):
            yield f"{row.name} is signalled while requests may be in flight"
        if isinstance(step, Kill) and alive and row.stop_signals < 1:
            yield f"{row.name} is killed without having been asked to stop"


def _may_stop_draining(situation: Situation, row: Replica) -> bool:
    waited = situation.now - row.phase_since
    deadline = situation.deployment.plan.launch.drain_deadline
    if row.reason in (Reason.HUNG, Reason.UNHEALTHY):
        deadline = min(deadline, situation.limits.hung_drain)
    if waited >= deadline:
        return True
    if not isinstance(situation.traffic, TrafficSeen):
        return False
    node = situation.nodes.get(row.node)
    server = situation.traffic.servers.get(f"{node.spec.address if node is not None else row.node}:{row.port}")
    if server is None:
        return waited >= situation.limits.drain_settle
    return server.in_flight == 0 and server.queued == 0 and server.state.startswith(_OUT_OF_ROUTING)


def _forgets_only_the_gone(situation: Situation, plan: ReplicaPlan, rows: _Rows) -> Iterator[str]:
    for step in plan.steps:
        if isinstance(step, Retire) and (rows or not situation.deployment.removed):
            yield f"{step.deployment} would be deleted although it is wanted or has replicas"
        if not isinstance(step, Forget):
            continue
        row = rows.get(step.replica.name)
        node = situation.nodes.get(step.replica.node)
        if row is None or row.phase is not ReplicaPhase.STOPPING:
            yield f"{step.replica.name} would be forgotten without having been stopped"
        if not isinstance(situation.sighting, Seen) or step.replica.name in situation.sighting.replicas:
            yield f"{step.replica.name} would be forgotten although something of it is left"
        if node is not None and node.state is NodeState.UNKNOWN:
            yield f"{step.replica.name} would be forgotten although its node {node.name} is out of sight"


def _subject(step: Step) -> ReplicaName | None:
    match step:
        case Launch(spec=spec):
            return spec.name
        case Sleep(draining_row=row) | Forget(replica=row):
            return row.name
        case Reserve() | Retire() | Hold():
            return None
        case _:
            return step.row.name
