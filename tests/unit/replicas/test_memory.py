"""What ticks remember: pulses, the breaker, refusals."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.event import Event, EventKind, NewEvent
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.reason import Reason
from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.telemetry import EngineSample, Fresh, Histogram, Missing
from controlplane.kernel.ids import RevisionId
from controlplane.replicas.attention import needs_traffic, replicas_to_probe
from controlplane.replicas.limits import DEFAULT_LIMITS
from controlplane.replicas.memory import (
    FAILED_START_REVISION,
    Breaker,
    Memory,
    Pulse,
    Vitals,
    begin_tick,
    breaker_from_history,
    feel_pulses,
    note_failed_start,
    note_probes,
    note_refused_port,
    silent_for,
)
from controlplane.replicas.ports import PortHolder, Seen
from controlplane.testing.builders import REVISION, make_deployment, make_replica
from controlplane.testing.situations import NOW, make_situation, seen_of
from controlplane.testing.traffic import server

ROW = make_replica()
EMPTY = Histogram(edges=(), counts=(), sum=0.0)


def sample(*, running: int = 1, tokens: float = 100.0, sleeping: bool = False) -> EngineSample:
    return EngineSample(
        at=NOW,
        process_start_s=0.0,
        running=running,
        waiting=0,
        kv_usage=0.0,
        sleeping=sleeping,
        prompt_tokens=0.0,
        generation_tokens=tokens,
        requests_succeeded=0.0,
        requests_failed=0.0,
        preemptions=0.0,
        ttft=EMPTY,
        inter_token=EMPTY,
        end_to_end=EMPTY,
    )


def felt(vitals: Vitals, *, after_s: float, before: Memory | None = None) -> Memory:
    if before is None:
        before = Memory(pulses={ROW.name: Pulse(moved_at=NOW, tokens=100.0, answered=0.0, probe_failures=1)})
    return feel_pulses(before, [ROW], {ROW.name: vitals}, NOW + timedelta(seconds=after_s))


def silent_s(memory: Memory, *, after_s: float) -> float:
    return silent_for(memory, ROW.name, NOW + timedelta(seconds=after_s)).total_seconds()


def test_busy_without_tokens_is_silence_and_a_failure_stays_counted() -> None:
    memory = felt(Vitals(engine=Fresh(sample()), server=server("UP", in_flight=1)), after_s=20)
    assert silent_s(memory, after_s=20) == 20
    assert memory.pulses[ROW.name].probe_failures == 1


def test_tokens_idleness_or_answers_at_the_gateway_are_progress() -> None:
    tokens = Vitals(engine=Fresh(sample(tokens=101)), server=None)
    idle = Vitals(engine=Fresh(sample(running=0)), server=server("UP"))
    answers = Vitals(engine=Missing("no scrape"), server=replace(server("UP"), requests_total=5.0))
    for vitals in (tokens, idle, answers):
        memory = felt(vitals, after_s=20)
        assert silent_s(memory, after_s=20) == 0
        assert memory.pulses[ROW.name].probe_failures == 0


def test_an_idle_engine_with_requests_at_the_gateway_is_not_idle() -> None:
    """A stopped engine process: its metrics stay at their last values, running 0 included."""
    memory = felt(Vitals(engine=Fresh(sample(running=0)), server=server("UP", in_flight=2)), after_s=20)
    assert silent_s(memory, after_s=20) == 20


def test_requests_that_callers_gave_up_are_no_progress_and_idleness_after_them_is_none_either() -> None:
    """A hung engine with impatient callers: between two of them it looks idle, and none of them was answered."""
    asked = replace(server("UP"), requests_total=5.0, abandoned_total=4.0)
    before = felt(Vitals(engine=Fresh(sample(running=0)), server=asked), after_s=0)
    assert silent_s(before, after_s=0) == 0

    given_up = Vitals(engine=Fresh(sample(running=0)), server=replace(asked, requests_total=6.0, abandoned_total=5.0))
    memory = felt(given_up, after_s=10, before=before)
    memory = felt(given_up, after_s=20, before=memory)
    assert silent_s(memory, after_s=20) == 20, "idle since, but what came last was not answered"

    moving = felt(replace(given_up, engine=Fresh(sample(running=0, tokens=101))), after_s=21, before=memory)
    assert silent_s(moving, after_s=21) == 0
    passed = note_probes(
        memory, {ROW.name: ProbeResult(verdict=ProbeVerdict.PASSED, detail="")}, NOW + timedelta(seconds=21)
    )
    idle = felt(given_up, after_s=30, before=passed)
    assert silent_s(idle, after_s=30) == 0, "an answered probe makes idleness count again"


def test_missing_telemetry_is_silence_and_failed_answers_are_no_progress() -> None:
    failing = replace(server("UP"), requests_total=5.0, failures_total=5.0)
    memory = felt(Vitals(engine=Missing("no scrape"), server=failing), after_s=20)
    assert silent_s(memory, after_s=20) == 20


def test_a_passed_probe_is_progress_a_failed_one_counts_a_sleeping_one_neither() -> None:
    memory = Memory(pulses={ROW.name: Pulse(moved_at=NOW, probe_failures=1)})
    later = NOW + timedelta(seconds=9)

    def after(verdict: ProbeVerdict) -> Pulse:
        return note_probes(memory, {ROW.name: ProbeResult(verdict=verdict, detail="")}, later).pulses[ROW.name]

    assert (after(ProbeVerdict.PASSED).probe_failures, after(ProbeVerdict.PASSED).moved_at) == (0, later)
    assert (after(ProbeVerdict.FAILED).probe_failures, after(ProbeVerdict.FAILED).moved_at) == (2, NOW)
    assert after(ProbeVerdict.STARTING).probe_failures == 2
    assert after(ProbeVerdict.ASLEEP).probe_failures == 0


def test_the_breaker_doubles_its_pause_up_to_the_longest() -> None:
    pauses = []
    for failures in (2, 3, 4, 5, 30):
        closed_at = Breaker(failures=failures, last_failure_at=NOW).closed_at(DEFAULT_LIMITS)
        pauses.append(None if closed_at is None else (closed_at - NOW).total_seconds())
    assert pauses == [None, 30, 60, 120, 900]


def begun(memory: Memory, *, generation: int = 1, revision: RevisionId = REVISION, age_s: float = 0) -> Breaker:
    row = replace(ROW, launched_at=NOW, phase_since=NOW)
    now = NOW + timedelta(seconds=age_s)
    limits = DEFAULT_LIMITS
    started = begin_tick(memory, replicas=[row], revision=revision, generation=generation, limits=limits, now=now)
    return started.breaker


def test_the_breaker_forgets_on_a_new_revision_a_persons_act_and_a_replica_that_lasts() -> None:
    failed_at = NOW - timedelta(seconds=5)
    breaker = Breaker(revision=REVISION, generation=1, failures=4, last_failure_at=failed_at)
    memory = Memory(breaker=breaker)
    assert begun(memory) == breaker
    assert begun(memory, generation=2).failures == 0
    assert begun(memory, revision=RevisionId("ffffffff")).failures == 0
    assert begun(memory, age_s=59).failures == 4
    assert begun(memory, age_s=60).failures == 0


def test_failed_starts_of_the_present_revision_count_and_mark_the_node() -> None:
    memory = Memory(breaker=Breaker(revision=REVISION, generation=1))
    memory = note_failed_start(memory, ROW, DEFAULT_LIMITS, NOW)
    old = replace(ROW, revision=RevisionId("ffffffff"))
    memory = note_failed_start(memory, old, DEFAULT_LIMITS, NOW)
    assert memory.breaker.failures == 1
    assert ROW.node in memory.avoided_nodes


def test_what_expired_is_dropped() -> None:
    memory = note_refused_port(Memory(), "127.0.0.1", 20000, DEFAULT_LIMITS, NOW)
    memory = replace(memory, pulses={make_replica(ordinal=7).name: Pulse(moved_at=NOW)})
    later = NOW + DEFAULT_LIMITS.port_refused_for
    memory = begin_tick(memory, replicas=[], revision=REVISION, generation=1, limits=DEFAULT_LIMITS, now=later)
    assert (memory.refused_ports, memory.pulses) == ({}, {})


def test_the_breaker_is_read_back_from_history() -> None:
    def event(sequence: int, reason: Reason, *, failed: bool) -> Event:
        data = ((FAILED_START_REVISION, str(REVISION)),) if failed else ()
        told = NewEvent(at=NOW, kind=EventKind.REPLICA, subject="x", reason=reason, sentence="", data=data)
        return Event(sequence=sequence, event=told)

    newest_first = [
        event(9, Reason.PROCESS_EXITED, failed=True),
        event(8, Reason.STOPPED, failed=False),
        event(7, Reason.START_TIMED_OUT, failed=True),
        event(6, Reason.PROBE_PASSED, failed=False),
        event(5, Reason.START_TIMED_OUT, failed=True),
    ]
    breaker = breaker_from_history(newest_first, REVISION, 3)
    assert (breaker.failures, breaker.last_failure_at, breaker.generation) == (2, NOW, 3)


def test_only_suspicious_replicas_are_probed() -> None:
    healthy = {ROW.name: Fresh(sample())}
    assert replicas_to_probe(make_situation([ROW], engines=healthy)) == ()
    assert replicas_to_probe(make_situation([ROW])) == (ROW,)
    assert replicas_to_probe(make_situation([ROW], engines={ROW.name: Fresh(sample(sleeping=True))})) == (ROW,)
    down = {"127.0.0.1:20000": server("DOWN")}
    assert replicas_to_probe(make_situation([ROW], engines=healthy, gateway_servers=down)) == (ROW,)
    just_probed = Memory(pulses={ROW.name: Pulse(moved_at=NOW, probed_at=NOW - timedelta(seconds=4))})
    assert replicas_to_probe(make_situation([ROW], memory=just_probed)) == ()
    assert replicas_to_probe(make_situation([ROW], gone=[ROW.name])) == ()


@pytest.mark.parametrize(
    ("phase", "holder", "asked"),
    [
        (ReplicaPhase.STARTING, PortHolder.OWN, True),
        (ReplicaPhase.STARTING, PortHolder.UNTOLD, True),
        (ReplicaPhase.STARTING, PortHolder.NOBODY, False),
        (ReplicaPhase.STARTING, PortHolder.OTHER, False),
        (ReplicaPhase.READY, PortHolder.NOBODY, True),
        (ReplicaPhase.READY, PortHolder.OTHER, False),
    ],
)
def test_only_the_replica_itself_is_probed(phase: ReplicaPhase, holder: PortHolder, *, asked: bool) -> None:
    row = replace(ROW, phase=phase)
    seen = Seen({row.name: replace(seen_of(row), port_holder=holder)})
    assert replicas_to_probe(make_situation([row], sighting=seen)) == ((row,) if asked else ())


def test_the_gateway_is_asked_only_where_something_may_go() -> None:
    assert not needs_traffic(make_situation([ROW]))
    assert needs_traffic(make_situation([ROW], deployment=make_deployment(wanted=0, replicas_min=0)))
