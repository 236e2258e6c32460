"""What one decision by rules looks at, put together: each rule's answer, and what limits the change."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controlplane.autoscaler.forecast import Demand
from controlplane.autoscaler.rule_windows import Measured
from controlplane.autoscaler.rules_model import Change, RuleMemory
from controlplane.autoscaler.view import Stance
from controlplane.domain.scaling import ScalingRule

MINUTE_S: Final = 60.0
"""Replicas per minute are counted over this long."""


class Verdict(StrEnum):
    """Where a rule's value lies."""

    ABOVE = "above"
    BELOW = "below"
    WITHIN = "within"
    """Between its limits: as many as there are."""
    SILENT = "silent"
    """Not over its only limit: it says nothing of how few would do."""
    QUIET = "quiet"
    """Too few requests for a percentile or a share of errors: where it speaks of fewer at all, one step fewer."""
    UNKNOWN = "unknown"
    """Not measured: it says nothing, and nothing falls meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How many replicas one rule asks for; None: it asks for nothing."""

    rule: ScalingRule
    found: Measured
    asked: int | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesStance(Stance):
    """A stance that came from rules."""

    answers: tuple[Answer, ...]
    demand: Demand | None
    """Expected at now + lookahead; None without one, or before anything was measured."""
    lookahead_s: float
    memories: tuple[RuleMemory, ...]
    changes: tuple[Change, ...]
    """Of the last minute."""
    cooldown_up_s: float
    cooldown_down_s: float

    @property
    def winner(self) -> Answer | None:
        """The rule that asks for the most; the first of equals. None: none asks for anything."""
        asking = [answer for answer in self.answers if answer.asked is not None]
        return max(asking, key=lambda answer: answer.asked or 0, default=None)

    def changed_within_minute(self, *, up: bool) -> int:
        """Replicas added, or given back, within the last minute."""
        since_s = self.observation.at_s - MINUTE_S
        recent = [change.replicas for change in self.changes if change.at_s > since_s]
        return sum(abs(replicas) for replicas in recent if (replicas > 0) == up)
