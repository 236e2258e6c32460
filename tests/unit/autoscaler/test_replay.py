"""Replay finds what does not come out the same, and says where."""

from dataclasses import replace

import pytest

from controlplane.autoscaler.params import params_for
from controlplane.autoscaler.policy import decide
from controlplane.autoscaler.replay import first_difference, record, replay_all
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.reason import Reason
from controlplane.kernel.ids import DeploymentName
from controlplane.testing.autoscaling import make_observation
from controlplane.testing.builders import make_deployment


def kept() -> DecisionRecord:
    params, observation = params_for(make_deployment()), make_observation(arrivals=50.0)
    return record(DeploymentName("chat"), params, observation, None, decide(params, observation, None))


def test_a_true_record_is_clean() -> None:
    report = replay_all([kept(), kept()])
    assert (report.total, report.same, report.is_clean) == (2, 2, True)


def test_a_changed_record_is_found_by_its_first_differing_field() -> None:
    true = kept()
    changed = [
        replace(true, wanted=true.wanted + 1),
        replace(true, reason=Reason.IDLE),
        replace(true, sentence="because"),
        replace(true, state_after_json=true.state_after_json.replace("1.0", "1.5", 1)),
        replace(true, observation_json="{}"),
        replace(true, policy="other/1"),
    ]
    report = replay_all([*changed, true])
    assert report.same == 1
    fields = [difference.field for difference in report.differences]
    assert fields[:3] + fields[4:] == ["wanted", "reason", "sentence", "record", "policy"]
    state = report.differences[3]
    assert state.field.startswith("state_after."), state
    assert float(state.recorded) - float(state.replayed) == 0.5


def test_whole_numbers_where_fractions_are_meant_are_the_same_record() -> None:
    """A gateway counts in integers; 3 and 3.0 are the same observation."""
    params, whole = params_for(make_deployment()), make_observation(arrivals=50)
    decided = decide(params, whole, None)
    assert replay_all([record(DeploymentName("chat"), params, whole, None, decided)]).is_clean


@pytest.mark.parametrize(
    ("recorded", "replayed", "told"),
    [
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ("s.a[1].b", "2", "3")),
        ({"a": [1]}, {"a": [1, 2]}, ("s.a", "[1]", "[1,2]")),
        ({"a": 1}, {"b": 1}, ("s", '{"a":1}', '{"b":1}')),
        ({"a": 1}, {"a": 1.0}, ("s.a", "1", "1.0")),
    ],
)
def test_a_difference_is_told_by_its_place(recorded: object, replayed: object, told: tuple[str, str, str]) -> None:
    assert first_difference(recorded, replayed, "s") == told


def test_nothing_to_replay_is_clean() -> None:
    assert replay_all([]).is_clean
