"""Outages and scale-down: what the autoscaler does when it sees nothing, and how soon it takes replicas away."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from controlplane.autoscaler.doctor.live import Case
from controlplane.autoscaler.doctor.model import Field, Finding, Rule, Severity, in_seconds
from controlplane.autoscaler.doctor.recipe import Autoscaler, Scaler

COLD_START: Final = timedelta(seconds=100)
"""What an engine needs with warm caches (llm-d, Qwen3-32B on two H100); without them 135 to 277 s were measured."""
_HOLD_FIX_S: Final = 300
"""Kubernetes' own default, which is above most cold starts."""

NULL_IS_ZERO: Final = Rule(
    id="empty-reads-as-zero",
    severity=Severity.RISKY,
    looks_for="a KEDA trigger that takes an empty result for zero (the default)",
    why="A lost scrape or a restarted Prometheus reads as no load, and replicas are taken away while they work.",
    source="KEDA, pkg/scalers/prometheus_scaler.go: ignoreNullValues is true by default, NaN included; llm-d PR #1981",
)
OR_ZERO: Final = Rule(
    id="absent-is-zero",
    severity=Severity.RISKY,
    looks_for="a query that ends in `or vector(0)`",
    why="The query itself turns a lost scrape into no load, whatever the scaler would do with an empty result.",
    source="Prometheus, operators; llm-d, scrape loss looks like idle",
)
FALLBACK: Final = Rule(
    id="fallback-never-used",
    severity=Severity.RISKY,
    looks_for="a KEDA fallback beside ignoreNullValues",
    why="A fallback answers errors of the scaler; an empty result is none while it is taken for zero.",
    source="KEDA, ScaledObject specification: fallback; pkg/scalers/prometheus_scaler.go",
)
COOLDOWN: Final = Rule(
    id="cooldown-only-to-zero",
    severity=Severity.RISKY,
    looks_for="cooldownPeriod where nothing goes to zero",
    why="KEDA waits for cooldownPeriod only before the step to zero; between other numbers its HPA decides.",
    source="KEDA, ScaledObject specification: cooldownPeriod; KEDA #6839",
)
HOLD: Final = Rule(
    id="scale-down-faster-than-start",
    severity=Severity.RISKY,
    looks_for="a scale-down window shorter than a cold start",
    why="A replica that goes in a lull is missed for a whole start when the load is back.",
    source="starts of 59 to 277 s measured (llm-d, vLLM #19824, #20264, #44881); Kubernetes' own default is 300 s",
)
METRIC_NAME: Final = Rule(
    id="keda-metric-name-ignored",
    severity=Severity.ADVICE,
    looks_for="metricName in a prometheus trigger",
    why="The scaler has no such setting; what is read is the query alone.",
    source="KEDA, pkg/scalers/prometheus_scaler.go",
)
RULES: Final = (NULL_IS_ZERO, OR_ZERO, FALLBACK, COOLDOWN, HOLD, METRIC_NAME)


def check(case: Case) -> Iterator[Finding]:
    for scaler in case.recipe.autoscalers:
        if scaler.scaler == Scaler.KEDA:
            yield from _triggers(scaler)
            yield from _fallback(scaler)
            yield from _cooldown(scaler)
        yield from _or_zero(scaler)
        yield from _hold(scaler)


def _triggers(scaler: Autoscaler) -> Iterator[Finding]:
    for metadata in _prometheus_triggers(scaler):
        ignored = metadata["ignoreNullValues"]
        if ignored.flag is not False:
            found = ignored.text if ignored.there else "nothing, which is true"
            fix = 'ignoreNullValues: "false"'
            yield Finding(rule=NULL_IS_ZERO, at=ignored, found=found, expected="false", fix=fix)
        name = metadata["metricName"]
        if name.there:
            yield Finding(
                rule=METRIC_NAME, at=name, found=name.text, expected="nothing", fix="delete the line", at_key=True
            )
    # The chart's default trigger has no metadata to place a finding at.
    if not scaler.spec["triggers"].there and scaler.signals:
        at = scaler.spec["triggers"]
        fix = 'ignoreNullValues: "false", in a trigger of your own'
        yield Finding(rule=NULL_IS_ZERO, at=at, found="the chart's trigger, which has true", expected="false", fix=fix)


def _prometheus_triggers(scaler: Autoscaler) -> Iterator[Field]:
    for trigger in scaler.spec["triggers"].items():
        if trigger["type"].text == "prometheus":
            yield trigger["metadata"]


def _fallback(scaler: Autoscaler) -> Iterator[Finding]:
    fallback = scaler.spec["fallback"]
    ignoring = any(metadata["ignoreNullValues"].flag is not False for metadata in _prometheus_triggers(scaler))
    if fallback.there and ignoring:
        found = "a fallback that an empty result does not reach"
        fix = 'ignoreNullValues: "false"'
        yield Finding(rule=FALLBACK, at=fallback, found=found, expected=f"{fix} beside it", fix=fix, at_key=True)


def _cooldown(scaler: Autoscaler) -> Iterator[Finding]:
    cooldown, idle = scaler.spec["cooldownPeriod"], scaler.spec["idleReplicaCount"]
    if not cooldown.there or idle.there or not scaler.replicas_min:
        return
    window = scaler.hold
    if window is not None and window.at.there:
        return
    setting = f"{{scaleDown: {{stabilizationWindowSeconds: {cooldown.text}}}}}"
    found = f"{cooldown.text}, with a minimum of {scaler.replicas_min:g}"
    yield Finding(
        rule=COOLDOWN,
        at=cooldown,
        found=found,
        expected="a scale-down window in the behavior of KEDA's HPA",
        fix=f"advanced: {{horizontalPodAutoscalerConfig: {{behavior: {setting}}}}}",
        at_key=True,
    )


def _or_zero(scaler: Autoscaler) -> Iterator[Finding]:
    is_keda = scaler.scaler == Scaler.KEDA
    for signal in scaler.signals:
        if signal.query is None or signal.expression is None or not signal.query.absent_is_zero:
            continue
        yield Finding(
            rule=OR_ZERO,
            at=signal.expression.at,
            found="or vector(0)",
            expected="the query without it, so that no result is no result",
            fix="delete `or vector(0)`" + (', and set ignoreNullValues: "false"' if is_keda else ""),
        )


def _hold(scaler: Autoscaler) -> Iterator[Finding]:
    hold = scaler.hold
    if hold is None or hold.span is None or hold.span >= COLD_START:
        return
    found = in_seconds(hold.span) if hold.at.there else f"nothing, which is {in_seconds(hold.span)}"
    suffix = "s" if scaler.scaler in {Scaler.KNATIVE, Scaler.AIBRIX} else ""
    fix = f"{hold.at.path[-1]}: {_HOLD_FIX_S}{suffix}"
    expected = f"longer than the engine's start: {in_seconds(COLD_START)} at the least"
    yield Finding(rule=HOLD, at=hold.at, found=found, expected=expected, fix=fix)
