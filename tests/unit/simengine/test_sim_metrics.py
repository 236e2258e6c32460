"""/metrics has the shape of the real one: same families, types, labels, buckets and creation times."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controlplane.simulation.engine import families
from controlplane.simulation.engine.exposition import EngineGauges, Exposition
from controlplane.simulation.engine.families import FinishReason
from controlplane.simulation.engine.options import parse_options
from controlplane.simulation.engine.process import cache_config
from controlplane.simulation.engine.scheduler import Scheduler, SchedulerLimits
from controlplane.simulation.engine.sequence import Sequence
from controlplane.simulation.engine.tally import EngineTally, Histogram, HttpTally
from controlplane.simulation.engine.timing import EngineProfile

ENGINE: Final = "engine model_name"
CACHE_CONFIG_LABELS: Final = (
    "_block_size_resolved block_size cache_dtype cache_hit_alignment_tokens effective_attention_block_size "
    "enable_mamba_shared_prefix_checkpoint enable_prefix_caching engine gpu_memory_utilization hash_block_size "
    "is_attention_free kv_cache_dtype_skip_layers kv_cache_layout kv_cache_max_concurrency kv_cache_memory_bytes "
    "kv_cache_size_tokens kv_offloading_backend kv_offloading_size kv_sharing_fast_prefill mamba_block_size "
    "mamba_cache_dtype mamba_cache_mode mamba_page_size_padded mamba_ssm_cache_dtype num_cpu_blocks num_gpu_blocks "
    "num_gpu_blocks_override prefix_cache_retention_interval prefix_caching_hash_algo prefix_match_unit "
    "replayssm_buffer_len skip_page_size_padded sliding_window swa_bounded_replay use_kda_recoverssm use_replayssm "
    "user_specified_block_size"
)

REAL: Final[dict[str, tuple[str, str]]] = {
    "python_gc_objects_collected_total": ("counter", "generation"),
    "python_gc_objects_uncollectable_total": ("counter", "generation"),
    "python_gc_collections_total": ("counter", "generation"),
    "python_info": ("gauge", "implementation major minor patchlevel version"),
    "process_virtual_memory_bytes": ("gauge", ""),
    "process_resident_memory_bytes": ("gauge", ""),
    "process_start_time_seconds": ("gauge", ""),
    "process_cpu_seconds_total": ("counter", ""),
    "process_open_fds": ("gauge", ""),
    "process_max_fds": ("gauge", ""),
    "vllm:estimated_flops_per_gpu_total": ("counter", ENGINE),
    "vllm:estimated_read_bytes_per_gpu_total": ("counter", ENGINE),
    "vllm:estimated_write_bytes_per_gpu_total": ("counter", ENGINE),
    "vllm:num_requests_running": ("gauge", ENGINE),
    "vllm:num_requests_waiting": ("gauge", ENGINE),
    "vllm:num_requests_waiting_by_reason": ("gauge", "engine model_name reason"),
    "vllm:engine_sleep_state": ("gauge", "engine model_name sleep_state"),
    "vllm:kv_cache_usage_perc": ("gauge", ENGINE),
    "vllm:prefix_cache_queries_total": ("counter", ENGINE),
    "vllm:prefix_cache_hits_total": ("counter", ENGINE),
    "vllm:external_prefix_cache_queries_total": ("counter", ENGINE),
    "vllm:external_prefix_cache_hits_total": ("counter", ENGINE),
    "vllm:mm_cache_queries_total": ("counter", ENGINE),
    "vllm:mm_cache_hits_total": ("counter", ENGINE),
    "vllm:num_preemptions_total": ("counter", ENGINE),
    "vllm:prompt_tokens_total": ("counter", ENGINE),
    "vllm:prompt_tokens_by_source_total": ("counter", "engine model_name source"),
    "vllm:prompt_tokens_cached_total": ("counter", ENGINE),
    "vllm:prompt_tokens_cached_by_source_total": ("counter", "engine model_name source"),
    "vllm:generation_tokens_total": ("counter", ENGINE),
    "vllm:request_success_total": ("counter", "engine finished_reason model_name"),
    "vllm:admission_rejections_total": ("counter", "model_name reason"),
    "vllm:request_prompt_tokens": ("histogram", ENGINE),
    "vllm:request_generation_tokens": ("histogram", ENGINE),
    "vllm:iteration_tokens_total": ("histogram", ENGINE),
    "vllm:request_max_num_generation_tokens": ("histogram", ENGINE),
    "vllm:request_params_n": ("histogram", ENGINE),
    "vllm:request_params_max_tokens": ("histogram", ENGINE),
    "vllm:time_to_first_token_seconds": ("histogram", ENGINE),
    "vllm:inter_token_latency_seconds": ("histogram", ENGINE),
    "vllm:request_time_per_output_token_seconds": ("histogram", ENGINE),
    "vllm:e2e_request_latency_seconds": ("histogram", ENGINE),
    "vllm:request_queue_time_seconds": ("histogram", ENGINE),
    "vllm:request_inference_time_seconds": ("histogram", ENGINE),
    "vllm:request_prefill_time_seconds": ("histogram", ENGINE),
    "vllm:request_decode_time_seconds": ("histogram", ENGINE),
    "vllm:request_num_preemptions": ("histogram", ENGINE),
    "vllm:request_prefill_kv_computed_tokens": ("histogram", ENGINE),
    "vllm:cache_config_info": ("gauge", CACHE_CONFIG_LABELS),
    "http_requests_total": ("counter", "handler method status"),
    "http_request_size_bytes": ("summary", "handler"),
    "http_response_size_bytes": ("summary", "handler"),
    "http_request_duration_highr_seconds": ("histogram", ""),
    "http_request_duration_seconds": ("histogram", "handler method"),
}
"""Family -> type and label names, as /metrics of a vLLM 0.32.0 (CPU build) showed them under load."""

NOT_CREATED: Final = ("python_", "process_")
"""Custom collectors have no `_created` twins; neither have gauges."""

SECONDS: Final = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
TOKEN_SECONDS: Final = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80"
LENGTHS: Final = "1 2 5 10 20 50 100 200 500 1000"
REAL_EDGES: Final = {
    "vllm:request_prompt_tokens": LENGTHS,
    "vllm:request_generation_tokens": LENGTHS,
    "vllm:iteration_tokens_total": "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
    "vllm:request_max_num_generation_tokens": LENGTHS,
    "vllm:request_params_n": "1 2 5 10 20",
    "vllm:request_params_max_tokens": LENGTHS,
    "vllm:time_to_first_token_seconds": (
        "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560"
    ),
    "vllm:inter_token_latency_seconds": TOKEN_SECONDS,
    "vllm:request_time_per_output_token_seconds": TOKEN_SECONDS,
    "vllm:e2e_request_latency_seconds": SECONDS,
    "vllm:request_queue_time_seconds": SECONDS,
    "vllm:request_inference_time_seconds": SECONDS,
    "vllm:request_prefill_time_seconds": SECONDS,
    "vllm:request_decode_time_seconds": SECONDS,
    "vllm:request_num_preemptions": "1 2 3 4 5 10 20",
    "vllm:request_prefill_kv_computed_tokens": LENGTHS,
    "http_request_duration_highr_seconds": (
        "0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75 1 1.5 2 2.5 3 3.5 4 4.5 5 7.5 10 30 60"
    ),
    "http_request_duration_seconds": "0.1 0.5 1",
}


@dataclass
class Shape:
    """What a family looks like, without its numbers."""

    kind: str
    labels: set[str] = field(default_factory=set)
    edges: list[str] = field(default_factory=list)


def shapes_of(text: str) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            shapes[name] = Shape(kind)
        elif not line.startswith("#"):
            match = re.match(r"([^{ ]+)(?:\{(.*)\})? ", line)
            assert match is not None, line
            name = match[1]
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            shape = shapes[name if name in shapes else re.sub(r"_(bucket|count|sum)$", "", name)]
            edge = labels.pop("le", None)
            if edge is not None and edge not in shape.edges:
                shape.edges.append(edge)
            shape.labels.update(labels)
    return shapes


def loaded(model: str = "chat") -> str:
    """The exposition of an engine that served one request."""
    tally, http = EngineTally(), HttpTally()
    profile = EngineProfile()
    scheduler = Scheduler(profile, SchedulerLimits.of(profile))
    sequence = Sequence(prompt_tokens=100, output_tokens=5, arrived_at=0.0)
    scheduler.submit(sequence)
    now = 0.25
    while (step := scheduler.step(now)) is not None:
        tally.record_step(step)
        now = step.ends_at
    tally.record_end(sequence, FinishReason.LENGTH, 5)
    http.record(
        handler="/v1/completions", method="POST", status=200, seconds=0.3, request_bytes=100, response_bytes=900
    )
    options = parse_options(["m", "--served-model-name", model], {})
    exposition = Exposition(model=model, started_at_s=1.7e9, cache_config=cache_config(options))
    gauges = EngineGauges(running=1, waiting=3, deferred=1, kv_usage=0.25, sleep_level=0)
    return exposition.render(gauges, tally, http).decode()


def samples(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_families_types_and_labels_are_those_of_the_real_engine() -> None:
    ours = shapes_of(loaded())
    plain = {name: shape for name, shape in ours.items() if not name.endswith("_created")}
    assert {name: (shape.kind, " ".join(sorted(shape.labels))) for name, shape in plain.items()} == REAL
    created = {name.removesuffix("_created") for name in ours if name.endswith("_created")}
    expected = {
        name if kind != "counter" else name.removesuffix("_total")
        for name, (kind, _) in REAL.items()
        if kind != "gauge" and not name.startswith(NOT_CREATED)
    }
    assert created == expected
    assert all(ours[f"{name}_created"].kind == "gauge" for name in created)


def test_buckets_are_those_of_the_real_engine() -> None:
    ours = {name: shape.edges for name, shape in shapes_of(loaded()).items() if shape.edges}
    assert {name: [float(edge) for edge in edges[:-1]] for name, edges in ours.items()} == {
        name: [float(edge) for edge in text.split()] for name, text in REAL_EDGES.items()
    }
    assert all(edges[-1] == "+Inf" for edges in ours.values())


def test_shape_equals_a_recorded_body() -> None:
    recorded = os.environ.get("QUARTERDECK_VLLM_METRICS")
    if not recorded:
        pytest.skip("QUARTERDECK_VLLM_METRICS does not name a recorded /metrics body of a vLLM under load")
    real = shapes_of(Path(recorded).read_text(encoding="utf-8"))
    assert shapes_of(loaded()) == real
    assert list(shapes_of(loaded())) == list(real), "the families come in the same order"


def test_a_prometheus_parser_reads_it() -> None:
    values = {
        (sample.name, sample.labels.get("finished_reason", "")): sample.value
        for family in text_string_to_metric_families(loaded())
        for sample in family.samples
    }
    assert values["vllm:request_success_total", "length"] == 1
    assert values["vllm:generation_tokens_total", ""] == 5
    assert values["vllm:prompt_tokens_total", ""] == 100


def test_one_request_is_counted_everywhere_it_should_be() -> None:
    values = samples(loaded())
    labels = '{engine="0",model_name="chat"}'
    assert values[f"vllm:time_to_first_token_seconds_count{labels}"] == 1
    assert values[f"vllm:inter_token_latency_seconds_count{labels}"] == 4
    assert values[f"vllm:e2e_request_latency_seconds_count{labels}"] == 1
    assert values[f"vllm:request_queue_time_seconds_sum{labels}"] == pytest.approx(0.25)
    assert values[f"vllm:prefix_cache_queries_total{labels}"] == 100
    assert values[f"vllm:num_requests_waiting{labels}"] == 3
    assert values['vllm:num_requests_waiting_by_reason{engine="0",model_name="chat",reason="deferred"}'] == 1
    assert values['vllm:engine_sleep_state{engine="0",model_name="chat",sleep_state="awake"}'] == 1
    assert values[f"vllm:kv_cache_usage_perc{labels}"] == 0.25
    assert values["process_start_time_seconds"] == 1.7e9


def test_label_values_are_escaped() -> None:
    text = loaded('a"b\\c\nd')
    assert r'model_name="a\"b\\c\nd"' in text
    assert 'model_name="a"b' not in text


def test_a_value_on_an_edge_counts_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    histogram.observe(1.5, times=3)
    histogram.observe(9.0)
    assert histogram.buckets == [1, 3, 1]
    assert histogram.sum == pytest.approx(14.5)


def test_an_idle_engine_has_no_route_samples_yet() -> None:
    """As the real one: the instrumentator's labelled families are empty before the first request."""
    exposition = Exposition(model="m", started_at_s=1.0, cache_config={})
    gauges = EngineGauges(running=0, waiting=0, deferred=0, kv_usage=0.0, sleep_level=2)
    text = exposition.render(gauges, EngineTally(), HttpTally()).decode()
    assert "# TYPE http_requests_total counter" in text
    assert "http_requests_created" not in text
    assert 'sleep_state="discard_all"} 1.0' in text


def test_every_family_is_named_once() -> None:
    names = [family.name for family in (*families.GAUGES, *families.COUNTERS, *families.FLOPS_COUNTERS)]
    names += [family.name for family in families.HISTOGRAMS]
    assert len(names) == len(set(names))
