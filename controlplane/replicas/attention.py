"""What a tick asks the world beyond the list of processes. Asking costs, so it asks only where it matters. Pure."""

from datetime import datetime
from typing import Final, assert_never

from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.telemetry import Fresh
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.memory import Vitals, silent_for
from controlplane.replicas.ports import PortHolder, Seen, SeenReplica
from controlplane.replicas.standing import NodeOutlook, Situation, endpoint_of, outlook_of, server_down

PROBES_PER_TICK: Final = 16
"""Probes of one tick, the longest unprobed first: all of them run at once and must end within a tick's deadline."""
_SUSPICION: Final = 0.5
"""Share of `hang_after` without progress from which a replica is probed: the verdict then needs no further wait."""


def vitals_of(situation: Situation) -> dict[ReplicaName, Vitals]:
    """Engine and gateway measurements by replica."""
    return {
        replica.name: Vitals(
            engine=situation.engines.get(replica.name),
            server=situation.gateway_servers.get(endpoint_of(replica, situation.nodes)),
        )
        for replica in situation.replicas
    }


def needs_traffic(situation: Situation) -> bool:
    """The gateway is asked live when something drains or may have to be drained."""
    deployment = situation.deployment
    ready = [replica for replica in situation.replicas if replica.phase is ReplicaPhase.READY]
    return (
        len(ready) > deployment.replicas_target
        or any(replica.phase is ReplicaPhase.DRAINING for replica in situation.replicas)
        or any(replica.revision != deployment.plan.revision for replica in ready)
        or any(outlook_of(situation.nodes.get(replica.node)) is NodeOutlook.LEAVES for replica in ready)
    )


def replicas_to_probe(situation: Situation) -> tuple[Replica, ...]:
    """Those coming up, those that serve but look wrong, and sleepers-to-be that may be wanted again."""
    if not isinstance(situation.sighting, Seen):
        return ()
    seen = situation.sighting.replicas
    due = [
        replica
        for replica in situation.replicas
        if replica.name in seen and _can_answer(replica, seen[replica.name]) and _is_due(situation, replica)
    ]
    return tuple(sorted(due, key=lambda replica: (_last_probe(situation, replica), replica.name))[:PROBES_PER_TICK])


def _can_answer(replica: Replica, seen: SeenReplica) -> bool:
    """Somebody else's answer proves nothing, and before a replica listens any answer is somebody else's."""
    if not seen.alive or seen.port_lost:
        return False
    coming_up = replica.phase in (ReplicaPhase.STARTING, ReplicaPhase.WAKING)
    return not coming_up or seen.port_holder is not PortHolder.NOBODY


def _is_due(situation: Situation, replica: Replica) -> bool:
    match replica.phase:
        case ReplicaPhase.STARTING | ReplicaPhase.WAKING:
            return True
        case ReplicaPhase.DRAINING:
            return replica.sleep_after_drain
        case ReplicaPhase.READY:
            since = situation.now - _last_probe(situation, replica)
            return since >= situation.limits.probe_every and _is_suspicious(situation, replica)
        case ReplicaPhase.PENDING | ReplicaPhase.SLEEPING | ReplicaPhase.STOPPING:
            return False
        case _:
            assert_never(replica.phase)


def _is_suspicious(situation: Situation, replica: Replica) -> bool:
    reading = situation.engines.get(replica.name)
    if not isinstance(reading, Fresh):
        return True
    if reading.value.sleeping:
        return True
    if server_down(situation.gateway_servers.get(endpoint_of(replica, situation.nodes))):
        return True
    pulse = situation.memory.pulses.get(replica.name)
    if pulse is not None and pulse.probe_failures > 0:
        return True
    return silent_for(situation.memory, replica.name, situation.now) >= situation.limits.hang_after * _SUSPICION


def _last_probe(situation: Situation, replica: Replica) -> datetime:
    """The last one, or the change of phase: becoming READY took a probe."""
    pulse = situation.memory.pulses.get(replica.name)
    return pulse.probed_at if pulse is not None and pulse.probed_at is not None else replica.phase_since
