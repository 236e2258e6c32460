"""How long it takes to read engines' metrics pages: ours beside prometheus_client's parser and a plain regex.

Design size: 1,000 replicas' pages of 50 kB in one tick. The pages are generated with vLLM's families by the client
library that vLLM uses; numbers change from scrape to scrape, as they do.
"""

import re
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.measuring import exponent, measure_apart, median_us
from benchmarks.report import Grid, Report
from controlplane.adapters.telemetry.engine_layout import WANTED, engine_parser
from controlplane.domain.telemetry import EngineSample
from controlplane.testing.effects import START
from controlplane.testing.engine_page import EnginePage

SUMMARY: Final = "1,000 replicas' metrics pages in one tick, beside prometheus_client's parser"
AIM_US: Final = 100.0
"""A page, so that 1,000 pages leave nine tenths of a second's tick to others."""
_REPLICAS: Final = (250, 500, 1000, 2000)
_REPLICAS_QUICK: Final = (5, 10)
_ROUNDS: Final = 5
_PEER_BODIES: Final = 20
"""The peers are slow: this many bodies tell their time as well as a thousand would."""
_DISTINCT_PAGES: Final = 40
_MIB: Final = 1024**2

OURS: Final = "ours, from the second scrape on"
ONE_MORE: Final = "ours, first scrape of one more replica of a model"
FIRST: Final = "ours, first scrape of a model's first replica"
REGEX: Final = "one regex over the page: no labels, no histograms"
PEER: Final = "prometheus_client's parser"

_LINE: Final = re.compile(
    rb"^(" + b"|".join(re.escape(name.encode()) for name in sorted(WANTED)) + rb")(?:\{(.*)\})? (\S+)$", re.MULTILINE
)


def run(*, quick: bool) -> Report:
    results = [measure_apart("parse", replicas=count) for count in (_REPLICAS_QUICK if quick else _REPLICAS)]
    last = results[-1]
    ours_us = last["page_us"][OURS]
    rows = [[reader, us, us, us / ours_us] for reader, us in last["page_us"].items()]
    growth = [
        [f"{result['replicas']:,} replicas", result["page_us"][OURS], result["round_ms"], result["layouts_mib"]]
        for result in results
    ]
    slope = exponent([result["replicas"] for result in results], [result["round_ms"] for result in results])
    met = "within" if ours_us <= AIM_US else "ABOVE"
    return Report(
        name="parse",
        grids=[
            Grid(
                title=f"A page of {last['page_bytes'] / 1000:.1f} kB",
                heads=["reader", "us a page", "ms for 1,000", "times ours"],
                rows=rows,
            ),
            Grid(title="All replicas' pages once", heads=["size", "us a page", "ms", "layouts, MiB"], rows=growth),
        ],
        verdict=f"{ours_us:.0f} us a page, {met} the aim of {AIM_US:.0f}; grows with exponent {slope:.2f}",
        results={"aim_us": AIM_US, "results": results},
    )


def measure(replicas: int) -> dict[str, Any]:
    """One size; called in a process of its own."""
    pages = [_pages(number) for number in range(min(_DISTINCT_PAGES, replicas))]
    parser = engine_parser()
    keys = [f"replica-{number}" for number in range(replicas)]
    scrape = 0

    def body(number: int, at: int) -> bytes:
        return pages[number % len(pages)][at % 2]

    def ours(number: int) -> None:
        nonlocal scrape
        scrape += number == 0
        sample = parser.parse(keys[number], body(number, scrape), START)
        assert isinstance(sample, EngineSample), sample

    def one_more(number: int) -> None:
        parser.retain(set())
        assert isinstance(parser.parse("new", body(number, 0), START), EngineSample)

    def first(number: int) -> None:
        assert isinstance(engine_parser().parse("new", body(number, 0), START), EngineSample)

    def regex(number: int) -> None:
        {(name, labels): float(value) for name, labels, value in _LINE.findall(body(number, 0))}

    def peer(number: int) -> None:
        families = text_string_to_metric_families(body(number, 0).decode())
        {family.name: [sample.value for sample in family.samples] for family in families}

    tracemalloc.start()
    for number in range(replicas):
        ours(number)
    layouts_mib = tracemalloc.get_traced_memory()[0] / _MIB
    tracemalloc.stop()
    few = min(_PEER_BODIES, replicas)
    page_us = {
        name: round(_page_us(read, count), 1)
        for name, read, count in (
            (OURS, ours, replicas),
            (ONE_MORE, one_more, replicas),
            (FIRST, first, few),
            (REGEX, regex, few),
            (PEER, peer, few),
        )
    }
    return {
        "replicas": replicas,
        "page_bytes": len(body(0, 0)),
        "page_us": page_us,
        "round_ms": round(page_us[OURS] * replicas / 1e3, 2),
        "layouts_mib": round(layouts_mib, 1),
    }


def _pages(number: int) -> tuple[bytes, bytes]:
    """One replica's page at two scrapes."""
    page = EnginePage(model_name="meta-llama/Meta-Llama-3.1-8B-Instruct-for-a-benchmark", process_start_s=1e9 + number)
    bodies: list[bytes] = []
    for scrape in (1, 2):
        page.set("num_requests_running", 17 * scrape + number)
        page.set("kv_cache_usage_perc", 0.123456789 * scrape)
        page.add("generation_tokens", 12_345.0 * number + scrape)
        page.finish("stop", 10.0 * scrape)
        for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
            page.observe(name, [0.01 * scrape * (number + 1), 0.3, 2.2])
        bodies.append(page.body())
    return bodies[0], bodies[1]


def _page_us(read: Callable[[int], object], count: int) -> float:
    """The median of the rounds' means."""
    means: list[float] = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        for number in range(count):
            read(number)
        means.append((time.process_time() - began) / count)
    return median_us(means)
