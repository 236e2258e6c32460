"""vLLM's metric families: names, words, labels and bucket edges as a running vLLM 0.32 shows them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class FinishReason(StrEnum):
    """Values of `finished_reason`, in the order that vLLM lists them."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"


class Rejection(StrEnum):
    REQUESTS = "max_num_queued_reqs"
    TOKENS = "max_num_queued_tokens"


@dataclass(frozen=True, slots=True)
class Family:
    """One counter or gauge, with at most one label besides the engine's and the model's."""

    name: str
    """Without the `_total` that a counter's sample carries."""
    help: str
    label: str = ""
    values: tuple[str, ...] = ("",)
    engine_label: bool = True


@dataclass(frozen=True, slots=True)
class HistogramFamily:
    name: str
    help: str
    edges: tuple[float, ...]
    """Without the last, +Inf."""


_SOURCES: Final = ("local_compute", "local_cache_hit", "external_kv_transfer")
_CACHE_TIERS: Final = ("device", "host", "p2p", "disk", "external_unspecified")
_PER_GPU: Final = "(for Model Flops Utilization calculations)."

FLOPS_COUNTERS: Final = (
    Family("vllm:estimated_flops_per_gpu", f"Estimated number of floating point operations per GPU {_PER_GPU}"),
    Family("vllm:estimated_read_bytes_per_gpu", f"Estimated number of bytes read from memory per GPU {_PER_GPU}"),
    Family("vllm:estimated_write_bytes_per_gpu", f"Estimated number of bytes written to memory per GPU {_PER_GPU}"),
)

GAUGES: Final = (
    Family("vllm:num_requests_running", "Number of requests in model execution batches."),
    Family("vllm:num_requests_waiting", "Number of requests waiting to be processed."),
    Family(
        "vllm:num_requests_waiting_by_reason",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' "
        "= deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals "
        "vllm:num_requests_waiting.",
        "reason",
        ("capacity", "deferred"),
    ),
    Family(
        "vllm:engine_sleep_state",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = "
        "1 means sleep level 1; discard_all = 1 means sleep level 2.",
        "sleep_state",
        ("awake", "weights_offloaded", "discard_all"),
    ),
    Family("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage."),
)

COUNTERS: Final = (
    Family("vllm:prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens."),
    Family("vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens."),
    Family(
        "vllm:external_prefix_cache_queries",
        "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of queried "
        "tokens.",
    ),
    Family(
        "vllm:external_prefix_cache_hits",
        "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of cached "
        "tokens.",
    ),
    Family("vllm:mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items."),
    Family("vllm:mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items."),
    Family("vllm:num_preemptions", "Cumulative number of preemption from the engine."),
    Family("vllm:prompt_tokens", "Number of prefill tokens processed."),
    Family("vllm:prompt_tokens_by_source", "Number of prompt tokens by source.", "source", _SOURCES),
    Family("vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external)."),
    Family(
        "vllm:prompt_tokens_cached_by_source",
        "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), "
        "disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to "
        "vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
        "source",
        _CACHE_TIERS,
    ),
    Family("vllm:generation_tokens", "Number of generation tokens processed."),
    Family(
        "vllm:request_success",
        "Count of successfully processed requests.",
        "finished_reason",
        tuple(reason.value for reason in FinishReason),
    ),
    Family(
        "vllm:admission_rejections",
        "Number of admission attempts rejected by a queue limit, by reason.",
        "reason",
        tuple(rejection.value for rejection in Rejection),
        engine_label=False,
    ),
)

_LENGTHS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
_LATENCIES: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKEN_LATENCIES: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)

PROMPT_TOKENS: Final = HistogramFamily("vllm:request_prompt_tokens", "Number of prefill tokens processed.", _LENGTHS)
GENERATION_TOKENS: Final = HistogramFamily(
    "vllm:request_generation_tokens", "Number of generation tokens processed.", _LENGTHS
)
ITERATION_TOKENS: Final = HistogramFamily(
    "vllm:iteration_tokens_total",
    "Histogram of number of tokens per engine_step.",
    (1.0, *(float(1 << power) for power in range(3, 15))),
)
MAX_GENERATION_TOKENS: Final = HistogramFamily(
    "vllm:request_max_num_generation_tokens",
    "Histogram of maximum number of requested generation tokens.",
    _LENGTHS,
)
PARAMS_N: Final = HistogramFamily(
    "vllm:request_params_n", "Histogram of the n request parameter.", (1.0, 2.0, 5.0, 10.0, 20.0)
)
PARAMS_MAX_TOKENS: Final = HistogramFamily(
    "vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", _LENGTHS
)
TIME_TO_FIRST_TOKEN: Final = HistogramFamily(
    "vllm:time_to_first_token_seconds",
    "Histogram of time to first token in seconds.",
    (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
        *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
    ),
)
INTER_TOKEN_LATENCY: Final = HistogramFamily(
    "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _TOKEN_LATENCIES
)
TIME_PER_OUTPUT_TOKEN: Final = HistogramFamily(
    "vllm:request_time_per_output_token_seconds",
    "Histogram of time_per_output_token_seconds per request.",
    _TOKEN_LATENCIES,
)
END_TO_END: Final = HistogramFamily(
    "vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", _LATENCIES
)
QUEUE_TIME: Final = HistogramFamily(
    "vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", _LATENCIES
)
INFERENCE_TIME: Final = HistogramFamily(
    "vllm:request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.", _LATENCIES
)
PREFILL_TIME: Final = HistogramFamily(
    "vllm:request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", _LATENCIES
)
DECODE_TIME: Final = HistogramFamily(
    "vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", _LATENCIES
)
PREEMPTIONS: Final = HistogramFamily(
    "vllm:request_num_preemptions",
    "Histogram of the number of times a request was preempted.",
    (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0),
)
KV_COMPUTED_TOKENS: Final = HistogramFamily(
    "vllm:request_prefill_kv_computed_tokens",
    "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
    _LENGTHS,
)

HISTOGRAMS: Final = (
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    ITERATION_TOKENS,
    MAX_GENERATION_TOKENS,
    PARAMS_N,
    PARAMS_MAX_TOKENS,
    TIME_TO_FIRST_TOKEN,
    INTER_TOKEN_LATENCY,
    TIME_PER_OUTPUT_TOKEN,
    END_TO_END,
    QUEUE_TIME,
    INFERENCE_TIME,
    PREFILL_TIME,
    DECODE_TIME,
    PREEMPTIONS,
    KV_COMPUTED_TOKENS,
)

HTTP_DURATION_EDGES: Final = (0.1, 0.5, 1.0)
HTTP_DURATION_FINE_EDGES: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
    *(7.5, 10.0, 30.0, 60.0),
)
