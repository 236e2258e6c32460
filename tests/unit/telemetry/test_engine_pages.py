"""Engines' pages: small ones by hand, generated ones against prometheus_client's parser, recorded ones where given."""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from controlplane.adapters.telemetry.engine_layout import EngineParser, engine_parser
from controlplane.domain.telemetry import EngineSample, Histogram, Missing
from controlplane.testing.effects import START
from controlplane.testing.engine_page import FINISHED_REASONS, EnginePage

HISTOGRAMS = {
    "ttft": "vllm:time_to_first_token_seconds",
    "inter_token": "vllm:inter_token_latency_seconds",
    "end_to_end": "vllm:e2e_request_latency_seconds",
    "time_per_output_token": "vllm:request_time_per_output_token_seconds",
}
SMALL = b"""# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79525340841e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 18.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 18.0
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="discard_all"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.0019550342130987275
vllm:num_preemptions_total{engine="0",model_name="tiny"} 1e+00
vllm:num_preemptions_created{engine="0",model_name="tiny"} 1.7952534370313802e+09
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 495.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_compute"} 495.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 4753.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 46.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 3.0
vllm:request_success_total{engine="0",finished_reason="error",model_name="tiny"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="tiny"} 8.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="2.5",model_name="tiny"} 24.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 48.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 48.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="tiny"} 97.72374773025513
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="tiny"} 4704.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 4705.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="tiny"} 13.29
vllm:e2e_request_latency_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 46.0
vllm:e2e_request_latency_seconds_sum{engine="0",model_name="tiny"} 105.4
"""
"""Lines of a real vLLM 0.32's page, shortened."""


def parsed(body: bytes, parser: EngineParser | None = None) -> EngineSample:
    sample = (parser or engine_parser()).parse("replica", body, START)
    assert isinstance(sample, EngineSample), sample
    return sample


def missing(body: bytes) -> str:
    result = engine_parser().parse("replica", body, START)
    assert isinstance(result, Missing)
    return result.why


def reference(body: bytes) -> dict[str, object]:
    """The same numbers by way of prometheus_client's parser, added up in the plainest way."""
    values: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    buckets: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                buckets[sample.name.removesuffix("_bucket")][float(sample.labels["le"])] += sample.value
            key = sample.name
            if key == "vllm:request_success_total":
                key += "!" if sample.labels["finished_reason"] in ("abort", "error") else ""
            if key == "vllm:engine_sleep_state":
                key += sample.labels["sleep_state"]
            values[key] += sample.value
            count[key] += 1
    return {
        "at": START,
        "process_start_s": values["process_start_time_seconds"],
        "running": int(values["vllm:num_requests_running"]),
        "waiting": int(values["vllm:num_requests_waiting"]),
        "kv_usage": values["vllm:kv_cache_usage_perc"] / count["vllm:kv_cache_usage_perc"],
        "sleeping": values["vllm:engine_sleep_stateawake"] == 0,
        "prompt_tokens": values["vllm:prompt_tokens_total"],
        "generation_tokens": values["vllm:generation_tokens_total"],
        "requests_succeeded": values["vllm:request_success_total"],
        "requests_failed": values["vllm:request_success_total!"],
        "preemptions": values["vllm:num_preemptions_total"],
        **{
            field: Histogram(
                tuple(sorted(buckets[name])),
                tuple(buckets[name][edge] for edge in sorted(buckets[name])),
                values[f"{name}_sum"],
            )
            for field, name in HISTOGRAMS.items()
        },
    }


def test_a_real_page_shortened() -> None:
    sample = parsed(SMALL)
    assert (sample.running, sample.waiting, sample.sleeping) == (2, 18, False)
    assert sample.kv_usage == 0.0019550342130987275
    assert (sample.requests_succeeded, sample.requests_failed, sample.preemptions) == (46.0, 4.0, 1.0)
    assert sample.process_start_s == 1795253408.41
    assert sample.ttft == Histogram((1.0, 2.5, float("inf")), (8.0, 24.0, 48.0), 97.72374773025513)
    assert sample.time_per_output_token.edges == ()


@pytest.mark.parametrize("end", [-2, -40, 600, 1, 0])
def test_a_body_that_is_cut_off_is_missing_never_zero(end: int) -> None:
    assert "ends inside a line" in missing(SMALL[:end])


@pytest.mark.parametrize("lines", range(1, SMALL.count(b"\n")))
def test_a_body_cut_off_between_lines_is_missing_too(lines: int) -> None:
    body = b"".join(SMALL.splitlines(keepends=True)[:lines])
    assert missing(body)


def test_absent_families_are_named() -> None:
    lines = [line for line in SMALL.splitlines(keepends=True) if b"num_requests_waiting{" not in line]
    lines = [line for line in lines if b"kv_cache" not in line]
    assert missing(b"".join(lines)) == "absent: vllm:num_requests_waiting, vllm:kv_cache_usage_perc"
    assert "is this an engine's metrics page?" in missing(b"<html>no such page</html>\n")


def test_a_histogram_without_its_last_bucket_is_missing() -> None:
    lines = [
        line for line in SMALL.splitlines(keepends=True) if b'first_token_seconds_bucket{engine="0",le="+' not in line
    ]
    assert missing(b"".join(lines)) == 'absent: vllm:time_to_first_token_seconds_bucket{le="+Inf"}'


@pytest.mark.parametrize("number", [b"NaN", b"+Inf", b"-Inf"])
def test_a_number_that_is_none_is_missing(number: bytes) -> None:
    body = SMALL.replace(b"0.0019550342130987275", number)
    assert missing(body).startswith("vllm:kv_cache_usage_perc is ")


def test_garbage_is_named_with_its_line() -> None:
    assert missing(SMALL.replace(b" 495.0\nvllm:prompt_tokens_by", b" many\nvllm:prompt_tokens_by")).startswith(
        "line 13 "
    )


def test_older_names_mean_the_same() -> None:
    old = SMALL.replace(b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")
    old = old.replace(b"vllm:inter_token_latency_seconds", b"vllm:time_per_output_token_seconds")
    assert parsed(old) == parsed(SMALL)


def test_without_process_families_the_start_is_zero_and_without_sleep_it_is_awake() -> None:
    kept = [line for line in SMALL.splitlines(keepends=True) if b"process_" not in line and b"sleep" not in line]
    sample = parsed(b"".join(kept))
    assert (sample.process_start_s, sample.sleeping) == (0.0, False)


def test_timestamps_and_blank_lines_are_part_of_the_format() -> None:
    lines = SMALL.splitlines()
    stamped = b"\n\n".join(line if line.startswith(b"#") else line + b" 1767600000000" for line in lines) + b"\n"
    parser = engine_parser()
    assert parsed(stamped, parser) == parsed(SMALL)
    assert parsed(stamped, parser) == parsed(SMALL)


def test_a_replica_sleeps_when_no_rank_is_awake() -> None:
    page = EnginePage(engines=2, full=False)
    page.sleep(asleep=True)
    assert parsed(page.body()).sleeping
    page.sleep(asleep=False)
    assert not parsed(page.body()).sleeping


def test_ranks_are_summed_and_cache_usage_averaged() -> None:
    page = EnginePage(engines=2, full=False)
    for engine, usage in enumerate((0.2, 0.6)):
        page.set("num_requests_running", 3, engine=engine)
        page.set("kv_cache_usage_perc", usage, engine=engine)
        page.observe("time_to_first_token_seconds", [0.3, 3.0], engine=engine)
    sample = parsed(page.body())
    assert sample.running == 6
    assert sample.kv_usage == pytest.approx(0.4)
    assert sample.ttft.count == 4
    assert sample.ttft.sum == pytest.approx(6.6)


def test_ranks_with_other_edges_cannot_be_added() -> None:
    body = SMALL.replace(
        b"vllm:inter_token_latency_seconds_sum",
        b'vllm:inter_token_latency_seconds_bucket{engine="1",le="+Inf",model_name="tiny"} 1.0\n'
        b"vllm:inter_token_latency_seconds_sum",
    )
    assert "not the same edges" in missing(body)


def test_a_remembered_layout_notices_what_is_added() -> None:
    """A second rank's series, a family that shows up late, a restart: each is read anew, none is overlooked."""
    parser = engine_parser()
    assert parsed(SMALL, parser).running == 2
    extra = b'vllm:num_requests_running{engine="1",model_name="tiny"} 5.0\n'
    assert parsed(SMALL + extra, parser).running == 7
    late = SMALL + b'vllm:request_time_per_output_token_seconds_bucket{engine="0",le="+Inf"} 4.0\n'
    late += b'vllm:request_time_per_output_token_seconds_sum{engine="0"} 1.0\n'
    assert parsed(late, parser).time_per_output_token.count == 4
    assert parsed(SMALL, parser).time_per_output_token.count == 0
    restarted = SMALL.replace(b"1.79525340841e+09", b"1.79525340999e+09").replace(b'le="2.5"', b'le="3.5"')
    assert parsed(restarted, parser).ttft.edges == (1.0, 3.5, float("inf"))


def test_a_remembered_layout_does_not_hide_a_broken_body() -> None:
    parser = engine_parser()
    parsed(SMALL, parser)
    assert isinstance(parser.parse("replica", SMALL[:-30], START), Missing)
    assert isinstance(parser.parse("replica", SMALL.replace(b" 4753.0", b" NaN"), START), Missing)
    assert isinstance(parser.parse("replica", b"0\n" * SMALL.count(b"\n"), START), Missing)
    parser.retain(set())
    assert parsed(SMALL, parser).running == 2


def test_replicas_that_are_laid_out_alike_share_a_layout_but_not_their_numbers() -> None:
    parser = engine_parser()
    for number in range(3):
        body = SMALL.replace(
            b'running{engine="0",model_name="tiny"} 2.0', b'running{engine="0",model_name="tiny"} %d' % number
        )
        body = body.replace(b"1.79525340841e+09", b"1.79525340%03de+09" % number)
        sample = parser.parse(f"replica-{number}", body, START)
        assert sample == parsed(body)


def test_another_process_with_needed_lines_elsewhere_is_not_taken_for_the_same() -> None:
    """Equal line count and equal lines where the first process had them, yet one more rank at the end."""
    parser = engine_parser()
    rank = b'vllm:num_requests_running{engine="1",model_name="tiny"} 5.0\n'
    parsed(SMALL + b"# the end\n", parser)
    other = parser.parse("other", SMALL + rank, START)
    assert isinstance(other, EngineSample)
    assert other.running == 7


numbers = st.floats(min_value=0, max_value=1e15, allow_nan=False)
model_names = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20)


@st.composite
def pages(draw: st.DrawFn) -> EnginePage:
    engines = draw(st.integers(1, 3))
    start = draw(st.floats(min_value=1e9, max_value=2e9))
    page = EnginePage(model_name=draw(model_names), engines=engines, process_start_s=start, full=False)
    for engine in range(engines):
        move(draw, page, engine)
    return page


def move(draw: Callable[..., Any], page: EnginePage, engine: int) -> None:
    page.set("num_requests_running", draw(st.integers(0, 2**40)), engine=engine)
    page.set("num_requests_waiting", draw(st.integers(0, 2**40)), engine=engine)
    page.set("kv_cache_usage_perc", draw(st.floats(0, 1)), engine=engine)
    for name in ("num_preemptions", "prompt_tokens", "generation_tokens"):
        page.add(name, draw(numbers), engine=engine)
    page.finish(draw(st.sampled_from(FINISHED_REASONS)), draw(numbers), engine=engine)
    for name in HISTOGRAMS.values():
        page.observe(name.removeprefix("vllm:"), draw(st.lists(st.floats(0, 1e4), max_size=5)), engine=engine)


def same(sample: EngineSample, expected: dict[str, object]) -> bool:
    """Sums of ranks may differ in the last digit by the order of adding."""
    for field, wanted in expected.items():
        found = getattr(sample, field)
        if isinstance(wanted, Histogram):
            if found.edges != wanted.edges or found.counts != pytest.approx(wanted.counts):
                return False
            if found.sum != pytest.approx(wanted.sum):
                return False
        elif found != (pytest.approx(wanted) if isinstance(wanted, float) else wanted):
            return False
    return True


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40, deadline=None)
@given(pages(), st.data())
def test_equals_the_reference_parser_at_the_first_and_at_later_scrapes(page: EnginePage, data: st.DataObject) -> None:
    parser = engine_parser()
    assert same(parsed(page.body(), parser), reference(page.body()))
    move(data.draw, page, 0)
    body = page.body()
    assert same(parsed(body, parser), reference(body))
    assert parsed(body, parser) == parsed(body)


def test_recorded_pages_of_a_real_vllm() -> None:
    folder = os.environ.get("QUARTERDECK_VLLM_METRICS")
    if not folder:
        pytest.skip("QUARTERDECK_VLLM_METRICS names no folder with recorded vllm_metrics_*.txt bodies")
    paths = sorted(Path(folder).glob("vllm_metrics_*.txt"))
    assert paths, f"no vllm_metrics_*.txt in {folder}"
    parser = engine_parser()
    for path in paths:
        assert same(parsed(path.read_bytes(), parser), reference(path.read_bytes()))
