"""llm-d's SLO-aware law, in both forms in which it was published, and the older settings that its authors compare.

Rule, every 15 s: s = mean over 45 s of min(max(P90 TTFT / SLO, P90 TPOT / SLO), 2), both P90 over one minute. With n
replicas ordered, r of them ready and the credit c = r / n: above 0.55 n + ceil(n (s c / 0.55 - 1)), below 0.40
n - floor(n (1 - s / 0.40)), else n. Then an HPA: up to max(100 %, 4 pods) a minute after 30 s, down one pod in 120 s
after 180 s, with its tolerance. That is the form with KEDA. The published episodes ran the same law inside llm-d's
workload variant autoscaler: looked at every 60 s (`cycle_s`), and s is an exponential mean of the capped values with
weight 0.6 on the last (`alpha`; 0 is the mean over 45 s).

P90 are read from the router's own histograms. Its edges matter: with every request between 20 and 40 ms a token the
P90 is 38 ms, 0.38 of the objective, whatever the true value.

No data and no traffic read as 0, as its recording rule says: a lost scrape looks idle and sheds replicas.

Assumed: its benchmark feeds it latencies that a model, trained online, predicts for each request as it arrives. Once
trained, such predictions spread as the measured latencies do, and lead them when load changes. The stand-in
(`predicted` = 1, the default) is therefore the larger of the measured P90 and of the P90 of what each replica's gauges
foretell with exact coefficients, in the same buckets, where all replicas of the last minute's samples count alike.
`predicted` = 0 reads the measured histograms alone, the documented fallback. `llmd-old` is the row "previous defaults"
of its ablation: means in place of P90, 0.85 and 0.50, every 60 s with weight 0.3, and one pod more a minute; that it
saw predictions, too, is assumed.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.metrics import histogram_quantile
from controlplane.simulation.fleet.policy import Facts, Latency, Metrics, Peer, Seen
from controlplane.simulation.fleet.state import EDGES
from controlplane.simulation.peers.behavior import SYNC_S, Behavior, Direction, History, settle
from controlplane.simulation.peers.engines import observed, prefill_wait_s, slot_wait_s, token_gap_s
from controlplane.simulation.peers.hpa import desired_for_total
from controlplane.simulation.peers.knobs import Knobs, settled
from controlplane.simulation.peers.signals import known

SCRAPE_S: Final = 5.0
"""Of its benchmark."""
LATENCY_WINDOW_S: Final = 60.0
SMOOTHING_S: Final = 45.0
CAP: Final = 2.0
MEAN: Final = 0.0
"""In place of a quantile."""
_READ: Final = (Latency.ROUTER_TTFT, Latency.ROUTER_PER_OUTPUT_TOKEN)

type Pair = tuple[float, float]
"""Time to first token and time per output token, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmdMemory:
    history: History = field(default_factory=History)
    signals: tuple[tuple[float, float], ...] = ()
    """(seconds, capped signal) within the smoothing window; with `alpha` one, smoothed."""
    asked: tuple[float, int] | None = None
    """(seconds, replicas): what the law asked for when it last looked."""
    predictions: tuple[tuple[float, tuple[Pair, ...]], ...] = ()
    """(seconds, one pair per replica) within the latency window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmdPolicy:
    name: str
    facts: Facts
    quantile: float
    """0..1; MEAN for the mean."""
    predicted: bool
    up_threshold: float
    down_threshold: float
    cycle_s: float
    alpha: float
    behavior: Behavior
    tick_s: float = SYNC_S
    scrape_s: float = SCRAPE_S

    def start(self) -> LlmdMemory:
        return LlmdMemory()

    def decide(self, seen: Seen, memory: LlmdMemory) -> tuple[int, LlmdMemory]:
        memory = self._predictions(seen, memory)
        if memory.asked is None or seen.at_s - memory.asked[0] >= self.cycle_s:
            memory = self._asked(seen, memory)
        assert memory.asked is not None, "asked at the first look"
        desired = desired_for_total(memory.asked[1], current=seen.wanted, target=1.0)
        wanted, history = settle(
            self.behavior, memory.history, desired=desired, seen=seen, floor=max(1, seen.replicas_min)
        )
        return wanted, replace(memory, history=history)

    def _asked(self, seen: Seen, memory: LlmdMemory) -> LlmdMemory:
        ttft_s, per_token_s = self._latencies(seen.metrics, memory)
        raw = min(max(ttft_s / self.facts.ttft_slo_s, per_token_s / self.facts.itl_slo_s), CAP)
        signals = self._smoothed(seen.at_s, raw, memory.signals)
        signal = sum(value for _, value in signals) / len(signals)
        asked = law(signal, n=seen.wanted, r=seen.ready, up=self.up_threshold, down=self.down_threshold)
        return replace(memory, signals=signals, asked=(seen.at_s, asked))

    def _smoothed(
        self, at_s: float, raw: float, signals: tuple[tuple[float, float], ...]
    ) -> tuple[tuple[float, float], ...]:
        if not self.alpha:
            return (*(entry for entry in signals if entry[0] > at_s - SMOOTHING_S), (at_s, raw))
        before = signals[-1][1] if signals else raw
        return ((at_s, self.alpha * raw + (1 - self.alpha) * before),)

    def _predictions(self, seen: Seen, memory: LlmdMemory) -> LlmdMemory:
        if not self.predicted:
            return memory
        recent = tuple(entry for entry in memory.predictions if entry[0] > seen.at_s - LATENCY_WINDOW_S)
        pairs = predict(seen.metrics, self.facts)
        return replace(memory, predictions=(*recent, (seen.at_s, pairs)) if pairs else recent)

    def _latencies(self, metrics: Metrics, memory: LlmdMemory) -> Pair:
        if self.quantile == MEAN:
            found = [known(metrics.mean_latency(latency, LATENCY_WINDOW_S)) for latency in _READ]
        else:
            found = [known(metrics.quantile(latency, self.quantile, LATENCY_WINDOW_S)) for latency in _READ]
        pooled = np.array([pair for _, pairs in memory.predictions for pair in pairs])
        if len(pooled):
            columns = zip(_READ, pooled.T, strict=True)
            foretold = [
                float(values.mean()) if self.quantile == MEAN else bucketed(self.quantile, values, latency)
                for latency, values in columns
            ]
            found = [max(both) for both in zip(found, foretold, strict=True)]
        return found[0], found[1]


def law(signal: float, *, n: int, r: int, up: float, down: float) -> int:
    """The formula of its ScaledObject: replicas to have, from the smoothed signal (1 is the objective)."""
    credit = r / n if 0 < r < n else 1.0
    if signal > up:
        return n + math.ceil(round(n * (signal * credit / up - 1), 9))
    if signal < down:
        return n - math.floor(round(n * (1 - signal / down), 9))
    return n


def bucketed(q: float, seconds: Floats, latency: Latency) -> float:
    """Their quantile as the histogram tells it."""
    edges = EDGES[latency]
    counts = np.bincount(np.searchsorted(edges, seconds), minlength=len(edges) + 1)
    return histogram_quantile(q, counts.astype(np.float64), edges)


def predict(metrics: Metrics, facts: Facts) -> tuple[Pair, ...]:
    """For a mean request that would come now, by replica; empty without gauges, and without traffic."""
    engines = observed(metrics, facts)
    if engines is None or not (engines.prompt_tokens_per_s or engines.running.any() or engines.waiting.any()):
        return ()
    ttft_s = prefill_wait_s(engines, facts, tokens=facts.mean_prompt_tokens) + slot_wait_s(engines, facts)
    return tuple(zip(ttft_s.tolist(), token_gap_s(engines, facts).tolist(), strict=True))


def _policy(peer: Peer, quantile: float, facts: Facts, knobs: Knobs) -> LlmdPolicy:
    at = settled(peer.name, peer.defaults, knobs, positive=("up_threshold", "down_threshold", "down_period_s"))
    return LlmdPolicy(
        name=peer.name,
        facts=facts,
        quantile=quantile,
        predicted=bool(at["predicted"]),
        up_threshold=at["up_threshold"],
        down_threshold=at["down_threshold"],
        cycle_s=at["cycle_s"],
        alpha=min(at["alpha"], 1.0),
        behavior=Behavior(
            up=Direction(window_s=at["up_window_s"], period_s=60, pods=round(at["up_pods"]), percent=at["up_percent"]),
            down=Direction(window_s=at["down_window_s"], period_s=at["down_period_s"], pods=1),
        ),
    )


def _make_slo(facts: Facts, knobs: Knobs) -> LlmdPolicy:
    return _policy(LLMD_SLO, 0.9, facts, knobs)


def _make_old(facts: Facts, knobs: Knobs) -> LlmdPolicy:
    return _policy(LLMD_OLD, MEAN, facts, knobs)


_SOURCE: Final = (
    "llm-d guides/workload-autoscaling/README.slo-aware.md and its BENCHMARK.md; "
    "workload-variant-autoscaler docs/developer-guide/epp-saturation-benchmark.md"
)
_DEFAULTS: Final = {"predicted": 1.0, "up_window_s": 30.0, "down_window_s": 180.0, "down_period_s": 120.0}
LLMD_SLO: Final = Peer(
    name="llmd-slo",
    source=_SOURCE,
    make=_make_slo,
    defaults={
        "up_threshold": 0.55,
        "down_threshold": 0.40,
        **_DEFAULTS,
        "cycle_s": SYNC_S,
        "alpha": 0.0,
        "up_pods": 4.0,
        "up_percent": 100.0,
    },
    search={
        "up_threshold": (0.45, 0.55, 0.7),
        "down_threshold": (0.30, 0.40),
        "predicted": (0.0, 1.0),
        "down_period_s": (60.0, 120.0),
    },
)
PUBLISHED_RUN: Final = {"cycle_s": 60.0, "alpha": 0.6}
"""Knobs of `llmd-slo` as the published episodes ran it, inside the workload variant autoscaler."""
LLMD_OLD: Final = Peer(
    name="llmd-old",
    source=_SOURCE,
    make=_make_old,
    defaults={
        "up_threshold": 0.85,
        "down_threshold": 0.50,
        **_DEFAULTS,
        "cycle_s": 60.0,
        "alpha": 0.3,
        "up_pods": 1.0,
        "up_percent": 0.0,
    },
    search={"predicted": (0.0, 1.0)},
)
