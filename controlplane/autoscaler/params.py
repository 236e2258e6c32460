"""The policy's parameters for one deployment, from what the site and the catalog say of it."""

from dataclasses import replace

from controlplane.autoscaler.forecast import window_s
from controlplane.autoscaler.model import PolicyParams, Tuning
from controlplane.autoscaler.rules_model import RulesParams
from controlplane.domain.deployment import Deployment, TaskKind
from controlplane.domain.scaling import AutoscalingSpec

_BUCKETS_PER_HISTORY = 60
"""Parts of the history that is kept for the cooldown and the lookahead: the state stays a few kilobytes."""


def params_for(deployment: Deployment, tuning: Tuning | None = None) -> PolicyParams:
    """Params are data: they are kept with each decision, so that an old one replays under its own."""
    return PolicyParams(
        prior=deployment.plan.prior,
        slo=deployment.spec.slo,
        decodes=deployment.plan.launch.task is not TaskKind.EMBED,
        idle_after=deployment.spec.idle_after,
        tuning=tuning or Tuning(),
    )


def rules_params_for(deployment: Deployment, tuning: Tuning | None = None) -> RulesParams:
    """The same for a deployment whose number follows rules."""
    spec = deployment.spec.autoscaling
    base = params_for(deployment, tuning)
    return RulesParams(base=replace(base, tuning=_for_rules(base.tuning, spec)), spec=spec)


def _for_rules(tuning: Tuning, spec: AutoscalingSpec) -> Tuning:
    """The hold time is the cooldown, whatever the lead; the window of demand is as long as the lookahead needs it."""
    cooldown_s = spec.cooldown_down.total_seconds()
    ahead_s = 0.0 if spec.lookahead is None else window_s(spec.lookahead.total_seconds(), tuning)
    width_s = max(cooldown_s, ahead_s) / _BUCKETS_PER_HISTORY
    return replace(
        tuning,
        hold_leads=0.0,
        hold_floor_s=cooldown_s,
        hold_least_s=cooldown_s,
        first_hold_leads=0.0,
        window_min_s=max(tuning.window_min_s, ahead_s),
        bucket_min_s=max(tuning.bucket_min_s, width_s),
        bucket_max_s=max(tuning.bucket_max_s, width_s),
    )
