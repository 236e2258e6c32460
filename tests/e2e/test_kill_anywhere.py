"""kill -9 of the control plane at random moments of a scale-up and of a drain: it converges, and serving never stops.

Slow: each of the twenty moments is a real scaling with real processes, a death, a start and a convergence.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest

from benchmarks.product import Load, Product

MOMENTS: Final = 20
SEED: Final = 20_26
FEW, MANY = 1, 4
CONVERGE_S: Final = 40.0
ANYWHERE: Final = 0.25
UP: Final = ("pending", "starting")
DOWN: Final = ("draining", "stopping")
AGAIN: Final = 0.25
"""How often it dies once more, while it starts again."""
DEAD_S: Final = 0.4
"""Long enough that requests come while nobody is in control."""

SITE: Final = """\
site: {name: killed}
node_pools:
  - {name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}
engines:
  - {name: simulated, kind: simulated, cold_start: 1500ms, wake: 500ms}
deployments:
  - name: chat
    model: llama-3.1-8b
    served_names: [chat]
    engine: simulated
    context: 16384
    replicas: {min: 1, max: 6}
    slo: {ttft: {p95: 1s}}
gateway: {host: 127.0.0.1, port: 8000}
"""


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    site = tmp_path / "site.yaml"
    site.write_text(SITE)
    product = Product(tmp_path / "state", site=site)
    product.start()
    try:
        yield product
    finally:
        product.end()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_deaths(product: Product, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    product.until_ready()
    steady = ["--model", "chat", "--peak-rps", "6", "--trough-rps", "6", "--duration", "15m"]
    load = Load(product, [*steady, "--prompt-tokens", "200", "--output-tokens", "1200"], tmp_path / "report.json")
    amid: Counter[str] = Counter()
    try:
        scale(product, FEW)
        until_settled(product, FEW)
        before = product.replica_processes()
        for moment in range(MOMENTS):
            wanted = MANY if moment % 2 == 0 else FEW
            scale(product, wanted)
            # One death in four falls anywhere, before the first write included; the others fall once the change is
            # under way, however slow the machine is: a scale-up takes about three seconds, a drain its longest answer.
            if chance.random() < ANYWHERE:
                time.sleep(chance.uniform(0.0, 1.0))
            else:
                until_under_way(product, UP if wanted == MANY else DOWN)
                time.sleep(chance.uniform(0.0, 1.5 if wanted == MANY else 0.6))
            amid[die(product)] += 1
            if chance.random() < AGAIN:
                time.sleep(chance.uniform(0.5, 2.5))
                amid[die(product)] += 1
            until_settled(product, wanted)
            after = product.replica_processes()
            check_processes(product, before, after, said=f"moment {moment}, {wanted} wanted")
            before = after
    finally:
        report = load.stop()
    total = cast("dict[str, object]", report["total"])
    assert total["failed"] == 0, (total["failures"], report["examples"])
    assert cast("int", total["ok"]) > MOMENTS * 10
    assert amid["scale-up"] >= 5, f"too few deaths in the middle of a scale-up to prove anything: {amid}"
    assert amid["drain"] >= 5, f"too few deaths in the middle of a drain to prove anything: {amid}"
    print(f"died in the middle of: {dict(amid)}; {total['ok']} requests served meanwhile, none failed")  # noqa: T201
    assert product.stop() == 0
    assert product.processes() == []


def scale(product: Product, replicas: int) -> None:
    answer = product.post("/api/v1/deployments/chat/scale", {"replicas": replicas})
    assert answer.status_code == 202, answer.text


def die(product: Product) -> str:
    """What it died in the middle of; the gateway answered while nobody was in control; it is started again."""
    product.kill()
    phases = product.stored_phases()
    time.sleep(DEAD_S / 2)
    answer = product.ask("/v1/completions", {"model": "chat", "prompt": "Ahoy", "max_tokens": 4})
    assert answer.status_code == 200, answer.text
    time.sleep(DEAD_S / 2)
    product.start()
    if any(phases[phase] for phase in UP):
        return "scale-up"
    return "drain" if any(phases[phase] for phase in DOWN) else "rest"


def until_under_way(product: Product, phases: tuple[str, ...]) -> None:
    """Returns after five seconds too: then the change was over between two looks, and the death falls at rest."""
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        stored = product.stored_phases()
        if any(stored[phase] for phase in phases):
            return
        time.sleep(0.02)


def until_settled(product: Product, wanted: int) -> None:
    def settled() -> bool:
        rows = product.replicas()
        return len(rows) == wanted and all(row.phase == "ready" for row in rows)

    product.until(settled, f"{wanted} replicas, all of them ready", CONVERGE_S)


def check_processes(product: Product, before: dict[str, set[int]], after: dict[str, set[int]], *, said: str) -> None:
    """None lost, none doubled, none leaked."""
    rows = product.replicas()
    assert set(after) == {row.name for row in rows}, f"{said}: rows and processes differ"
    assert all(len(groups) == 1 for groups in after.values()), f"{said}: a replica runs twice: {after}"
    held = Counter((row.node, gpu) for row in rows for gpu in row.gpus)
    assert max(held.values()) == 1, f"{said}: a GPU is given twice: {held}"
    kept = min(len(before), len(after))
    same = [name for name in after if before.get(name) == after[name]]
    assert len(same) == kept, f"{said}: {kept - len(same)} replicas that could stay were replaced: {before} {after}"
    assert product.roles() == {"gateway": 1, "activator": 1}, said
