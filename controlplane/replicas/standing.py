"""What each replica of a deployment is worth right now: its process, its node, its health. Pure; no decision yet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from controlplane.domain.deployment import Deployment
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.node import Node, NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.telemetry import EngineSample, Fresh, Reading, ServerTraffic
from controlplane.kernel.ids import NodeName, ReplicaName
from controlplane.kernel.units import format_duration
from controlplane.replicas.ledger import GpuLedger
from controlplane.replicas.limits import DEFAULT_LIMITS, Limits
from controlplane.replicas.memory import Memory, silent_for
from controlplane.replicas.ports import Seen, SeenReplica, Sighting, TrafficSeen, TrafficSighting

SILENT_REASONS: Final = frozenset({Reason.HUNG, Reason.UNHEALTHY})
"""Why a replica may be drained whose requests in flight will not finish."""
SICK_REASONS: Final = SILENT_REASONS | {Reason.PORT_LOST}
"""Why a replica may be drained that must not come back by an undrain."""
_COMING: Final = frozenset({ReplicaPhase.PENDING, ReplicaPhase.STARTING, ReplicaPhase.WAKING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything a plan is made from: one deployment's rows and all that was seen of them, at one moment."""

    deployment: Deployment
    replicas: tuple[Replica, ...]
    """All rows of this deployment, by name."""
    sighting: Sighting
    traffic: TrafficSighting
    nodes: Mapping[NodeName, Node]
    ledger: GpuLedger
    """Of all deployments."""
    memory: Memory
    now: datetime
    probes: Mapping[ReplicaName, ProbeResult]
    """Of this tick; replicas that needed none are absent."""
    engines: Mapping[ReplicaName, Reading[EngineSample]]
    gateway_servers: Mapping[str, ServerTraffic]
    """The last scraped sample by `address:port`; empty when it is not fresh."""
    limits: Limits = DEFAULT_LIMITS


class ProcessState(StrEnum):
    RUNNING = "running"
    REMAINS = "remains"
    """The leader is gone, others of its group are left."""
    GONE = "gone"
    UNSURE = "unsure"
    """The list was not whole, the node is out of sight, or the process was started a moment ago."""


class NodeOutlook(StrEnum):
    STAYS = "stays"
    LEAVES = "leaves"
    """Draining, or not of the site any more."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One replica, judged."""

    replica: Replica
    process: ProcessState
    seen: SeenReplica | None
    outlook: NodeOutlook
    current: bool
    """Of the present revision."""
    sick: Reason | None
    sick_sentence: str
    doubtful: bool
    """A probe failed and nothing has proved it well since: in service still, but not to be relied on."""
    server: ServerTraffic | None
    """The gateway's live word; None when not asked, not answered or not routed."""

    @property
    def port_lost(self) -> bool:
        """Somebody else may answer in its place."""
        return self.seen is not None and self.seen.port_lost

    @property
    def keepable(self) -> bool:
        """Right revision on a node that stays."""
        return self.current and self.outlook is not NodeOutlook.LEAVES

    @property
    def serving(self) -> bool:
        """Takes requests as far as anybody can tell. Out of sight alone is not out of service."""
        if self.replica.phase is not ReplicaPhase.READY or self.sick is not None:
            return False
        if self.outlook is NodeOutlook.UNKNOWN:
            return self.process is not ProcessState.REMAINS and not server_down(self.server)
        return self.process in (ProcessState.RUNNING, ProcessState.UNSURE)

    @property
    def coming(self) -> bool:
        """On its way to serve. A PENDING row has no process yet; for the others a missing process is the end."""
        if self.replica.phase is ReplicaPhase.PENDING:
            return self.process is not ProcessState.REMAINS
        return self.replica.phase in _COMING and self.process in (ProcessState.RUNNING, ProcessState.UNSURE)

    @property
    def dependable(self) -> bool:
        """The gateway sends it requests now, and there is no doubt that it answers them."""
        return self.serving and not self.doubtful and self.server is not None and server_up(self.server)


def assess(situation: Situation) -> tuple[Standing, ...]:
    """All replicas of the deployment, in the order of their rows."""
    return tuple(_stand(situation, replica) for replica in situation.replicas)


def outlook_of(node: Node | None) -> NodeOutlook:
    """`node` None: it left the site."""
    if node is None or node.state is NodeState.DRAINING:
        return NodeOutlook.LEAVES
    return NodeOutlook.UNKNOWN if node.state is NodeState.UNKNOWN else NodeOutlook.STAYS


def endpoint_of(replica: Replica, nodes: Mapping[NodeName, Node]) -> str:
    """`address:port`; a node that left the site is taken at its name, which no gateway routes."""
    node = nodes.get(replica.node)
    return f"{node.spec.address if node is not None else replica.node}:{replica.port}"


def server_up(server: ServerTraffic) -> bool:
    """HAProxy's words: `UP`, `UP 1/3` (going down), `no check`; anything else gets no new request."""
    return server.state.startswith(("UP", "no check"))


def server_down(server: ServerTraffic | None) -> bool:
    return server is not None and server.state.startswith(("DOWN", "NOLB"))


def count(standings: Iterable[Standing], phase: ReplicaPhase) -> int:
    return sum(1 for standing in standings if standing.replica.phase is phase)


def _stand(situation: Situation, replica: Replica) -> Standing:
    seen = situation.sighting.replicas.get(replica.name) if isinstance(situation.sighting, Seen) else None
    outlook = outlook_of(situation.nodes.get(replica.node))
    process = _process(situation, replica, seen, outlook)
    sick, sentence = _sickness(situation, replica, process, seen)
    server: ServerTraffic | None = None
    if isinstance(situation.traffic, TrafficSeen):
        server = situation.traffic.servers.get(endpoint_of(replica, situation.nodes))
    return Standing(
        replica=replica,
        process=process,
        seen=seen,
        outlook=outlook,
        current=replica.revision == situation.deployment.plan.revision,
        sick=sick,
        sick_sentence=sentence,
        doubtful=_is_doubtful(situation, replica),
        server=server,
    )


def _process(situation: Situation, replica: Replica, seen: SeenReplica | None, outlook: NodeOutlook) -> ProcessState:
    if not isinstance(situation.sighting, Seen):
        return ProcessState.UNSURE
    if seen is not None:
        return ProcessState.RUNNING if seen.alive else ProcessState.REMAINS
    if outlook is NodeOutlook.UNKNOWN:
        return ProcessState.UNSURE
    launched_at = replica.launched_at
    if launched_at is not None and situation.now - launched_at < situation.limits.launch_settle:
        return ProcessState.UNSURE
    return ProcessState.GONE


def _is_doubtful(situation: Situation, replica: Replica) -> bool:
    pulse = situation.memory.pulses.get(replica.name)
    return pulse is not None and pulse.probe_failures > 0


def port_sentence(replica: Replica, seen: SeenReplica) -> str:
    """Why what answers there is not believed."""
    stranger = seen.port_stranger or "somebody else"
    return f"{stranger} listens on its port {replica.port}: an answer there may not be its own"


def _sickness(
    situation: Situation, replica: Replica, process: ProcessState, seen: SeenReplica | None
) -> tuple[Reason | None, str]:
    """Hung: no progress for long and probes fail. Neither /health nor a single failed probe is enough."""
    if replica.phase is not ReplicaPhase.READY or process is not ProcessState.RUNNING:
        return None, ""
    if seen is not None and seen.port_lost:
        return Reason.PORT_LOST, port_sentence(replica, seen)
    probe = situation.probes.get(replica.name)
    if probe is not None and probe.verdict is ProbeVerdict.ASLEEP:
        return Reason.SLEPT, "its engine sleeps although it should serve"
    pulse = situation.memory.pulses.get(replica.name)
    if pulse is None or pulse.probe_failures < situation.limits.probe_failures:
        return None, ""
    silent = silent_for(situation.memory, replica.name, situation.now)
    if silent < situation.limits.hang_after:
        return None, ""
    fresh = isinstance(situation.engines.get(replica.name), Fresh)
    reason = Reason.HUNG if fresh else Reason.UNHEALTHY
    detail = probe.detail if probe is not None else "see the log"
    told = "its metrics stand still" if fresh else "its metrics are missing"
    return reason, (
        f"no progress for {format_duration(silent)}, {told}, {pulse.probe_failures} probes in a row failed ({detail})"
    )
