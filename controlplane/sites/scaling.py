"""What to say of a deployment's autoscaling that is right, and may still surprise somebody. Pure."""

from collections.abc import Iterator

from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.scaling import ScalingPolicy, Signal
from controlplane.kernel.errors import Problem
from controlplane.sites.model import Severity, SiteFinding

_GPU_MEMORY = "how full the KV cache is: vLLM takes its share of the memory when it starts, whatever the load"


def scaling_findings(spec: DeploymentSpec) -> Iterator[SiteFinding]:
    """Warnings and notes."""
    scaling = spec.autoscaling
    for place, rule in enumerate(scaling.rules):
        if rule.signal is Signal.GPU_MEMORY:
            yield _finding(
                spec, Severity.NOTE, f"rules[{place}].signal", found="gpu_memory", expected=_GPU_MEMORY,
                hint="nothing; kv_cache says the same",
            )  # fmt: skip
    gives_back = any(rule.target is not None or rule.below is not None for rule in scaling.rules)
    if scaling.policy is ScalingPolicy.RULES and not gives_back:
        yield _finding(
            spec, Severity.WARNING, "rules", found="no rule with target or below",
            expected="one that says when fewer replicas would do",
            hint="add below to a rule; as it is the number only rises",
        )  # fmt: skip
    if scaling.shadow and spec.replicas_min == 0:
        yield _finding(
            spec, Severity.WARNING, "shadow", found="shadow with replicas.min 0",
            expected="a number that people set",
            hint=f"nothing wakes it from zero: set replicas.min, or pin it with `quarterdeck scale {spec.name} N`",
        )  # fmt: skip


def _finding(
    spec: DeploymentSpec, severity: Severity, field: str, *, found: str, expected: str, hint: str
) -> SiteFinding:
    key = field.partition("[")[0]
    return SiteFinding(
        severity=severity,
        path=("deployments", str(spec.name), "autoscaling", key),
        problem=Problem(
            field=f"deployments[{spec.name}].autoscaling.{field}", found=found, expected=expected, hint=hint
        ),
    )
