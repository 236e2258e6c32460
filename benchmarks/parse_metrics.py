"""How long it takes to read engines' metrics pages: ours beside prometheus_client's parser and a plain regex.

    python benchmarks/parse_metrics.py [--replicas 1000] [--body FILE] [--json]

Design size: 1,000 replicas' pages of 50 kB in one tick. Without --body the pages are generated with vLLM's families by
the client library that vLLM uses; --body takes a recorded page. Numbers change from scrape to scrape, as they do.
"""

import argparse
import json
import re
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from controlplane.adapters.telemetry.engine_layout import WANTED, engine_parser
from controlplane.domain.telemetry import EngineSample
from controlplane.testing.effects import START
from controlplane.testing.engine_page import EnginePage

ROUNDS = 5
PEER_BODIES = 20
"""The peers are slow: this many bodies tell their time as well as a thousand would."""
DISTINCT_PAGES = 40
TARGET_US = 100.0

LINE = re.compile(
    rb"^(" + b"|".join(re.escape(name.encode()) for name in sorted(WANTED)) + rb")(?:\{(.*)\})? (\S+)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    reader: str
    body_us: float
    """The middle of the rounds' means."""
    thousand_ms: float
    times_ours: float


def generated(number: int) -> tuple[bytes, bytes]:
    """One replica's page at two scrapes."""
    page = EnginePage(model_name="meta-llama/Meta-Llama-3.1-8B-Instruct-for-a-benchmark", process_start_s=1e9 + number)
    bodies: list[bytes] = []
    for step in (1, 2):
        page.set("num_requests_running", 17 * step + number)
        page.set("kv_cache_usage_perc", 0.123456789 * step)
        page.add("generation_tokens", 12_345.0 * number + step)
        page.finish("stop", 10.0 * step)
        for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
            page.observe(name, [0.01 * step * (number + 1), 0.3, 2.2])
        bodies.append(page.body())
    return bodies[0], bodies[1]


def recorded(path: Path) -> tuple[bytes, bytes]:
    body = path.read_bytes()
    return body, body.replace(b"} 0.0\n", b"} 1.0\n")


def timed(read: Callable[[int], object], count: int) -> float:
    """Microseconds per body, the median of ROUNDS rounds over `count` bodies."""
    means: list[float] = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for number in range(count):
            read(number)
        means.append((time.perf_counter() - begin) / count * 1e6)
    return statistics.median(means)


def measure(pages: Sequence[tuple[bytes, bytes]], replicas: int) -> tuple[list[Row], float]:
    parser = engine_parser()
    keys = [f"replica-{number}" for number in range(replicas)]
    step = 0

    def body(number: int, at: int) -> bytes:
        return pages[number % len(pages)][at % 2]

    def ours(number: int) -> None:
        nonlocal step
        step += number == 0
        sample = parser.parse(keys[number], body(number, step), START)
        assert isinstance(sample, EngineSample), sample

    def ours_next(number: int) -> None:
        parser.retain(set())
        assert isinstance(parser.parse("new", body(number, 0), START), EngineSample)

    def ours_first(number: int) -> None:
        assert isinstance(engine_parser().parse("new", body(number, 0), START), EngineSample)

    def regex(number: int) -> None:
        {(name, labels): float(value) for name, labels, value in LINE.findall(body(number, 0))}

    def peer(number: int) -> None:
        families = text_string_to_metric_families(body(number, 0).decode())
        {family.name: [sample.value for sample in family.samples] for family in families}

    tracemalloc.start()
    for number in range(replicas):
        ours(number)
    layouts_mb = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    us = {
        "ours, from the second scrape on": timed(ours, replicas),
        "ours, first scrape of one more replica of a model": timed(ours_next, replicas),
        "ours, first scrape of a model's first replica": timed(ours_first, PEER_BODIES),
        "one regex over the page, no labels, no histograms": timed(regex, PEER_BODIES),
        "prometheus_client's parser": timed(peer, PEER_BODIES),
    }
    first = next(iter(us.values()))
    rows = [
        Row(reader=name, body_us=round(value, 1), thousand_ms=round(value, 1), times_ours=round(value / first, 1))
        for name, value in us.items()
    ]
    return rows, layouts_mb


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--replicas", type=int, default=1000)
    options.add_argument("--body", type=Path, help="a recorded page instead of generated ones")
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    if chosen.body is not None and not chosen.body.is_file():
        options.error(f"--body: found no file {chosen.body}, expected a recorded /metrics page")
    count = min(DISTINCT_PAGES, chosen.replicas)
    pages = [recorded(chosen.body)] if chosen.body else [generated(number) for number in range(count)]
    size = len(pages[0][0])
    rows, layouts_mb = measure(pages, chosen.replicas)
    if chosen.json:
        result = {"body_bytes": size, "replicas": chosen.replicas, "layouts_mb": round(layouts_mb, 1)}
        print(json.dumps({**result, "rows": [asdict(row) for row in rows]}))
        return
    print(f"{chosen.replicas} replicas, {size / 1000:.1f} kB a page; layouts remembered: {layouts_mb:.1f} MB\n")
    print(f"{'reader':52} {'us/page':>9} {'ms/1,000':>9} {'x ours':>7}")
    for row in rows:
        print(f"{row.reader:52} {row.body_us:9.1f} {row.thousand_ms:9.1f} {row.times_ours:7.1f}")
    print(f"\ntarget: {TARGET_US:.0f} us a page; {'met' if rows[0].body_us <= TARGET_US else 'missed'}")


if __name__ == "__main__":
    main()
