"""Replay finds what does not come out the same, and says where."""

from dataclasses import replace

from controlplane.autoscaler.params import params_for
from controlplane.autoscaler.policy import decide
from controlplane.autoscaler.replay import record, replay_all
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
    assert [difference.field for difference in report.differences] == [
        "wanted",
        "reason",
        "sentence",
        "state_after_json",
        "record",
        "policy",
    ]


def test_nothing_to_replay_is_clean() -> None:
    assert replay_all([]).is_clean
