"""The text of /metrics. What never changes (names, labels, creation times) is written once, at start."""

import gc
import os
import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

from controlplane.simulation.engine import families
from controlplane.simulation.engine.families import Family, FinishReason, HistogramFamily, Rejection
from controlplane.simulation.engine.tally import EngineTally, Histogram, HttpTally

_GC_FAMILIES: Final = (
    ("python_gc_objects_collected_total", "Objects collected during gc", "collected"),
    ("python_gc_objects_uncollectable_total", "Uncollectable objects found during GC", "uncollectable"),
    ("python_gc_collections_total", "Number of times this generation was collected", "collections"),
)
_STAT: Final = Path("/proc/self/stat")
_FDS: Final = "/proc/self/fd"
_UTIME, _STIME, _VSIZE, _RSS = 11, 12, 20, 21
"""Fields of /proc/PID/stat after the closing parenthesis of the command (proc(5))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGauges:
    """The state of the engine at the moment of a scrape."""

    running: int
    waiting: int
    deferred: int
    """Of the waiting ones, those held back because the engine sleeps."""
    kv_usage: float
    sleep_level: int
    """0 awake, 1 weights offloaded, 2 all discarded."""


class Exposition:
    """Renders one engine's metrics in the Prometheus text format, families in the order of the real ones."""

    def __init__(self, *, model: str, started_at_s: float, cache_config: Mapping[str, str]) -> None:
        self._created = _number(started_at_s)
        self._info = _head("python_info", "Python platform information", "gauge") + _python_info()
        self._start = (
            _head("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", "gauge")
            + f"process_start_time_seconds {self._created}\n"
        )
        self._model = _escaped(model)
        self._gauges = [_ScalarBlock(family, self._model, kind="gauge") for family in families.GAUGES]
        self._flops = [self._counter(family) for family in families.FLOPS_COUNTERS]
        self._counters = [self._counter(family) for family in families.COUNTERS]
        self._histograms = [_HistogramBlock(family, self._model, self._created) for family in families.HISTOGRAMS]
        labels = _labels({**cache_config, "engine": "0"})
        self._cache_config = (
            _head("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
            + f"vllm:cache_config_info{labels} 1.0\n"
        )

    def render(self, gauges: EngineGauges, tally: EngineTally, http: HttpTally) -> bytes:
        """About 50 kB, in well under a millisecond."""
        parts = [_gc_text(), self._info, _process_text(self._start)]
        parts += [block.text((0,)) for block in self._flops]
        gauge_values = _gauge_values(gauges)
        parts += [block.text(gauge_values[block.name]) for block in self._gauges]
        counter_values = _counter_values(tally)
        parts += [block.text(counter_values.get(block.name, block.zeros)) for block in self._counters]
        parts += [block.text(tally.histograms[block.name]) for block in self._histograms]
        parts += [self._cache_config, *_http_texts(http, self._created)]
        return "".join(parts).encode()

    def _counter(self, family: Family) -> "_ScalarBlock":
        return _ScalarBlock(family, self._model, kind="counter", created=self._created)


class _ScalarBlock:
    """A counter or gauge: everything but the numbers."""

    def __init__(self, family: Family, model: str, *, kind: str, created: str = "") -> None:
        self.name = family.name
        self.zeros = (0,) * len(family.values)
        sample = f"{family.name}_total" if kind == "counter" else family.name
        label_sets = [_family_labels(family, model, value) for value in family.values]
        heads = [f"{sample}{labels} " for labels in label_sets]
        heads[0] = _head(sample, family.help, kind) + heads[0]
        self._heads = heads
        self._tail = ""
        if created:
            name = f"{family.name}_created"
            lines = [f"{name}{labels} {created}\n" for labels in label_sets]
            self._tail = _head(name, family.help, "gauge") + "".join(lines)

    def text(self, values: Sequence[float]) -> str:
        lines = [f"{head}{_number(value)}\n" for head, value in zip(self._heads, values, strict=True)]
        return "".join(lines) + self._tail


class _HistogramBlock:
    def __init__(self, family: HistogramFamily, model: str, created: str) -> None:
        self.name = family.name
        labels = _labels({"engine": "0", "model_name": model}, escaped=True)
        buckets = [
            f"{family.name}_bucket" + _labels({"engine": "0", "le": edge, "model_name": model}, escaped=True) + " "
            for edge in (*map(_number, family.edges), "+Inf")
        ]
        buckets[0] = _head(family.name, family.help, "histogram") + buckets[0]
        self._buckets = buckets
        self._count = f"{family.name}_count{labels} "
        self._sum = f"{family.name}_sum{labels} "
        self._tail = (
            _head(f"{family.name}_created", family.help, "gauge") + f"{family.name}_created{labels} {created}\n"
        )

    def text(self, histogram: Histogram) -> str:
        total = list(accumulate(histogram.buckets))
        lines = [f"{head}{count}.0\n" for head, count in zip(self._buckets, total, strict=True)]
        lines.append(f"{self._count}{total[-1]}.0\n{self._sum}{_number(histogram.sum)}\n")
        lines.append(self._tail)
        return "".join(lines)


def _gauge_values(gauges: EngineGauges) -> dict[str, tuple[float, ...]]:
    level = gauges.sleep_level
    return {
        "vllm:num_requests_running": (gauges.running,),
        "vllm:num_requests_waiting": (gauges.waiting,),
        "vllm:num_requests_waiting_by_reason": (gauges.waiting - gauges.deferred, gauges.deferred),
        "vllm:engine_sleep_state": (float(level == 0), float(level == 1), float(level > 1)),
        "vllm:kv_cache_usage_perc": (gauges.kv_usage,),
    }


def _counter_values(tally: EngineTally) -> dict[str, tuple[float, ...]]:
    """By family; families that a simulation never counts stay at zero."""
    cached = tally.prompt_tokens_cached
    return {
        "vllm:prefix_cache_queries": (tally.prefix_queries,),
        "vllm:prefix_cache_hits": (tally.prefix_hits,),
        "vllm:num_preemptions": (tally.preemptions,),
        "vllm:prompt_tokens": (tally.prompt_tokens,),
        "vllm:prompt_tokens_by_source": (tally.prompt_tokens - cached, cached, 0),
        "vllm:prompt_tokens_cached": (cached,),
        "vllm:prompt_tokens_cached_by_source": (tally.prefix_hits, 0, 0, 0, 0),
        "vllm:generation_tokens": (tally.generation_tokens,),
        "vllm:request_success": tuple(tally.finished[reason] for reason in FinishReason),
        "vllm:admission_rejections": tuple(tally.rejected[rejection] for rejection in Rejection),
    }


def _http_texts(http: HttpTally, created: str) -> Iterable[str]:
    """The instrumentator's families. As in the real one, `_created` appears with the first request of a route."""
    requests = [
        ({"handler": route, "method": method, "status": status}, count)
        for (route, method, status), count in http.requests.items()
    ]
    text = "Total number of requests by method, status and handler."
    yield _head("http_requests_total", text, "counter")
    yield from (f"http_requests_total{_labels(labels)} {_number(count)}\n" for labels, count in requests)
    yield _created_text("http_requests", text, [labels for labels, _ in requests], created)
    for name, what, table in (
        ("http_request_size_bytes", "incoming requests", http.request_bytes),
        ("http_response_size_bytes", "outgoing responses", http.response_bytes),
    ):
        yield from _size_texts(name, what, table, created)
    name = "http_request_duration_highr_seconds"
    text = "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. "
    yield _head(name, text, "histogram")
    yield _http_histogram(name, {}, http.fine_durations)
    yield _created_text(name, text, [{}], created)
    name = "http_request_duration_seconds"
    text = "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. "
    yield _head(name, text, "histogram")
    routes = [
        ({"handler": route, "method": method}, durations) for (route, method), durations in http.durations.items()
    ]
    yield from (_http_histogram(name, labels, durations) for labels, durations in routes)
    yield _created_text(name, text, [labels for labels, _ in routes], created)


def _size_texts(name: str, what: str, table: Mapping[str, Sequence[float]], created: str) -> Iterable[str]:
    text = (
        f"Content length of {what} by handler. Only value of header is respected. Otherwise ignored. No percentile "
        "calculated. "
    )
    yield _head(name, text, "summary")
    for route, (count, size) in table.items():
        labels = _labels({"handler": route})
        yield f"{name}_count{labels} {_number(count)}\n{name}_sum{labels} {_number(size)}\n"
    yield _created_text(name, text, [{"handler": route} for route in table], created)


def _http_histogram(name: str, labels: Mapping[str, str], histogram: Histogram) -> str:
    total = list(accumulate(histogram.buckets))
    edges = (*map(_number, histogram.edges), "+Inf")
    lines = [
        f"{name}_bucket{_labels({**labels, 'le': edge})} {count}.0\n" for edge, count in zip(edges, total, strict=True)
    ]
    text = _labels(labels)
    return "".join(lines) + f"{name}_count{text} {total[-1]}.0\n{name}_sum{text} {_number(histogram.sum)}\n"


def _created_text(name: str, text: str, label_sets: Sequence[Mapping[str, str]], created: str) -> str:
    if not label_sets:
        return ""
    lines = [f"{name}_created{_labels(labels)} {created}\n" for labels in label_sets]
    return _head(f"{name}_created", text, "gauge") + "".join(lines)


def _gc_text() -> str:
    generations = gc.get_stats()
    parts = []
    for name, text, field in _GC_FAMILIES:
        parts.append(_head(name, text, "counter"))
        parts += [f'{name}{{generation="{index}"}} {stats[field]}.0\n' for index, stats in enumerate(generations)]
    return "".join(parts)


def _process_text(start: str) -> str:
    """What prometheus_client's process collector shows on Linux; nothing where /proc is missing."""
    try:
        fields = _STAT.read_text().rpartition(")")[2].split()
        open_fds = len(os.listdir(_FDS))  # noqa: PTH208  # half the time of Path.iterdir
    except OSError:
        return start
    ticks = os.sysconf("SC_CLK_TCK")
    cpu_s = (int(fields[_UTIME]) + int(fields[_STIME])) / ticks
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resident = int(fields[_RSS]) * os.sysconf("SC_PAGE_SIZE")
    single: Callable[[str, str, str, float], str] = lambda name, text, kind, value: (  # noqa: E731  # local shorthand
        f"{_head(name, text, kind)}{name} {_number(value)}\n"
    )
    return "".join(
        (
            single("process_virtual_memory_bytes", "Virtual memory size in bytes.", "gauge", int(fields[_VSIZE])),
            single("process_resident_memory_bytes", "Resident memory size in bytes.", "gauge", resident),
            start,
            single("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", "counter", cpu_s),
            single("process_open_fds", "Number of open file descriptors.", "gauge", open_fds),
            single("process_max_fds", "Maximum number of open file descriptors.", "gauge", limit),
        )
    )


def _python_info() -> str:
    major, minor, patch = (str(part) for part in sys.version_info[:3])
    labels = {
        "implementation": "CPython" if sys.implementation.name == "cpython" else sys.implementation.name,
        "major": major,
        "minor": minor,
        "patchlevel": patch,
        "version": f"{major}.{minor}.{patch}",
    }
    return f"python_info{_labels(labels)} 1.0\n"


def _family_labels(family: Family, model: str, value: str) -> str:
    labels = {"model_name": model}
    if family.engine_label:
        labels["engine"] = "0"
    if family.label:
        labels[family.label] = value
    return _labels(labels, escaped=True)


def _head(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _labels(labels: Mapping[str, str], *, escaped: bool = False) -> str:
    if not labels:
        return ""
    quote = str if escaped else _escaped
    return "{" + ",".join(f'{name}="{quote(labels[name])}"' for name in sorted(labels)) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return repr(float(value))
