"""One look and one decision for one deployment, whichever policy decides and whether it is acted upon. Pure.

In shadow the policy decides from a number of its own, which begins at the real one: so its record tells where it would
have gone, and not the same step again at every tick. What serves and what is measured is real.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.autoscaler.model import Decision, Observation, PolicyState, Tuning
from controlplane.autoscaler.observe import ObserverMemory, observe
from controlplane.autoscaler.params import params_for, rules_params_for
from controlplane.autoscaler.policy import decide
from controlplane.autoscaler.replay import record
from controlplane.autoscaler.rules import decide_by_rules
from controlplane.autoscaler.rules_model import RulesDecision, RulesObservation, RulesState
from controlplane.autoscaler.signals import SignalMemory, look
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica
from controlplane.domain.scaling import ScalingPolicy
from controlplane.domain.telemetry import TelemetrySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The decision last kept."""

    at_s: float
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesMemory:
    """What decisions by rules leave."""

    signals: SignalMemory
    state: RulesState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the store keeps per deployment between two ticks."""

    observer: ObserverMemory = field(default_factory=ObserverMemory)
    policy: PolicyState | None = None
    recorded: Recorded | None = None
    rules: RulesMemory | None = None
    """Where rules decide; then `policy` is None."""
    shadow_wanted: int | None = None
    """What would be wanted, while nothing is done about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What follows from one look."""

    decision: Decision | RulesDecision
    observation: Observation
    """What was decided from; in shadow `wanted` is the shadow's own."""
    wanted: int
    """The number from now on: the decision's, or in shadow what a person and the site's limits say."""
    record: DecisionRecord
    """To be kept if it is worth it."""
    memory: Memory
    """For the next look; `recorded` as it was."""


def scale(
    deployment: Deployment,
    replicas: Sequence[Replica],
    snapshot: TelemetrySnapshot,
    memory: Memory,
    now: datetime,
    tuning: Tuning | None = None,
) -> Scaling:
    """Look and decide. `replicas` are the deployment's own rows."""
    observation, observer = observe(deployment, replicas, snapshot, memory.observer, now)
    if deployment.in_shadow:
        before = deployment.replicas_wanted if memory.shadow_wanted is None else memory.shadow_wanted
        observation = replace(observation, wanted=before, pinned=None, shadow_of=deployment.replicas_target)
    memory = replace(memory, observer=observer)
    if deployment.spec.autoscaling.policy is ScalingPolicy.RULES:
        scaling = _by_rules(deployment, replicas, snapshot, memory, observation, tuning)
    else:
        scaling = _by_slo(deployment, memory, observation, tuning)
    if not deployment.in_shadow:
        return replace(scaling, memory=replace(scaling.memory, shadow_wanted=None))
    return replace(
        scaling,
        wanted=deployment.replicas_wanted if deployment.intent.paused else deployment.replicas_target,
        memory=replace(scaling.memory, shadow_wanted=scaling.decision.wanted),
    )


def _by_slo(deployment: Deployment, memory: Memory, observation: Observation, tuning: Tuning | None) -> Scaling:
    params = params_for(deployment, tuning)
    decision = decide(params, observation, memory.policy)
    return Scaling(
        decision=decision,
        observation=observation,
        wanted=decision.wanted,
        record=record(deployment.name, params, observation, memory.policy, decision),
        memory=replace(memory, policy=decision.state, rules=None),
    )


def _by_rules(
    deployment: Deployment,
    replicas: Sequence[Replica],
    snapshot: TelemetrySnapshot,
    memory: Memory,
    observation: Observation,
    tuning: Tuning | None,
) -> Scaling:
    params = rules_params_for(deployment, tuning)
    before = memory.rules or RulesMemory(signals=SignalMemory(), state=None)
    signals, left = look(deployment.name, params.spec, replicas, snapshot, before.signals)
    seen = RulesObservation(seen=observation, signals=signals)
    decision = decide_by_rules(params, seen, before.state)
    return Scaling(
        decision=decision,
        observation=observation,
        wanted=decision.wanted,
        record=record(deployment.name, params, seen, before.state, decision),
        memory=replace(memory, policy=None, rules=RulesMemory(signals=left, state=decision.state)),
    )
