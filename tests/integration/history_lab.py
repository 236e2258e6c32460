"""A past for a Prometheus: a simulated fleet under some policy, written down as its engines' pages would have shown it.

As a program, it makes the example of docs/dry-run.md: a folder with a database for Prometheus, and the ScaledObject.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from controlplane.adapters.doctor.documents import read_documents
from controlplane.autoscaler.doctor.diagnose import understand
from controlplane.simulation.dry_run.recipe import chosen_scaler, theirs_of
from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.outcome import Outcome, outcome_of
from controlplane.simulation.fleet.policy import ScalingPolicy, Seen
from controlplane.simulation.fleet.rates import Rates, sampled
from controlplane.simulation.fleet.state import DRAINING, EDGES, NOBODY, PER_OUTPUT_TOKEN, READY, TTFT
from controlplane.simulation.fleet.subject import subject_of
from controlplane.simulation.fleet.world import Run, Scenario, World

SCRAPE_S: Final = 15.0
MODEL: Final = "Qwen/Qwen3-32B"
COLD_START_S: Final = 120.0
INSTALL: Final = "no `{}` on PATH: install it with `apt-get install prometheus` (Debian) to run this"
_BLOCK_S: Final = 7200.0
"""Prometheus keeps its past in blocks of two hours."""
_LENGTH_EDGES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
"""Of vLLM's histograms of lengths, for a model of this context."""
RECIPE: Final = """\
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: qwen}
spec:
  scaleTargetRef: {name: qwen}
  minReplicaCount: 2
  maxReplicaCount: 8
  triggers:
    - type: prometheus
      metadata:
        serverAddress: http://prometheus.monitoring:9090
        query: sum(vllm:num_requests_running{model_name="Qwen/Qwen3-32B"})
        threshold: "20"
"""


@dataclass(slots=True)
class Watched:
    """Implements `ScalingPolicy`: another policy, and beside it which replica had which request, second by second."""

    inner: ScalingPolicy
    world: World | None = None
    served_by: dict[int, int] = field(default_factory=dict)
    """Request to replica."""
    lives: list[tuple[int, float]] = field(default_factory=list)
    """Slot and beginning of each replica."""
    ends: dict[int, float] = field(default_factory=dict)
    waiting: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    name: str = "watched"
    tick_s: float = 1.0
    _in_slot: dict[int, int] = field(default_factory=dict)
    _memory: Any = None

    @property
    def scrape_s(self) -> float:
        return self.inner.scrape_s

    def start(self) -> Any:
        self._memory = self.inner.start()

    def decide(self, seen: Seen, memory: Any) -> tuple[int, Any]:
        self._look(seen.at_s)
        if seen.at_s % self.inner.tick_s:
            return seen.wanted, memory
        wanted, self._memory = self.inner.decide(seen, self._memory)
        return wanted, memory

    def _look(self, at_s: float) -> None:
        assert self.world is not None, "the world is told before it runs"
        fleet = self.world._fleet
        for slot, phase in enumerate(fleet.slots.phase):
            there = phase in {READY, DRAINING}
            if there and slot not in self._in_slot:
                self._in_slot[slot] = len(self.lives)
                self.lives.append((slot, at_s))
            if not there and slot in self._in_slot:
                self.ends[self._in_slot.pop(slot)] = at_s
        for slot, replica in self._in_slot.items():
            record = fleet.slots[slot]
            for request in fleet.places[slot, : record.running].batch:
                self.served_by[int(request)] = replica
            request = int(record.head)
            while request != NOBODY:
                self.served_by[request] = replica
                request = int(fleet.requests[request].follower)
            self.waiting.setdefault(replica, []).append((at_s, int(record.waiting)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What really happened, in the simulated world that the history is written from."""

    scenario: Scenario
    run: Run
    watched: Watched
    begins_s: float
    """Unix seconds."""

    @property
    def ends_s(self) -> float:
        return self.begins_s + self.scenario.duration_s

    def outcome(self, *, ttft_slo_s: float, itl_slo_s: float) -> Outcome:
        return outcome_of("past", self.scenario, self.run, ttft_slo_s=ttft_slo_s, itl_slo_s=itl_slo_s)


def past(recipe: Path, *, hours: float, seed: int = 7, peak_rps: float = 7.0) -> Past:
    """A morning under the recipe's autoscaler, yesterday: a slow rise, two humps, a lull."""
    understood = understand([read.document for read in read_documents([recipe]).documents])
    theirs = theirs_of(chosen_scaler(understood), understood, scrape_s=SCRAPE_S)
    assert theirs.policy is not None
    subject = subject_of("qwen3-32b", "h100", tensor_parallel=2)
    duration_s = hours * 3600.0
    bins = max(round(duration_s / 60.0), 1)
    middle_s = (np.arange(bins) + 0.5) * duration_s / bins
    day = 0.5 - 0.5 * np.cos(2.0 * np.pi * 2.0 * middle_s / duration_s)
    workload = sampled(
        Rates(
            name="past",
            middle_s=middle_s,
            rate_rps=peak_rps * (0.15 + 0.85 * day),
            client_cv=np.full(bins, 1.5),
            prompt_mean=np.full(bins, 2000.0),
            output_mean=np.full(bins, 500.0),
            duration_s=duration_s,
        ),
        seed,
    )
    scenario = Scenario(
        arrival_s=workload.arrival_s,
        prompt=workload.prompt,
        output=workload.output,
        duration_s=duration_s,
        timing=subject.timing,
        gpus_per_replica=subject.tensor_parallel,
        replicas_min=theirs.replicas_min or 0,
        replicas_max=theirs.replicas_max or 8,
        replicas_first=theirs.replicas_min or 1,
        cold_start_s=COLD_START_S,
        seed=seed,
    )
    watched = Watched(theirs.policy)
    watched.world = World(scenario, watched)
    run = watched.world.run()
    yesterday = (datetime.now(UTC).timestamp() - 86_400.0) // _BLOCK_S * _BLOCK_S
    return Past(scenario=scenario, run=run, watched=watched, begins_s=yesterday)


# -- as pages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Nothing is scraped; seconds from the beginning."""

    start_s: float
    end_s: float


def write_pages(
    past: Past, path: Path, *, gap: Gap | None = None, restart_s: float | None = None, cluster: bool = False
) -> None:
    """OpenMetrics with all samples.

    `restart_s`: when the counters of the first replica begin anew. `cluster`: with kube-state-metrics', dcgm-exporter's
    and the engine's word on its cache.
    """
    families: dict[str, list[str]] = {}
    if cluster:
        _write_cluster(past, families)
    for replica in range(len(past.watched.lives)):
        _write_replica(past, replica, families, gap, restart_s if replica == 0 else None)
    with path.open("w", encoding="utf-8") as page:
        for lines in families.values():
            page.writelines(lines)
        page.write("# EOF\n")


def _write_replica(
    past: Past, replica: int, families: dict[str, list[str]], gap: Gap | None, restart_s: float | None
) -> None:
    _, begins_s = past.watched.lives[replica]
    ends_s = past.watched.ends.get(replica, past.scenario.duration_s)
    # Each replica is scraped at its own offset, as Prometheus spreads its targets.
    at_s = np.arange(begins_s + (replica * 4.0) % SCRAPE_S, min(ends_s, past.scenario.duration_s), SCRAPE_S)
    if gap is not None:
        at_s = at_s[(at_s < gap.start_s) | (at_s >= gap.end_s)]
    pod = f"qwen-6d5f7c9b8d-{replica:05d}"
    target = f'pod="{pod}",instance="10.0.0.{replica + 1}:8000",job="qwen",namespace="llm"'
    labels = f'model_name="{MODEL}",engine="0",{target}'
    stamps = [f"{past.begins_s + moment:.3f}" for moment in at_s]

    def write(name: str, labels: str, values: Floats) -> None:
        lines = families.setdefault(name, [])
        lines += [f"{name}{{{labels}}} {value:.10g} {at}\n" for value, at in zip(values, stamps, strict=True)]

    def count(name: str, labels: str, moments: Floats, weights: Floats | None = None) -> None:
        write(name, labels, _counted(moments, at_s, weights, restart_s))

    def histogram(name: str, edges: tuple[float, ...], moments: Floats, observed: Floats) -> None:
        for edge in (*edges, np.inf):
            le = "+Inf" if np.isinf(edge) else f"{float(edge)}"
            count(f"{name}_bucket", f'{labels},le="{le}"', moments[observed <= edge])

    write("up", target, np.ones(len(at_s)))
    mine = past.run.fleet.requests[_requests_of(past, replica)]
    done, first = mine[~np.isnan(mine.done_s)], mine[~np.isnan(mine.first_s)]
    opened = _counted(mine.arrival_s, at_s) - _counted(done.done_s, at_s)
    moments, waiting = (np.array(values) for values in zip(*past.watched.waiting[replica], strict=True))
    waits = waiting[np.maximum(np.searchsorted(moments, at_s, side="right") - 1, 0)]
    write("vllm:num_requests_waiting", labels, np.minimum(waits, opened))
    write("vllm:num_requests_running", labels, np.maximum(opened - waits, 0.0))
    count("vllm:request_success_total", f'{labels},finished_reason="stop"', done.done_s)
    count("vllm:prompt_tokens_total", labels, first.first_s, first.prompt.astype(np.float64))
    count("vllm:generation_tokens_total", labels, done.done_s, done.output.astype(np.float64))
    itl_s = (done.done_s - done.first_s) / np.maximum(done.output - 1, 1)
    histogram("vllm:time_to_first_token_seconds", EDGES[TTFT], first.first_s, first.first_s - first.arrival_s)
    histogram("vllm:request_time_per_output_token_seconds", EDGES[PER_OUTPUT_TOKEN], done.done_s, itl_s)
    histogram("vllm:request_prompt_tokens", _LENGTH_EDGES, done.done_s, done.prompt.astype(np.float64))
    histogram("vllm:request_generation_tokens", _LENGTH_EDGES, done.done_s, done.output.astype(np.float64))


def _write_cluster(past: Past, families: dict[str, list[str]]) -> None:
    line = past.run.timeline
    deployment = 'namespace="llm",deployment="qwen"'
    replica = f'model_name="{MODEL}",engine="0",num_gpu_blocks="20000",block_size="16"'
    autoscaler = 'namespace="llm",horizontalpodautoscaler="keda-hpa-qwen"'
    info = f'{autoscaler},scaletargetref_kind="Deployment",scaletargetref_name="qwen"'
    for name, labels, values in (
        ("kube_deployment_status_replicas", deployment, line.billed),
        ("kube_deployment_spec_replicas", deployment, line.wanted),
        ("kube_horizontalpodautoscaler_info", info, np.ones(len(line.at_s))),
        ("kube_horizontalpodautoscaler_spec_min_replicas", autoscaler, np.full(len(line.at_s), 2)),
        ("kube_horizontalpodautoscaler_spec_max_replicas", autoscaler, np.full(len(line.at_s), 8)),
        ("DCGM_FI_DEV_GPU_UTIL", 'gpu="0",modelName="NVIDIA H100 80GB HBM3"', np.full(len(line.at_s), 97)),
        ("vllm:cache_config_info", replica, np.ones(len(line.at_s))),
    ):
        families[name] = [
            f"{name}{{{labels}}} {values[second]} {past.begins_s + second:.3f}\n"
            for second in range(0, len(line.at_s), round(SCRAPE_S))
        ]


def _requests_of(past: Past, replica: int) -> Any:
    """Those that came and went between two looks are the first replica's: somebody's they must be."""
    total = len(past.run.fleet.requests)
    owner = np.zeros(total, dtype=np.int64)
    served = past.watched.served_by
    owner[np.fromiter(served.keys(), dtype=np.int64)] = np.fromiter(served.values(), dtype=np.int64)
    return np.flatnonzero(owner == replica)


def _counted(moments: Floats, at_s: Floats, weights: Floats | None = None, restart_s: float | None = None) -> Floats:
    """How many moments, or how much weight, had been by each of `at_s`; from `restart_s` on only what came after."""
    order = np.argsort(moments)
    summed = np.concatenate([[0.0], np.cumsum(np.ones(len(moments)) if weights is None else weights[order])])

    def by(times: Floats) -> Floats:
        found: Floats = summed[np.searchsorted(moments[order], times, side="right")]
        return found

    if restart_s is None:
        return by(at_s)
    return by(at_s) - np.where(at_s >= restart_s, by(np.array([restart_s]))[0], 0.0)


def backfill(pages: Path, database: Path) -> None:
    """Blocks of it, as a Prometheus would have written them."""
    binary = shutil.which("promtool")
    assert binary is not None, INSTALL.format("promtool")
    subprocess.run(
        [binary, "tsdb", "create-blocks-from", "openmetrics", str(pages), str(database)],
        check=True,
        capture_output=True,
        timeout=120,
    )


def _lines(folder: Path, story: Past) -> Iterator[str]:
    start, end = (datetime.fromtimestamp(at_s, UTC) for at_s in (story.begins_s, story.ends_s))
    yield f"prometheus --config.file={folder}/prometheus.yml --storage.tsdb.path={folder}/tsdb \\"
    yield "  --web.listen-address=127.0.0.1:9095"
    yield "quarterdeck autoscale dry-run --prometheus http://127.0.0.1:9095 --gpu h100 --tp 2 --cold-start 120 \\"
    yield f"  --start {start:%Y-%m-%dT%H:%M} --end {end:%Y-%m-%dT%H:%M} --slo-ttft 2 --slo-itl 50ms \\"
    yield f"  --recipe {folder}/keda.yaml"


def main(folder: Path, hours: float) -> None:
    folder.mkdir(parents=True)
    recipe = folder / "keda.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    (folder / "prometheus.yml").write_text("{}\n", encoding="utf-8")
    story = past(recipe, hours=hours)
    write_pages(story, folder / "pages.txt")
    backfill(folder / "pages.txt", folder / "tsdb")
    sys.stdout.write("\n".join(_lines(folder, story)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 24.0)
