"""Who is in sight, who is lost, who is gone: a table of rows and readings."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.node import LEFT_SITE, Node, NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.telemetry import Fresh, Missing, NodeSample, Reading, Stale
from controlplane.fleet.verdict import Delete, FleetLimits, FleetPlan, Turn, plan_fleet
from controlplane.kernel.ids import NodeName
from controlplane.testing.builders import make_node
from controlplane.testing.effects import START
from controlplane.testing.telemetry import make_node_sample

SECOND = timedelta(seconds=1)
REFUSED: Reading[NodeSample] = Missing("http://10.0.0.1:9410/metrics cannot be read: refused")
LIMITS = FleetLimits()


def fresh(at: datetime = START, gpus: int = 8) -> Reading[NodeSample]:
    return Fresh(make_node_sample(at, gpus=gpus))


def plan(
    *nodes: Node,
    readings: Mapping[str, Reading[NodeSample]],
    after_s: float = 0.0,
    replicas: Mapping[NodeName, int] | None = None,
    watching_since: datetime = START,
) -> FleetPlan:
    return plan_fleet(
        nodes,
        {NodeName(name): reading for name, reading in readings.items()},
        replicas or {},
        now=START + after_s * SECOND,
        watching_since=watching_since,
        limits=LIMITS,
    )


def test_a_node_becomes_ready_when_it_is_seen() -> None:
    node = replace(make_node(state=NodeState.UNKNOWN), seen_at=None)
    made = plan(node, readings={"node-1": fresh()})
    assert made.seen == {"node-1": START}
    (turn,) = made.steps
    assert isinstance(turn, Turn)
    assert (turn.state, turn.reason, turn.generation) == (NodeState.READY, Reason.NODE_SEEN, 1)
    assert turn.sentence == "node-1 is in sight with 8 of 8 GPUs"


def test_a_node_in_sight_is_written_now_and_then_only() -> None:
    node = make_node()
    assert plan(node, readings={"node-1": fresh()}, after_s=4) == FleetPlan(seen={}, steps=())
    later = START + 5 * SECOND
    assert plan(node, readings={"node-1": fresh(later)}, after_s=5).seen == {"node-1": later}


@pytest.mark.parametrize("reading", [REFUSED, Stale(make_node_sample(), 20 * SECOND)])
def test_a_node_out_of_sight_becomes_unknown_after_a_while(reading: Reading[NodeSample]) -> None:
    assert plan(make_node(), readings={"node-1": reading}, after_s=30).steps == ()
    (turn,) = plan(make_node(), readings={"node-1": reading}, after_s=31).steps
    assert isinstance(turn, Turn)
    assert (turn.state, turn.reason) == (NodeState.UNKNOWN, Reason.NODE_LOST)
    assert "running ones stay" in turn.sentence


def test_an_old_row_proves_nothing_before_this_instance_has_looked_for_a_while() -> None:
    hour = timedelta(hours=1)
    began = START + hour
    early = plan(make_node(), readings={"node-1": REFUSED}, after_s=3600 + 30, watching_since=began)
    assert early.steps == ()
    assert plan(make_node(), readings={"node-1": REFUSED}, after_s=3600 + 31, watching_since=began).steps


def test_a_node_that_was_not_asked_is_left_alone() -> None:
    assert plan(make_node(), readings={}, after_s=9999) == FleetPlan(seen={}, steps=())


@pytest.mark.parametrize("state", [NodeState.CORDONED, NodeState.DRAINING])
@pytest.mark.parametrize("reading", [fresh(), REFUSED])
def test_what_a_person_said_stays(state: NodeState, reading: Reading[NodeSample]) -> None:
    assert plan(make_node(state=state), readings={"node-1": reading}, after_s=100).steps == ()


def test_a_node_that_lacks_gpus_gets_no_new_replicas() -> None:
    (turn,) = plan(make_node(), readings={"node-1": fresh(gpus=7)}).steps
    assert isinstance(turn, Turn)
    assert turn.state is NodeState.UNKNOWN
    assert "7 of 8 GPUs" in turn.sentence
    assert plan(make_node(state=NodeState.UNKNOWN), readings={"node-1": fresh(gpus=7)}).steps == ()


def test_when_all_vanish_at_once_we_are_blind_and_hold() -> None:
    nodes = [make_node("node-1"), make_node("node-2")]
    made = plan(*nodes, readings={"node-1": REFUSED, "node-2": REFUSED}, after_s=600)
    assert made.steps == ()
    assert made.blind == "none of 2 nodes is in sight: states are held"
    one = plan(*nodes, readings={"node-1": REFUSED, "node-2": fresh(START + 600 * SECOND)}, after_s=600)
    assert [step.node for step in one.steps] == ["node-1"]


def test_a_node_that_left_the_site_goes_when_it_is_empty() -> None:
    gone = replace(make_node(state=NodeState.DRAINING), state_reason=LEFT_SITE)
    assert plan(gone, readings={}, replicas={NodeName("node-1"): 1}).steps == ()
    (step,) = plan(gone, readings={}).steps
    assert isinstance(step, Delete)
    drained = replace(gone, state_reason="to be repaired")
    assert plan(drained, readings={}).steps == ()


readings_of_any_kind = st.sampled_from([fresh(), fresh(gpus=3), REFUSED, Stale(make_node_sample(), 40 * SECOND)])


@given(
    st.dictionaries(st.sampled_from(["node-1", "node-2", "node-3"]), readings_of_any_kind),
    st.lists(st.sampled_from(list(NodeState)), min_size=3, max_size=3),
    st.floats(0, 1e5),
    st.booleans(),
)
def test_no_reading_ever_deletes_or_drains(
    readings: dict[str, Reading[NodeSample]],
    states: list[NodeState],
    after_s: float,
    removed: bool,
) -> None:
    nodes = [make_node(f"node-{number}", state=state) for number, state in enumerate(states, start=1)]
    if removed:
        nodes = [replace(node, state_reason=LEFT_SITE) for node in nodes]
    with_replicas = {node.name: 1 for node in nodes}
    for step in plan(*nodes, readings=readings, after_s=after_s, replicas=with_replicas).steps:
        assert isinstance(step, Turn)
        assert step.state in (NodeState.READY, NodeState.UNKNOWN)
