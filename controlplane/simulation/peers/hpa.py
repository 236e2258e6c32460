"""Kubernetes HorizontalPodAutoscaler on a metric of its pods: running requests, or KV-cache use.

Rule: desired = ceil(pods x mean / target), nothing within the tolerance; pods without metrics count as idle before more
are asked for and as just at the target before fewer are.

Assumed: there is no default target for a custom metric. 80 % is used, the API's default for CPU utilisation: of the
profiled concurrency for requests, of the cache for KV use. A replica that starts has no metrics (vLLM listens only
once the model is loaded). The metrics system scrapes every 15 s. Without metrics of any pod the controller reports an
error and leaves the number as it is.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.policy import Facts, Gauge, Peer, Seen
from controlplane.simulation.peers.behavior import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    SYNC_S,
    TOLERANCE,
    Behavior,
    Direction,
    History,
    settle,
)
from controlplane.simulation.peers.knobs import Knobs, settled, share_or
from controlplane.simulation.peers.signals import pods, replicas_for

SCRAPE_S: Final = 15.0
"""Assumed of the Prometheus behind the adapter; the kube-prometheus charts ship 30 s, tuned ones 5 to 15 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HpaPolicy:
    name: str
    gauges: tuple[Gauge, ...]
    """Summed pod by pod."""
    target: float
    """Per pod."""
    tolerance: float
    behavior: Behavior
    tick_s: float = SYNC_S
    scrape_s: float = SCRAPE_S

    def start(self) -> History:
        return History()

    def decide(self, seen: Seen, memory: History) -> tuple[int, History]:
        first, *rest = (seen.metrics.per_replica(gauge) for gauge in self.gauges)
        values = sum(rest, first)
        measured = values[~np.isnan(values)]
        if len(measured) == 0:
            return seen.wanted, memory
        desired = desired_for_pods(
            measured,
            missing=max(0, pods(seen) - len(measured)),
            current=seen.wanted,
            target=self.target,
            tolerance=self.tolerance,
        )
        return settle(self.behavior, memory, desired=desired, seen=seen)


def desired_for_pods(values: Floats, *, missing: int, current: int, target: float, tolerance: float) -> int:
    """`calcPlainMetricReplicas`: from one value per pod, at least one, and from how many pods have none."""
    ratio = float(values.mean()) / target
    if missing == 0:
        return current if abs(1 - ratio) <= tolerance else replicas_for(ratio * len(values), 1)
    count = len(values) + missing
    filled = (float(values.sum()) + (missing * target if ratio < 1 else 0.0)) / (target * count)
    if abs(1 - filled) <= tolerance or (ratio < 1 < filled) or (ratio > 1 > filled):
        return current
    desired = replicas_for(filled * count, 1)
    turned = (filled < 1 and desired > current) or (filled > 1 and desired < current)
    return current if turned else desired


def desired_for_total(total: float, *, current: int, target: float, tolerance: float = TOLERANCE) -> int:
    """`GetExternalPerPodMetricReplicas` (AverageValue): from a metric of the whole deployment."""
    if current > 0 and abs(1 - total / (target * current)) <= tolerance:
        return current
    return replicas_for(total, target)


def behavior_of(knobs: Knobs) -> Behavior:
    """The default behaviour with the knobs `up_window_s` and `down_window_s`."""
    return Behavior(
        up=Direction(window_s=knobs["up_window_s"], period_s=DEFAULT_UP.period_s, pods=4, percent=100),
        down=Direction(window_s=knobs["down_window_s"], period_s=DEFAULT_DOWN.period_s, percent=100),
    )


def _make_hpa(facts: Facts, knobs: Knobs) -> HpaPolicy:
    at = settled("hpa", HPA.defaults, knobs, positive=("target_share",))
    return HpaPolicy(
        name="hpa",
        gauges=(Gauge.RUNNING, Gauge.WAITING) if at["count_waiting"] else (Gauge.RUNNING,),
        target=at["target_share"] * facts.replica_concurrency,
        tolerance=at["tolerance"],
        behavior=behavior_of(at),
    )


def _make_hpa_kv(facts: Facts, knobs: Knobs) -> HpaPolicy:
    at = settled("hpa-kv", HPA_KV.defaults, knobs)
    return HpaPolicy(
        name="hpa-kv",
        gauges=(Gauge.KV_USAGE,),
        target=share_or(at["target_share"], of=profiled_kv_use(facts), default=CPU_DEFAULT_TARGET),
        tolerance=at["tolerance"],
        behavior=behavior_of(at),
    )


def profiled_kv_use(facts: Facts) -> float:
    """KV-cache use (0..1) of one replica at its profiled rate: half of the output is there on average."""
    context = facts.mean_prompt_tokens + facts.mean_output_tokens / 2
    return min(1.0, facts.replica_concurrency * context / max(1, facts.timing.kv_tokens))


CPU_DEFAULT_TARGET: Final = 0.8
_SOURCE: Final = (
    "kubernetes pkg/controller/podautoscaler/{replica_calculator,horizontal}.go; "
    "kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale"
)
_DEFAULTS: Final = {
    "tolerance": TOLERANCE,
    "up_window_s": DEFAULT_UP.window_s,
    "down_window_s": DEFAULT_DOWN.window_s,
}
HPA: Final = Peer(
    name="hpa",
    source=_SOURCE,
    make=_make_hpa,
    defaults={"target_share": CPU_DEFAULT_TARGET, "count_waiting": 0.0, **_DEFAULTS},
    search={
        "target_share": (0.5, 0.65, 0.8, 0.9),
        "count_waiting": (0.0, 1.0),
        "down_window_s": (60.0, 120.0, 300.0),
    },
)
HPA_KV: Final = Peer(
    name="hpa-kv",
    source=_SOURCE,
    make=_make_hpa_kv,
    defaults={"target_share": 0.0, **_DEFAULTS},
    search={
        "target_share": (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "down_window_s": (60.0, 120.0, 300.0),
    },
)
