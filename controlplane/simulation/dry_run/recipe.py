"""From the doctor's reading of manifests to a policy, and what of them could not be taken along."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.autoscaler.doctor.model import Field
from controlplane.autoscaler.doctor.recipe import Autoscaler, Division, Recipe, Scaler, Signal, Source
from controlplane.kernel.errors import InvalidError, NotFoundError, Problem
from controlplane.simulation.dry_run.expression import Compiler, UnsimulatedError
from controlplane.simulation.dry_run.readings import Node, Nothing
from controlplane.simulation.dry_run.theirs import TheirPolicy, Trigger, Zero
from controlplane.simulation.peers.behavior import DEFAULT_DOWN, DEFAULT_UP, Behavior, Direction
from controlplane.simulation.peers.keda import COOLDOWN_S, POLLING_S

_SIMULATED: Final = frozenset({Scaler.HPA, Scaler.KEDA})
_AT_ONCE_S: Final = 1e-9
"""A period in which nothing else happened."""
_PROMETHEUS: Final = "prometheus"
_UNDERSTOOD: Final = frozenset({_PROMETHEUS, "cpu", "memory"})
"""KEDA triggers that the doctor reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    """An autoscaler, as far as it can be simulated."""

    title: str
    """`ScaledObject chat`."""
    policy: TheirPolicy | None
    """None: nothing of it can be."""
    replicas_min: int | None
    replicas_max: int | None
    left_out: tuple[str, ...]
    """What of it was left out or read in another way, each a sentence without its full stop."""


def chosen_scaler(recipe: Recipe, name: str | None = None) -> Autoscaler:
    """The one that scales the engines. InvalidError or NotFoundError: there is none, or more than one fits."""
    scalers = [one for one in recipe.autoscalers if not one.is_router]
    names = ", ".join(title_of(one) for one in scalers)
    if not scalers:
        raise _invalid("no autoscaler", "an HPA or a ScaledObject of the engines")
    if name is None:
        if len(scalers) > 1:
            raise _invalid(f"{len(scalers)} autoscalers: {names}", "one", "choose with --scaler NAME")
        return scalers[0]
    fitting = [one for one in scalers if name in {one.spec.document.name, one.target.name if one.target else ""}]
    if len(fitting) != 1:
        raise NotFoundError(f"--scaler {name}: {len(fitting) or 'no'} autoscalers of that name; there are {names}")
    return fitting[0]


def theirs_of(scaler: Autoscaler, recipe: Recipe, *, scrape_s: float, present: Collection[str] | None = None) -> Theirs:
    """`present`: names that the user's Prometheus has; what is not there is read as nothing, as it is there."""
    notes: list[str] = []
    triggers: tuple[Trigger, ...] = ()
    if scaler.scaler in _SIMULATED:
        recorded = {name: one.query.text for name, one in recipe.recorded.items()}
        compiler = Compiler(present=None if present is None else {*present, *recorded}, recorded=recorded)
        triggers = tuple(_triggers(scaler, compiler, notes))
    else:
        notes.append(f"a {scaler.scaler} cannot be simulated from its manifest, only an HPA or a ScaledObject")
    least = _bound(scaler.replicas_min)
    policy = TheirPolicy(
        triggers=triggers,
        behavior=Behavior(
            up=_direction(scaler.behavior, "scaleUp", DEFAULT_UP, notes),
            down=_direction(scaler.behavior, "scaleDown", DEFAULT_DOWN, notes),
        ),
        zero=_zero(scaler) if scaler.scaler == Scaler.KEDA and not least else None,
        scrape_s=scrape_s,
    )
    return Theirs(
        title=title_of(scaler),
        policy=policy if triggers else None,
        replicas_min=least,
        replicas_max=_bound(scaler.replicas_max),
        left_out=tuple(notes),
    )


def title_of(scaler: Autoscaler) -> str:
    name = scaler.spec.document.name or (scaler.target.name if scaler.target else "")
    return f"{scaler.scaler} {name}".strip()


# -- triggers ---------------------------------------------------------------------------------------------------------


def _triggers(scaler: Autoscaler, compiler: Compiler, notes: list[str]) -> Iterator[Trigger]:
    types = [trigger["type"].text for trigger in scaler.spec["triggers"].items()]
    notes += [f"a trigger of type {one or 'unknown'} was left out" for one in types if one not in _UNDERSTOOD]
    for signal in scaler.signals:
        what = signal.name or (signal.expression.query.text if signal.expression else "")
        if signal.source == Source.RESOURCE:
            notes.append(f"the metric {what} of the pods was left out: the simulator has no {what}")
            continue
        if signal.target is None or signal.target <= 0.0 or signal.division is None:
            notes.append(f"`{what}` was left out: its target is no number above zero, or a formula stands over it")
            continue
        try:
            reading = _reading(signal, compiler)
        except UnsimulatedError as error:
            notes.append(f"`{what}` was left out: the simulator has no {error}")
            continue
        if isinstance(reading, Nothing):
            notes.append(f"`{what}` is not in this Prometheus, so it is read as empty, as the scaler would")
        yield _trigger(scaler, signal, signal.target, reading)


def _reading(signal: Signal, compiler: Compiler) -> Node:
    if signal.expression is None:
        return compiler.metric(signal.name)
    return compiler.query(signal.expression.query.text)


def _trigger(scaler: Autoscaler, signal: Signal, target: float, reading: Node) -> Trigger:
    metadata = _metadata(scaler, signal)
    is_keda = scaler.scaler == Scaler.KEDA
    return Trigger(
        reading=reading,
        target=target,
        by_ratio=signal.division == Division.BY_RATIO,
        of_pods=signal.is_pod_mean,
        empty_is_zero=is_keda and (metadata is None or metadata["ignoreNullValues"].flag is not False),
        activation=(metadata["activationThreshold"].number or 0.0) if metadata is not None else 0.0,
    )


def _metadata(scaler: Autoscaler, signal: Signal) -> Field | None:
    """The trigger's settings; None where the chart wrote the trigger."""
    path: Sequence[str | int] = signal.at.path[len(scaler.spec.path) :]
    return scaler.spec.at(*path[:3]) if path[:1] == ("triggers",) and path[2:3] == ("metadata",) else None


def _zero(scaler: Autoscaler) -> Zero:
    polling, cooldown = scaler.spec["pollingInterval"].number, scaler.spec["cooldownPeriod"].number
    return Zero(
        polling_s=POLLING_S if polling is None else polling, cooldown_s=COOLDOWN_S if cooldown is None else cooldown
    )


# -- behaviour --------------------------------------------------------------------------------------------------------


def _direction(behavior: Field | None, key: str, default: Direction, notes: list[str]) -> Direction:
    """What `behavior.scaleUp` or `.scaleDown` says; Kubernetes' default where it says nothing."""
    if behavior is None or not behavior[key].there:
        return default
    section = behavior[key]
    window = section["stabilizationWindowSeconds"].number
    window_s = default.window_s if window is None else window
    if section["selectPolicy"].text == "Disabled":
        return Direction(window_s=window_s, period_s=_AT_ONCE_S, pods=0)
    policies = [one for one in section["policies"].items() if one["value"].number is not None]
    if not policies:
        return Direction(window_s=window_s, period_s=default.period_s, pods=default.pods, percent=default.percent)
    periods = {one["periodSeconds"].number or default.period_s for one in policies}
    values = {kind: [one["value"].number or 0.0 for one in policies if one["type"].text == kind]
              for kind in ("Pods", "Percent")}  # fmt: skip
    if len(policies) > 1 and (
        section["selectPolicy"].text == "Min"
        or len(periods) > 1
        or len(policies) > len([kind for kind in values.values() if kind])
    ):
        notes.append(
            f"of {key}'s {len(policies)} policies the most generous of each kind counts, over their longest period"
        )
    return Direction(
        window_s=window_s,
        period_s=max(periods),
        pods=round(max(values["Pods"])) if values["Pods"] else None,
        percent=max(values["Percent"]) if values["Percent"] else None,
    )


def _bound(value: float | None) -> int | None:
    return None if value is None else round(value)


def _invalid(found: str, expected: str, hint: str = "") -> InvalidError:
    return InvalidError([Problem(field="--recipe", found=found, expected=expected, hint=hint)])
