"""Which series of an engine make which number of an EngineSample.

Names, types and labels: vLLM, `vllm/v1/metrics/loggers.py` (0.33), beside the older names that meant the same. With
data parallelism (`engine="0"`, `engine="1"`...) and several `model_name`s the numbers of one replica are summed; the KV
usage, a share of equally large caches, is averaged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controlplane.adapters.telemetry.exposition import Series
from controlplane.adapters.telemetry.remembering import RememberingParser
from controlplane.domain.telemetry import EMPTY_HISTOGRAM, EngineSample, Histogram, Missing

PROCESS_START: Final = "process_start_time_seconds"
RUNNING: Final = "vllm:num_requests_running"
WAITING: Final = "vllm:num_requests_waiting"
SLEEP_STATE: Final = "vllm:engine_sleep_state"
KV_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
PROMPT_TOKENS: Final = "vllm:prompt_tokens_total"
GENERATION_TOKENS: Final = "vllm:generation_tokens_total"
FINISHED: Final = "vllm:request_success_total"
PREEMPTIONS: Final = "vllm:num_preemptions_total"
TTFT: Final = ("vllm:time_to_first_token_seconds",)
INTER_TOKEN: Final = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
END_TO_END: Final = ("vllm:e2e_request_latency_seconds",)
TIME_PER_OUTPUT_TOKEN: Final = ("vllm:request_time_per_output_token_seconds",)

HISTOGRAMS: Final = (*TTFT, *INTER_TOKEN, *END_TO_END, *TIME_PER_OUTPUT_TOKEN)
WANTED: Final = frozenset(
    (
        *(PROCESS_START, RUNNING, WAITING, SLEEP_STATE, *KV_USAGE),
        *(PROMPT_TOKENS, GENERATION_TOKENS, FINISHED, PREEMPTIONS),
        *(f"{name}{suffix}" for name in HISTOGRAMS for suffix in ("_bucket", "_sum")),
    )
)
"""Names of all series that are read; the rest of a body is skipped."""

_REQUIRED: Final = (
    *((name,) for name in (RUNNING, WAITING, PROMPT_TOKENS, GENERATION_TOKENS, FINISHED, PREEMPTIONS)),
    KV_USAGE,
    *(tuple(f"{name}_bucket" for name in names) for names in (TTFT, INTER_TOKEN, END_TO_END)),
)
"""Alternatives, the present name first; a body without one of these is not read at all, never as zero."""

_FAILED_REASONS: Final = frozenset({"abort", "error"})


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a number's parts stand among the values."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _HistogramSpan:
    """Buckets engine by engine, each in order of its edges; then one sum per engine."""

    edges: tuple[float, ...]
    buckets: _Span
    sums: _Span


class _AbsentError(Exception):
    """A needed family is not there, or not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fields:
    """Where each field of a sample is."""

    process_start: _Span
    running: _Span
    waiting: _Span
    awake: _Span
    kv_usage: _Span
    prompt_tokens: _Span
    generation_tokens: _Span
    succeeded: _Span
    failed: _Span
    preemptions: _Span
    ttft: _HistogramSpan
    inter_token: _HistogramSpan
    end_to_end: _HistogramSpan
    time_per_output_token: _HistogramSpan | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayout:
    """Built once for a set of series, then used for every scrape that shows the same ones."""

    order: tuple[int, ...]
    """Positions in the sequence it was built from, in the order in which `sample` wants the values."""
    names: tuple[str, ...]
    """Of each value, for messages."""
    fields: _Fields

    def sample(self, values: Sequence[float], at: datetime) -> EngineSample | Missing:
        """The sample; Missing when a number is not finite. `values` in the order of `order`."""
        if not math.isfinite(sum(values)):
            return self._not_finite(values)
        fields = self.fields
        per_token = fields.time_per_output_token
        return EngineSample(
            at=at,
            process_start_s=_total(values, fields.process_start),
            running=int(_total(values, fields.running)),
            waiting=int(_total(values, fields.waiting)),
            kv_usage=_total(values, fields.kv_usage) / (fields.kv_usage.stop - fields.kv_usage.start),
            sleeping=fields.awake.stop > fields.awake.start and _total(values, fields.awake) == 0.0,
            prompt_tokens=_total(values, fields.prompt_tokens),
            generation_tokens=_total(values, fields.generation_tokens),
            requests_succeeded=_total(values, fields.succeeded),
            requests_failed=_total(values, fields.failed),
            preemptions=_total(values, fields.preemptions),
            ttft=_histogram(values, fields.ttft),
            inter_token=_histogram(values, fields.inter_token),
            end_to_end=_histogram(values, fields.end_to_end),
            time_per_output_token=EMPTY_HISTOGRAM if per_token is None else _histogram(values, per_token),
        )

    def _not_finite(self, values: Sequence[float]) -> Missing:
        for name, value in zip(self.names, values, strict=True):
            if not math.isfinite(value):
                return Missing(f"{name} is {value}")
        return Missing("the numbers add up to more than a float holds")


type EngineParser = RememberingParser[EngineSample]


def engine_parser() -> EngineParser:
    """A parser of engines' /metrics bodies, one layout per replica's name."""
    single = (name for name in WANTED if not name.startswith(HISTOGRAMS))
    starting = tuple(sorted(name.encode() for name in (*single, *HISTOGRAMS)))
    return RememberingParser(starting=starting, build=build_layout, epoch=lambda sample: sample.process_start_s)


def build_layout(series: Sequence[Series]) -> EngineLayout | Missing:
    """Find every number's series among `series`; others are ignored. Missing says which is absent or cut off."""
    try:
        return _Builder(series).build()
    except _AbsentError as error:
        return Missing(str(error))


def _total(values: Sequence[float], span: _Span) -> float:
    if span.stop == span.start + 1:
        return values[span.start]
    return float(sum(values[span.start : span.stop]))


def _histogram(values: Sequence[float], span: _HistogramSpan) -> Histogram:
    size = len(span.edges)
    buckets = values[span.buckets.start : span.buckets.stop]
    if len(buckets) == size:
        return Histogram(span.edges, tuple(buckets), _total(values, span.sums))
    counts = tuple(float(sum(buckets[edge::size])) for edge in range(size))
    return Histogram(span.edges, counts, _total(values, span.sums))


class _Builder:
    """Collects positions in the order in which spans are asked for."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._series = series
        self._order: list[int] = []
        self._by_name: dict[str, list[int]] = {}
        for position, one in enumerate(series):
            if one.name in WANTED:
                self._by_name.setdefault(one.name, []).append(position)

    def build(self) -> EngineLayout:
        if not self._by_name:
            raise _AbsentError("none of the engine's families is there: is this an engine's metrics page?")
        absent = [names[0] for names in _REQUIRED if not self._known(names)]
        if absent:
            raise _AbsentError(f"absent: {', '.join(absent)}")
        finished = self._by_name[FINISHED]
        failed = [at for at in finished if self._series[at].labels.get("finished_reason") in _FAILED_REASONS]
        states = self._by_name.get(SLEEP_STATE, [])
        fields = _Fields(
            process_start=self._take(self._by_name.get(PROCESS_START, [])),
            running=self._take(self._by_name[RUNNING]),
            waiting=self._take(self._by_name[WAITING]),
            awake=self._take([at for at in states if self._series[at].labels.get("sleep_state") == "awake"]),
            kv_usage=self._take(self._by_name[self._known(KV_USAGE)]),
            prompt_tokens=self._take(self._by_name[PROMPT_TOKENS]),
            generation_tokens=self._take(self._by_name[GENERATION_TOKENS]),
            succeeded=self._take([at for at in finished if at not in failed]),
            failed=self._take(failed),
            preemptions=self._take(self._by_name[PREEMPTIONS]),
            ttft=self._take_histogram(TTFT),
            inter_token=self._take_histogram(INTER_TOKEN),
            end_to_end=self._take_histogram(END_TO_END),
            time_per_output_token=self._take_optional_histogram(TIME_PER_OUTPUT_TOKEN),
        )
        order = tuple(self._order)
        return EngineLayout(order=order, names=tuple(self._series[at].name for at in order), fields=fields)

    def _known(self, names: Sequence[str], suffix: str = "") -> str:
        """The first of the alternative names that is there; empty when none is."""
        return next((name for name in names if f"{name}{suffix}" in self._by_name), "")

    def _take(self, positions: Sequence[int]) -> _Span:
        start = len(self._order)
        self._order.extend(positions)
        return _Span(start, len(self._order))

    def _take_optional_histogram(self, names: Sequence[str]) -> _HistogramSpan | None:
        return self._take_histogram(names) if self._known(names, "_bucket") else None

    def _take_histogram(self, names: Sequence[str]) -> _HistogramSpan:
        name = self._known(names, "_bucket")
        engines: dict[frozenset[tuple[str, str]], list[tuple[float, int]]] = {}
        for position in self._by_name[f"{name}_bucket"]:
            labels = self._series[position].labels
            rest = frozenset(pair for pair in labels.items() if pair[0] != "le")
            engines.setdefault(rest, []).append((_edge(name, labels), position))
        tables = [sorted(table) for table in engines.values()]
        edges = tuple(edge for edge, _ in tables[0])
        if edges[-1] != math.inf:
            raise _AbsentError(f'absent: {name}_bucket{{le="+Inf"}}')
        if any(tuple(edge for edge, _ in table) != edges for table in tables) or len(set(edges)) < len(edges):
            raise _AbsentError(f"{name}_bucket has not the same edges for each engine: found {len(tables)} sets")
        sums = self._by_name.get(f"{name}_sum", [])
        if len(sums) != len(tables):
            raise _AbsentError(f"absent: {name}_sum, found {len(sums)}, expected {len(tables)}")
        buckets = self._take([position for table in tables for _, position in table])
        return _HistogramSpan(edges, buckets, self._take(sums))


def _edge(name: str, labels: Mapping[str, str]) -> float:
    try:
        return float(labels["le"])
    except (KeyError, ValueError) as error:
        raise _AbsentError(f"{name}_bucket has no number in its label le: found {labels.get('le')!r}") from error
