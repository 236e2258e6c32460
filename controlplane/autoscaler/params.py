"""The policy's parameters for one deployment, from what the site and the catalog say of it."""

from controlplane.autoscaler.model import PolicyParams, Tuning
from controlplane.domain.deployment import Deployment, TaskKind


def params_for(deployment: Deployment, tuning: Tuning | None = None) -> PolicyParams:
    """Params are data: they are kept with each decision, so that an old one replays under its own."""
    return PolicyParams(
        prior=deployment.plan.prior,
        slo=deployment.spec.slo,
        decodes=deployment.plan.launch.task is not TaskKind.EMBED,
        idle_after=deployment.spec.idle_after,
        tuning=tuning or Tuning(),
    )
