"""Signals and targets: whether the number that is asked for can be reached, and means load."""

import math
from collections.abc import Iterator
from typing import Final

from controlplane.autoscaler.doctor import metrics
from controlplane.autoscaler.doctor.live import Case
from controlplane.autoscaler.doctor.model import Field, Finding, Rule, Severity, number_text
from controlplane.autoscaler.doctor.promql import Query
from controlplane.autoscaler.doctor.promql_result import Gist
from controlplane.autoscaler.doctor.recipe import Autoscaler, Division, Scaler, Signal, Source

_TOLERANCE: Final = 0.1
"""A ratio within this of 1 changes nothing. Source: Kubernetes HPA; AIBrix APA has the same default."""
_ROUNDING: Final = 1e-9
_TOKENS_PER_S_MIN: Final = {"vllm:prompt_tokens_total": 1000.0, "vllm:generation_tokens_total": 200.0}
"""Tokens per second and replica that next to no load reaches.

Prompts: the slowest calibrated pair, a 70B model in FP8 on two H100, prefills 12,700 tokens a second; a
tenth of that is a replica that idles. Generation: two or three requests at 10-17 ms a token. Source: AIConfigurator.
"""

CAPPED: Final = Rule(
    id="target-caps-replicas",
    severity=Severity.BROKEN,
    looks_for="a bounded value divided by its target: KV usage at 0.5 can never ask for more than 2 replicas",
    why="The scaler asks for ceil(value / target), whatever runs: a share of at most 1 has a highest answer.",
    source="Kubernetes HPA, AverageValue of external metrics; AIBrix, podautoscaler/algorithm/kpa.go (mean over pods)",
)
DIVIDED: Final = Rule(
    id="per-replica-value-divided",
    severity=Severity.BROKEN,
    looks_for="a mean, maximum or quantile where the scaler wants a total",
    why="The scaler asks for ceil(value / target): four replicas that each hold twice the target become two.",
    source="Kubernetes HPA, AverageValue of external metrics; AIBrix, podautoscaler/algorithm/kpa.go (mean over pods)",
)
RUNAWAY: Final = Rule(
    id="total-with-ratio",
    severity=Severity.RISKY,
    looks_for="a total of load where the scaler wants a value that falls when replicas are added",
    why="Replicas are multiplied by value / target; more of them do not lower a total, so it runs to the maximum.",
    source="Kubernetes HPA, algorithm: desired = ceil(current * value / target)",
)
NEVER: Final = Rule(
    id="threshold-never-reached",
    severity=Severity.BROKEN,
    looks_for="a target that the value cannot exceed by the tolerance of 10 %",
    why="KV usage ends at 1, and a ratio of less than 1.1 changes nothing: from a target of 0.91 on nothing is added.",
    source="vLLM 0.33: kv_cache_usage_perc, 1 means 100 percent; Kubernetes HPA, tolerance 0.1",
)
ALWAYS: Final = Rule(
    id="threshold-always-exceeded",
    severity=Severity.BROKEN,
    looks_for="tokens per second that one request exceeds",
    why="One H100 or B200 prefills 12,000 to 100,000 tokens a second: such a target is exceeded by next to no load.",
    source="AIConfigurator 0.12 silicon tables; production-stack's operator ships 100 per pod",
)
NO_THRESHOLD: Final = Rule(
    id="threshold-missing",
    severity=Severity.BROKEN,
    looks_for="a target that is no number above zero",
    why="Desired replicas are the value divided by the target.",
    source="Kubernetes HPA, algorithm; KEDA, prometheus scaler: threshold",
)
BETWEEN_EDGES: Final = Rule(
    id="slo-between-edges",
    severity=Severity.RISKY,
    looks_for="a latency target between two bucket edges (2 s and 3 s of TTFT are none)",
    why="Between two edges histogram_quantile() draws a line: 2 s may be any latency between edges of 1 and 2.5 s.",
    source="vLLM 0.33, vllm/v1/metrics/loggers.py: buckets; Prometheus, histogram_quantile()",
)
LATENCY_ONLY: Final = Rule(
    id="latency-only",
    severity=Severity.RISKY,
    looks_for="nothing but latencies as signals",
    why="A waiting request is in no histogram before its first token: latency lags by the queue it should report.",
    source="vLLM 0.33; llm-d SLO-aware benchmark (violation bill = signal lag + start time)",
)
GPU_MEMORY: Final = Rule(
    id="gpu-memory-always-full",
    severity=Severity.BROKEN,
    looks_for="GPU memory as a signal",
    why="vLLM takes its share of the memory (0.92) when it starts and keeps it, busy or idle.",
    source="vLLM 0.33, gpu_memory_utilization",
)
GPU_BUSY: Final = Rule(
    id="gpu-busy-saturates",
    severity=Severity.RISKY,
    looks_for="GPU utilisation as a signal",
    why="It is the share of time in which any kernel ran: a single request that decodes holds it near 100 %.",
    source="NVIDIA, NVML: nvmlUtilization_t",
)
CPU: Final = Rule(
    id="cpu-says-nothing",
    severity=Severity.BROKEN,
    looks_for="CPU or memory of the pods as a signal for an engine",
    why="The engine's host process polls and its memory is taken at start: neither follows the load of the GPU.",
    source="vLLM 0.33; docs/vllm.md",
)
RULES: Final = (
    CAPPED,
    DIVIDED,
    RUNAWAY,
    NEVER,
    ALWAYS,
    NO_THRESHOLD,
    BETWEEN_EDGES,
    LATENCY_ONLY,
    GPU_MEMORY,
    GPU_BUSY,
    CPU,
)

_LOAD: Final = frozenset({"vllm:num_requests_running", *_TOKENS_PER_S_MIN, "vllm:request_success_total"})
"""What a total of stays when replicas are added. A queue does not: it empties."""


def check(case: Case) -> Iterator[Finding]:
    for scaler in case.recipe.autoscalers:
        for signal in scaler.signals:
            if signal.source == Source.RESOURCE:
                yield from _resource(case, scaler, signal)
                continue
            yield from _gpu(signal)
            yield from _target(case, scaler, signal)
        yield from _latency_only(scaler)


def _resource(case: Case, scaler: Autoscaler, signal: Signal) -> Iterator[Finding]:
    workload = case.recipe.workload_of(scaler)
    name = "" if scaler.target is None else scaler.target.name.lower()
    is_engine = workload.engine is not None if workload is not None else "vllm" in name or "llm" in name
    if is_engine and not scaler.is_router:
        expected = "requests waiting and running, of vLLM itself"
        yield Finding(rule=CPU, at=signal.at, found=signal.name, expected=expected, fix="vllm:num_requests_waiting")


def _gpu(signal: Signal) -> Iterator[Finding]:
    for name in sorted(signal.names):
        if metrics.is_gpu_memory(name):
            expected, fix = "pressure on the KV cache", "vllm:kv_cache_usage_perc"
            yield Finding(rule=GPU_MEMORY, at=signal.at, found=name, expected=expected, fix=fix)
        elif metrics.is_gpu_busy(name):
            expected, fix = "requests waiting and running", "vllm:num_requests_waiting"
            yield Finding(rule=GPU_BUSY, at=signal.at, found=name, expected=expected, fix=fix)


def _target(case: Case, scaler: Autoscaler, signal: Signal) -> Iterator[Finding]:
    at, target = signal.target_at, signal.target
    if at is None or signal.division is None:
        return
    if target is None or target <= 0.0:
        found = at.text or "nothing"
        yield Finding(rule=NO_THRESHOLD, at=at, found=found, expected="a number above 0")
        return
    yield from _tokens(signal, target, at)
    yield from _slo(case, signal, target, at)
    if not _is_understood(signal):
        return
    if signal.division == Division.BY_TARGET and signal.gist == Gist.PER_REPLICA:
        yield from _divided(scaler, signal, target, at)
    elif signal.gist != Gist.UNKNOWN:
        yield from _reach(_bound(signal), target, at)
    if signal.division == Division.BY_RATIO and signal.gist == Gist.TOTAL and signal.names & _LOAD:
        expected = "AverageValue, which divides a total by the replicas"
        yield Finding(
            rule=RUNAWAY, at=signal.at, found=f"a total with {signal.division}", expected=expected, fix=_average(scaler)
        )


def _is_understood(signal: Signal) -> bool:
    """Queries that compute something of their own, replicas wanted for one, are not judged by their outermost word."""
    return bool(signal.names) and all(metrics.is_exported(metrics.canonical(name)) for name in signal.names)


def _bound(signal: Signal) -> float:
    if signal.query is not None:
        return signal.query.bound
    known = metrics.sample(metrics.canonical(signal.name))
    gone = metrics.vanished(signal.name)
    if known is None and gone is not None:
        known = metrics.sample(gone.successor)
    return math.inf if known is None or known.family.bound is None else known.family.bound


def _divided(scaler: Autoscaler, signal: Signal, target: float, at: Field) -> Iterator[Finding]:
    highest = math.ceil(_bound(signal) / target - _ROUNDING) if math.isfinite(_bound(signal)) else None
    if highest is None:
        fix = _ratio(scaler)
        expected = f"a value that ceil(value / target) can use: a total over replicas; or {fix}"
        yield Finding(rule=DIVIDED, at=signal.at, found=f"{signal.gist}, {signal.division}", expected=expected, fix=fix)
    elif scaler.replicas_max is None or highest < scaler.replicas_max:
        most = "any number" if scaler.replicas_max is None else number_text(scaler.replicas_max)
        found = f"{at.text}: never more than {highest} replica{'' if highest == 1 else 's'}"
        yield Finding(
            rule=CAPPED, at=at, found=found, expected=f"up to {most}, with {_ratio(scaler)}", fix=_ratio(scaler)
        )


def _ratio(scaler: Autoscaler) -> str:
    if scaler.scaler == Scaler.AIBRIX:
        return "scalingStrategy: APA"
    return "metricType: Value" if scaler.scaler == Scaler.KEDA else "type: Value"


def _average(scaler: Autoscaler) -> str:
    return "metricType: AverageValue" if scaler.scaler == Scaler.KEDA else "type: AverageValue"


def _reach(bound: float, target: float, at: Field) -> Iterator[Finding]:
    if bound / target > 1.0 + _TOLERANCE:
        return
    highest = bound / (1.0 + _TOLERANCE)
    expected = f"below {highest:.2f}: the value ends at {number_text(bound)} and must exceed the target by 10 %"
    yield Finding(rule=NEVER, at=at, found=at.text, expected=expected, fix=number_text(round(bound * 0.8, 2)))


def _tokens(signal: Signal, target: float, at: Field) -> Iterator[Finding]:
    query = signal.query
    is_per_replica = (signal.division, signal.gist) in {
        (Division.BY_TARGET, Gist.TOTAL),
        (Division.BY_RATIO, Gist.PER_REPLICA),
    }
    if query is None or not is_per_replica or not math.isfinite(query.scale):
        return
    for selector in query.selectors:
        least = _TOKENS_PER_S_MIN.get(selector.name)
        if least is None or selector.window is None:
            continue
        per_s = target / query.scale
        if "increase" in selector.within:
            per_s /= selector.window.total_seconds()
        if per_s < least:
            expected = f"what a replica was measured to hold; more than {number_text(least)} tokens/s in any case"
            yield Finding(
                rule=ALWAYS, at=at, found=f"{at.text}: {per_s:g} tokens/s for each replica", expected=expected
            )


def _slo(case: Case, signal: Signal, target: float, at: Field) -> Iterator[Finding]:
    query = signal.query
    if query is None or not math.isfinite(query.scale):
        return
    for name in sorted(_quantiled(query)):
        known = metrics.sample(name)
        edges = () if known is None else case.edges(known.family.name, known.family.edges)
        below, above = metrics.edges_beside(target / query.scale, edges)
        if below is None or above is None or below == above:
            continue
        near = " or ".join(number_text(edge * query.scale) for edge in (below, above))
        found = f"{at.text}, between the edges {number_text(below)} and {number_text(above)} s of {name}"
        fix = f"{at.path[-1]}: {number_text(below * query.scale)}"
        yield Finding(rule=BETWEEN_EDGES, at=at, found=found, expected=f"an edge: {near}", fix=fix)


def _quantiled(query: Query) -> frozenset[str]:
    return frozenset(one.name for quantile in query.quantiles for one in quantile.selectors)


def _latency_only(scaler: Autoscaler) -> Iterator[Finding]:
    if not scaler.signals or not all(_is_latency(signal) for signal in scaler.signals):
        return
    first = scaler.signals[0]
    count = len(scaler.signals)
    found = "one signal, a latency" if count == 1 else f"{count} signals, all of them latencies"
    fix = "sum(vllm:num_requests_waiting)"
    yield Finding(rule=LATENCY_ONLY, at=first.at, found=found, expected="the queue beside it", fix=fix)


def _is_latency(signal: Signal) -> bool:
    families = {_family(metrics.canonical(name)) for name in signal.names}
    return bool(families) and families <= metrics.LATENCIES


def _family(name: str) -> str:
    known = metrics.sample(name)
    if known is not None:
        return known.family.name
    gone = metrics.vanished(name)
    return name if gone is None else gone.name
