"""The decision, rule by rule. Every plan made here also passes the linter."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.deployment import Deployment, IdleMode, Intent
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.node import NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.kernel.ids import RevisionId
from controlplane.replicas.limits import DEFAULT_LIMITS
from controlplane.replicas.lint import lint_plan
from controlplane.replicas.memory import Breaker, Memory, Pulse
from controlplane.replicas.placement import first_port_tried
from controlplane.replicas.plan import plan_replicas
from controlplane.replicas.ports import PortHolder, Seen, TrafficSeen, TrafficUnseen, Unseen
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
    Terminate,
    Undrain,
    Wake,
)
from controlplane.testing.builders import REVISION, make_deployment, make_node, make_replica, paused
from controlplane.testing.situations import NOW, make_situation, seen_of, servers_of
from controlplane.testing.traffic import server

NEW = RevisionId("ffffffff")
PASSED = ProbeResult(verdict=ProbeVerdict.PASSED, detail="one token")
ASLEEP = ProbeResult(verdict=ProbeVerdict.ASLEEP, detail="asleep")
FAILED = ProbeResult(verdict=ProbeVerdict.FAILED, detail="no token")


def wanting(count: int, *, sleeps: bool = False, revision: RevisionId = REVISION, gpus: int = 1) -> Deployment:
    deployment = make_deployment(wanted=count, replicas_min=0, replicas_max=20, gpus=gpus)
    spec = replace(deployment.spec, idle_mode=IdleMode.SLEEP if sleeps else IdleMode.STOP)
    return replace(deployment, spec=spec, plan=replace(deployment.plan, revision=revision))


def ready(count: int, *, revision: RevisionId = REVISION) -> list[Replica]:
    return [make_replica(ordinal=i, gpus=(i,), port=20000 + i, revision=revision) for i in range(count)]


def one(phase: ReplicaPhase, *, ordinal: int = 0, revision: RevisionId = REVISION) -> Replica:
    row = make_replica(ordinal=ordinal, phase=phase, gpus=(ordinal,), port=20000 + ordinal, revision=revision)
    lately = phase in (ReplicaPhase.STARTING, ReplicaPhase.WAKING)
    return (
        replace(row, launched_at=NOW - timedelta(seconds=9), phase_since=NOW - timedelta(seconds=9)) if lately else row
    )


def plan(situation: Situation) -> ReplicaPlan:
    made = plan_replicas(situation)
    assert lint_plan(situation, made) == ()
    return made


def kinds(made: ReplicaPlan) -> list[str]:
    return [type(step).__name__ for step in made.steps]


def only[S](made: ReplicaPlan, kind: type[S]) -> S:
    found = [step for step in made.steps if isinstance(step, kind)]
    assert len(found) == 1, kinds(made)
    return found[0]


def of[S](made: ReplicaPlan, kind: type[S]) -> list[S]:
    return [step for step in made.steps if isinstance(step, kind)]


# -- nothing to do, or nothing that may be done


def test_what_is_as_wanted_is_left_alone() -> None:
    made = plan(make_situation(ready(3)))
    assert made.steps == ()
    assert made.sentence == "3 of 3 ready"


def test_blind_holds_and_says_why() -> None:
    made = plan(make_situation(ready(3), deployment=wanting(6), sighting=Unseen("squeue failed")))
    hold = only(made, Hold)
    assert (kinds(made), hold.reason) == (["Hold"], Reason.BLIND)
    assert "squeue failed" in hold.sentence


def test_paused_holds_the_new_but_finishes_a_stop_and_writes_down_deaths() -> None:
    rows = [*ready(2), one(ReplicaPhase.STOPPING, ordinal=2), one(ReplicaPhase.STARTING, ordinal=3)]
    rows[2] = replace(rows[2], stop_signals=1, stop_signal_at=NOW - timedelta(seconds=20))
    probes = {rows[3].name: PASSED}
    made = plan(make_situation(rows, deployment=paused(wanting(9)), gone=[rows[0].name], probes=probes))
    assert kinds(made) == ["Release", "Kill", "MarkReady", "Hold"]
    assert made.holds[0].reason is Reason.PAUSED


def test_paused_leaves_a_drain_as_it_is() -> None:
    draining = replace(one(ReplicaPhase.DRAINING), reason=Reason.SURPLUS)
    assert kinds(plan(make_situation([draining], deployment=paused(wanting(1))))) == ["Hold"]


# -- adding


def test_reserves_a_row_before_it_launches_and_never_more_than_a_tick_may() -> None:
    made = plan(make_situation([], deployment=wanting(20)))
    assert kinds(made) == ["Reserve", "Launch"] * DEFAULT_LIMITS.launches_per_tick
    rows = [step.row for step in of(made, Reserve)]
    assert [row.ordinal for row in rows] == list(range(8))
    assert all(row.phase is ReplicaPhase.PENDING for row in rows)
    assert {row.node for row in rows} == {"node-1", "node-2"}


def test_a_pending_row_without_a_process_is_launched_again() -> None:
    made = plan(make_situation([one(ReplicaPhase.PENDING)], deployment=wanting(1)))
    launch = only(made, Launch)
    assert kinds(made) == ["Launch"]
    assert launch.done_row.phase is ReplicaPhase.STARTING


def test_a_pending_row_whose_process_runs_is_adopted() -> None:
    row = one(ReplicaPhase.PENDING)
    made = plan(make_situation([row], deployment=wanting(1), sighting=Seen({row.name: seen_of(row)})))
    adopted = only(made, Adopt).row
    assert (adopted.phase, adopted.launched_at) == (ReplicaPhase.STARTING, seen_of(row).started_at)


def test_a_process_under_the_name_but_elsewhere_is_stopped_not_adopted() -> None:
    row = one(ReplicaPhase.PENDING)
    stray = replace(seen_of(row), port=29999)
    made = plan(make_situation([row], deployment=wanting(1), sighting=Seen({row.name: stray})))
    assert "29999" in only(made, Terminate).sentence


def test_names_of_processes_without_a_row_are_not_used() -> None:
    stray = seen_of(one(ReplicaPhase.READY, ordinal=0))
    made = plan(make_situation([], deployment=wanting(1), sighting=Seen({stray.name: stray})))
    assert only(made, Reserve).row.ordinal == 1


def test_no_room_holds_with_numbers() -> None:
    made = plan(make_situation([], deployment=wanting(5, gpus=8)))
    assert len(of(made, Launch)) == 2
    hold = made.holds[0]
    assert hold.reason is Reason.NO_CAPACITY
    assert "3 more replicas wanted" in hold.sentence
    assert "0 free GPUs on 2 READY nodes" in hold.sentence


def test_a_draining_replica_returns_before_anything_is_launched() -> None:
    rows = [*ready(1), replace(one(ReplicaPhase.DRAINING, ordinal=1), reason=Reason.SURPLUS)]
    servers = servers_of(rows) | {"127.0.0.1:20001": server("DRAIN", in_flight=2)}
    made = plan(make_situation(rows, deployment=wanting(2), traffic=TrafficSeen(servers)))
    assert kinds(made) == ["Undrain"]
    assert only(made, Undrain).row.phase is ReplicaPhase.READY


def test_a_hung_replica_is_never_undrained() -> None:
    row = replace(one(ReplicaPhase.DRAINING), reason=Reason.HUNG, phase_since=NOW)
    servers = {"127.0.0.1:20000": server("DRAIN", in_flight=2)}
    made = plan(make_situation([row], deployment=wanting(1), traffic=TrafficSeen(servers)))
    assert kinds(made) == ["Reserve", "Launch"]


def test_an_old_revision_is_undrained_only_while_capacity_is_missing() -> None:
    old = replace(one(ReplicaPhase.DRAINING), reason=Reason.REVISION_CHANGED, phase_since=NOW)
    made = plan(make_situation([old], deployment=wanting(1, revision=NEW)))
    assert kinds(made) == ["Undrain", "Reserve", "Launch"]
    new = one(ReplicaPhase.READY, ordinal=1, revision=NEW)
    made = plan(make_situation([old, new], deployment=wanting(1, revision=NEW)))
    assert kinds(made) == ["Terminate"]


def test_a_sleeper_is_woken_before_anything_is_launched() -> None:
    made = plan(make_situation([one(ReplicaPhase.SLEEPING)], deployment=wanting(2, sleeps=True)))
    assert kinds(made) == ["Wake", "Reserve", "Launch"]
    assert only(made, Wake).row.phase is ReplicaPhase.WAKING


def test_a_lost_wake_is_repeated() -> None:
    row = replace(one(ReplicaPhase.WAKING), phase_since=NOW - timedelta(seconds=5))
    made = plan(make_situation([row], deployment=wanting(1), probes={row.name: ASLEEP}))
    assert kinds(made) == ["Wake"]


def test_a_wake_that_takes_many_times_too_long_is_given_up_and_replaced() -> None:
    row = replace(one(ReplicaPhase.WAKING), phase_since=NOW - timedelta(seconds=25))
    made = plan(make_situation([row], deployment=wanting(1), probes={row.name: FAILED}))
    assert kinds(made) == ["Terminate", "Reserve", "Launch"]
    assert only(made, Terminate).reason is Reason.START_TIMED_OUT
    assert not only(made, Terminate).failed_start


def test_a_replica_on_its_way_to_sleep_comes_back_only_when_it_answers() -> None:
    row = replace(one(ReplicaPhase.DRAINING), reason=Reason.IDLE, sleep_after_drain=True, phase_since=NOW)
    busy = TrafficSeen({"127.0.0.1:20000": server("DRAIN", in_flight=1)})
    awake = plan(make_situation([row], deployment=wanting(1, sleeps=True), probes={row.name: PASSED}, traffic=busy))
    assert kinds(awake) == ["Undrain"]
    asleep = plan(make_situation([row], deployment=wanting(1, sleeps=True), probes={row.name: ASLEEP}, traffic=busy))
    assert "MarkAsleep" in kinds(asleep)


# -- coming up


def test_ready_only_after_an_answered_probe() -> None:
    row = replace(one(ReplicaPhase.STARTING), launched_at=NOW - timedelta(seconds=30))
    assert kinds(plan(make_situation([row]))) == []
    made = plan(make_situation([row], probes={row.name: PASSED}))
    assert only(made, MarkReady).row.ready_at == NOW


def test_a_start_that_takes_too_long_is_stopped_counted_and_replaced() -> None:
    row = replace(one(ReplicaPhase.STARTING), launched_at=NOW - timedelta(seconds=300))
    made = plan(make_situation([row], deployment=wanting(1)))
    assert kinds(made) == ["Terminate", "Reserve", "Launch"]
    step = only(made, Terminate)
    assert (step.reason, step.failed_start, step.with_log) == (Reason.START_TIMED_OUT, True, True)


def test_absence_is_believed_only_after_a_moment() -> None:
    row = replace(one(ReplicaPhase.STARTING), launched_at=NOW - timedelta(seconds=1))
    assert kinds(plan(make_situation([row], deployment=wanting(1), gone=[row.name]))) == []


@pytest.mark.parametrize(("failures", "held"), [(2, False), (3, True)])
def test_the_breaker_stops_launches_after_failures_in_a_row(failures: int, *, held: bool) -> None:
    breaker = Breaker(revision=REVISION, generation=1, failures=failures, last_failure_at=NOW)
    made = plan(make_situation([], deployment=wanting(2), memory=Memory(breaker=breaker)))
    assert bool(made.holds) == held
    assert bool(of(made, Launch)) != held
    if held:
        assert made.holds[0].reason is Reason.BREAKER_OPEN


def test_after_its_pause_the_breaker_lets_one_through() -> None:
    failed_at = NOW - DEFAULT_LIMITS.breaker_pause
    breaker = Breaker(revision=REVISION, generation=1, failures=3, last_failure_at=failed_at)
    memory = Memory(breaker=breaker)
    assert len(of(plan(make_situation([], deployment=wanting(4), memory=memory)), Launch)) == 1
    trial = replace(one(ReplicaPhase.STARTING), launched_at=NOW)
    assert of(plan(make_situation([trial], deployment=wanting(4), memory=memory)), Launch) == []


# -- death and sickness


def test_a_dead_ready_replica_leaves_routing_at_once_and_is_replaced() -> None:
    rows = ready(2)
    made = plan(make_situation(rows, gone=[rows[0].name]))
    assert kinds(made) == ["Release", "Reserve", "Launch"]
    released = only(made, Release).row
    assert (released.phase, released.reason) == (ReplicaPhase.STOPPING, Reason.PROCESS_EXITED)


def test_orphans_are_killed_and_hold_their_row() -> None:
    row = one(ReplicaPhase.READY)
    sighting = Seen({row.name: seen_of(row, alive=False)})
    made = plan(make_situation([row], sighting=sighting))
    assert only(made, Kill).reason is Reason.ORPHANS_LEFT
    stopping = replace(only(made, Kill).row, stop_signal_at=NOW)
    again = plan(make_situation([stopping], deployment=wanting(0), sighting=sighting, now=NOW + timedelta(seconds=1)))
    assert kinds(again) == []


def sick(row: Replica, *, failures: int = 2, silent: timedelta = timedelta(minutes=1)) -> Memory:
    pulse = Pulse(moved_at=NOW - silent, probe_failures=failures, probed_at=NOW)
    return Memory(breaker=Breaker(revision=REVISION, generation=1), pulses={row.name: pulse})


def test_a_hung_replica_is_drained_and_replaced_in_the_same_tick() -> None:
    rows = ready(2)
    made = plan(make_situation(rows, memory=sick(rows[0]), probes={rows[0].name: FAILED}))
    assert kinds(made) == ["Drain", "Reserve", "Launch"]
    assert only(made, Drain).reason is Reason.UNHEALTHY


@pytest.mark.parametrize(("failures", "silent_s"), [(1, 60), (2, 10)])
def test_neither_one_failed_probe_nor_a_short_silence_is_a_hang(failures: int, silent_s: int) -> None:
    rows = ready(2)
    memory = sick(rows[0], failures=failures, silent=timedelta(seconds=silent_s))
    assert kinds(plan(make_situation(rows, memory=memory))) == []


def lost(row: Replica) -> Seen:
    """Somebody else listens on its port."""
    seen = replace(seen_of(row), port_holder=PortHolder.OTHER, port_stranger="process 7 (vllm)")
    return Seen({row.name: seen})


@pytest.mark.parametrize(
    ("phase", "counted"),
    [(ReplicaPhase.STARTING, True), (ReplicaPhase.WAKING, False), (ReplicaPhase.SLEEPING, False)],
)
def test_a_lost_port_ends_what_is_not_in_service_whatever_a_probe_says(phase: ReplicaPhase, *, counted: bool) -> None:
    row = one(phase)
    made = plan(make_situation([row], deployment=wanting(1), sighting=lost(row), probes={row.name: PASSED}))
    step = only(made, Terminate)
    assert (step.reason, step.failed_start) == (Reason.PORT_LOST, counted)
    assert "process 7 (vllm) listens on its port 20000" in step.sentence
    assert only(made, Reserve).row.port == 20001


def test_a_served_replica_whose_port_is_lost_is_drained_and_replaced() -> None:
    row = ready(1)[0]
    made = plan(make_situation([row], deployment=wanting(1), sighting=lost(row)))
    step = only(made, Drain)
    assert (step.reason, step.row.sleep_after_drain) == (Reason.PORT_LOST, False)
    assert kinds(made) == ["Drain", "Reserve", "Launch"]


def test_a_lost_port_neither_sleeps_nor_comes_back() -> None:
    row = replace(one(ReplicaPhase.DRAINING), sleep_after_drain=True)
    idle = make_situation([row], deployment=wanting(0, sleeps=True), sighting=lost(row))
    assert kinds(plan(idle)) == ["Terminate"]
    wanted = make_situation([row], deployment=wanting(1, sleeps=True), sighting=lost(row), probes={row.name: PASSED})
    assert "Undrain" not in kinds(plan(wanted))
    after = replace(one(ReplicaPhase.DRAINING), reason=Reason.PORT_LOST)
    assert "Undrain" not in kinds(plan(make_situation([after], deployment=wanting(1))))


def test_the_drain_of_a_lost_port_gives_requests_in_flight_their_time() -> None:
    since = NOW - 2 * DEFAULT_LIMITS.hung_drain
    row = replace(one(ReplicaPhase.DRAINING), reason=Reason.PORT_LOST, phase_since=since)
    traffic = TrafficSeen({"127.0.0.1:20000": server("DRAIN", in_flight=3)})
    assert "Terminate" not in kinds(plan(make_situation([row], deployment=wanting(0), traffic=traffic)))


def test_a_start_that_never_listened_says_so_when_it_is_given_up() -> None:
    row = replace(one(ReplicaPhase.STARTING), launched_at=NOW - timedelta(hours=9))
    silent = Seen({row.name: replace(seen_of(row), port_holder=PortHolder.NOBODY)})
    step = only(plan(make_situation([row], deployment=wanting(1), sighting=silent)), Terminate)
    assert "does not listen on its port 20000 yet" in step.sentence


def test_the_search_for_a_port_follows_from_the_sites_mark() -> None:
    limits = replace(DEFAULT_LIMITS, port_seed="0123456789abcdef")
    chosen = [only(plan(make_situation(deployment=wanting(1), limits=limits)), Reserve).row.port for _ in range(2)]
    assert chosen == [first_port_tried(limits.ports, limits.port_seed)] * 2
    assert chosen[0] != limits.ports[0]


def test_of_many_hung_replicas_one_goes_at_a_time() -> None:
    rows = ready(4)
    pulses = {row.name: sick(row).pulses[row.name] for row in rows}
    memory = Memory(breaker=Breaker(revision=REVISION, generation=1), pulses=pulses)
    assert len(of(plan(make_situation(rows, memory=memory)), Drain)) == 1


def test_a_hung_drain_is_cut_short() -> None:
    since = NOW - DEFAULT_LIMITS.hung_drain
    row = replace(one(ReplicaPhase.DRAINING), reason=Reason.HUNG, phase_since=since)
    traffic = TrafficSeen({"127.0.0.1:20000": server("DRAIN", in_flight=3)})
    made = plan(make_situation([row], deployment=wanting(0), traffic=traffic))
    assert only(made, Terminate).reason is Reason.DRAIN_TIMED_OUT


def test_a_ready_replica_found_asleep_goes_through_sleep_to_waking() -> None:
    row = one(ReplicaPhase.READY)
    made = plan(make_situation([row], probes={row.name: ASLEEP}))
    drained = of(made, Drain)[0].row
    assert drained.sleep_after_drain
    made = plan(make_situation([drained], deployment=wanting(1), probes={row.name: ASLEEP}))
    assert only(made, MarkAsleep).row.phase is ReplicaPhase.SLEEPING


# -- removing


def test_surplus_drains_youngest_first_and_bounded() -> None:
    made = plan(make_situation(ready(8), deployment=wanting(1)))
    assert [step.row.ordinal for step in of(made, Drain)] == [7, 6, 5, 4]


def test_replicas_not_in_service_go_before_those_that_serve() -> None:
    rows = [*ready(1), one(ReplicaPhase.STARTING, ordinal=1), one(ReplicaPhase.PENDING, ordinal=2)]
    made = plan(make_situation(rows, deployment=wanting(1)))
    assert kinds(made) == ["Release", "Terminate"]


def test_only_what_the_gateway_routes_counts_as_spare() -> None:
    rows = [*ready(1, revision=REVISION), one(ReplicaPhase.READY, ordinal=1, revision=NEW)]
    deployment = wanting(1, revision=NEW)
    not_yet = TrafficSeen({"127.0.0.1:20000": server("UP")})
    assert kinds(plan(make_situation(rows, deployment=deployment, traffic=not_yet))) == []
    made = plan(make_situation(rows, deployment=deployment))
    assert only(made, Drain).reason is Reason.REVISION_CHANGED


def test_a_silent_gateway_holds_removals() -> None:
    made = plan(make_situation(ready(3), deployment=wanting(1), traffic=TrafficUnseen("socket gone")))
    assert kinds(made) == ["Hold"]
    assert made.holds[0].reason is Reason.HOLD_MISSING_DATA


def test_doubtful_replicas_are_the_surplus() -> None:
    rows = ready(3)
    made = plan(make_situation(rows, deployment=wanting(2), memory=sick(rows[0], failures=1)))
    assert [step.row.ordinal for step in of(made, Drain)] == [0]


def test_a_roll_surges_by_one() -> None:
    made = plan(make_situation(ready(3), deployment=wanting(3, revision=NEW)))
    assert kinds(made) == ["Reserve", "Launch"]
    assert only(made, Reserve).reason is Reason.REVISION_CHANGED


def test_a_roll_without_room_holds_and_keeps_what_serves() -> None:
    rows = [make_replica(ordinal=i, gpus=(i,), port=20000 + i) for i in range(8)]
    made = plan(make_situation(rows, deployment=wanting(8, revision=NEW), nodes=[make_node("node-1")]))
    assert kinds(made) == ["Hold"]
    assert made.holds[0].reason is Reason.NO_CAPACITY


def test_a_draining_node_is_left_after_a_replacement_serves() -> None:
    nodes = [make_node("node-1", state=NodeState.DRAINING), make_node("node-2")]
    rows = ready(1)
    made = plan(make_situation(rows, nodes=nodes))
    assert only(made, Reserve).row.node == "node-2"
    assert of(made, Drain) == []
    both = [*rows, replace(one(ReplicaPhase.READY, ordinal=1), node=nodes[1].name)]
    assert only(plan(make_situation(both, deployment=wanting(1), nodes=nodes)), Drain).reason is Reason.NODE_DRAINED


def test_a_cordoned_node_keeps_what_runs_but_not_what_was_only_reserved() -> None:
    nodes = [make_node("node-1", state=NodeState.CORDONED), make_node("node-2")]
    assert kinds(plan(make_situation(ready(2), nodes=nodes))) == []
    made = plan(make_situation([one(ReplicaPhase.PENDING)], deployment=wanting(1), nodes=nodes))
    assert kinds(made) == ["Release", "Reserve", "Launch"]


# -- out of sight


@pytest.mark.parametrize("phase", list(ReplicaPhase))
def test_a_node_out_of_sight_is_no_reason_to_touch_its_replicas(phase: ReplicaPhase) -> None:
    nodes = [make_node("node-1", state=NodeState.UNKNOWN), make_node("node-2")]
    row = one(phase)
    made = plan(make_situation([row], deployment=wanting(1), gone=[row.name], nodes=nodes))
    touched = [step for step in made.steps if not isinstance(step, Hold | Reserve | Launch)]
    assert touched == []
    assert made.holds[0].reason is Reason.BLIND


def test_capacity_out_of_sight_counts_until_the_gateway_says_it_is_down() -> None:
    nodes = [make_node("node-1", state=NodeState.UNKNOWN), make_node("node-2")]
    row = one(ReplicaPhase.READY)
    assert of(plan(make_situation([row], gone=[row.name], nodes=nodes)), Launch) == []
    down = TrafficSeen({"127.0.0.1:20000": server("DOWN")})
    assert len(of(plan(make_situation([row], gone=[row.name], nodes=nodes, traffic=down)), Launch)) == 1


# -- draining and stopping


def draining(**changes: object) -> Replica:
    row = replace(one(ReplicaPhase.DRAINING), reason=Reason.SURPLUS, phase_since=NOW - timedelta(seconds=5))
    return replace(row, **changes)  # type: ignore[arg-type]  # test shorthand


@pytest.mark.parametrize(
    ("traffic", "expected"),
    [
        (TrafficSeen({"127.0.0.1:20000": server("DRAIN")}), ["Terminate"]),
        (TrafficSeen({"127.0.0.1:20000": server("MAINT")}), ["Terminate"]),
        (TrafficSeen({}), ["Terminate"]),
        (TrafficSeen({"127.0.0.1:20000": server("DRAIN", in_flight=1)}), []),
        (TrafficSeen({"127.0.0.1:20000": server("UP")}), []),
        (TrafficUnseen("socket gone"), []),
    ],
)
def test_stopped_only_when_the_gateway_says_that_it_is_empty(
    traffic: TrafficSeen | TrafficUnseen, expected: list[str]
) -> None:
    assert kinds(plan(make_situation([draining()], deployment=wanting(0), traffic=traffic))) == expected


def test_absence_from_the_gateway_must_last_longer_than_a_pass_of_it() -> None:
    row = draining(phase_since=NOW - timedelta(seconds=1))
    assert kinds(plan(make_situation([row], deployment=wanting(0), traffic=TrafficSeen({})))) == []


def test_a_drain_ends_at_its_deadline_even_unseen() -> None:
    row = draining(phase_since=NOW - timedelta(seconds=60))
    made = plan(make_situation([row], deployment=wanting(0), traffic=TrafficUnseen("socket gone")))
    assert only(made, Terminate).reason is Reason.DRAIN_TIMED_OUT


def stopping(*, age_s: float, signals: int, signal_age_s: float) -> Replica:
    return replace(
        one(ReplicaPhase.STOPPING),
        phase_since=NOW - timedelta(seconds=age_s),
        stop_signals=signals,
        stop_signal_at=NOW - timedelta(seconds=signal_age_s),
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (stopping(age_s=5, signals=1, signal_age_s=5), []),
        (stopping(age_s=10, signals=1, signal_age_s=10), ["Terminate"]),
        (stopping(age_s=15, signals=2, signal_age_s=5), []),
        (stopping(age_s=30, signals=2, signal_age_s=20), ["Kill"]),
        (stopping(age_s=32, signals=3, signal_age_s=2), []),
        (stopping(age_s=35, signals=3, signal_age_s=5), ["Kill"]),
    ],
)
def test_a_stop_asks_asks_again_and_forces(row: Replica, expected: list[str]) -> None:
    assert kinds(plan(make_situation([row], deployment=wanting(0)))) == expected


def test_a_row_is_forgotten_when_nothing_is_left() -> None:
    row = stopping(age_s=5, signals=1, signal_age_s=5)
    assert kinds(plan(make_situation([row], deployment=wanting(0), gone=[row.name]))) == ["Forget"]
    assert only(plan(make_situation([row], deployment=wanting(0), gone=[row.name])), Forget).replica == row


# -- idle


def test_the_last_replica_goes_to_sleep_the_others_stop() -> None:
    made = plan(make_situation(ready(3), deployment=wanting(0, sleeps=True)))
    assert {step.row.ordinal: step.row.sleep_after_drain for step in of(made, Drain)} == {0: True, 1: False, 2: False}


def test_drained_for_sleep_it_sleeps_or_stops_when_it_refuses_twice() -> None:
    row = draining(sleep_after_drain=True)
    made = plan(make_situation([row], deployment=wanting(0, sleeps=True)))
    assert only(made, Sleep).done_row.phase is ReplicaPhase.SLEEPING
    memory = Memory(pulses={row.name: Pulse(moved_at=NOW, sleep_refusals=2)})
    assert kinds(plan(make_situation([row], deployment=wanting(0, sleeps=True), memory=memory))) == ["Terminate"]


def test_one_sleeper_is_kept_and_only_of_the_present_revision() -> None:
    sleepers = [one(ReplicaPhase.SLEEPING, ordinal=i) for i in range(2)]
    made = plan(make_situation(sleepers, deployment=wanting(0, sleeps=True)))
    assert only(made, Terminate).row.ordinal == 1
    made = plan(make_situation(sleepers[:1], deployment=wanting(0, sleeps=True, revision=NEW)))
    assert only(made, Terminate).reason is Reason.REVISION_CHANGED


def test_a_deployment_that_left_the_site_is_drained_then_deleted() -> None:
    removed = replace(wanting(2), removed=True)
    made = plan(make_situation(ready(1), deployment=removed))
    assert only(made, Drain).reason is Reason.REMOVED_FROM_SITE
    assert kinds(plan(make_situation([], deployment=removed))) == ["Retire"]
    assert only(plan(make_situation([], deployment=removed)), Retire).deployment == "chat"


def test_pinned_wins_over_wanted() -> None:
    pinned = replace(wanting(1), intent=Intent(replicas_pinned=3))
    assert len(of(plan(make_situation(ready(1), deployment=pinned)), Launch)) == 2
