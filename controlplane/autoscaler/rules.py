"""Classic rules: targets and thresholds on signals, the largest answer wins. Pure, like the policy for the SLO.

What is not a matter of rules is that policy's: a person's word, zero and waking, holding on data that is not there, the
site's limits, the order of all this, and that nothing turns round twice within one lead. After it come the limits that
the site states: cooldowns, and replicas per minute.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Final

from controlplane.autoscaler.forecast import Demand, estimate, hold_s
from controlplane.autoscaler.learning import first_state, learn, next_lead_s
from controlplane.autoscaler.model import Observation, PolicyState, Trust
from controlplane.autoscaler.policy import Choice, bounded, choose, next_state
from controlplane.autoscaler.rule_windows import Measured, is_per_replica, measured, remember
from controlplane.autoscaler.rules_explain import explain_rules
from controlplane.autoscaler.rules_model import (
    Change,
    RulesDecision,
    RulesObservation,
    RulesParams,
    RulesState,
)
from controlplane.autoscaler.rules_view import MINUTE_S, Answer, RulesStance, Verdict
from controlplane.autoscaler.view import Needs
from controlplane.domain.reason import Reason
from controlplane.domain.scaling import LATENCIES, LOADS, ScalingRule, Signal

TOLERANCE: Final = 0.1
"""Either side of a target without thresholds: the HPA's --horizontal-pod-autoscaler-tolerance."""
_ROUNDING: Final = 1e-9
"""3 x 0.7 / 0.7 is a hair over 3; nobody means a fourth replica."""
_ASKED_MAX: Final = 1 << 20
"""As the policy's own bound: demand beyond is a broken counter."""
_REASONS: Final = {
    Signal.QUEUE_DEPTH: Reason.QUEUE_GROWING,
    Signal.KV_CACHE: Reason.KV_PRESSURE,
    Signal.GPU_MEMORY: Reason.KV_PRESSURE,
    Signal.ERROR_RATE: Reason.SLO_AT_RISK,
    Signal.TTFT: Reason.SLO_AT_RISK,
    Signal.INTER_TOKEN: Reason.SLO_AT_RISK,
    Signal.END_TO_END: Reason.SLO_AT_RISK,
}
_FELT: Final = frozenset({*LATENCIES, Signal.QUEUE_DEPTH, Signal.ERROR_RATE})
"""Beyond such a threshold users feel it: reason enough to turn round within a lead."""
_NOT_LIMITED: Final = frozenset({Reason.PAUSED, Reason.PINNED, Reason.IDLE, Reason.BELOW_MINIMUM, Reason.ABOVE_MAXIMUM})
"""A person's word, the site's limits, and nobody there."""


def decide_by_rules(params: RulesParams, observation: RulesObservation, state: RulesState | None) -> RulesDecision:
    """The number of replicas to want now. `state` is what the last decision left; None at the first."""
    stance = rules_stance(params, observation, state)
    limited, why = limited_choice(params, stance, choose(params.base, stance))
    return RulesDecision(
        wanted=limited.wanted,
        reason=limited.reason,
        sentence=explain_rules(stance, limited.wanted, limited.reason, why),
        state=_next(stance, limited),
    )


def rules_stance(params: RulesParams, observation: RulesObservation, state: RulesState | None) -> RulesStance:
    """Every rule's answer, and what the order of the rules looks at."""
    seen, base = observation.seen, params.base
    before = state.learned if state is not None else first_state(base, seen)
    elapsed_s = max(seen.at_s - before.at_s, 0.0)
    learned = learn(base, seen, before)
    lead = next_lead_s(base, seen, learned)
    memories = remember(params.spec.rules, state.memories if state is not None else (), observation, elapsed_s)
    demand = _expected(params, learned)
    answers = tuple(
        _answer(memory.rule, measured(memory, known=known, now_s=seen.at_s), observation, demand)
        for memory, known in memories
    )
    asked = [answer.asked for answer in answers if answer.asked is not None]
    most = max(asked, default=bounded(observation.seen))
    return RulesStance(
        observation=_blind_where_a_rule_is(observation, answers),
        state=learned,
        lead_s=lead,
        hold_s=hold_s(lead, base.tuning),
        needs=Needs(demand=most, backlog=0, kv=0, slo=0, keep=most),
        missed=next((f"{answer.rule.name} is over its limit" for answer in answers if _is_felt(answer)), ""),
        answers=answers,
        demand=demand,
        lookahead_s=params.spec.lookahead.total_seconds() if params.spec.lookahead else 0.0,
        memories=tuple(memory for memory, _ in memories),
        changes=state.changes if state is not None else (),
        cooldown_up_s=params.spec.cooldown_up.total_seconds(),
        cooldown_down_s=params.spec.cooldown_down.total_seconds(),
    )


# -- answers ----------------------------------------------------------------------------------------------------------


def _expected(params: RulesParams, learned: PolicyState) -> Demand | None:
    """Demand at now + lookahead, below which it stays with the stated confidence; None without a lookahead."""
    if params.spec.lookahead is None:
        return None
    z = NormalDist().inv_cdf(params.spec.confidence)
    tuning = replace(params.base.tuning, up_z=z, keep_z=z)
    return estimate(learned.buckets, lead_s=params.spec.lookahead.total_seconds(), tuning=tuning)


def _answer(rule: ScalingRule, found: Measured, observation: RulesObservation, demand: Demand | None) -> Answer:
    seen = observation.seen
    before = bounded(seen)
    replicas = min(seen.ready, seen.engines_fresh)
    expected = _looked_ahead(rule, found, demand)
    if expected.value is None:
        return _unmeasured(rule, expected, before)
    if rule.target is not None:
        return _by_target(rule, expected, replicas, before)
    return _by_step(rule, expected, replicas, before)


def _unmeasured(rule: ScalingRule, found: Measured, before: int) -> Answer:
    """Hardly a request is no reason for more, and for a rule that speaks of fewer a reason for one step fewer."""
    if not found.quiet:
        return Answer(rule=rule, found=found, asked=None, verdict=Verdict.UNKNOWN)
    speaks = rule.target is not None or rule.below is not None
    return Answer(
        rule=rule, found=found, asked=max(before - rule.step_down, 0) if speaks else None, verdict=Verdict.QUIET
    )


def _looked_ahead(rule: ScalingRule, found: Measured, demand: Demand | None) -> Measured:
    """Signals in proportion to the arrivals grow with what is forecast of those; a fall promises nothing."""
    if demand is None or found.value is None or rule.signal not in LOADS:
        return found
    if rule.signal is Signal.REQUESTS_PER_SECOND:
        value = max(found.value, demand.up_rps)
    else:
        value = found.value * (max(demand.up_rps / demand.level_rps, 1.0) if demand.level_rps > 0.0 else 1.0)
    return replace(found, value=value, low=value, high=value)


def _by_target(rule: ScalingRule, found: Measured, replicas: int, before: int) -> Answer:
    """In proportion, once the value is outside the band."""
    assert rule.target is not None, "asked only of a rule with a target"
    assert found.value is not None, "and with a value"
    above = rule.above if rule.above is not None else rule.target * (1.0 + TOLERANCE)
    below = rule.below if rule.below is not None else rule.target * (1.0 - TOLERANCE)
    shared = is_per_replica(rule)
    if replicas == 0 and not shared:
        return Answer(rule=rule, found=found, asked=None, verdict=Verdict.UNKNOWN)
    share = 1.0 / max(replicas, 1) if shared else 1.0
    total = found.value if shared else found.value * replicas
    proportion = max(math.ceil(min(total / rule.target, _ASKED_MAX) - _ROUNDING), 0)
    # A stated threshold is crossed beyond doubt; the tolerance around a target is no such line.
    if (found.low if rule.above is not None else found.value) * share > above:
        return Answer(rule=rule, found=found, asked=proportion, verdict=Verdict.ABOVE)
    if (found.high if rule.below is not None else found.value) * share < below:
        return Answer(rule=rule, found=found, asked=min(proportion, before), verdict=Verdict.BELOW)
    return Answer(rule=rule, found=found, asked=before, verdict=Verdict.WITHIN)


def _by_step(rule: ScalingRule, found: Measured, replicas: int, before: int) -> Answer:
    """A step from what is ready: while the last one still starts, the same step is asked for again, not another."""
    if rule.above is not None and found.low > rule.above:
        return Answer(rule=rule, found=found, asked=replicas + rule.step_up, verdict=Verdict.ABOVE)
    if rule.below is not None and found.high < rule.below:
        return Answer(rule=rule, found=found, asked=max(before - rule.step_down, 0), verdict=Verdict.BELOW)
    if rule.below is None:
        return Answer(rule=rule, found=found, asked=None, verdict=Verdict.SILENT)
    return Answer(rule=rule, found=found, asked=before, verdict=Verdict.WITHIN)


def _is_felt(answer: Answer) -> bool:
    stated = answer.rule.above is not None
    return stated and answer.verdict is Verdict.ABOVE and answer.rule.signal in _FELT


def _blind_where_a_rule_is(observation: RulesObservation, answers: Sequence[Answer]) -> Observation:
    """A signal that a rule asks for and that cannot be read in full is missing data like any other: nothing falls."""
    seen = observation.seen
    blind = any(not answer.found.known for answer in answers)
    return replace(seen, engines=Trust.MISSING) if blind and seen.engines is Trust.FRESH else seen


# -- what the site limits ---------------------------------------------------------------------------------------------


def _named(choice: Choice, stance: RulesStance) -> Choice:
    """A rise takes its reason from the rule that asks for the most."""
    winner = stance.winner
    if choice.reason is not Reason.DEMAND_UP or winner is None:
        return choice
    return Choice(choice.wanted, _REASONS.get(winner.rule.signal, Reason.DEMAND_UP))


def limited_choice(params: RulesParams, stance: RulesStance, choice: Choice) -> tuple[Choice, str]:
    """The choice within cooldowns and replicas per minute, and what held it back, in words; empty: nothing."""
    seen, choice = stance.observation, _named(choice, stance)
    before = bounded(seen)
    change = choice.wanted - before
    if change == 0 or choice.reason in _NOT_LIMITED:
        return choice, ""
    up = change > 0
    cooldown_s = stance.cooldown_up_s if up else stance.cooldown_down_s
    since_s = seen.at_s - stance.state.changed_s
    waking = choice.reason is Reason.WAKE
    if stance.state.direction != 0 and since_s < cooldown_s and not waking:
        said = f"the last change was {since_s:.0f}s ago, the cooldown is {cooldown_s:.0f}s"
        return Choice(before, Reason.HOLD_COOLDOWN), said
    most = params.spec.up_per_minute_max if up else params.spec.down_per_minute_max
    if most is None:
        return choice, ""
    left = max(most - stance.changed_within_minute(up=up), 1 if waking else 0)
    if abs(change) <= left:
        return choice, ""
    said = f"at most {most} {'more' if up else 'fewer'} a minute"
    if left == 0:
        return Choice(before, Reason.HOLD_COOLDOWN), said
    return Choice(before + (left if up else -left), choice.reason), said


def _next(stance: RulesStance, choice: Choice) -> RulesState:
    now_s = stance.observation.at_s
    changes = tuple(change for change in stance.changes if change.at_s > now_s - MINUTE_S)
    moved = choice.wanted - stance.observation.wanted
    if moved:
        changes = (*changes, Change(at_s=now_s, replicas=moved))
    return RulesState(learned=next_state(stance, choice), memories=stance.memories, changes=changes)
