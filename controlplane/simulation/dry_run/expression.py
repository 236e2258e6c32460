"""PromQL in virtual time: the queries that recipes are written in, as readings of the simulated fleet.

Matchers are taken to fit: what does not exist in the user's own Prometheus is read as nothing, as there.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import promql_parser as pq

from controlplane.autoscaler.doctor.metrics import canonical
from controlplane.kernel.errors import TerminalError
from controlplane.simulation.dry_run.readings import (
    FOLDS,
    OBSERVED,
    OPERATORS,
    ROUNDINGS,
    Arithmetic,
    Clamped,
    Fold,
    Growth,
    Mean,
    Node,
    Nothing,
    Now,
    Number,
    Or,
    Peak,
    Quantile,
    Rounded,
    Spent,
)
from controlplane.simulation.fleet.policy import Counter, Gauge, Latency

GAUGES: Final[Mapping[str, Gauge]] = {
    "vllm:num_requests_running": Gauge.RUNNING,
    "vllm:num_requests_waiting": Gauge.WAITING,
    "vllm:kv_cache_usage_perc": Gauge.KV_USAGE,
    "vllm:gpu_cache_usage_perc": Gauge.KV_USAGE,
}
COUNTERS: Final[Mapping[str, Counter]] = {
    "vllm:request_success_total": Counter.FINISHED,
    "vllm:prompt_tokens_total": Counter.PROMPT_TOKENS,
    "vllm:generation_tokens_total": Counter.OUTPUT_TOKENS,
    "vllm:num_preemptions_total": Counter.PREEMPTIONS,
}
LATENCIES: Final[Mapping[str, Latency]] = {
    "vllm:time_to_first_token_seconds": Latency.TTFT,
    "vllm:inter_token_latency_seconds": Latency.INTER_TOKEN,
    "vllm:time_per_output_token_seconds": Latency.INTER_TOKEN,
    "vllm:request_time_per_output_token_seconds": Latency.PER_OUTPUT_TOKEN,
    "vllm:e2e_request_latency_seconds": Latency.END_TO_END,
}
_OF_A_REPLICA: Final = frozenset({"pod", "instance", "pod_name", "kubernetes_pod_name", "exported_pod"})
"""Labels that keep replicas apart."""


class UnsimulatedError(TerminalError):
    """A query has something in it that the simulated metrics cannot answer; says what. The rest goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """Queries to trees."""

    present: Collection[str] | None = None
    """Names that the user's Prometheus has; None: all that vLLM has."""
    recorded: Mapping[str, str] = field(default_factory=dict)
    """Recording rules: the query behind each name."""

    def query(self, text: str) -> Node:
        """UnsimulatedError: says what cannot be answered."""
        try:
            expr = pq.parse(text)
        except ValueError as error:
            raise UnsimulatedError(f"Prometheus refuses the query: {' '.join(str(error).split())}") from error
        return self.tree(expr)

    def metric(self, name: str) -> Node:
        """A name by itself, as an adapter offers it."""
        name = canonical(name)
        if name in self.recorded:
            return self.query(self.recorded[name])
        if name not in GAUGES:
            raise UnsimulatedError(f"the metric {name}")
        return Now(GAUGES[name]) if self._exists(name) else Nothing()

    def tree(self, expr: object) -> Node:
        match expr:
            case pq.NumberLiteral():
                return Number(float(expr.val))
            case pq.ParenExpr():
                return self.tree(expr.expr)
            case pq.UnaryExpr():
                return Arithmetic("*", Number(-1.0), self.tree(expr.expr))
            case pq.VectorSelector():
                return self.metric(expr.name or "{...}")
            case pq.AggregateExpr():
                return self._fold(expr)
            case pq.BinaryExpr():
                return self._binary(expr)
            case pq.Call():
                return self._call(expr)
            case _:
                raise UnsimulatedError(f"`{expr}`")

    def _exists(self, name: str) -> bool:
        return self.present is None or name in self.present

    def _fold(self, expr: pq.AggregateExpr) -> Node:
        op = str(expr.op)
        if op not in FOLDS:
            raise UnsimulatedError(f"{op}()")
        below = self.tree(expr.expr)
        if expr.modifier is not None:
            named = _OF_A_REPLICA & set(expr.modifier.labels)
            if bool(named) == bool(expr.modifier.type == pq.AggModifierType.By):
                return below
        return Fold(op, below)

    def _binary(self, expr: pq.BinaryExpr) -> Node:
        op = str(expr.op)
        if op == "or":
            return Or(self.tree(expr.lhs), self.tree(expr.rhs))
        if op not in OPERATORS:
            raise UnsimulatedError(f"the operator {op}")
        return Arithmetic(op, self.tree(expr.lhs), self.tree(expr.rhs))

    def _call(self, expr: pq.Call) -> Node:
        name = str(expr.func.name)
        if name in ROUNDINGS and len(expr.args) == 1:
            return Rounded(name, self.tree(expr.args[0]))
        if name in {"clamp_max", "clamp_min", "clamp"}:
            return self._clamped(name, expr)
        if name == "histogram_quantile":
            return self._quantile(expr)
        if name in {"rate", "irate", "increase", "avg_over_time", "max_over_time"}:
            return self._over_time(name, expr)
        raise UnsimulatedError(f"{name}()")

    def _clamped(self, name: str, expr: pq.Call) -> Node:
        limits = [_number(argument) for argument in expr.args[1:]]
        low = -math.inf if name == "clamp_max" else limits[0]
        high = math.inf if name == "clamp_min" else limits[-1]
        return Clamped(self.tree(expr.args[0]), low, high)

    def _quantile(self, expr: pq.Call) -> Node:
        found = _rated(expr.args[1])
        family = "" if found is None else found[0].removesuffix("_bucket")
        if found is None or family not in LATENCIES:
            raise UnsimulatedError(f"a quantile of {family or expr.args[1]}")
        return Quantile(LATENCIES[family], _number(expr.args[0]), found[1]) if self._exists(found[0]) else Nothing()

    def _over_time(self, function: str, expr: pq.Call) -> Node:
        argument = expr.args[0]
        if not isinstance(argument, pq.MatrixSelector):
            raise UnsimulatedError(f"{function}() of a subquery")
        name, window_s = canonical(argument.vector_selector.name or ""), _seconds(argument.range)
        if not self._exists(name):
            return Nothing()
        if function in {"rate", "irate", "increase"} and (growth := _growth(name, window_s, function)) is not None:
            return growth
        if function == "avg_over_time" and name in GAUGES:
            return Mean(GAUGES[name], window_s)
        if function == "max_over_time" and name in GAUGES:
            return Peak(GAUGES[name], window_s)
        raise UnsimulatedError(f"{function}({name or '{...}'})")


def _growth(name: str, window_s: float, function: str) -> Node | None:
    per_second = function != "increase"
    family, _, part = name.rpartition("_")
    if name in COUNTERS:
        return Growth(COUNTERS[name], window_s, per_second)
    if family not in LATENCIES or part not in {"count", "sum"}:
        return None
    observed = Growth(OBSERVED[LATENCIES[family]], window_s, per_second)
    return observed if part == "count" else Spent(LATENCIES[family], observed)


def _rated(expr: object) -> tuple[str, float] | None:
    """Name and window of `sum by (...) (rate(name[window]))`, seconds; the sum may lack."""
    while isinstance(expr, pq.ParenExpr | pq.AggregateExpr):
        expr = expr.expr
    if not isinstance(expr, pq.Call) or expr.func.name not in {"rate", "irate", "increase"}:
        return None
    argument = expr.args[0]
    if not isinstance(argument, pq.MatrixSelector):
        return None
    return canonical(argument.vector_selector.name or ""), _seconds(argument.range)


def _number(expr: object) -> float:
    if isinstance(expr, pq.NumberLiteral):
        return float(expr.val)
    raise UnsimulatedError(f"`{expr}` where a number is expected")


def _seconds(window: timedelta) -> float:
    return window.total_seconds()
