"""The sentence of a decision: what was seen, what it means, what follows, with the numbers it was made from."""

from typing import assert_never

from controlplane.autoscaler.model import ArrivalSource, Observation, Trust
from controlplane.autoscaler.view import Stance, View
from controlplane.domain.reason import Reason


def explain(view: View, wanted: int, reason: Reason) -> str:
    """One sentence for people, at most about 300 characters."""
    return f"{headline(view.observation, wanted)}: {_because(view, reason)}"


def headline(seen: Observation, wanted: int) -> str:
    """`2 -> 3`, or `stays at 3`; in shadow `would go 2 -> 3 (in shadow, 2 stay)`."""
    moves = wanted != seen.wanted
    if seen.shadow_of is None:
        return f"{seen.wanted} -> {wanted}" if moves else f"stays at {wanted}"
    stay = f"(in shadow, {seen.shadow_of} stay{'s' if seen.shadow_of == 1 else ''})"
    return f"would go {seen.wanted} -> {wanted} {stay}" if moves else f"would stay at {wanted} {stay}"


def _because(view: View, reason: Reason) -> str:
    seen = view.observation
    match reason:
        case Reason.PAUSED | Reason.IDLE | Reason.BELOW_MINIMUM:
            return said_alike(view, reason)
        case Reason.PINNED:
            return f"pinned at {seen.pinned} by a person; {_needed(view)}"
        case Reason.WAKE:
            return f"{waits(seen)} and nothing serves; {_needed(view)}; ready in about {_lead(view)}"
        case Reason.HOLD_MISSING_DATA | Reason.HOLD_STALE_DATA:
            return f"{blindness(view)}; never fewer on what is not seen ({_needed(view)})"
        case Reason.ABOVE_MAXIMUM:
            return f"{_needed(view)}, the site allows {seen.replicas_max}"
        case _:
            return f"{_pressure(view, reason)}{_needed(view)}; {replicas_seen(view)}{_caution(view, reason)}"


def said_alike(view: Stance, reason: Reason) -> str:
    """Of reasons that have nothing to do with how much is needed."""
    seen = view.observation
    match reason:
        case Reason.IDLE:
            return f"no request for {in_seconds(seen.at_s - view.state.last_request_s)}"
        case Reason.BELOW_MINIMUM:
            return f"the site asks for at least {seen.replicas_min}"
        case _:
            return "paused by a person"


def waits(seen: Observation) -> str:
    """`1 request waits`."""
    return "1 request waits" if seen.work_waiting == 1 else f"{seen.work_waiting} requests wait"


def _needed(view: View) -> str:
    """`9.8 req/s over 30s, 12.1 in 60s; a replica carries 4.1 (KV cache: 88 at once); needs 3`."""
    if view.demand is None:
        return "arrivals not known yet"
    demand, held = view.demand, view.capacity
    now = f"{demand.level_rps:.2f} req/s over {in_seconds(demand.window_s)}"
    if demand.burst_rps > 0.0:
        now += f", {demand.burst_rps:.2f} for {in_seconds(demand.burst_s)}"
    needed = max(view.needs.to_order, 0)
    share = held.fleet_rps(max(needed, 1)) / max(needed, 1)
    trust = f", cut to {held.discount:.0%} after missed objectives" if held.discount < _CUT_SHOWN else ""
    return (
        f"{now}, up to {demand.up_rps:.2f} in {_lead(view)}; a replica carries {share:.2f} "
        f"({held.limit}: {held.batch_max:.0f} at once, steps x{held.timing.slowness:.2f}{trust}); needs {needed}"
    )


_CUT_SHOWN = 0.995
"""A cut that has healed this far would print as 100 %."""


def _pressure(view: View, reason: Reason) -> str:
    seen = view.observation
    match reason:
        case Reason.QUEUE_GROWING:
            return f"{seen.work_waiting} requests wait; "
        case Reason.KV_PRESSURE:
            return f"KV cache {view.state.kv_usage:.0%} full, {seen.preemptions:.0f} preempted; "
        case Reason.SLO_AT_RISK:
            return f"{view.missed} with enough replicas by the model; "
        case _:
            return ""


def replicas_seen(view: Stance) -> str:
    seen = view.observation
    parts = [f"{seen.ready} ready"]
    parts += [f"{count} {name}" for count, name in ((seen.starting, "starting"), (seen.sleeping, "asleep")) if count]
    return ", ".join(parts)


def _caution(view: View, reason: Reason) -> str:
    if reason is Reason.HOLD_COOLDOWN:
        keep = view.needed_within_hold
        return f"; kept for {in_seconds(view.hold_s)} after the last need (most within it: {keep})"
    if reason is Reason.DEMAND_DOWN:
        return f"; nothing needed more for {in_seconds(view.hold_s)}"
    if reason is Reason.HOLD_STARTING:
        return f"; those that start are enough, the oldest for {in_seconds(view.observation.starting_age_s)}"
    return f"; {view.missed}" if view.missed else ""


def blindness(view: Stance) -> str:
    seen = view.observation
    if seen.gateway is not Trust.FRESH:
        return f"the gateway's counters are {seen.gateway}"
    if seen.engines is not Trust.FRESH:
        return f"{seen.engines_fresh} of {seen.ready} ready replicas gave fresh data, the worst is {seen.engines}"
    match seen.arrivals_source:
        case ArrivalSource.NONE:
            return "the gateway has no route for this deployment yet"
        case ArrivalSource.GATEWAY | ArrivalSource.ENGINES:
            return "the arrival counter was read once or began anew"
        case _:
            assert_never(seen.arrivals_source)


def _lead(view: View) -> str:
    return in_seconds(view.lead_s)


def in_seconds(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds >= 1.0 else f"{seconds:.1f}s"
