"""The linter finds what a wrong planner would do: plans broken by hand, one rule each."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.node import NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.replicas.lint import lint_plan
from controlplane.replicas.plan import plan_replicas
from controlplane.replicas.ports import PortHolder, Seen, TrafficSeen, Unseen
from controlplane.replicas.standing import Situation
from controlplane.replicas.steps import (
    Drain,
    Forget,
    Kill,
    Launch,
    MarkReady,
    Reserve,
    Retire,
    Sleep,
    Step,
    Terminate,
    Undrain,
)
from controlplane.testing.builders import make_deployment, make_node, make_replica, paused
from controlplane.testing.situations import NOW, make_situation, seen_of
from controlplane.testing.traffic import server


def ready(count: int) -> list[Replica]:
    return [make_replica(ordinal=i, gpus=(i,), port=20000 + i) for i in range(count)]


def findings(situation: Situation, *steps: Step) -> str:
    return "\n".join(lint_plan(situation, replace(plan_replicas(situation), steps=steps)))


def drain(row: Replica) -> Drain:
    return Drain(row=replace(row, phase=ReplicaPhase.DRAINING), reason=Reason.SURPLUS, sentence="")


def terminate(row: Replica) -> Terminate:
    return Terminate(row=replace(row, phase=ReplicaPhase.STOPPING, stop_signals=1), reason=Reason.SURPLUS, sentence="")


def reserve(row: Replica) -> Reserve:
    return Reserve(row=row, reason=Reason.WANTED, sentence="")


def pending(**changes: object) -> Replica:
    row = make_replica(ordinal=9, phase=ReplicaPhase.PENDING, gpus=(5,), port=20009)
    return replace(row, **changes)  # type: ignore[arg-type]  # test shorthand


def test_capacity_below_the_promise() -> None:
    rows = ready(2)
    assert "at least 2 must stay" in findings(make_situation(rows), drain(rows[0]))
    spare = make_situation(rows, deployment=make_deployment(wanted=1))
    assert findings(spare, drain(rows[0])) == ""


@pytest.mark.parametrize("holder", [PortHolder.OTHER, PortHolder.NOBODY])
def test_serving_on_a_port_that_is_not_its_own(holder: PortHolder) -> None:
    row = replace(ready(1)[0], phase=ReplicaPhase.STARTING)
    step = MarkReady(row=replace(row, phase=ReplicaPhase.READY), reason=Reason.PROBE_PASSED, sentence="")
    situation = make_situation([row])
    assert findings(situation, step) == ""
    seen = Seen({row.name: replace(seen_of(row), port_holder=holder)})
    assert f"although {holder} listens on its port" in findings(replace(situation, sighting=seen), step)


def test_a_change_while_blind() -> None:
    rows = ready(2)
    situation = make_situation(rows, deployment=make_deployment(wanted=1), sighting=Unseen("x"))
    assert "not whole" in findings(situation, drain(rows[0]))


def test_something_new_while_paused() -> None:
    rows = ready(2)
    situation = make_situation(rows, deployment=paused(make_deployment(wanted=1)))
    assert "paused" in findings(situation, drain(rows[0]))
    draining = replace(rows[0], phase=ReplicaPhase.DRAINING)
    situation = make_situation([draining], deployment=paused(make_deployment(wanted=1)))
    assert "paused" in findings(situation, terminate(draining))


def test_too_much_at_once() -> None:
    rows = ready(8)
    situation = make_situation(rows, deployment=make_deployment(wanted=0, replicas_min=0))
    assert "drains in one tick" in findings(situation, *(drain(row) for row in rows))


def test_two_steps_for_one_replica() -> None:
    rows = ready(2)
    situation = make_situation(rows, deployment=make_deployment(wanted=1))
    assert "2 steps" in findings(situation, drain(rows[0]), drain(rows[0]))


def test_a_forbidden_change_of_phase_and_a_silent_move() -> None:
    rows = ready(1)
    sleeping = replace(rows[0], phase=ReplicaPhase.SLEEPING)
    step = Undrain(row=rows[0], reason=Reason.UNDRAINED, sentence="")
    assert "may not go from sleeping to ready" in findings(make_situation([sleeping]), step)
    draining = replace(rows[0], phase=ReplicaPhase.DRAINING)
    moved = Undrain(row=replace(rows[0], port=20005), reason=Reason.UNDRAINED, sentence="")
    assert "without a new launch" in findings(make_situation([draining]), moved)


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        (pending(gpus=(0,)), "are held"),
        (pending(port=20000), "are held"),
        (pending(gpus=(3, 4)), "the plan needs 1"),
        (pending(name=ready(1)[0].name), "that name is in use"),
        (pending(node=make_node("node-3").name), "not READY"),
        (pending(node=make_node("node-2").name), "not READY"),
    ],
)
def test_a_wrong_place(row: Replica, finding: str) -> None:
    nodes = [make_node("node-1"), make_node("node-2", state=NodeState.CORDONED)]
    situation = make_situation(ready(1), deployment=make_deployment(wanted=2), nodes=nodes)
    assert finding in findings(situation, reserve(row))


def test_the_same_place_twice_in_one_plan() -> None:
    situation = make_situation([], deployment=make_deployment(wanted=2))
    other = pending(name=make_replica(ordinal=8).name, ordinal=8)
    assert "are held" in findings(situation, reserve(pending()), reserve(other))


def test_a_launch_without_its_reservation() -> None:
    situation = make_situation([], deployment=make_deployment(wanted=1))
    launch = next(step for step in plan_replicas(situation).steps if isinstance(step, Launch))
    assert "without a PENDING row" in findings(situation, launch)


def test_a_stop_out_of_order() -> None:
    rows = ready(1)
    none_wanted = make_deployment(wanted=0, replicas_min=0)
    assert "must drain first" in findings(make_situation(rows, deployment=none_wanted), terminate(rows[0]))
    draining = replace(rows[0], phase=ReplicaPhase.DRAINING, phase_since=NOW - timedelta(seconds=5))
    busy = TrafficSeen({"127.0.0.1:20000": server("DRAIN", in_flight=1)})
    situation = make_situation([draining], deployment=none_wanted, traffic=busy)
    assert "in flight" in findings(situation, terminate(draining))
    sleep = Sleep(draining_row=draining, done_row=draining, reason=Reason.SLEPT, sentence="")
    assert "put to sleep while" in findings(situation, sleep)
    kill = Kill(row=replace(draining, phase=ReplicaPhase.STOPPING), reason=Reason.STOP_FORCED, sentence="")
    assert "without having been asked" in findings(make_situation([draining], deployment=none_wanted), kill)
    assert "no process of it was seen" in findings(make_situation(rows, gone=[rows[0].name]), terminate(rows[0]))


def test_forgetting_what_is_left_or_out_of_sight() -> None:
    row = replace(ready(1)[0], phase=ReplicaPhase.STOPPING)
    forget = Forget(replica=row, reason=Reason.STOPPED, sentence="")
    assert "something of it is left" in findings(make_situation([row]), forget)
    lost = [make_node("node-1", state=NodeState.UNKNOWN)]
    assert "out of sight" in findings(make_situation([row], gone=[row.name], nodes=lost), forget)
    assert findings(make_situation([row], gone=[row.name]), forget) == ""


def test_deleting_a_deployment_that_is_wanted() -> None:
    situation = make_situation([])
    retire = Retire(deployment=situation.deployment.name, reason=Reason.REMOVED_FROM_SITE, sentence="")
    assert "is wanted" in findings(situation, retire)
