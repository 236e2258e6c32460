"""How many replicas, and why: a pure function of parameters, observation and state.

Up at once, for the demand expected when the new replicas are ready; down only after a hold time in which nothing
needed more. What is not known is never read as little: without fresh data the number may rise on what is certain, and
never falls. The order of the rules below is their priority.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from controlplane.autoscaler.capacity import Capacity, capacity
from controlplane.autoscaler.experts import expect
from controlplane.autoscaler.explain import explain
from controlplane.autoscaler.forecast import Demand, hold_s
from controlplane.autoscaler.learning import first_state, lead_s, learn, reach_s, wake_lead_s
from controlplane.autoscaler.model import (
    Decision,
    LatencyDelta,
    Observation,
    PolicyParams,
    PolicyState,
    Trust,
)
from controlplane.autoscaler.scatter import beyond_poisson
from controlplane.autoscaler.view import Needs, Stance, View
from controlplane.domain.reason import Reason
from controlplane.domain.slo import LatencyTarget


@dataclass(frozen=True, slots=True)
class Choice:
    wanted: int
    reason: Reason


class Step(StrEnum):
    """The rules, in their order."""

    PERSON = "a person's word"
    MORE = "more"
    """Or awake."""
    DATA = "hold without data"
    FEWER = "fewer"
    """Or to zero."""
    AS_IT_WAS = "as it was"


def decide(params: PolicyParams, observation: Observation, state: PolicyState | None) -> Decision:
    """The number of replicas to want now. `state` is what the last decision left; None at the first."""
    view = view_of(params, observation, state)
    choice = choose(params, view)
    return Decision(
        wanted=choice.wanted,
        reason=choice.reason,
        sentence=explain(view, choice.wanted, choice.reason),
        state=next_state(view, choice),
    )


# -- the view ---------------------------------------------------------------------------------------------------------


def view_of(params: PolicyParams, observation: Observation, state: PolicyState | None) -> View:
    """Demand, capacity and needs, after the state took note of shortage and of objectives missed without one."""
    learned = learn(params, observation, state or first_state(params, observation))
    lead = lead_s(params, observation, learned)
    believed = capacity(params, learned)
    missed = _missed_objective(params, learned)
    slo_need = 0
    if missed and _model_is_wrong(params, observation, learned, lead):
        tuning = params.tuning
        cut = max(learned.discount * tuning.discount_step, tuning.discount_least)
        learned = replace(learned, discount=cut, discounted_s=observation.at_s)
        believed = replace(believed, discount=cut)
        slo_need = observation.ready + 1
    demand, needs = _ahead(params, observation, learned, believed, lead, slo_need)
    within_reach = observation.ready + observation.starting + observation.sleeping
    if observation.sleeping > 0 and needs.to_order <= within_reach:
        # Who sleeps covers what may come until a start would be ready, so only the time to wake has to be bridged.
        lead = wake_lead_s(params)
        demand, needs = _ahead(params, observation, learned, believed, lead, slo_need)
    if observation.starting > 0 or observation.ready < needs.to_order or observation.work_waiting > observation.ready:
        learned = replace(learned, short_s=observation.at_s)
    return View(
        observation=observation,
        state=learned,
        lead_s=lead,
        hold_s=hold_s(lead, params.tuning),
        demand=demand,
        capacity=believed,
        needs=needs,
        missed=missed,
    )


def _ahead(
    params: PolicyParams, observation: Observation, state: PolicyState, believed: Capacity, lead: float, slo_need: int
) -> tuple[Demand | None, Needs]:
    """What is expected one lead ahead, and what that asks for."""
    demand = expect(state.buckets, state.errors, reach_s(params, state, lead), params.tuning)
    return demand, _needs(params, observation, demand, believed, lead, slo_need, state.kv_usage)


def _needs(
    params: PolicyParams,
    observation: Observation,
    demand: Demand | None,
    believed: Capacity,
    lead: float,
    slo_need: int,
    kv_usage: float,
) -> Needs:
    up_rps = demand.up_rps if demand else 0.0
    keep_rps = demand.keep_rps if demand else 0.0
    up_rps += beyond_poisson(up_rps, believed.dispersion, params.tuning)
    keep_rps += beyond_poisson(keep_rps, believed.dispersion, params.tuning)
    base = believed.replicas_for(up_rps)
    backlog_rps = _backlog(observation, believed, base) / max(lead, params.tuning.first_window_s)
    return Needs(
        demand=base,
        backlog=believed.replicas_for(up_rps + backlog_rps) if backlog_rps > 0.0 else 0,
        kv=_kv_need(params, observation, kv_usage),
        slo=slo_need,
        keep=believed.replicas_for(keep_rps + backlog_rps),
    )


def _backlog(observation: Observation, believed: Capacity, replicas: int) -> float:
    """Waiting requests beyond what `replicas` can take in at once.

    An engine with a queue is full, whatever the model says of its batch; only replicas still to come have room then.
    """
    full = observation.waiting > observation.ready
    room = (replicas - observation.ready if full else replicas) * believed.batch_max
    taken = 0 if full else observation.running
    return max(observation.work_waiting - max(room - taken, 0.0), 0.0)


def _kv_need(params: PolicyParams, observation: Observation, kv_usage: float) -> int:
    """Replicas over which the cached tokens of today would fill only the planned share; 0 without pressure."""
    if kv_usage <= params.tuning.kv_pressure or observation.engines_fresh < observation.ready:
        return 0
    return max(math.ceil(observation.ready * kv_usage / params.tuning.kv_fill), observation.ready + 1)


def _missed_objective(params: PolicyParams, state: PolicyState) -> str:
    """The objective that is missed beyond doubt (counting doubtful buckets as met), in words; empty when none is."""
    memory, slo = state.attainment, params.slo
    for name, seen, target in (
        ("TTFT", memory.ttft, slo.ttft),
        ("inter-token", memory.per_output_token, slo.inter_token),
        ("end-to-end", memory.end_to_end, slo.end_to_end),
    ):
        if target is not None and seen.count >= params.tuning.attainment_requests and _is_missed(seen, target):
            return f"{name} {seen.within_high / seen.count:.1%} of {target.percentile:.0%}"
    return ""


def _is_missed(seen: LatencyDelta, target: LatencyTarget) -> bool:
    return seen.within_high / seen.count < target.percentile


def _model_is_wrong(params: PolicyParams, observation: Observation, state: PolicyState, lead: float) -> bool:
    """Objectives are missed although there were enough replicas for long, and the last correction had its time."""
    settle_s = 2.0 * max(params.tuning.attainment_memory_s, lead)
    since_s = max(state.short_s, state.discounted_s, state.changed_s)
    return observation.ready > 0 and observation.starting == 0 and observation.at_s - since_s >= settle_s


# -- the rules --------------------------------------------------------------------------------------------------------


def choose(params: PolicyParams, view: Stance) -> Choice:
    """The first rule that applies."""
    return next(choice for _, choice in steps(params, view) if choice is not None)


def steps(params: PolicyParams, view: Stance) -> Iterator[tuple[Step, Choice | None]]:
    """Each rule's choice in their order, None where it does not apply; the last one always does."""
    before = bounded(view.observation)
    yield Step.PERSON, _person(view, before)
    yield Step.MORE, _up(params, view, before)
    yield Step.DATA, _hold(view, before)
    yield Step.FEWER, _down(params, view, before)
    yield Step.AS_IT_WAS, _steady(view, before)


def bounded(seen: Observation) -> int:
    """The number so far, within the site's limits."""
    return min(max(seen.wanted, seen.replicas_min), seen.replicas_max)


def _person(view: Stance, before: int) -> Choice | None:
    seen = view.observation
    if seen.paused:
        return Choice(before, Reason.PAUSED)
    if seen.pinned is not None:
        return Choice(min(max(seen.pinned, seen.replicas_min), seen.replicas_max), Reason.PINNED)
    return None


def _up(params: PolicyParams, view: Stance, before: int) -> Choice | None:
    """More, on whatever is certain: demand counted, requests waiting, a full cache, objectives missed."""
    seen, needs = view.observation, view.needs
    target = needs.to_order
    if before == 0 and (seen.work_waiting > 0 or (seen.arrivals or 0.0) > 0.0):
        return Choice(min(max(target, 1), seen.replicas_max), Reason.WAKE) if seen.replicas_max else None
    if before == 0 and is_idle(params, view):
        return None
    if target <= before:
        return None
    if before >= seen.replicas_max:
        return Choice(before, Reason.ABOVE_MAXIMUM)
    if view.state.direction < 0 and turned_lately(view) and not view.pressed:
        return Choice(before, Reason.HOLD_COOLDOWN)
    return Choice(min(target, seen.replicas_max), needs.reason)


def _hold(view: Stance, before: int) -> Choice | None:
    """Nothing below this rule may happen on missing, stale or partial data."""
    seen = view.observation
    parts = (seen.gateway, seen.engines)
    if Trust.MISSING in parts or seen.arrivals is None:
        return Choice(before, Reason.HOLD_MISSING_DATA)
    if Trust.STALE in parts or not seen.arrivals_complete:
        return Choice(before, Reason.HOLD_STALE_DATA)
    return None


def _down(params: PolicyParams, view: Stance, before: int) -> Choice | None:
    """Fewer, once nothing within the hold time needed more; to nothing, once nobody asked for long."""
    seen = view.observation
    least = max(seen.replicas_min, 0 if is_idle(params, view) else 1)
    if before > 0 and least == 0:
        return Choice(0, Reason.IDLE)
    if before == 0:
        return None
    keep = max(view.needed_within_hold, least)
    if keep >= before:
        return None if max(view.needs.keep, least) >= before else Choice(before, Reason.HOLD_COOLDOWN)
    if not hold_time_was_seen(params, view):
        return Choice(before, Reason.HOLD_COOLDOWN)
    if view.state.direction > 0 and turned_lately(view):
        return Choice(before, Reason.HOLD_COOLDOWN)
    return Choice(keep, Reason.DEMAND_DOWN)


def _steady(view: Stance, before: int) -> Choice:
    """As it was, or at the bound that the site file moved over it."""
    seen = view.observation
    if seen.wanted < seen.replicas_min:
        return Choice(before, Reason.BELOW_MINIMUM)
    if seen.wanted > seen.replicas_max:
        return Choice(before, Reason.ABOVE_MAXIMUM)
    if before == 0:
        return Choice(before, Reason.IDLE)
    if seen.starting > 0 and view.pressed:
        return Choice(before, Reason.HOLD_STARTING)
    return Choice(before, Reason.STEADY)


def is_idle(params: PolicyParams, view: Stance) -> bool:
    """Nobody asked for `idle_after`, the gateway says so itself, and zero is allowed."""
    seen = view.observation
    if params.idle_after is None or seen.replicas_min > 0 or seen.work_open > 0:
        return False
    if seen.gateway is not Trust.FRESH:
        return False
    return seen.at_s - view.state.last_request_s >= params.idle_after.total_seconds()


def turned_lately(view: Stance) -> bool:
    """Another turn would be the second within one lead."""
    return view.observation.at_s - view.state.turned_s < view.lead_s


def hold_time_was_seen(params: PolicyParams, view: Stance) -> bool:
    now_s, tuning = view.observation.at_s, params.tuning
    least_s = max(view.hold_s, min(tuning.first_hold_leads * view.lead_s, tuning.window_max_s))
    # A bucket that is longer than buckets are is a gap that only the counter spans: what happened in it is not known.
    most_s = tuning.bucket_max_s
    buckets = (bucket for bucket in view.state.buckets if bucket.end_s > now_s - view.hold_s)
    seen_s = sum(min(bucket.seconds, most_s) for bucket in buckets)
    return now_s - view.state.since_s >= least_s and seen_s >= tuning.hold_coverage * view.hold_s


# -- what is left for the next decision -------------------------------------------------------------------------------


def next_state(view: Stance, choice: Choice) -> PolicyState:
    state, now_s = view.state, view.observation.at_s
    buckets = state.buckets
    if buckets:
        last = buckets[-1]
        need = max(last.need, view.needs.keep, view.needs.to_order)
        buckets = (*buckets[:-1], replace(last, need=need))
    state = replace(state, buckets=buckets)
    if choice.wanted == view.observation.wanted:
        return state
    direction = 1 if choice.wanted > view.observation.wanted else -1
    turned = state.direction not in (0, direction)
    return replace(state, direction=direction, changed_s=now_s, turned_s=now_s if turned else state.turned_s)
