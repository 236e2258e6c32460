"""The sentence of a decision by rules: the rule that asks for the most with its numbers, and what held it back."""

from controlplane.autoscaler.explain import blindness, headline, in_seconds, replicas_seen, said_alike, waits
from controlplane.autoscaler.model import Trust
from controlplane.autoscaler.rule_windows import is_per_replica
from controlplane.autoscaler.rules_view import Answer, RulesStance, Verdict
from controlplane.domain.reason import Reason
from controlplane.domain.scaling import written_value

_SHOWN_MAX = 1
"""Rules beside the one that asks for the most: a sentence, not a table. `autoscale explain` tells them all."""


def explain_rules(stance: RulesStance, wanted: int, reason: Reason, limit: str) -> str:
    """One sentence for people. `limit`: what held the change back, in words; empty: nothing."""
    said = f"{headline(stance.observation, wanted)}: {_because(stance, reason)}"
    return f"{said}; {limit}" if limit else said


def answer_in_words(answer: Answer, stance: RulesStance) -> str:
    """`kv_cache 92% over 30s is above 85%: asks for 5`."""
    rule, found = answer.rule, answer.found
    if found.value is None:
        why = "hardly a request" if answer.verdict is Verdict.QUIET else "not measured"
        return f"{rule.name} {why} over {in_seconds(rule.window.total_seconds())}{_asks(answer)}"
    share = 1.0
    each = ""
    if is_per_replica(rule):
        share, each = 1.0 / max(stance.observation.ready, 1), " each"
    value = written_value(rule.signal, found.value * share)
    return f"{rule.name} {value}{each} over {in_seconds(rule.window.total_seconds())}{_place(answer)}{_asks(answer)}"


def _place(answer: Answer) -> str:
    rule = answer.rule
    target = f" (target {written_value(rule.signal, rule.target)})" if rule.target is not None else ""
    match answer.verdict:
        case Verdict.ABOVE if rule.above is not None:
            return f" is above {written_value(rule.signal, rule.above)}{target}"
        case Verdict.BELOW if rule.below is not None:
            return f" is below {written_value(rule.signal, rule.below)}{target}"
        case Verdict.SILENT:
            assert rule.above is not None, "only such a rule is silent"
            return f" is not above {written_value(rule.signal, rule.above)}"
        case _:
            return target


def _asks(answer: Answer) -> str:
    return "" if answer.asked is None else f": asks for {answer.asked}"


def _because(stance: RulesStance, reason: Reason) -> str:
    seen = stance.observation
    match reason:
        case Reason.PAUSED | Reason.IDLE | Reason.BELOW_MINIMUM:
            return said_alike(stance, reason)
        case Reason.PINNED:
            return f"pinned at {seen.pinned} by a person; {_rules(stance)}"
        case Reason.WAKE:
            return f"{waits(seen)} and nothing serves; ready in about {in_seconds(stance.lead_s)}"
        case Reason.HOLD_MISSING_DATA | Reason.HOLD_STALE_DATA:
            return f"{_unseen(stance)}; never fewer on what is not seen ({_rules(stance)})"
        case Reason.ABOVE_MAXIMUM:
            return f"{_rules(stance)}; the site allows {seen.replicas_max}"
        case _:
            return f"{_rules(stance)}; {replicas_seen(stance)}"


def _unseen(stance: RulesStance) -> str:
    """A rule whose signal is not there is the nearer cause."""
    unknown = [answer.rule.name for answer in stance.answers if not answer.found.known]
    if unknown and stance.observation.gateway is Trust.FRESH:
        return f"{', '.join(unknown)} cannot be read in full"
    return blindness(stance)


def _rules(stance: RulesStance) -> str:
    """The winner first, then the others, shortly; with what was looked ahead to."""
    ahead = ""
    if stance.demand is not None:
        ahead = f"{stance.demand.level_rps:.2f} req/s, up to {stance.demand.up_rps:.2f} looked ahead to; "
    winner = stance.winner
    first = [winner] if winner is not None else []
    others = [answer for answer in stance.answers if answer is not winner]
    told = [answer_in_words(answer, stance) for answer in [*first, *others][: _SHOWN_MAX + 1]]
    more = len(stance.answers) - len(told)
    return ahead + ", ".join(told) + (f" and {more} more" if more > 0 else "")
