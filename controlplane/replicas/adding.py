"""Towards more: undrain, then wake, then launch. The cheapest capacity first; nothing is taken away here."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from controlplane.domain.health import ProbeVerdict
from controlplane.domain.node import Node
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.kernel.ids import NodeName, replica_name
from controlplane.kernel.units import format_duration
from controlplane.replicas.draft import Draft
from controlplane.replicas.lifecycle import moved
from controlplane.replicas.placement import NoRoom, Placement, PlacementRequest, first_port_tried, place, shelves_for
from controlplane.replicas.ports import LaunchSpec, Seen
from controlplane.replicas.standing import SICK_REASONS, NodeOutlook, ProcessState, Situation, Standing
from controlplane.replicas.steps import Launch, Reserve, Undrain, Wake


def add_capacity(draft: Draft) -> None:
    """Close the gap between the live replicas and the target, as far as this tick may."""
    deficit = draft.target - len(draft.live)
    deficit -= _undrain(draft, deficit)
    deficit -= _wake(draft, deficit)
    if not _breaker_allows(draft, deficit):
        return
    _launch_pending(draft)
    if deficit > 0:
        _reserve(draft, deficit)


def _undrain(draft: Draft, deficit: int) -> int:
    """Replicas of the present revision up to the deficit; old ones only while capacity is really missing."""
    candidates = [standing for standing in draft.open if _may_return(draft.situation, standing)]
    keepable = [standing for standing in candidates if standing.keepable]
    leaving = [standing for standing in candidates if not standing.keepable]
    returned = keepable[: max(0, deficit)]
    missing_now = draft.target - len(draft.serving) - len(returned)
    for standing in [*returned, *leaving[: max(0, missing_now)]]:
        sentence = f"wanted again while draining ({draft.target} wanted): back in service"
        row = moved(standing.replica, ReplicaPhase.READY, Reason.UNDRAINED, sentence, draft.situation.now)
        row = replace(row, sleep_after_drain=False)
        draft.add(standing.replica, Undrain(row=row, reason=Reason.UNDRAINED, sentence=sentence))
    return len(returned)


def _may_return(situation: Situation, standing: Standing) -> bool:
    replica = standing.replica
    if replica.phase is not ReplicaPhase.DRAINING or standing.process is not ProcessState.RUNNING:
        return False
    if replica.reason in SICK_REASONS or standing.doubtful or standing.port_lost:
        return False
    if standing.outlook is not NodeOutlook.STAYS:
        return False
    if not replica.sleep_after_drain:
        return True
    # It may have been put to sleep just before a crash of ours: only an answered probe proves that it is awake.
    probe = situation.probes.get(replica.name)
    return probe is not None and probe.verdict is ProbeVerdict.PASSED


def _wake(draft: Draft, deficit: int) -> int:
    asleep = [
        standing
        for standing in draft.open
        if standing.replica.phase is ReplicaPhase.SLEEPING
        and standing.keepable
        and standing.process is ProcessState.RUNNING
    ]
    chosen = asleep[: max(0, min(deficit, draft.launches_left))]
    for standing in chosen:
        sentence = f"{draft.target} wanted: the sleeping engine is woken"
        row = moved(standing.replica, ReplicaPhase.WAKING, Reason.WAKE, sentence, draft.situation.now)
        row = replace(row, sleep_after_drain=False)
        draft.add(standing.replica, Wake(row=row, reason=Reason.WAKE, sentence=sentence))
        draft.launches_left -= 1
    return len(chosen)


def _breaker_allows(draft: Draft, deficit: int) -> bool:
    """Cut the launches to what the breaker allows; say so when that is none and some are wanted."""
    situation = draft.situation
    limits, now = situation.limits, situation.now
    failed_now = sum(1 for row in draft.failed_starts if row.revision == situation.deployment.plan.revision)
    breaker = situation.memory.breaker.after(failed_now, now)
    if not breaker.on_trial(limits):
        return True
    closed_at = breaker.closed_at(limits)
    wanting = deficit > 0 or any(_launchable(draft, standing) for standing in draft.open)
    if closed_at is not None and now < closed_at:
        if wanting:
            draft.hold(
                Reason.BREAKER_OPEN,
                f"{breaker.failures} starts in a row failed for revision {breaker.revision}: no launch for another "
                f"{format_duration(closed_at - now)}; the replicas' logs say why, any change of the deployment "
                "(or pause and resume) tries again at once",
            )
        return False
    on_the_way = sum(1 for s in draft.live if s.replica.phase is ReplicaPhase.STARTING)
    draft.launches_left = min(draft.launches_left, max(0, 1 - on_the_way))
    return True


def _launchable(draft: Draft, standing: Standing) -> bool:
    if standing.replica.phase is not ReplicaPhase.PENDING or not standing.keepable:
        return False
    node = draft.situation.nodes.get(standing.replica.node)
    return standing.process is ProcessState.GONE and node is not None and node.accepts_replicas


def _launch_pending(draft: Draft) -> None:
    """Rows reserved by a tick that ended before its launch."""
    for standing in draft.open:
        if draft.launches_left > 0 and _launchable(draft, standing):
            _launch(draft, standing.replica, draft.situation.nodes[standing.replica.node])


def _reserve(draft: Draft, deficit: int) -> None:
    situation = draft.situation
    useful = sum(1 for standing in draft.alive if _useful(standing))
    room = draft.target + situation.limits.surge - useful
    wanted = min(deficit, room, draft.launches_left)
    ordinals = _free_ordinals(situation)
    for index in range(max(0, wanted)):
        placement = place(_request(draft), draft.ledger())
        if isinstance(placement, NoRoom):
            draft.hold(
                Reason.NO_CAPACITY,
                f"{deficit - index} more replicas wanted, no room: each {placement.sentence}",
            )
            return
        draft.ledger().take(placement.node, placement.gpus, placement.port)
        row = _pending_row(draft, placement, next(ordinals))
        draft.steps.append(Reserve(row=row, reason=row.reason, sentence=row.sentence))
        _launch(draft, row, situation.nodes[row.node])


def _useful(standing: Standing) -> bool:
    """Counts against target plus surge: holds GPUs and serves, will, or could again."""
    phase = standing.replica.phase
    if phase is ReplicaPhase.DRAINING:
        return standing.replica.reason not in SICK_REASONS
    return standing.serving or standing.coming


def _pending_row(draft: Draft, placement: Placement, ordinal: int) -> Replica:
    situation = draft.situation
    deployment, now = situation.deployment, situation.now
    reason, sentence = _why_new(draft)
    return Replica(
        name=replica_name(deployment.name, deployment.plan.revision, ordinal),
        deployment=deployment.name,
        revision=deployment.plan.revision,
        ordinal=ordinal,
        phase=ReplicaPhase.PENDING,
        phase_since=now,
        node=placement.node,
        gpus=placement.gpus,
        port=placement.port,
        created_at=now,
        reason=reason,
        sentence=sentence,
    )


def _why_new(draft: Draft) -> tuple[Reason, str]:
    serving = draft.serving
    if any(not standing.current for standing in serving):
        return Reason.REVISION_CHANGED, f"revision {draft.situation.deployment.plan.revision} replaces an older one"
    if any(standing.outlook is NodeOutlook.LEAVES for standing in serving):
        return Reason.NODE_DRAINED, "replaces a replica on a node that is being drained"
    return Reason.WANTED, f"{draft.target} wanted, {len(draft.live)} there or on their way"


def _launch(draft: Draft, row: Replica, node: Node) -> None:
    sentence = f"started on {row.node}, GPUs {','.join(map(str, row.gpus)) or 'none'}, port {row.port}"
    starting = moved(row, ReplicaPhase.STARTING, Reason.LAUNCHED, sentence, draft.situation.now)
    starting = replace(starting, launched_at=draft.situation.now)
    step = Launch(
        spec=launch_spec(draft.situation, row, node),
        pending_row=row,
        done_row=starting,
        reason=Reason.LAUNCHED,
        sentence=sentence,
    )
    draft.add(row, step)
    draft.launches_left -= 1


def launch_spec(situation: Situation, row: Replica, node: Node) -> LaunchSpec:
    domains = {node.spec.numa_of_gpu[gpu] for gpu in row.gpus if gpu < len(node.spec.numa_of_gpu)}
    return LaunchSpec(
        name=row.name,
        node=row.node,
        gpus=row.gpus,
        gpu_model=node.spec.gpu_model,
        numa_domain=domains.pop() if len(domains) == 1 else None,
        port=row.port,
        template=situation.deployment.plan.launch,
    )


def _free_ordinals(situation: Situation) -> Iterator[int]:
    """The lowest ordinals whose names are free, one after the other."""
    deployment = situation.deployment
    taken = {replica.name for replica in situation.replicas}
    if isinstance(situation.sighting, Seen):
        # A process without a row under the next name would be adopted on whatever GPUs it has: leave it to the strays.
        taken |= situation.sighting.replicas.keys()
    return (
        ordinal for ordinal in count() if replica_name(deployment.name, deployment.plan.revision, ordinal) not in taken
    )


def _request(draft: Draft) -> PlacementRequest:
    situation = draft.situation
    neighbours: Counter[NodeName] = Counter(standing.replica.node for standing in draft.alive)
    neighbours.update(step.row.node for step in draft.steps if isinstance(step, Reserve))
    refused: dict[str, set[int]] = {}
    for address, port in situation.memory.refused_ports:
        refused.setdefault(address, set()).add(port)
    return PlacementRequest(
        gpus=situation.deployment.plan.gpus_per_replica,
        shelves=shelves_for(situation.deployment, situation.ledger),
        neighbours=neighbours,
        avoided=frozenset(situation.memory.avoided_nodes) | {row.node for row in draft.failed_starts},
        ports=situation.limits.ports,
        ports_from=first_port_tried(situation.limits.ports, situation.limits.port_seed),
        refused_ports={address: frozenset(ports) for address, ports in refused.items()},
    )
