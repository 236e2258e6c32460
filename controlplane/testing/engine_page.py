"""An engine's /metrics page as vLLM writes it: same client library, names, types, labels and buckets, about 50 kB.

Names and buckets: vLLM, `vllm/v1/metrics/loggers.py` (0.33). For tests and benchmarks of what reads such pages.
"""

from collections.abc import Sequence
from typing import Final

import prometheus_client as prometheus

FINISHED_REASONS: Final = ("stop", "length", "abort", "error", "repetition")
SLEEP_STATES: Final = ("awake", "weights_offloaded", "discard_all")

_LATENCY_S: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TTFT_EDGES_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_EDGES_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)

_READ_HISTOGRAMS: Final = {
    "time_to_first_token_seconds": TTFT_EDGES_S,
    "inter_token_latency_seconds": INTER_TOKEN_EDGES_S,
    "request_time_per_output_token_seconds": INTER_TOKEN_EDGES_S,
    "e2e_request_latency_seconds": _LATENCY_S,
}
_OTHER_HISTOGRAMS: Final = {
    "request_prompt_tokens": _TOKENS,
    "request_generation_tokens": _TOKENS,
    "iteration_tokens_total": (*_TOKENS, 2048, 4096, 8192),
    "request_max_num_generation_tokens": _TOKENS,
    "request_params_n": (1, 2, 5, 10, 20),
    "request_params_max_tokens": _TOKENS,
    "request_queue_time_seconds": _LATENCY_S,
    "request_inference_time_seconds": _LATENCY_S,
    "request_prefill_time_seconds": _LATENCY_S,
    "request_decode_time_seconds": _LATENCY_S,
    "request_prefill_kv_computed_tokens": _TOKENS,
}
_OTHER_COUNTERS: Final = (
    *("prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_queries", "external_prefix_cache_hits"),
    *("mm_cache_queries", "mm_cache_hits", "prompt_tokens_cached", "estimated_flops_per_gpu"),
)
_ENGINE_LABELS: Final = ("engine", "model_name")


class EnginePage:
    """The registry of one engine process. Numbers are set, or observed, engine by engine."""

    def __init__(
        self, *, model_name: str = "tiny", engines: int = 1, process_start_s: float = 1_767_600_000.0, full: bool = True
    ) -> None:
        """`engines`: data-parallel ranks. `full`: with the families that nobody reads, to the size of the real page."""
        self._registry = prometheus.CollectorRegistry()
        self._labels = [(str(engine), model_name) for engine in range(engines)]
        self._gauges: dict[str, prometheus.Gauge] = {}
        self._counters: dict[str, prometheus.Counter] = {}
        self._histograms: dict[str, prometheus.Histogram] = {}
        start = self._gauge("process_start_time_seconds", ())
        start.set(process_start_s)
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            self._gauge(f"vllm:{name}", _ENGINE_LABELS)
        self._gauge("vllm:engine_sleep_state", (*_ENGINE_LABELS, "sleep_state"))
        for name in ("num_preemptions", "prompt_tokens", "generation_tokens", *(_OTHER_COUNTERS if full else ())):
            self._counter(f"vllm:{name}", _ENGINE_LABELS)
        self._counter("vllm:request_success", (*_ENGINE_LABELS, "finished_reason"))
        for name, edges in {**_READ_HISTOGRAMS, **(_OTHER_HISTOGRAMS if full else {})}.items():
            self._histogram(f"vllm:{name}", edges)
        self._fill()

    def set(self, name: str, value: float, *, engine: int = 0) -> None:
        """A gauge, by its name without `vllm:`."""
        self._gauges[f"vllm:{name}"].labels(*self._labels[engine]).set(value)

    def sleep(self, *, asleep: bool) -> None:
        gauge = self._gauges["vllm:engine_sleep_state"]
        for labels in self._labels:
            gauge.labels(*labels, "awake").set(not asleep)
            gauge.labels(*labels, "weights_offloaded").set(asleep)

    def add(self, name: str, amount: float, *, engine: int = 0) -> None:
        """To a counter, by its name without `vllm:` and `_total`."""
        self._counters[f"vllm:{name}"].labels(*self._labels[engine]).inc(amount)

    def finish(self, reason: str, requests: float = 1.0, *, engine: int = 0) -> None:
        self._counters["vllm:request_success"].labels(*self._labels[engine], reason).inc(requests)

    def observe(self, name: str, values: Sequence[float], *, engine: int = 0) -> None:
        """Into a histogram, by its name without `vllm:`."""
        histogram = self._histograms[f"vllm:{name}"].labels(*self._labels[engine])
        for value in values:
            histogram.observe(value)

    def body(self) -> bytes:
        return prometheus.generate_latest(self._registry)

    def _fill(self) -> None:
        """Create every child, as vLLM does at start: a series that is there shows zero."""
        for labels in self._labels:
            for metric in (*self._gauges.values(), *self._counters.values(), *self._histograms.values()):
                if metric._labelnames == _ENGINE_LABELS:  # noqa: SLF001  # the library has no public way to ask
                    metric.labels(*labels)
            for reason in FINISHED_REASONS:
                self._counters["vllm:request_success"].labels(*labels, reason)
            for state in SLEEP_STATES:
                self._gauges["vllm:engine_sleep_state"].labels(*labels, state).set(state == "awake")

    def _gauge(self, name: str, labels: tuple[str, ...]) -> prometheus.Gauge:
        self._gauges[name] = prometheus.Gauge(name, f"{name} of this engine.", labels, registry=self._registry)
        return self._gauges[name]

    def _counter(self, name: str, labels: tuple[str, ...]) -> None:
        self._counters[name] = prometheus.Counter(name, f"{name} of this engine.", labels, registry=self._registry)

    def _histogram(self, name: str, edges: Sequence[float]) -> None:
        self._histograms[name] = prometheus.Histogram(
            name, f"{name} of this engine.", _ENGINE_LABELS, buckets=edges, registry=self._registry
        )
