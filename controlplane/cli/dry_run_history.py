"""What `autoscale dry-run` asks a Prometheus, question by question, and the history that comes of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np

from controlplane.adapters.history.prometheus import PrometheusHistory, RangedSeries
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.simulation.dry_run.grid import Grid, grid_over, step_for
from controlplane.simulation.dry_run.guesses import kv_tokens_of
from controlplane.simulation.dry_run.happened import Bounds, quantile_bounds
from controlplane.simulation.dry_run.history import History, coefficient_of_variation, history_of, stretches
from controlplane.simulation.dry_run.questions import (
    CACHE_HITS,
    CACHE_QUERIES,
    NEEDED,
    OUTPUT_LENGTH,
    PER_TOKEN,
    PROMPT_LENGTH,
    RUNNING,
    TTFT,
    Ask,
    bounds,
    deployment_of,
    failing,
    grown,
    histogram,
    kubernetes,
    questions,
    quoted,
    scrapes,
)
from controlplane.simulation.fleet.compiled import Floats

_KUBERNETES: Final = "kube_deployment_status_replicas"
_HPA: Final = "kube_horizontalpodautoscaler_info"
_DCGM: Final = "DCGM_FI_DEV_GPU_UTIL"
_SCRAPES_WITHIN_S: Final = 600.0
_LOOKS: Final = 100
"""Over the range, for what hardly changes: the scrape interval, an HPA's bounds."""
_COARSE_S: Final = 3600.0
"""For what is asked by the hour, since only its sum counts."""
_NAMES_SHOWN: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the options say."""

    start_s: float
    end_s: float
    step_s: float | None
    selector: str
    deployment: str | None
    ttft_slo_s: float
    itl_slo_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gathered:
    """Everything that Prometheus told."""

    history: History
    scrape_s: float
    names: frozenset[str]
    model_name: str
    per_token: str
    """The histogram that stands for the time per output token."""
    ttft_p99: Bounds
    per_token_p99: Bounds
    prompt_cv: float
    output_cv: float
    """NaN where the histograms of lengths are missing."""
    cached_share: float
    """Of prompt tokens: found in the prefix cache."""
    kv_tokens: int | None
    engines: int
    """Different values of the label `engine`: data parallel ones in one process."""
    gpu_labels: tuple[str, ...]
    deployment: str | None
    replicas_min: int | None
    replicas_max: int | None
    """An HPA's, where kube-state-metrics tells."""


async def gather(prometheus: PrometheusHistory, wanted: Wanted) -> Gathered:
    """InvalidError: there is nothing to rebuild a history from, and what is there instead."""
    names = await _names(prometheus, wanted)
    model_name = await _model_name(prometheus, wanted)
    values = _Values(prometheus, wanted)
    scrape_s = await _scrape_s(prometheus, wanted)
    per_token = next((one for one in PER_TOKEN if f"{one}_bucket" in names), PER_TOKEN[0])
    grid = _grid(wanted, scrape_s)
    asked = questions(
        wanted.selector,
        grid,
        scrape_s,
        names=names,
        ttft_edges=beside(wanted.ttft_slo_s, await values.of("le", f"{TTFT}_bucket")),
        per_token=per_token,
        per_token_edges=beside(wanted.itl_slo_s, await values.of("le", f"{per_token}_bucket")),
    )
    deployment, told = await _kubernetes(values, wanted)
    jobs = await values.of("job", RUNNING)
    also = {Ask.FAILING: failing(jobs, scrape_s)} if jobs else {}
    answers = {
        ask: await prometheus.ranges(query, grid.start_s, grid.end_s, grid.step_s)
        for ask, query in {**asked, **told, **also}.items()
    }
    history = history_of(grid, answers)
    if not stretches(history):
        _refuse("--range", "no stretch of time over which it is known what happened", "a quarter of an hour or more")
    least, most = await _bounds(values, deployment)
    ttft, per_token_counts, prompt, output = [
        await _histogram(prometheus, name, wanted) for name in (TTFT, per_token, PROMPT_LENGTH, OUTPUT_LENGTH)
    ]
    return Gathered(
        history=history,
        scrape_s=scrape_s,
        names=names,
        model_name=model_name,
        per_token=per_token,
        ttft_p99=quantile_bounds(0.99, *ttft),
        per_token_p99=quantile_bounds(0.99, *per_token_counts),
        prompt_cv=coefficient_of_variation(*prompt),
        output_cv=coefficient_of_variation(*output),
        cached_share=await _cached_share(prometheus, wanted),
        kv_tokens=kv_tokens_of(
            await values.of("num_gpu_blocks", "vllm:cache_config_info"),
            await values.of("block_size", "vllm:cache_config_info"),
        ),
        engines=max(len(await values.of("engine", RUNNING)), 1),
        gpu_labels=await values.everywhere("modelName", _DCGM),
        deployment=deployment,
        replicas_min=least,
        replicas_max=most,
    )


def beside(limit_s: float, edges: Sequence[str]) -> tuple[str, ...]:
    """The labels of the edges around a limit, and of the infinite one."""
    finite = sorted((edge for edge in edges if edge != "+Inf"), key=float)
    below = [edge for edge in finite if float(edge) <= limit_s][-1:]
    above = [edge for edge in finite if float(edge) >= limit_s][:1]
    return (*below, *above, "+Inf")


@dataclass(frozen=True, slots=True)
class _Values:
    """Values of labels, within the range."""

    prometheus: PrometheusHistory
    wanted: Wanted

    async def of(self, label: str, name: str) -> tuple[str, ...]:
        return await self._within(label, f"{name}{{{self.wanted.selector}}}")

    async def everywhere(self, label: str, name: str) -> tuple[str, ...]:
        return await self._within(label, name)

    async def _within(self, label: str, selector: str) -> tuple[str, ...]:
        return await self.prometheus.label_values(label, selector, self.wanted.start_s, self.wanted.end_s)

    async def last(self, query: str) -> int | None:
        """The newest value of one number."""
        wanted = self.wanted
        found = await self.prometheus.ranges(query, wanted.start_s, wanted.end_s, _look_s(wanted))
        return int(found[0].values[-1]) if found and len(found[0].values) else None


async def _names(prometheus: PrometheusHistory, wanted: Wanted) -> frozenset[str]:
    names = await prometheus.names("vllm:", wanted.start_s, wanted.end_s)
    lacking = [name for name in NEEDED if name not in names]
    if not lacking:
        return frozenset(names)
    others = names or await prometheus.names("vllm", wanted.start_s, wanted.end_s)
    shown = ", ".join(others[:_NAMES_SHOWN]) + (
        f" and {len(others) - _NAMES_SHOWN} more" * (len(others) > _NAMES_SHOWN)
    )
    raise InvalidError(
        [
            Problem(
                field="--prometheus",
                found=f"no {' and no '.join(lacking)} in this range, only {shown}" if others
                else "no metric of vLLM in this range",
                expected="the history of engines whose /metrics Prometheus scrapes",
                hint="`quarterdeck autoscale doctor PATH --prometheus URL` says what in a ServiceMonitor is wrong",
            )
        ]
    )  # fmt: skip


async def _model_name(prometheus: PrometheusHistory, wanted: Wanted) -> str:
    async def values(selector: str) -> tuple[str, ...]:
        return await prometheus.label_values("model_name", selector, wanted.start_s, wanted.end_s)

    found = await values(f"{RUNNING}{{{wanted.selector}}}")
    if not found:
        known = ", ".join(await values(RUNNING)) or "none with a label model_name"
        _refuse("--selector", f"{{{wanted.selector}}} chooses nothing", f"one of the models {known}")
    if len(found) > 1:
        _refuse("--model-name", f"{len(found)} models: {', '.join(found)}", "one, by --model-name or --selector")
    return found[0]


def _look_s(wanted: Wanted) -> float:
    return float(max(math.floor((wanted.end_s - wanted.start_s) / _LOOKS), 1))


async def _scrape_s(prometheus: PrometheusHistory, wanted: Wanted) -> float:
    """From how many samples there are of a replica in ten minutes."""
    span_s = min(_SCRAPES_WITHIN_S, wanted.end_s - wanted.start_s)
    counts = await prometheus.ranges(
        scrapes(wanted.selector, f"{math.ceil(span_s)}s"), wanted.start_s + span_s, wanted.end_s, _look_s(wanted)
    )
    most = max((float(series.values.max()) for series in counts if len(series.values)), default=0.0)
    if most <= 1.0:
        _refuse("--range", "hardly a sample of a replica", "a range in which the engines were scraped")
    return max(float(round(span_s / most)), 1.0)


def _grid(wanted: Wanted, scrape_s: float) -> Grid:
    range_s = wanted.end_s - wanted.start_s
    step_s = wanted.step_s or step_for(range_s, scrape_s)
    if step_s < scrape_s:
        _refuse("--step", f"{step_s:g} s", f"no less than the {scrape_s:g} s between two scrapes")
    if step_s * 2.0 > range_s:
        _refuse("--range", f"{range_s:g} s", f"several steps of {step_s:g} s")
    return grid_over(math.ceil(wanted.start_s / step_s) * step_s, wanted.end_s, step_s)


async def _kubernetes(values: _Values, wanted: Wanted) -> tuple[str | None, Mapping[Ask, str]]:
    """The Deployment, and what to ask of it; nothing where Kubernetes is not scraped or the pods do not tell."""
    deployment = wanted.deployment or deployment_of(await values.of("pod", RUNNING))
    if deployment is None:
        return None, {}
    known = await values.everywhere("deployment", f'{_KUBERNETES}{{deployment="{quoted(deployment)}"}}')
    if not known:
        if wanted.deployment:
            _refuse(
                "--deployment", f"no {_KUBERNETES} of {wanted.deployment}", "a Deployment that kube-state-metrics has"
            )
        return deployment, {}
    return deployment, kubernetes(await _namespace(values), deployment)


async def _namespace(values: _Values) -> str:
    found = await values.of("namespace", RUNNING)
    return found[0] if len(found) == 1 else ""


async def _bounds(values: _Values, deployment: str | None) -> tuple[int | None, int | None]:
    if deployment is None or not await values.everywhere("horizontalpodautoscaler", _HPA):
        return None, None
    low, high = bounds(await _namespace(values), deployment)
    return await values.last(low), await values.last(high)


async def _histogram(prometheus: PrometheusHistory, name: str, wanted: Wanted) -> tuple[tuple[float, ...], Floats]:
    """Edges and cumulative counts over the whole range; empty where there is none."""
    span_s = min(_COARSE_S, wanted.end_s - wanted.start_s)
    query = histogram(name, wanted.selector, span_s)
    found = await prometheus.ranges(query, wanted.start_s + span_s, wanted.end_s, span_s)
    by_edge = {float(series.labels["le"]): _sum(series) for series in found if "le" in series.labels}
    edges = tuple(sorted(by_edge))
    # What is extrapolated for each edge by itself need not grow from edge to edge.
    return edges, np.maximum.accumulate(np.array([by_edge[edge] for edge in edges], dtype=np.float64))


async def _cached_share(prometheus: PrometheusHistory, wanted: Wanted) -> float:
    span_s = min(_COARSE_S, wanted.end_s - wanted.start_s)
    hits, queries = [
        sum(_sum(series) for series in await prometheus.ranges(
            grown(name, wanted.selector, span_s), wanted.start_s + span_s, wanted.end_s, span_s
        ))
        for name in (CACHE_HITS, CACHE_QUERIES)
    ]  # fmt: skip
    return min(hits / queries, 1.0) if queries > 0.0 else 0.0


def _sum(series: RangedSeries) -> float:
    return float(np.nansum(series.values))


def _refuse(field: str, found: str, expected: str) -> NoReturn:
    raise InvalidError([Problem(field=field, found=found, expected=expected)])
