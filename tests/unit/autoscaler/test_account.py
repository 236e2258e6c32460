"""A decision taken apart says of the rule that applied what the decision says."""

from dataclasses import replace

import pytest

from controlplane.autoscaler.account import Account, RuleLine, account
from controlplane.autoscaler.model import Observation, PolicyState
from controlplane.autoscaler.policy import decide
from controlplane.autoscaler.replay import record
from controlplane.autoscaler.rules import decide_by_rules
from controlplane.autoscaler.rules_model import RulesObservation, RulesState
from controlplane.domain.reason import Reason
from controlplane.domain.scaling import ScalingRule
from controlplane.kernel.errors import InvalidError, TerminalError
from tests.unit.autoscaler.test_policy import CALM, CHAT, PARAMS, SITUATIONS, T0, after_calm, tick
from tests.unit.autoscaler.test_rules import CASES, FLIGHT, make_params
from tests.unit.autoscaler.test_rules import steady as moments_of

RULE_OF = {
    Reason.PAUSED: "a person's word",
    Reason.PINNED: "a person's word",
    Reason.HOLD_MISSING_DATA: "hold without data",
    Reason.HOLD_STALE_DATA: "hold without data",
    Reason.DEMAND_UP: "more",
    Reason.QUEUE_GROWING: "more",
    Reason.KV_PRESSURE: "more",
    Reason.SLO_AT_RISK: "more",
    Reason.DEMAND_DOWN: "fewer",
    Reason.STEADY: "as it was",
    Reason.HOLD_STARTING: "as it was",
    Reason.BELOW_MINIMUM: "as it was",
}


def applied(told: Account) -> RuleLine:
    (line,) = [line for line in told.rules if line.applied and line.rule != "limits of the site"]
    return line


def texts(told: Account) -> str:
    return "\n".join([fact.text for section in told.sections for fact in section.facts] + [r.why for r in told.rules])


@pytest.mark.parametrize("situation", SITUATIONS, ids=[situation[0] for situation in SITUATIONS])
def test_the_rule_that_applied(situation: tuple[str, Observation, PolicyState, int, Reason]) -> None:
    _, observation, state, _, reason = situation
    told = account(record(CHAT, PARAMS, observation, state, decide(PARAMS, observation, state)))
    line = applied(told)
    assert RULE_OF.get(reason, line.rule) == line.rule
    place = told.rules.index(line)
    assert all(rule.applied is False and rule.why for rule in told.rules[:place])
    assert all(rule.applied is None for rule in told.rules[place + 1 :])
    assert "None" not in texts(told)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_the_rule_that_applied_where_rules_decide(
    case: tuple[str, tuple[ScalingRule, ...], list[RulesObservation], int, Reason, str],
) -> None:
    _, rules, moments, _, reason, _ = case
    params = make_params(*rules)
    state: RulesState | None = None
    for moment in moments[:-1]:
        state = decide_by_rules(params, moment, state).state
    told = account(record(CHAT, params, moments[-1], state, decide_by_rules(params, moments[-1], state)))
    line = applied(told)
    assert RULE_OF.get(reason, line.rule) == line.rule
    assert [said.rule for said in told.said] == [str(rule) for rule in rules]
    assert "None" not in texts(told)


def test_the_numbers_are_those_of_the_sentence() -> None:
    observation = tick(20.0, wanted=1)
    decision = decide(PARAMS, observation, CALM)
    told = account(record(CHAT, PARAMS, observation, CALM, decision))
    facts = {fact.name: fact.value for section in told.sections for fact in section.facts}
    assert f"{facts['level_rps']:.2f} req/s" in decision.sentence
    assert f"up to {facts['up_rps']:.2f}" in decision.sentence
    assert f"needs {facts['demand']}" in decision.sentence
    assert applied(told).why == "2 are needed, 1 wanted"


def test_what_held_a_change_back() -> None:
    turned = after_calm(20.0, direction=-1, turned_s=T0 - 5.0)
    one = tick(20.0, wanted=1)
    told = account(record(CHAT, PARAMS, one, turned, decide(PARAMS, one, turned)))
    assert applied(told).why == "2 are needed, but another turn would be the second within one lead of 60s"
    params = make_params(FLIGHT, up_per_minute_max=1)
    (moment, *_) = moments_of(1, in_flight=90)
    limits = account(record(CHAT, params, moment, None, decide_by_rules(params, moment, None))).rules[-1]
    assert (limits.rule, limits.applied, limits.why) == ("limits of the site", True, "at most 1 more a minute")


def test_another_versions_record_is_refused_with_the_next_step() -> None:
    kept = record(CHAT, PARAMS, tick(20.0), CALM, decide(PARAMS, tick(20.0), CALM))
    with pytest.raises(TerminalError, match="quarterdeck decisions --show"):
        account(replace(kept, policy="other/7"))
    with pytest.raises(InvalidError):
        account(replace(kept, observation_json="{}"))
