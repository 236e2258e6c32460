"""What a tick must remember of the ticks before. Lost with the process, and safe to lose: it only makes us slower.

An empty memory believes that everything progressed just now and that no start has failed; the reconciler refills the
breaker from the event history, so that a crash loop of ours does not become one of the replicas.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.event import Event
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.telemetry import EngineSample, Reading, ServerTraffic, value_if_fresh
from controlplane.kernel.ids import NodeName, ReplicaName, RevisionId
from controlplane.replicas.limits import Limits

FAILED_START_REVISION: Final = "failed_start_revision"
"""Key in an event's data under which a failed start names its revision."""
MEMORY_AGE_MAX: Final = timedelta(seconds=30)
"""Some thirty periods of the loop: who has not looked for so long knows nothing of the present."""
_DOUBLINGS_MAX: Final = 16
"""Beyond this many doublings any pause is past its maximum; keeps the power small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """Evidence of progress of one serving replica."""

    moved_at: datetime
    """When something last proved that it works: counters moved, or there was nothing to do."""
    tokens: float = -1.0
    """Sum of the engine's counters when last seen; any change is progress."""
    answered: float = -1.0
    """Requests that the gateway saw finished."""
    abandoned: float = -1.0
    """Requests that their callers gave up."""
    left_waiting: bool = False
    """A caller gave up and nothing has moved since: being idle then proves nothing."""
    probe_failures: int = 0
    probed_at: datetime | None = None
    sleep_refusals: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """Failed starts in a row of one revision, under one generation of intent: a person's act begins it anew."""

    revision: RevisionId | None = None
    generation: int = 0
    failures: int = 0
    last_failure_at: datetime | None = None

    def closed_at(self, limits: Limits) -> datetime | None:
        """When launching may go on; None: it never stopped."""
        if self.failures < limits.breaker_after or self.last_failure_at is None:
            return None
        doublings = min(self.failures - limits.breaker_after, _DOUBLINGS_MAX)
        return self.last_failure_at + min(limits.breaker_pause * (1 << doublings), limits.breaker_pause_max)

    def after(self, failures: int, now: datetime) -> "Breaker":
        """With so many more failed starts, all of them now."""
        return self if failures == 0 else replace(self, failures=self.failures + failures, last_failure_at=now)

    def on_trial(self, limits: Limits) -> bool:
        """After a pause: one launch at a time, until one has served for a while."""
        return self.failures >= limits.breaker_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One deployment's memory between ticks."""

    pulses: Mapping[ReplicaName, Pulse] = field(default_factory=dict)
    breaker: Breaker = field(default_factory=Breaker)
    refused_ports: Mapping[tuple[str, int], datetime] = field(default_factory=dict)
    """(address, port) until when."""
    avoided_nodes: Mapping[NodeName, datetime] = field(default_factory=dict)
    """Node until when."""
    holding: frozenset[Reason] = frozenset()
    """Reasons of the last tick's holds: a hold is told once, when it begins."""
    at: datetime | None = None
    """Of the last tick that was remembered."""

    def is_old(self, now: datetime) -> bool:
        """Another instance may have worked on the deployment meanwhile: what we saw proves nothing any more."""
        return self.at is None or now - self.at > MEMORY_AGE_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What was measured of one replica, engine and gateway."""

    engine: Reading[EngineSample] | None
    server: ServerTraffic | None
    """As the gateway's last fresh sample has it; None: no sample, or not routed."""


def begin_tick(
    memory: Memory, *, replicas: Iterable[Replica], revision: RevisionId, generation: int, limits: Limits, now: datetime
) -> Memory:
    """Drop what is over: gone replicas, expired refusals, the breaker of another revision or of a healed one."""
    rows = {replica.name: replica for replica in replicas}
    return replace(
        memory,
        pulses={name: pulse for name, pulse in memory.pulses.items() if name in rows},
        breaker=_present_breaker(memory.breaker, rows.values(), revision, generation, limits, now),
        refused_ports={key: until for key, until in memory.refused_ports.items() if until > now},
        avoided_nodes={node: until for node, until in memory.avoided_nodes.items() if until > now},
    )


def feel_pulses(
    memory: Memory, replicas: Iterable[Replica], vitals: Mapping[ReplicaName, Vitals], now: datetime
) -> Memory:
    """Fold the latest measurements into the evidence of progress of every replica that has served."""
    pulses = dict(memory.pulses)
    for replica in replicas:
        if replica.phase in (ReplicaPhase.READY, ReplicaPhase.DRAINING):
            pulses[replica.name] = _pulse_after(pulses.get(replica.name), vitals.get(replica.name), now)
        else:
            pulses.pop(replica.name, None)
    return replace(memory, pulses=pulses)


def note_probes(memory: Memory, probes: Mapping[ReplicaName, ProbeResult], now: datetime) -> Memory:
    """A pass proves progress; a failure counts; being asleep or still starting proves nothing."""
    pulses = dict(memory.pulses)
    for name, result in probes.items():
        pulse = pulses.get(name)
        if pulse is None:
            continue
        if result.verdict is ProbeVerdict.PASSED:
            pulses[name] = replace(pulse, probe_failures=0, probed_at=now, moved_at=now, left_waiting=False)
        elif result.verdict is ProbeVerdict.ASLEEP:
            pulses[name] = replace(pulse, probe_failures=0, probed_at=now)
        else:
            pulses[name] = replace(pulse, probe_failures=pulse.probe_failures + 1, probed_at=now)
    return replace(memory, pulses=pulses)


def note_failed_start(memory: Memory, replica: Replica, limits: Limits, now: datetime) -> Memory:
    """Counts for the breaker if it was the present revision; its node comes last for a while."""
    breaker = memory.breaker
    if replica.revision == breaker.revision:
        breaker = breaker.after(1, now)
    avoided = {**memory.avoided_nodes, replica.node: now + limits.node_avoided_for}
    return replace(memory, breaker=breaker, avoided_nodes=avoided)


def note_refused_port(memory: Memory, address: str, port: int, limits: Limits, now: datetime) -> Memory:
    return replace(memory, refused_ports={**memory.refused_ports, (address, port): now + limits.port_refused_for})


def note_sleep_refused(memory: Memory, name: ReplicaName, now: datetime) -> Memory:
    pulse = memory.pulses.get(name, Pulse(moved_at=now))
    return replace(memory, pulses={**memory.pulses, name: replace(pulse, sleep_refusals=pulse.sleep_refusals + 1)})


def breaker_from_history(newest_first: Sequence[Event], revision: RevisionId, generation: int) -> Breaker:
    """The breaker as the event history tells it: failed starts of the revision since the last one that came up."""
    failures = 0
    last_failure_at: datetime | None = None
    for entry in newest_first:
        data = dict(entry.event.data)
        if data.get(FAILED_START_REVISION) == revision:
            failures += 1
            last_failure_at = last_failure_at or entry.event.at
        elif entry.event.reason is Reason.PROBE_PASSED:
            break
    return Breaker(revision=revision, generation=generation, failures=failures, last_failure_at=last_failure_at)


def _present_breaker(
    breaker: Breaker, replicas: Iterable[Replica], revision: RevisionId, generation: int, limits: Limits, now: datetime
) -> Breaker:
    if breaker.revision != revision or breaker.generation != generation:
        return Breaker(revision=revision, generation=generation)
    failed_at = breaker.last_failure_at
    if failed_at is None:
        return breaker
    healed = any(
        replica.phase is ReplicaPhase.READY
        and replica.revision == revision
        and replica.launched_at is not None
        and replica.launched_at > failed_at
        and now - replica.phase_since >= limits.stable_after
        for replica in replicas
    )
    return Breaker(revision=revision, generation=generation) if healed else breaker


def _pulse_after(pulse: Pulse | None, vitals: Vitals | None, now: datetime) -> Pulse:
    if pulse is None:
        pulse = Pulse(moved_at=now)
    if vitals is None:
        return pulse
    sample = value_if_fresh(vitals.engine) if vitals.engine is not None else None
    tokens = _counters(sample) if sample is not None else pulse.tokens
    answered = _answered(vitals.server) if vitals.server is not None else pulse.answered
    abandoned = vitals.server.abandoned_total if vitals.server is not None else pulse.abandoned
    waiting_for_it = vitals.server.in_flight if vitals.server is not None else 0
    idle = sample is not None and sample.running + sample.waiting + waiting_for_it == 0
    worked = tokens != pulse.tokens or answered > pulse.answered
    left_waiting = not worked and (pulse.left_waiting or abandoned > pulse.abandoned >= 0)
    moved = worked or (idle and not left_waiting)
    return replace(
        pulse,
        tokens=tokens,
        answered=answered,
        abandoned=abandoned,
        left_waiting=left_waiting,
        moved_at=now if moved else pulse.moved_at,
        probe_failures=0 if moved else pulse.probe_failures,
    )


def _counters(sample: EngineSample) -> float:
    """Any of them moving is progress: embeddings have no generation tokens, a long prefill has no finished request."""
    return sample.generation_tokens + sample.prompt_tokens + sample.requests_succeeded + sample.requests_failed


def _answered(server: ServerTraffic) -> float:
    """Finished since the gateway's worker started: begun, less those open, failed or given up, which prove nothing."""
    return server.requests_total - server.in_flight - server.failures_total - server.abandoned_total


def silent_for(memory: Memory, name: ReplicaName, now: datetime) -> timedelta:
    """How long a replica has shown no progress although it should; zero for one never watched."""
    pulse = memory.pulses.get(name)
    return now - pulse.moved_at if pulse is not None else timedelta(0)
