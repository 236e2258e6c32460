"""Rules that span fields of a deployment's `autoscaling`: like `rules.py`, over the plain data."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from controlplane.adapters.sitefile.findings import Finding, Path, shown
from controlplane.adapters.sitefile.outline import Entry, entries, section, text
from controlplane.adapters.sitefile.values import RULE_VALUES, rule_value_of
from controlplane.domain.scaling import LATENCIES, Signal, SignalKind, kind_of

_ONLY_WITH_RULES: Final = ("rules", "max_up_per_minute", "max_down_per_minute", "cooldown", "lookahead", "confidence")
_VALUES: Final = ("target", "above", "below")
_EXAMPLE: Final = "add `rules: [{signal: kv_cache, target: 75%}]`, or set policy: slo"


def autoscaling_findings(path: Path, deployment: Entry) -> Iterator[Finding]:
    """`path` is the deployment's."""
    scaling, place = section(deployment, "autoscaling"), (*path, "autoscaling")
    policy = "slo" if "policy" not in scaling else text(scaling, "policy")
    if policy == "slo":
        for key in _ONLY_WITH_RULES:
            if scaling.get(key) is not None:
                hint = f"set policy: rules, or delete {key}"
                yield _needless((*place, key), f"{key} with policy: slo", "it only with policy: rules", hint)
        return
    if policy == "rules" and not scaling.get("rules"):
        found = "nothing" if "rules" not in scaling else shown(scaling["rules"])
        yield Finding(path=(*place, "rules"), found=found, expected="rules with policy: rules", hint=_EXAMPLE)
    if scaling.get("confidence") is not None and scaling.get("lookahead") is None:
        hint = "add `lookahead: 5m`, or delete confidence"
        yield _needless((*place, "confidence"), "confidence without lookahead", "it only with lookahead", hint)
    for inner, rule in entries(scaling, "rules"):
        yield from _rule((*place, *inner), rule)


def _rule(path: Path, rule: Entry) -> Iterator[Finding]:
    named = text(rule, "signal")
    signal = Signal(named) if named in set(Signal) else None
    if all(rule.get(key) is None for key in _VALUES):
        hint = f"add one, for example `target: {_example(signal)}`"
        yield Finding(path=path, found="a rule without a limit", expected="target, above or below", hint=hint)
    if signal is not None:
        yield from _units(path, rule, signal)
        if signal not in LATENCIES and rule.get("percentile") is not None:
            found, hint = f"percentile of {signal}", "delete it"
            yield _needless((*path, "percentile"), found, "it only for a latency", hint)
    yield from _order(path, rule)
    yield from _steps(path, rule)


def _units(path: Path, rule: Entry, signal: Signal) -> Iterator[Finding]:
    """What is no value at all the schema has reported."""
    kind = kind_of(signal)
    for key in _VALUES:
        value = rule_value_of(rule.get(key))
        if value is not None and value.kind is not kind:
            expected = f"for {signal} {RULE_VALUES[kind]}"
            hint = _in_percent(value.value) if kind is SignalKind.SHARE and value.kind is SignalKind.AMOUNT else ""
            hint = hint or f"write it as the signal has it, for example {_example(signal)}"
            yield Finding(path=(*path, key), found=shown(rule.get(key)), expected=expected, hint=hint)


def _in_percent(value: float) -> str:
    percent = value * 100 if value <= 1.0 else value
    return f"write {percent:g}%" if percent <= 100.0 else ""  # noqa: PLR2004 - percent


def _order(path: Path, rule: Entry) -> Iterator[Finding]:
    """What is below lies below the target, and that below what is above, as far as they are there."""
    named = [
        (key, value) for key in ("below", "target", "above") if (value := rule_value_of(rule.get(key))) is not None
    ]
    for (low_key, low), (high_key, high) in pairwise(named):
        if low.kind is high.kind and low.value >= high.value:
            yield Finding(
                path=(*path, high_key),
                found=f"{high_key} {rule.get(high_key)} at {low_key} {rule.get(low_key)}",
                expected=f"{high_key} larger than {low_key}",
                hint="between the two the number stays as it is; leave room",
            )


def _steps(path: Path, rule: Entry) -> Iterator[Finding]:
    for step, threshold in (("up", "above"), ("down", "below")):
        if rule.get(step) is None:
            continue
        if rule.get("target") is not None:
            found, hint = f"{step} with target", f"delete {step}: a target says how many, or delete target"
            yield _needless((*path, step), found, "it only without target", hint)
        elif rule.get(threshold) is None:
            hint = f"add {threshold}, or delete {step}"
            yield _needless((*path, step), f"{step} without {threshold}", f"it only with {threshold}", hint)


def _example(signal: Signal | None) -> str:
    kind = SignalKind.SHARE if signal is None else kind_of(signal)
    return {SignalKind.SHARE: "75%", SignalKind.LATENCY: "500ms", SignalKind.AMOUNT: "12"}[kind]


def _needless(path: Path, found: str, expected: str, hint: str) -> Finding:
    return Finding(path=path, found=found, expected=expected, hint=hint, at_key=True)
