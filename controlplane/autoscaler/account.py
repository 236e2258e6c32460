"""A recorded decision taken apart: the numbers that went in, what was known, what was expected, which rule applied.

Decided again from the record by the policy's own functions, so that nothing is told that was not so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

from controlplane.autoscaler.capacity import Capacity
from controlplane.autoscaler.explain import blindness, in_seconds
from controlplane.autoscaler.forecast import Demand
from controlplane.autoscaler.model import POLICY_NAME, Observation, PolicyParams, PolicyState
from controlplane.autoscaler.policy import (
    Choice,
    Step,
    bounded,
    choose,
    hold_time_was_seen,
    is_idle,
    steps,
    turned_lately,
    view_of,
)
from controlplane.autoscaler.replay import rules_input, slo_input
from controlplane.autoscaler.rules import limited_choice, rules_stance
from controlplane.autoscaler.rules_explain import answer_in_words
from controlplane.autoscaler.rules_model import RULES_NAME, RulesParams
from controlplane.autoscaler.rules_view import RulesStance
from controlplane.autoscaler.view import Stance, View
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.reason import Reason
from controlplane.kernel.errors import TerminalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One number or word. `value` for programs, `text` for people."""

    name: str
    value: float | str | bool | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    name: str
    title: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleLine:
    """One rule of the order. `applied`: None where an earlier one applied, so that it was not asked."""

    rule: str
    applied: bool | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one of the site's rules said."""

    signal: str
    rule: str
    value: float | None
    """Of the signal, looked ahead where that is asked for: 0..1, seconds or a number. None: not measured."""
    verdict: str
    asked: int | None
    """Replicas; None: it asks for nothing."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    sections: tuple[Section, ...]
    rules: tuple[RuleLine, ...]
    said: tuple[Said, ...] = ()
    """Where rules decide: in the site file's order."""


def account(record: DecisionRecord) -> Account:
    """TerminalError when another version recorded it; InvalidError when its texts are broken."""
    match record.policy_name:
        case name if name == POLICY_NAME:
            return _of_slo(*slo_input(record))
        case name if name == RULES_NAME:
            return _of_rules(record)
        case _:
            raise TerminalError(
                f"decision {record.sequence} was made by {record.policy}; this version can take apart those of "
                f"{POLICY_NAME} and {RULES_NAME}. `quarterdeck decisions --show {record.sequence}` prints what it "
                "was made from"
            )


def _of_slo(params: PolicyParams, observation: Observation, state: PolicyState | None) -> Account:
    view = view_of(params, observation, state)
    return Account(
        sections=(
            _inputs(view),
            _learned(params, view),
            _demand(params, view),
            _capacity(view.capacity),
            _needs(view),
            _times(view),
        ),
        rules=tuple(_order(params, view)),
    )


def _of_rules(record: DecisionRecord) -> Account:
    params, observation, state = rules_input(record)
    stance = rules_stance(params, observation, state)
    order = [*_order(params.base, stance), _limits(params, stance)]
    return Account(
        sections=(_inputs(stance), _ahead(params, stance), _times(stance)),
        rules=tuple(order),
        said=tuple(_said(stance)),
    )


# -- sections ---------------------------------------------------------------------------------------------------------


def _inputs(view: Stance) -> Section:
    seen = view.observation
    came = "not known" if seen.arrivals is None else f"{seen.arrivals:g} in {seen.arrivals_seconds:.1f}s"
    facts = [
        Fact(name="arrivals", value=seen.arrivals, text=f"{came}, from {seen.arrivals_source}"),
        Fact(name="held", value=seen.held, text=f"{seen.held} held while nothing serves"),
        Fact(name="queued", value=seen.queued, text=f"{seen.queued} in the gateway"),
        Fact(name="waiting", value=seen.waiting, text=f"{seen.waiting} in the engines"),
        Fact(name="running", value=seen.running, text=f"{seen.running} in the engines"),
        Fact(name="kv_usage", value=seen.kv_usage, text=f"{seen.kv_usage:.0%}"),
        Fact(name="gateway", value=str(seen.gateway), text=f"its figures are {seen.gateway}"),
        Fact(
            name="engines", value=str(seen.engines),
            text=f"{seen.engines_fresh} of {seen.ready} ready replicas told, the worst is {seen.engines}",
        ),
        Fact(name="wanted", value=seen.wanted, text=f"{seen.wanted} so far"),
        Fact(name="ready", value=seen.ready, text=str(seen.ready)),
        Fact(name="starting", value=seen.starting, text=str(seen.starting)),
        Fact(name="sleeping", value=seen.sleeping, text=str(seen.sleeping)),
        Fact(name="replicas_min", value=seen.replicas_min, text=str(seen.replicas_min)),
        Fact(name="replicas_max", value=seen.replicas_max, text=str(seen.replicas_max)),
    ]  # fmt: skip
    if seen.shadow_of is not None:
        text = f"{seen.shadow_of} stay whatever is decided; `wanted` is the shadow's own"
        facts.append(Fact(name="shadow_of", value=seen.shadow_of, text=text))
    return Section(name="inputs", title="What was seen", facts=tuple(facts))


def _learned(params: PolicyParams, view: View) -> Section:
    state, workload, factor = view.state, view.capacity.workload, view.capacity.timing.slowness
    scatter = view.capacity.dispersion
    starts = state.cold_starts_s
    told = ", ".join(f"{start:.1f}s" for start in starts[-4:]) or "none measured yet"
    modelled = "measured figures" if params.prior.calibrated else "figures derived from the hardware"
    return Section(
        name="learned",
        title="What was known",
        facts=(
            Fact(
                name="prompt_tokens", value=workload.prompt_tokens,
                text=f"{workload.prompt_tokens:.0f} in the mean request, of {state.tokens.started:.0f} lately",
            ),
            Fact(
                name="output_tokens", value=workload.output_tokens,
                text=f"{workload.output_tokens:.0f} in the mean answer",
            ),
            Fact(name="dispersion", value=scatter, text=f"arrivals scatter {scatter:.1f} times as much as Poisson's"),
            Fact(name="slowness", value=factor, text=f"steps x{factor:.2f} of the {modelled}"),
            Fact(name="discount", value=state.discount, text=f"{state.discount:.0%} of the modelled capacity"),
            Fact(name="cold_starts", value=float(len(starts)), text=f"the last: {told}"),
            Fact(name="missed", value=view.missed or None, text=view.missed or "no objective is missed"),
        ),
    )  # fmt: skip


def _demand(params: PolicyParams, view: View) -> Section:
    facts = list(_demand_facts(view.demand, view.lead_s, NormalDist().cdf(params.tuning.up_z)))
    if view.demand is not None:
        keep, share = view.demand.keep_rps, NormalDist().cdf(params.tuning.keep_z)
        text = f"{keep:.2f} req/s in {in_seconds(view.lead_s)} ({share:.0%} lie below): to keep replicas for"
        facts.append(Fact(name="keep_rps", value=keep, text=text))
    return Section(name="demand", title="Demand", facts=tuple(facts))


def _demand_facts(demand: Demand | None, ahead_s: float, share: float) -> Iterator[Fact]:
    """`share`: of what may come, lies below the demand to order for."""
    if demand is None:
        yield Fact(name="level_rps", value=None, text="arrivals not known yet")
        return
    ahead = in_seconds(ahead_s)
    over = in_seconds(demand.window_s)
    yield Fact(name="level_rps", value=demand.level_rps, text=f"{demand.level_rps:.2f} req/s over {over}")
    burst = f"{demand.burst_rps:.2f} req/s proven for the last {in_seconds(demand.burst_s)}"
    yield Fact(name="burst_rps", value=demand.burst_rps, text=burst if demand.burst_rps > 0.0 else "no change point")
    peak = f"{demand.peak_rps:.2f} req/s was the most of late" if demand.peak_rps > 0.0 else "no peak of late"
    yield Fact(name="peak_rps", value=demand.peak_rps, text=peak)
    rise = f"{round(demand.rise_rps, 2) + 0.0:+.2f} req/s on top expected in {ahead}"
    yield Fact(name="rise_rps", value=demand.rise_rps, text=rise)
    error = f"such expectations were {demand.error:.0%} off here" if demand.error else "nobody judges the expectation"
    yield Fact(name="error", value=demand.error, text=error)
    up = f"{demand.up_rps:.2f} req/s in {ahead} ({share:.0%} lie below): to order for"
    yield Fact(name="up_rps", value=demand.up_rps, text=up)


def _capacity(held: Capacity) -> Section:
    one = held.fleet_rps(1)
    return Section(
        name="capacity",
        title="Capacity",
        facts=(
            Fact(name="replica_rps", value=one, text=f"{one:.2f} req/s by one replica alone"),
            Fact(name="limit", value=held.limit, text=f"{held.limit} is reached first"),
            Fact(name="batch_max", value=held.batch_max, text=f"{held.batch_max:.0f} requests at once until then"),
        ),
    )


def _needs(view: View) -> Section:
    needs = view.needs
    named = (
        ("demand", needs.demand, "for the demand to order for"),
        ("backlog", needs.backlog, "for that and what waits beyond what fits"),
        ("kv", needs.kv, "for the KV cache"),
        ("slo", needs.slo, "for missed objectives"),
        ("keep", needs.keep, "below which nothing is given back"),
        ("hold", view.needed_within_hold, f"the most within the hold time of {in_seconds(view.hold_s)}"),
    )
    facts = tuple(Fact(name=name, value=count, text=f"{count} {what}") for name, count, what in named)
    return Section(name="needs", title="Replicas needed", facts=facts)


def _said(stance: RulesStance) -> Iterator[Said]:
    for answer in stance.answers:
        yield Said(
            signal=str(answer.rule.signal),
            rule=str(answer.rule),
            value=answer.found.value,
            verdict=str(answer.verdict),
            asked=answer.asked,
            text=answer_in_words(answer, stance),
        )


def _ahead(params: RulesParams, stance: RulesStance) -> Section:
    if stance.demand is None:
        nothing = Fact(name="level_rps", value=None, text="no lookahead: rules go by what is measured")
        return Section(name="demand", title="Demand", facts=(nothing,))
    facts = tuple(_demand_facts(stance.demand, stance.lookahead_s, params.spec.confidence))
    return Section(name="demand", title="Demand", facts=facts)


def _times(view: Stance) -> Section:
    state, now_s = view.state, view.observation.at_s
    moved = {1: "up", -1: "down", 0: "none yet"}[state.direction]
    return Section(
        name="times",
        title="Times",
        facts=(
            Fact(name="lead_s", value=view.lead_s, text=f"{in_seconds(view.lead_s)} until a new replica is ready"),
            Fact(name="hold_s", value=view.hold_s, text=f"{in_seconds(view.hold_s)} before replicas are given back"),
            Fact(
                name="changed_s", value=now_s - state.changed_s if state.direction else None,
                text=f"the last change: {moved}"
                + (f", {in_seconds(now_s - state.changed_s)} before" if state.direction else ""),
            ),
        ),
    )  # fmt: skip


# -- rules ------------------------------------------------------------------------------------------------------------


def _order(params: PolicyParams, view: Stance) -> Iterator[RuleLine]:
    """As `policy.choose` goes through them."""
    done = False
    for step, choice in steps(params, view):
        if done:
            yield RuleLine(rule=step, applied=None, why="not asked: an earlier rule applied")
        elif choice is None:
            yield RuleLine(rule=step, applied=False, why=_why_not(step, params, view))
        else:
            done = True
            yield RuleLine(rule=step, applied=True, why=_why(params, view, choice))


def _why_not(step: Step, params: PolicyParams, view: Stance) -> str:
    seen, before = view.observation, bounded(view.observation)
    match step:
        case Step.PERSON:
            return "nobody paused or pinned it"
        case Step.MORE:
            waits = f"{seen.work_waiting} requests wait" if seen.work_waiting else "nobody waits"
            return f"{view.needs.to_order} are needed, {before} wanted; {waits}"
        case Step.DATA:
            return "everything was read in full"
        case Step.FEWER:
            if before == 0:
                return "there are none"
            kept = max(view.needs.keep, seen.replicas_min, 0 if is_idle(params, view) else 1)
            return f"{kept} are worth keeping, {before} wanted"
        case _:
            return ""


def _why(params: PolicyParams, view: Stance, choice: Choice) -> str:
    """In the words of its reason."""
    seen = view.observation
    match choice.reason:
        case Reason.HOLD_MISSING_DATA | Reason.HOLD_STALE_DATA:
            return f"{blindness(view)}: nothing may fall"
        case Reason.HOLD_COOLDOWN:
            return _held(params, view, choice)
        case Reason.HOLD_STARTING:
            return f"{seen.starting} start, the oldest for {in_seconds(seen.starting_age_s)}: they are enough"
        case Reason.IDLE:
            return f"no request for {in_seconds(seen.at_s - view.state.last_request_s)}, and zero is allowed"
        case Reason.DEMAND_DOWN:
            return f"no moment of the hold time of {in_seconds(view.hold_s)} needed more than {choice.wanted}"
        case _:
            return _why_bounded(view, choice)


def _why_bounded(view: Stance, choice: Choice) -> str:
    """What people, the site and the demand ask for."""
    seen, needed = view.observation, view.needs.to_order
    said = {
        Reason.PAUSED: "paused by a person",
        Reason.PINNED: f"pinned at {seen.pinned} by a person",
        Reason.WAKE: f"{seen.work_waiting} requests wait and nothing serves",
        Reason.ABOVE_MAXIMUM: f"{needed} are needed, the site allows {seen.replicas_max}",
        Reason.BELOW_MINIMUM: f"the site asks for at least {seen.replicas_min}",
        Reason.STEADY: "nothing speaks for another number",
    }
    return said.get(choice.reason, f"{needed} are needed, {bounded(seen)} wanted")


def _held(params: PolicyParams, view: Stance, choice: Choice) -> str:
    turned = f"another turn would be the second within one lead of {in_seconds(view.lead_s)}"
    hold, needs = in_seconds(view.hold_s), view.needs
    if needs.to_order > choice.wanted:
        return f"{needs.to_order} are needed, but {turned}"
    if view.needed_within_hold >= choice.wanted:
        return f"{needs.keep} would do, but {view.needed_within_hold} were needed within the hold time of {hold}"
    if not hold_time_was_seen(params, view):
        return f"{needs.keep} would do, but not enough of the hold time of {hold} was seen"
    return f"{needs.keep} would do, but {turned}" if turned_lately(view) else "fewer would do"


def _limits(params: RulesParams, stance: RulesStance) -> RuleLine:
    _, said = limited_choice(params, stance, choose(params.base, stance))
    return RuleLine(rule="limits of the site", applied=bool(said), why=said or "the change is within them")
