"""Time to decision after a step in load: the real product, its simulated engines, its gateway, wall-clock time.

    python -m benchmarks.reaction [--steps N] [--seed N] [--interval SECONDS] [--quick] [--json]

Eight deployments get a calm load; then one after another gets four times as much, for some seconds, at a random moment
of the loops' periods. Each is stepped once, since a policy learns from a step; then the product starts again from
nothing, until there were steps enough. Measured is the time from sending the first request of a step to the event of
the decision that asks for more replicas, both by the machine's clock. Exit code 1 when the aim was missed.
"""

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.machine import this_machine
from benchmarks.product import NotReachedError, Product
from benchmarks.report import Grid, Report, as_json, save, show
from controlplane.simulation.load.client import GatewayClient
from controlplane.simulation.load.model import Failed, ModelShare, Request

SUMMARY: Final = "time from a step in load to the decision for more replicas, live (five minutes)"

AIM_S: Final = 1.5
STEPS: Final = 32
STEPS_QUICK: Final = 3
SCENE_STEPS: Final = 8
"""Deployments at a time: a machine of two cores carries their load without being what is measured."""
CALM_RPS: Final = 20.0
"""Two thirds of what a replica of the site below carries: one is enough, as an autoscaled fleet would have it."""
STEP_RPS: Final = 80.0
CALM_S: Final = 45.0
"""By then the policy knows requests and load (its shortest window is 30 s), and gave back what it began with."""
STEP_S: Final = 3.0
"""How long a step lasts: twice what it is to be answered in."""
ANSWER_S: Final = 5.0
"""A decision for more that comes later than this is not taken for an answer."""
TURN_S: Final = 3.0
"""Each deployment's step begins at a random moment of a turn of its own: whole periods of every loop."""
CALM_REPLICAS: Final = 1
"""A deployment that still has more when its step comes may have what it needs: that step tells nothing."""
_PROMPT_TOKENS: Final = 200
_OUTPUT_TOKENS: Final = 14
_REQUEST_TIMEOUT_S: Final = 30.0

SITE: Final = """\
site: {{name: reaction}}
node_pools:
  - {{name: b200, gpu: b200, nodes: {nodes}, gpus_per_node: 8, simulated: true}}
engines:
  - {{name: simulated, kind: simulated, cold_start: 2s, args: {{stream-interval: 16}}}}
telemetry: {{interval: {interval_ms}ms}}
deployments:
"""
DEPLOYMENT: Final = """\
  - name: {name}
    model: llama-3.1-8b
    served_names: [{name}]
    engine: simulated
    context: 16384
    max_num_seqs: 4
    replicas: {{min: 1, max: {most}}}
    slo: {{ttft: {{p95: 1s}}, inter_token: {{p95: 50ms}}}}
"""
REPLICAS_MAX: Final = 4
_GPUS_PER_NODE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One deployment's load; seconds since the load began."""

    deployment: str
    at_s: float
    """Until then it is calm."""
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A request to send."""

    at_s: float
    deployment: str
    first: bool
    """Of the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A decision for another number, as its event tells it."""

    deployment: str
    at: datetime
    wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """What became of one step."""

    deployment: str
    seconds: float | None
    """None: no decision for more in time."""
    before: int
    """Replicas wanted when it came."""
    wanted: int
    """By the first decision for more; `before` without one."""

    @property
    def tells(self) -> bool:
        return self.before == CALM_REPLICAS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What the client did."""

    first_at: Mapping[str, datetime]
    """When each deployment's first request of its step was sent."""
    late_s: Sequence[float]
    """Each request behind its time."""
    failed: int


# -- the plan ---------------------------------------------------------------------------------------------------------


def scenes(steps: int, rng: random.Random) -> list[tuple[Step, ...]]:
    """Steps in the order of their moments, so many to each start of the product."""
    found = []
    for begin in range(0, steps, SCENE_STEPS):
        moments = [CALM_S + TURN_S * (turn + rng.random()) for turn in range(min(SCENE_STEPS, steps - begin))]
        found.append(
            tuple(
                Step(deployment=f"step-{begin + turn:03d}", at_s=at_s, end_s=at_s + STEP_S)
                for turn, at_s in enumerate(moments)
            )
        )
    return found


def arrivals(step: Step, rng: random.Random) -> Iterator[Due]:
    """Poisson: calm, then stepped."""
    for since_s, until_s, rate_rps in ((0.0, step.at_s, CALM_RPS), (step.at_s, step.end_s, STEP_RPS)):
        first = since_s == step.at_s
        at_s = since_s + rng.expovariate(rate_rps)
        while at_s < until_s:
            yield Due(at_s=at_s, deployment=step.deployment, first=first)
            first = False
            at_s += rng.expovariate(rate_rps)


def site(steps: Sequence[Step], interval_s: float) -> str:
    nodes = math.ceil(len(steps) * REPLICAS_MAX / _GPUS_PER_NODE)
    head = SITE.format(nodes=nodes, interval_ms=round(interval_s * 1e3))
    return head + "".join(DEPLOYMENT.format(name=step.deployment, most=REPLICAS_MAX) for step in steps)


# -- what came of it --------------------------------------------------------------------------------------------------


def reactions(steps: Sequence[Step], first_at: Mapping[str, datetime], changes: Sequence[Changed]) -> list[Reaction]:
    """Of each step. `changes` in order of time."""
    found = []
    for step in steps:
        began = first_at[step.deployment]
        own = [one for one in changes if one.deployment == step.deployment]
        before = next((one.wanted for one in reversed(own) if one.at < began), CALM_REPLICAS)
        late = began + timedelta(seconds=ANSWER_S)
        answer = next((one for one in own if began <= one.at <= late and one.wanted > before), None)
        found.append(
            Reaction(
                deployment=step.deployment,
                seconds=(answer.at - began).total_seconds() if answer else None,
                before=before,
                wanted=answer.wanted if answer else before,
            )
        )
    return found


def percentile(seconds: Sequence[float], share: float) -> float:
    """The nearest rank: the least of them that so many do not exceed. Of few steps p99 is the worst."""
    assert seconds, "of something"
    return sorted(seconds)[max(math.ceil(share * len(seconds)) - 1, 0)]


def report(found: Sequence[Reaction], sent: Sequence[Sent], interval_s: float) -> Report:
    told = [one for one in found if one.tells]
    seconds = [one.seconds for one in told if one.seconds is not None]
    late = len(told) - len(seconds)
    late_s = [each for one in sent for each in one.late_s]
    failed = sum(one.failed for one in sent)
    # A step that was not answered counts among the slowest, not among none.
    whole = [*seconds, *[math.inf] * late]
    figures = {
        name: percentile(whole, share) if whole else math.inf
        for name, share in (("median_s", 0.5), ("p90_s", 0.9), ("p99_s", 0.99), ("worst_s", 1.0))
    }
    met = bool(told) and figures["p99_s"] <= AIM_S
    grid = Grid(
        title=f"{CALM_RPS:g} to {STEP_RPS:g} requests/s, telemetry every {interval_s:g} s; ms",
        heads=("", "steps", "median", "p90", "p99", "worst"),
        rows=(("step to decision", len(told), *(_milliseconds(one) for one in figures.values())),),
    )
    verdict = (
        f"Aim: p99 of at most {AIM_S:g} s; {'reached' if met else 'missed'}. {late} steps without a decision,"
        f" {len(found) - len(told)} had more replicas already. {len(late_s)} requests, {failed} failed,"
        f" p99 {percentile(late_s, 0.99) * 1e3:.0f} ms late."
    )
    results: dict[str, Any] = {
        "met": met,
        "interval_s": interval_s,
        "steps": len(told),
        "without_decision": late,
        "had_more": len(found) - len(told),
        **{name: value if math.isfinite(value) else None for name, value in figures.items()},
        "requests": len(late_s),
        "failed": failed,
        "sent_late_p99_s": percentile(late_s, 0.99),
        "results": [asdict(one) for one in found],
    }
    return Report(name="reaction", grids=(grid,), verdict=verdict, results=results)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if math.isfinite(seconds) else f"over {ANSWER_S * 1e3:,.0f}"


# -- the run ----------------------------------------------------------------------------------------------------------


def run(*, quick: bool, steps: int = STEPS, seed: int = 7, interval_s: float = 1.0) -> Report:
    """NotReachedError when the product did not come up."""
    rng = random.Random(seed)
    found: list[Reaction] = []
    sent: list[Sent] = []
    for scene in scenes(STEPS_QUICK if quick else steps, rng):
        due = sorted((one for step in scene for one in arrivals(step, rng)), key=lambda one: one.at_s)
        with _running(scene, interval_s) as product:
            sent.append(asyncio.run(_send(product.gateway_url, due)))
            changes = [one for step in scene for one in _changes(product, step.deployment)]
        found += reactions(scene, sent[-1].first_at, changes)
    return report(found, sent, interval_s)


@contextmanager
def _running(scene: Sequence[Step], interval_s: float) -> Iterator[Product]:
    with tempfile.TemporaryDirectory(prefix="quarterdeck-reaction-") as name:
        file = Path(name) / "site.yaml"
        file.write_text(site(scene, interval_s), encoding="utf-8")
        product = Product(Path(name) / "state", site=file)
        try:
            product.start()
            product.until_ready()
            yield product
        finally:
            product.end()


async def _send(gateway_url: str, due: Sequence[Due]) -> Sent:
    """Each at its time, whatever became of the ones before it."""
    first_at: dict[str, datetime] = {}
    late_s: list[float] = []
    failed = 0

    async def one(client: GatewayClient, each: Due, number: int) -> None:
        nonlocal failed
        request = Request(
            model=ModelShare(name=each.deployment, weight=1.0),
            due_s=each.at_s,
            prompt_tokens=_PROMPT_TOKENS,
            output_tokens=_OUTPUT_TOKENS,
            text_offset=number * _PROMPT_TOKENS,
        )
        if each.first:
            first_at[each.deployment] = datetime.now(UTC)
        failed += isinstance(await client.send(request), Failed)

    async with (
        GatewayClient(gateway_url, api_key=None, timeout_s=_REQUEST_TIMEOUT_S, seed=0) as client,
        asyncio.TaskGroup() as group,
    ):
        began_s = time.perf_counter()
        for number, each in enumerate(due):
            await asyncio.sleep(max(each.at_s - (time.perf_counter() - began_s), 0.0))
            late_s.append(time.perf_counter() - began_s - each.at_s)
            group.create_task(one(client, each, number), name="request")
    return Sent(first_at=first_at, late_s=late_s, failed=failed)


def _changes(product: Product, deployment: str) -> list[Changed]:
    answer = product.get(f"/api/v1/events?kind=decision&deployment={deployment}&limit=1000")
    answer.raise_for_status()
    return [
        Changed(deployment=deployment, at=datetime.fromisoformat(event["at"]), wanted=int(event["data"]["to"]))
        for event in answer.json()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--interval", type=float, default=1.0, help="the site's telemetry.interval, seconds")
    parser.add_argument("--quick", action="store_true", help="three steps: for tests")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    machine = this_machine()
    try:
        found = run(quick=options.quick, steps=options.steps, seed=options.seed, interval_s=options.interval)
    except NotReachedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    save(found, machine)
    if options.json:
        print(as_json(found, machine))
    else:
        show(found, Console())
    return 0 if found.results["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
