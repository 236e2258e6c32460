"""What a decision by rules is told, sees, remembers and answers: frozen values with a canonical text each."""

from dataclasses import dataclass
from typing import Final

from controlplane.autoscaler.model import Observation, PolicyParams, PolicyState
from controlplane.autoscaler.signals import Signals
from controlplane.domain.reason import Reason
from controlplane.domain.scaling import AutoscalingSpec, ScalingRule

RULES_NAME: Final = "rules/1"
"""Name and version. A change that gives another answer on an old record raises the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesParams:
    """Everything that the site says which the decision uses."""

    policy: str = RULES_NAME
    base: PolicyParams
    """For what both policies share: lead, history of demand, zero. Its tuning carries the cooldown as hold time."""
    spec: AutoscalingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesObservation:
    """One deployment at one moment, with what its rules need beyond what every policy sees."""

    seen: Observation
    signals: Signals

    @property
    def at_s(self) -> float:
        return self.seen.at_s

    @property
    def wanted(self) -> int:
        return self.seen.wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of a window: the value is amount over weight, or a percentile of the counts."""

    end_s: float
    seconds: float
    weight: float
    """Seconds of a level, requests of a share of errors, observations of a latency."""
    amount: float
    """Level times seconds, errors."""
    counts: tuple[float, ...] = ()
    """Of a latency: cumulative, by the edges of the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleMemory:
    """The window of one rule."""

    rule: ScalingRule
    since_s: float
    """When it began to be measured."""
    slices: tuple[Slice, ...] = ()
    edges: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of the number within the last minute."""

    at_s: float
    replicas: int
    """Positive: more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesState:
    """All that a decision leaves for the next one."""

    learned: PolicyState
    memories: tuple[RuleMemory, ...]
    """One for each rule, in their order."""
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesDecision:
    wanted: int
    reason: Reason
    sentence: str
    state: RulesState
