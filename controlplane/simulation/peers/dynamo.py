"""NVIDIA Dynamo's planner for aggregated engines: its load loop, its throughput loop, and both (hybrid).

Load loop (5 s), `optimization_target`
- throughput: u = (KV tokens + queued prompt tokens) / cache; one more if any u > 1.0, one fewer if all u < 0.6;
- latency: the same with 0.4 and 0.1;
- sla: a learned iteration time gives every engine's TTFT and ITL for the next request. One more if all TTFT or all ITL
  are above the SLO. One fewer if, with the load times N / (N - 1) everywhere, the part of TTFT that the queue causes
  stays below 0.8 of what the SLO leaves for it, ITL stays below 0.8 of the SLO, and the cache does not overflow.
It holds while replicas start or drain (one that drains still reports), and where reports and replicas do not match: one
replica per start at most, and none at all once a start never ends.

Throughput loop (180 s): n = ceil(predicted requests/s / requests/s of one engine at the SLO), at least one.
Hybrid: that is the floor, the load loop (sla) moves above it.

Assumed: the predictor is `forecast.next_value` (autoregressive) or, with `constant` = 1, the last interval. Requests
per second of an engine come from the offline profile. The GPU budget (8 by default) and the cap on replicas are the
site's maximum. The gauges come over Dynamo's event plane, read at each decision. An interval without data is skipped.
The two loops' own mode is `sla` where the peer's name does not say load.
"""

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

import numpy as np

from controlplane.kernel.errors import InvalidError, Problem
from controlplane.simulation.fleet.policy import Counter, Facts, Peer, Seen
from controlplane.simulation.peers.engines import (
    Engines,
    decode_step_s,
    observed,
    per_prompt_token_s,
    prefill_wait_s,
)
from controlplane.simulation.peers.forecast import next_value
from controlplane.simulation.peers.knobs import Knobs, settled
from controlplane.simulation.peers.signals import replicas_for

LOAD_S: Final = 5.0
"""load_adjustment_interval."""
THROUGHPUT_S: Final = 180.0
"""throughput_adjustment_interval."""
SENSITIVITY: Final = 0.8
"""load_scaling_down_sensitivity."""
HISTORY_MAX: Final = 960
"""Intervals that are remembered: two days."""


_POSITIVE: Final = ("load_s", "slo_share")


class Target(IntEnum):
    THROUGHPUT = 0
    LATENCY = 1
    SLA = 2


EASY: Final = {Target.THROUGHPUT: (1.0, 0.6), Target.LATENCY: (0.4, 0.1)}
"""(up above, down below), of the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoMemory:
    throughput_s: float | None = None
    """When the throughput loop decides next; None before the first look."""
    floor: int = 1
    rates: tuple[float, ...] = ()
    """Requests per second by interval, from the first that was not idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoPolicy:
    name: str
    facts: Facts
    load: Target | None
    """None: no load loop."""
    throughput: bool
    constant: bool
    sensitivity: float
    slo_share: float
    """Of the true objectives: what the planner is told."""
    tick_s: float
    scrape_s: float

    def start(self) -> DynamoMemory:
        return DynamoMemory()

    def decide(self, seen: Seen, memory: DynamoMemory) -> tuple[int, DynamoMemory]:
        wanted = seen.wanted if self.load is None else self._load(seen, memory.floor)
        if not self.throughput or not (memory.throughput_s is None or seen.at_s >= memory.throughput_s):
            return wanted, memory
        floor, memory = self._planned(seen, memory)
        if floor is None:
            return wanted, memory
        return (floor if self.load is None else wanted), replace(memory, floor=floor)

    def _load(self, seen: Seen, floor: int) -> int:
        engines = observed(seen.metrics, self.facts)
        moves = seen.starting > 0 or seen.draining > 0 or seen.wanted != seen.ready
        if engines is None or moves or len(engines.running) != seen.ready:
            return seen.wanted
        if self.load is Target.SLA:
            return max(1, floor, seen.wanted + self._sla(engines))
        assert self.load is not None
        use = (engines.kv_tokens + engines.queued_prompt) / self.facts.timing.kv_tokens
        up, down = EASY[self.load]
        if (use > up).any():
            return seen.wanted + 1
        return max(1, seen.wanted - 1) if (use < down).all() else seen.wanted

    def _sla(self, engines: Engines) -> int:
        """-1, 0 or 1."""
        ttft_slo_s, itl_slo_s = self.facts.ttft_slo_s * self.slo_share, self.facts.itl_slo_s * self.slo_share
        prompt = self.facts.mean_prompt_tokens
        # Prompt tokens in a mean iteration, as the planner averages them: what arrives while it lasts.
        share = min(0.95, engines.prompt_tokens_per_s * per_prompt_token_s(self.facts))
        mixed_s = float(decode_step_s(engines, self.facts).mean()) * share / (1 - share)
        ttft_s = prefill_wait_s(engines, self.facts, tokens=prompt)
        itl_s = decode_step_s(engines, self.facts) + mixed_s
        if (ttft_s > ttft_slo_s).all() or (itl_s > itl_slo_s).all():
            return 1
        count = len(engines.running)
        if count < 2:  # noqa: PLR2004  # the last one stays
            return 0
        after = engines.scaled(count / (count - 1))
        own_s = prefill_wait_s(replace(after, queued_prompt=np.zeros(count)), self.facts, tokens=prompt)
        queue_s = prefill_wait_s(after, self.facts, tokens=prompt) - own_s
        budget_s = (ttft_slo_s - own_s) * self.sensitivity
        fits = (after.kv_tokens + after.queued_prompt) < self.facts.timing.kv_tokens
        itl_after_s = decode_step_s(after, self.facts) + mixed_s
        safe = (budget_s > 0) & (queue_s < budget_s) & fits & (itl_after_s < itl_slo_s * self.sensitivity)
        return -1 if safe.all() else 0

    def _planned(self, seen: Seen, memory: DynamoMemory) -> tuple[int | None, DynamoMemory]:
        """Replicas for the next interval; None at the first look and for an interval without data."""
        first = memory.throughput_s is None
        memory = replace(memory, throughput_s=seen.at_s + THROUGHPUT_S)
        rate = seen.metrics.rate(Counter.ARRIVED, THROUGHPUT_S)
        if first or math.isnan(rate):
            return None, memory
        # Idle intervals before the first request are no history.
        rates = (*memory.rates, rate)[-HISTORY_MAX:] if rate > 0 or memory.rates else ()
        predicted = (rates[-1] if rates else 0.0) if self.constant else next_value(rates)
        floor = max(1, replicas_for(predicted, self.facts.replica_rps * self.slo_share))
        return min(floor, seen.replicas_max), replace(memory, rates=rates)


def _make_load(facts: Facts, knobs: Knobs) -> DynamoPolicy:
    at = settled("dynamo-load", DYNAMO_LOAD.defaults, knobs, positive=_POSITIVE)
    if at["target"] not in set(Target):
        expected = ", ".join(f"{target.value} ({target.name.lower()})" for target in Target)
        raise InvalidError(
            [Problem(field="dynamo-load.target", found=f"{at['target']:g}", expected=f"one of {expected}")]
        )
    return _policy("dynamo-load", facts, at, load=Target(int(at["target"])), throughput=False)


def _make_throughput(facts: Facts, knobs: Knobs) -> DynamoPolicy:
    at = settled("dynamo-throughput", DYNAMO_THROUGHPUT.defaults, knobs, positive=_POSITIVE)
    return _policy("dynamo-throughput", facts, at, load=None, throughput=True)


def _make_hybrid(facts: Facts, knobs: Knobs) -> DynamoPolicy:
    at = settled("dynamo-hybrid", DYNAMO_HYBRID.defaults, knobs, positive=_POSITIVE)
    return _policy("dynamo-hybrid", facts, at, load=Target.SLA, throughput=True)


def _policy(name: str, facts: Facts, at: Knobs, *, load: Target | None, throughput: bool) -> DynamoPolicy:
    tick_s = at.get("load_s", THROUGHPUT_S)
    return DynamoPolicy(
        name=name,
        facts=facts,
        load=load,
        throughput=throughput,
        constant=bool(at.get("constant", 0.0)),
        sensitivity=at.get("sensitivity", SENSITIVITY),
        slo_share=at["slo_share"],
        tick_s=tick_s,
        scrape_s=LOAD_S,
    )


_SOURCE: Final = "ai-dynamo/dynamo components/src/dynamo/planner: core/{load,throughput}_scaling.py, config/defaults.py"
DYNAMO_LOAD: Final = Peer(
    name="dynamo-load",
    source=_SOURCE,
    make=_make_load,
    defaults={"target": float(Target.THROUGHPUT), "load_s": LOAD_S, "sensitivity": SENSITIVITY, "slo_share": 1.0},
    search={
        "target": (float(Target.THROUGHPUT), float(Target.LATENCY), float(Target.SLA)),
        "load_s": (LOAD_S, 10.0),
        "sensitivity": (0.6, SENSITIVITY),
        "slo_share": (0.7, 1.0),
    },
)
DYNAMO_THROUGHPUT: Final = Peer(
    name="dynamo-throughput",
    source=_SOURCE,
    make=_make_throughput,
    defaults={"constant": 0.0, "slo_share": 1.0},
    search={"constant": (0.0, 1.0), "slo_share": (0.6, 0.7, 0.8, 0.9, 1.0)},
)
DYNAMO_HYBRID: Final = Peer(
    name="dynamo-hybrid",
    source=_SOURCE,
    make=_make_hybrid,
    defaults={"constant": 0.0, "load_s": LOAD_S, "sensitivity": SENSITIVITY, "slo_share": 1.0},
    search={
        "constant": (0.0, 1.0),
        "sensitivity": (0.6, SENSITIVITY),
        "slo_share": (0.6, 0.7, 0.8, 0.9, 1.0),
    },
)
