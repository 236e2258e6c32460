"""What each replica needs whatever the target is: adopt, mark ready, notice death, finish a stop. One step each.

These steps write down what is already true, or finish what has begun. So they also run while a deployment is paused
(apart from finishing a drain, which changes what serves).
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import assert_never

from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.reason import Reason
from controlplane.domain.replica import REPLICA_TRANSITIONS, Replica, ReplicaPhase
from controlplane.domain.telemetry import Fresh
from controlplane.kernel.units import format_duration
from controlplane.replicas.ports import PortHolder, TrafficUnseen
from controlplane.replicas.standing import (
    SILENT_REASONS,
    NodeOutlook,
    ProcessState,
    Situation,
    Standing,
    port_sentence,
    server_down,
)
from controlplane.replicas.steps import (
    Adopt,
    Forget,
    Kill,
    MarkAsleep,
    MarkReady,
    Release,
    Sleep,
    Step,
    Terminate,
    Wake,
)

_SIGTERMS: int = 2
"""Polite requests before force."""


def moved(replica: Replica, phase: ReplicaPhase, reason: Reason, sentence: str, now: datetime) -> Replica:
    """The row in another phase; ConflictError when the table of transitions forbids it."""
    REPLICA_TRANSITIONS.check(replica.phase, phase, subject=replica.name)
    return replace(replica, phase=phase, phase_since=now, reason=reason, sentence=sentence)


def stopping(replica: Replica, reason: Reason, sentence: str, now: datetime, *, signals: int) -> Replica:
    """The row in STOPPING with the count of signals sent, the one that goes with this row included."""
    row = (
        replica
        if replica.phase is ReplicaPhase.STOPPING
        else moved(replica, ReplicaPhase.STOPPING, reason, sentence, now)
    )
    return replace(row, stop_signals=signals, stop_signal_at=now if signals else row.stop_signal_at)


def truth_step(situation: Situation, standing: Standing) -> Step | None:
    """The step that follows from what was seen of this replica alone; None: nothing to write down."""
    replica = standing.replica
    if standing.process is ProcessState.REMAINS:
        return _kill_remains(situation, standing)
    if standing.outlook is NodeOutlook.UNKNOWN and standing.process is ProcessState.UNSURE:
        return None
    match replica.phase:
        case ReplicaPhase.PENDING:
            return _pending(situation, standing)
        case ReplicaPhase.STARTING | ReplicaPhase.WAKING:
            return _coming_up(situation, standing)
        case ReplicaPhase.READY | ReplicaPhase.DRAINING:
            return _died(situation, standing) if standing.process is ProcessState.GONE else None
        case ReplicaPhase.SLEEPING:
            return _sleeping(situation, standing)
        case ReplicaPhase.STOPPING:
            return _stopping(situation, standing)
        case _:
            assert_never(replica.phase)


def drain_step(situation: Situation, standing: Standing) -> Step | None:
    """What a DRAINING replica does next; None: still draining."""
    replica, now = standing.replica, situation.now
    probe = situation.probes.get(replica.name)
    if probe is not None and probe.verdict is ProbeVerdict.ASLEEP and replica.sleep_after_drain:
        sentence = "its engine sleeps already"
        return MarkAsleep(
            row=moved(replica, ReplicaPhase.SLEEPING, Reason.SLEPT, sentence, now),
            reason=Reason.SLEPT,
            sentence=sentence,
        )
    drained, why = _is_drained(situation, standing)
    may_sleep = replica.sleep_after_drain and not standing.port_lost and not _sleep_given_up(situation, replica)
    if drained and may_sleep:
        asleep = moved(replica, ReplicaPhase.SLEEPING, Reason.SLEPT, "idle: the engine sleeps", now)
        return Sleep(
            draining_row=replica, done_row=asleep, reason=Reason.SLEPT, sentence=f"{why}: the engine goes to sleep"
        )
    if drained:
        return _terminate(replica, Reason.DRAINED, f"{why}: SIGTERM", now)
    deadline = _drain_deadline(situation, replica)
    if now - replica.phase_since < deadline:
        return None
    return _terminate(
        replica, Reason.DRAIN_TIMED_OUT, f"not drained within {format_duration(deadline)} ({why}): SIGTERM", now
    )


def _pending(situation: Situation, standing: Standing) -> Step | None:
    replica, seen = standing.replica, standing.seen
    if seen is None:
        return None
    if seen.port != replica.port or seen.gpus != replica.gpus or seen.node != replica.node:
        sentence = (
            f"a process of that name runs on {seen.node} port {seen.port} GPUs {list(seen.gpus)}, "
            f"reserved were {replica.node} port {replica.port} GPUs {list(replica.gpus)}: SIGTERM"
        )
        return _terminate(replica, Reason.STRAY, sentence, situation.now)
    sentence = "found running, started before a restart of the control plane"
    row = moved(replica, ReplicaPhase.STARTING, Reason.ADOPTED, sentence, situation.now)
    return Adopt(row=replace(row, launched_at=seen.started_at), reason=Reason.ADOPTED, sentence=sentence)


def _coming_up(situation: Situation, standing: Standing) -> Step | None:
    replica, now = standing.replica, situation.now
    if standing.process is ProcessState.GONE:
        return _died(situation, standing)
    if standing.port_lost:
        return _give_up_port(situation, standing)
    probe = situation.probes.get(replica.name)
    waking = replica.phase is ReplicaPhase.WAKING
    if probe is not None and probe.verdict is ProbeVerdict.PASSED and standing.process is ProcessState.RUNNING:
        return _ready(replica, now)
    began = replica.phase_since if waking else replica.launched_at or replica.phase_since
    deadline = _wake_deadline(situation) if waking else situation.deployment.plan.launch.start_deadline
    if now - began >= deadline:
        sentence = f"not ready within {format_duration(deadline)}{_last_word(standing, probe)}: SIGTERM"
        return Terminate(
            row=stopping(replica, Reason.START_TIMED_OUT, sentence, now, signals=1),
            reason=Reason.START_TIMED_OUT,
            sentence=sentence,
            failed_start=not waking,
            with_log=True,
        )
    if waking and probe is not None and probe.verdict is ProbeVerdict.ASLEEP:
        return Wake(row=replica, reason=Reason.WAKE, sentence="still asleep: woken again")
    return None


def _last_word(standing: Standing, probe: ProbeResult | None) -> str:
    if probe is not None:
        return f"; last probe: {probe.detail}"
    unheard = standing.seen is not None and standing.seen.port_holder is PortHolder.NOBODY
    return f"; it does not listen on its port {standing.replica.port} yet" if unheard else ""


def _sleeping(situation: Situation, standing: Standing) -> Step | None:
    """A wake would be told to whoever listens there."""
    if standing.process is ProcessState.GONE:
        return _died(situation, standing)
    return _give_up_port(situation, standing) if standing.port_lost else None


def _give_up_port(situation: Situation, standing: Standing) -> Terminate:
    """Its GPUs are right, but nobody can tell its answers from another's: the next one gets another port."""
    replica = standing.replica
    assert standing.seen is not None, "a lost port was seen"
    sentence = f"{port_sentence(replica, standing.seen)} (was {replica.phase}): SIGTERM, the next one gets another port"
    return Terminate(
        row=stopping(replica, Reason.PORT_LOST, sentence, situation.now, signals=1),
        reason=Reason.PORT_LOST,
        sentence=sentence,
        failed_start=replica.phase is ReplicaPhase.STARTING,
        with_log=True,
    )


def _wake_deadline(situation: Situation) -> timedelta:
    plan, limits = situation.deployment.plan, situation.limits
    return min(plan.launch.start_deadline, max(limits.wake_deadline_min, plan.prior.wake * limits.wake_factor))


def _ready(replica: Replica, now: datetime) -> MarkReady:
    if replica.phase is ReplicaPhase.WAKING:
        sentence = f"awake after {format_duration(now - replica.phase_since)}: a probe was answered"
        return MarkReady(
            row=moved(replica, ReplicaPhase.READY, Reason.WOKEN, sentence, now), reason=Reason.WOKEN, sentence=sentence
        )
    took = format_duration(now - (replica.launched_at or replica.created_at))
    sentence = f"ready {took} after its launch: a probe was answered"
    row = moved(replica, ReplicaPhase.READY, Reason.PROBE_PASSED, sentence, now)
    row = replace(row, ready_at=row.ready_at or now)
    return MarkReady(row=row, reason=Reason.PROBE_PASSED, sentence=sentence)


def _died(situation: Situation, standing: Standing) -> Step:
    replica, now = standing.replica, situation.now
    sentence = f"its process is gone (was {replica.phase})"
    return Release(
        row=stopping(replica, Reason.PROCESS_EXITED, sentence, now, signals=0),
        reason=Reason.PROCESS_EXITED,
        sentence=sentence,
        failed_start=failed_start(situation, replica),
        with_log=True,
    )


def failed_start(situation: Situation, replica: Replica) -> bool:
    """Died before it was ready, or so soon after that it hardly was: both feed the breaker."""
    if replica.phase in (ReplicaPhase.PENDING, ReplicaPhase.STARTING):
        return True
    if replica.phase is not ReplicaPhase.READY or replica.ready_at is None:
        return False
    return situation.now - replica.ready_at < situation.limits.stable_after


def _kill_remains(situation: Situation, standing: Standing) -> Step | None:
    replica, now = standing.replica, situation.now
    if not _due_again(replica, situation.limits.kill_again_after, now):
        return None
    sentence = "its leading process is gone, others of its group are left: SIGKILL to the group"
    stopped_by_us = replica.phase is ReplicaPhase.STOPPING
    return Kill(
        row=stopping(replica, Reason.PROCESS_EXITED, sentence, now, signals=max(replica.stop_signals, _SIGTERMS) + 1),
        reason=Reason.ORPHANS_LEFT,
        sentence=sentence,
        failed_start=not stopped_by_us and failed_start(situation, replica),
        with_log=not stopped_by_us,
    )


def _due_again(replica: Replica, pause: timedelta, now: datetime) -> bool:
    """The first forced signal goes at once, later ones after a pause."""
    forced_before = replica.phase is ReplicaPhase.STOPPING and replica.stop_signals > _SIGTERMS
    return not forced_before or replica.stop_signal_at is None or now - replica.stop_signal_at >= pause


def _stopping(situation: Situation, standing: Standing) -> Step | None:
    replica, now, limits = standing.replica, situation.now, situation.limits
    if standing.process is ProcessState.GONE:
        took = format_duration(now - replica.phase_since)
        return Forget(
            replica=replica, reason=Reason.STOPPED, sentence=f"nothing of it is left, {took} after: {replica.sentence}"
        )
    if standing.process is not ProcessState.RUNNING:
        return None
    deadline = situation.deployment.plan.launch.stop_deadline
    if replica.stop_signals > 0 and now - replica.phase_since >= deadline:
        if not _due_again(replica, limits.kill_again_after, now):
            return None
        took = format_duration(now - replica.phase_since)
        sentence = f"still running {took} after it was told to stop: SIGKILL to the group"
        row = stopping(replica, replica.reason, replica.sentence, now, signals=max(replica.stop_signals, _SIGTERMS) + 1)
        return Kill(row=row, reason=Reason.STOP_FORCED, sentence=sentence)
    if replica.stop_signals == 0:
        return _terminate(replica, replica.reason, "runs although it was given up: SIGTERM", now)
    signalled_at = replica.stop_signal_at or replica.phase_since
    if replica.stop_signals < _SIGTERMS and now - signalled_at >= min(limits.resend_after, deadline / 2):
        sentence = f"still running {format_duration(now - signalled_at)} after SIGTERM, which may be lost: sent again"
        row = stopping(replica, replica.reason, replica.sentence, now, signals=_SIGTERMS)
        return Terminate(row=row, reason=Reason.STOP_RESENT, sentence=sentence)
    return None


def _terminate(replica: Replica, reason: Reason, sentence: str, now: datetime) -> Terminate:
    return Terminate(row=stopping(replica, reason, sentence, now, signals=1), reason=reason, sentence=sentence)


def _sleep_given_up(situation: Situation, replica: Replica) -> bool:
    pulse = situation.memory.pulses.get(replica.name)
    return pulse is not None and pulse.sleep_refusals >= situation.limits.sleep_tries


def _drain_deadline(situation: Situation, replica: Replica) -> timedelta:
    deadline = situation.deployment.plan.launch.drain_deadline
    return min(deadline, situation.limits.hung_drain) if replica.reason in SILENT_REASONS else deadline


def _is_drained(situation: Situation, standing: Standing) -> tuple[bool, str]:
    """Out of the gateway and empty, by the gateway's word and, where it is fresh, the engine's."""
    replica, server = standing.replica, standing.server
    if isinstance(situation.traffic, TrafficUnseen):
        return False, f"the gateway cannot be asked: {situation.traffic.why}"
    if server is not None and server.in_flight + server.queued > 0:
        return False, f"{server.in_flight + server.queued} requests in flight"
    if server is None or server_down(server):
        if situation.now - replica.phase_since < situation.limits.drain_settle:
            return False, "not routed, waiting for the gateway's present pass to end"
    elif not server.state.startswith(("DRAIN", "MAINT")):
        return False, f"the gateway still routes to it ({server.state})"
    reading = situation.engines.get(replica.name)
    if isinstance(reading, Fresh) and reading.value.at >= replica.phase_since:
        busy = reading.value.running + reading.value.waiting
        if busy > 0:
            return False, f"the engine still has {busy} requests"
    return True, "out of the gateway, nothing in flight"
