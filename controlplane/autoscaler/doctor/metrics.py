"""What vLLM exports: names, kinds, labels, bucket edges; names that vanished and what took their place.

Source: vLLM 0.33, `vllm/v1/metrics/loggers.py`, and the pages of a running 0.32 (docs/vllm.md). What production-stack's
router exports under the same prefix `vllm:` is listed apart, since its labels differ.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PREFIX: Final = "vllm:"
ENGINE_LABELS: Final = frozenset({"model_name", "engine"})
_SIMILARITY: Final = 0.6
"""difflib's own default: below it a suggestion is noise."""


class Kind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric family; the name as its samples carry it for gauges, without suffix for counters and histograms."""

    name: str
    kind: Kind
    labels: frozenset[str]
    edges: tuple[float, ...] = ()
    """Upper bounds of the buckets without +Inf; empty where they depend on how the engine was started."""
    bound: float | None = None
    """The largest value that it can have."""
    of_engine: bool = True
    """False: exported by production-stack's router, which is there without any replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A name as a query writes it, understood."""

    family: Family
    suffix: str
    """`_total`, `_bucket`, `_sum`, `_count`, `_created`, or empty."""

    @property
    def accumulates(self) -> bool:
        """Only grows, so that only its rate says anything."""
        return self.suffix in {"_total", "_bucket", "_sum", "_count"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanished:
    """A name that vLLM exported once."""

    name: str
    successor: str
    """The name that says the same today; empty where nothing does."""
    note: str = ""


_TTFT_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_ROUTER_REQUEST_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

_GAUGES: Final[Mapping[str, tuple[str, ...]]] = {
    "num_requests_running": (),
    "num_requests_waiting": (),
    "num_requests_waiting_by_reason": ("reason",),
    "num_requests_kv_fetch_by_stage": ("stage",),
    "engine_sleep_state": ("sleep_state",),
    "kv_cache_usage_perc": (),
    "lora_requests_info": ("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
    "cache_config_info": ("num_gpu_blocks", "block_size", "cache_dtype", "gpu_memory_utilization"),
}
_COUNTERS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("prefix_cache_queries", "prefix_cache_hits"), ()),
    **dict.fromkeys(("external_prefix_cache_queries", "external_prefix_cache_hits"), ()),
    **dict.fromkeys(("mm_cache_queries", "mm_cache_hits", "num_preemptions", "corrupted_requests"), ()),
    **dict.fromkeys(("prompt_tokens", "prompt_tokens_cached", "generation_tokens"), ()),
    **dict.fromkeys(("prompt_tokens_by_source", "prompt_tokens_cached_by_source"), ("source",)),
    "request_success": ("finished_reason",),
    "admission_rejections": ("reason",),
    "watermark_requests": ("status",),
    **dict.fromkeys(("spec_decode_num_drafts", "spec_decode_num_draft_tokens"), ()),
    "spec_decode_num_accepted_tokens": (),
    "spec_decode_num_accepted_tokens_per_pos": ("position",),
    **dict.fromkeys(("estimated_flops_per_gpu", "estimated_read_bytes_per_gpu"), ()),
    "estimated_write_bytes_per_gpu": (),
}
_HISTOGRAMS: Final[Mapping[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": _TTFT_S,
    "inter_token_latency_seconds": _TOKEN_S,
    "request_time_per_output_token_seconds": _TOKEN_S,
    **dict.fromkeys(("e2e_request_latency_seconds", "request_queue_time_seconds"), _REQUEST_S),
    **dict.fromkeys(("request_inference_time_seconds", "request_prefill_time_seconds"), _REQUEST_S),
    "request_decode_time_seconds": _REQUEST_S,
    # Edges of lengths follow --max-model-len, so that none is known without a page.
    **dict.fromkeys(("request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total"), ()),
    **dict.fromkeys(("request_max_num_generation_tokens", "request_params_n", "request_params_max_tokens"), ()),
    **dict.fromkeys(("request_num_preemptions", "request_prefill_kv_computed_tokens"), ()),
    **dict.fromkeys(("kv_block_lifetime_seconds", "kv_block_idle_before_evict_seconds"), ()),
    "kv_block_reuse_gap_seconds": (),
}
_ROUTER_GAUGES: Final = (
    *("current_qps", "avg_decoding_length", "num_prefill_requests", "num_decoding_requests", "healthy_pods_total"),
    *("avg_latency", "avg_itl"),
)
_ROUTER_COUNTERS: Final[Mapping[str, tuple[str, ...]]] = {
    "num_incoming_requests": ("model",),
    "routing_decisions": ("algorithm", "decision", "reason"),
    "input_tokens": ("server", "model"),
    "output_tokens": ("server", "model"),
    "request_errors": ("server", "model", "error_type"),
}

_VANISHED: Final = (
    Vanished(name="vllm:gpu_cache_usage_perc", successor="vllm:kv_cache_usage_perc"),
    Vanished(
        name="vllm:cpu_cache_usage_perc",
        successor="vllm:kv_cache_usage_perc",
        note="there is no swap space to fill any more",
    ),
    Vanished(name="vllm:gpu_prefix_cache_queries", successor="vllm:prefix_cache_queries_total"),
    Vanished(name="vllm:gpu_prefix_cache_hits", successor="vllm:prefix_cache_hits_total"),
    Vanished(
        name="vllm:gpu_prefix_cache_hit_rate",
        successor="vllm:prefix_cache_hits_total",
        note="divide the rates of vllm:prefix_cache_hits_total and vllm:prefix_cache_queries_total",
    ),
    Vanished(
        name="vllm:cpu_prefix_cache_hit_rate",
        successor="vllm:prefix_cache_hits_total",
        note="divide the rates of vllm:prefix_cache_hits_total and vllm:prefix_cache_queries_total",
    ),
    Vanished(name="vllm:time_per_output_token_seconds", successor="vllm:inter_token_latency_seconds"),
    Vanished(
        name="vllm:num_requests_swapped",
        successor="vllm:num_preemptions_total",
        note="a preempted request is computed again, not swapped",
    ),
    Vanished(
        name="vllm:avg_prompt_throughput_toks_per_s",
        successor="vllm:prompt_tokens_total",
        note="take rate(vllm:prompt_tokens_total[1m])",
    ),
    Vanished(
        name="vllm:avg_generation_throughput_toks_per_s",
        successor="vllm:generation_tokens_total",
        note="take rate(vllm:generation_tokens_total[1m])",
    ),
)

LATENCIES: Final = frozenset(
    f"vllm:{name}"
    for name in (
        *("time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds"),
        *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds"),
        *("request_prefill_time_seconds", "request_decode_time_seconds", "time_per_output_token_seconds"),
    )
)
"""Histograms of how long requests took: each is written when something has happened, never while it is waited for."""

LABEL_SLIPS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("model", "model_id", "modelname", "modelName", "served_model_name", "llm_model"), "model_name"),
    **dict.fromkeys(("finish_reason", "finishedReason", "finish_status"), "finished_reason"),
    **dict.fromkeys(("engine_id", "engine_index", "dp_rank"), "engine"),
}
"""Labels that recipes use and vLLM does not have."""

TARGET_LABELS: Final = frozenset(
    {
        *("instance", "job", "pod", "namespace", "service", "endpoint", "container", "node", "cluster", "prometheus"),
        *("prometheus_replica", "app", "release", "le", "__name__", "kubernetes_namespace", "kubernetes_pod_name"),
        *("exported_namespace", "exported_pod", "exported_job", "exported_instance", "exported_service", "pod_name"),
        *("region", "zone", "environment", "env", "tenant", "replica", "server"),
    }
)
"""Labels that a scrape, the operator or an external label commonly adds."""

_SUFFIXES: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.GAUGE: ("",),
    Kind.COUNTER: ("_total", "_created"),
    Kind.HISTOGRAM: ("_bucket", "_sum", "_count", "_created"),
}


def _families() -> Mapping[str, Family]:
    found: list[Family] = []
    for name, extra in _GAUGES.items():
        bound = 1.0 if name == "kv_cache_usage_perc" else None
        found.append(Family(name=PREFIX + name, kind=Kind.GAUGE, labels=ENGINE_LABELS | set(extra), bound=bound))
    for name, extra in _COUNTERS.items():
        found.append(Family(name=PREFIX + name, kind=Kind.COUNTER, labels=ENGINE_LABELS | set(extra)))
    for name, edges in _HISTOGRAMS.items():
        found.append(Family(name=PREFIX + name, kind=Kind.HISTOGRAM, labels=ENGINE_LABELS | {"le"}, edges=edges))
    for name in _ROUTER_GAUGES:
        labels = frozenset({"server"})
        found.append(Family(name=PREFIX + name, kind=Kind.GAUGE, labels=labels, of_engine=False))
    for name, extra in _ROUTER_COUNTERS.items():
        found.append(Family(name=PREFIX + name, kind=Kind.COUNTER, labels=frozenset(extra), of_engine=False))
    found.append(
        Family(
            name="vllm:request_latency_seconds",
            kind=Kind.HISTOGRAM,
            labels=frozenset({"server", "model", "status", "le"}),
            edges=_ROUTER_REQUEST_S,
            of_engine=False,
        )
    )
    return {family.name: family for family in found}


FAMILIES: Final = _families()
_SAMPLES: Final[Mapping[str, Sample]] = {
    family.name + suffix: Sample(family=family, suffix=suffix)
    for family in FAMILIES.values()
    for suffix in _SUFFIXES[family.kind]
}
_GONE: Final[Mapping[str, Vanished]] = {
    gone.name + suffix: gone for gone in _VANISHED for suffix in ("", "_total", "_bucket", "_sum", "_count")
}


def sample(name: str) -> Sample | None:
    """What the name is, None where vLLM exports no such sample."""
    return _SAMPLES.get(name)


def vanished(name: str) -> Vanished | None:
    """What the name was, None where it was never one of vLLM's or is one still."""
    return _GONE.get(name)


def replacement(name: str, gone: Vanished) -> str:
    """The successor's sample for the vanished one's: a `_bucket` stays a `_bucket`."""
    suffix = name.removeprefix(gone.name)
    return gone.successor + suffix if suffix in {"_bucket", "_sum", "_count"} else gone.successor


def is_recorded(name: str) -> bool:
    """`vllm:queue:sum`: by Prometheus' convention the name of a recording rule, which may be in files not given."""
    return ":" in name.removeprefix(PREFIX)


def is_exported(name: str) -> bool:
    """By vLLM, once or now, or by an exporter of GPUs: then it has a series for each replica."""
    return sample(name) is not None or vanished(name) is not None or is_gpu_busy(name) or is_gpu_memory(name)


def canonical(name: str) -> str:
    """`vllm:x` for `vllm_x`, which is how adapters and exporters without colons rename it."""
    return PREFIX + name.removeprefix("vllm_") if name.startswith("vllm_") else name


def nearest_sample(name: str) -> str | None:
    """The sample's name that was probably meant."""
    close = difflib.get_close_matches(name, _SAMPLES, n=1, cutoff=_SIMILARITY)
    return close[0] if close else None


def nearest_label(name: str, options: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, sorted(options), n=1, cutoff=_SIMILARITY)
    return close[0] if close else None


def edges_beside(value: float, edges: tuple[float, ...]) -> tuple[float | None, float | None]:
    """The edge below and the edge above a value; both the value itself where it is an edge."""
    if value in edges:
        return value, value
    below = max((edge for edge in edges if edge < value), default=None)
    above = min((edge for edge in edges if edge > value), default=None)
    return below, above


def is_gpu_memory(name: str) -> bool:
    """Memory of the GPU as dcgm-exporter and nvidia-smi exporters name it."""
    lowered = name.lower()
    return any(part in lowered for part in ("dcgm_fi_dev_fb_", "nvidia_smi_memory", "gpu_memory_used", "gpu_mem_used"))


def is_gpu_busy(name: str) -> bool:
    """Share of time in which any kernel ran."""
    lowered = name.lower()
    return any(part in lowered for part in ("dcgm_fi_dev_gpu_util", "nvidia_smi_utilization_gpu", "gpu_duty_cycle"))
