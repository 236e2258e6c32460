"""Two control planes on one PostgreSQL and one folder: they share the work, none of it twice, and either may die.

Slow: the survivor waits until the dead one's claims lapse, which is longer than a tick may take.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest

from benchmarks.product import Load, Product
from tests.postgresql import new_database, running_postgresql

DEPLOYMENTS: Final = ("ahoy", "bosun", "crew", "deck")
LAPSE_S: Final = 75.0
"""The longest claim is good for 45 s; then the survivor looks, and starts what is wanted."""

SITE: Final = """\
site: {name: shared}
store: {kind: postgresql, url: {env: TWINS_STORE}}
node_pools:
  - {name: b200, gpu: b200, nodes: 2, gpus_per_node: 8, simulated: true}
engines:
  - {name: simulated, kind: simulated, cold_start: 1s, wake: 500ms}
deployments:
"""
DEPLOYMENT: Final = """\
  - name: NAME
    model: llama-3.1-8b
    served_names: [NAME]
    engine: simulated
    context: 16384
    replicas: {min: 1, max: 4}
"""


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[tuple[Product, Product]]:
    site = tmp_path / "site.yaml"
    site.write_text(SITE + "".join(DEPLOYMENT.replace("NAME", name) for name in DEPLOYMENTS))
    with running_postgresql() as server:
        os.environ["TWINS_STORE"] = new_database(server)
        one = Product(tmp_path / "state", site=site, instance="one")
        two = Product(tmp_path / "state", site=site, instance="two", gateway_port=one.gateway_port)
        try:
            yield one, two
        finally:
            two.end()
            one.end()
            del os.environ["TWINS_STORE"]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_they_share_the_work_and_either_may_die(twins: tuple[Product, Product], tmp_path: Path) -> None:
    one, two = twins
    one.start()
    one.until_ready()
    two.start()
    two.until_ready()
    steady = [word for name in DEPLOYMENTS for word in ("--model", name)]
    steady += ["--peak-rps", "6", "--trough-rps", "6", "--duration", "10m"]
    load = Load(one, [*steady, "--prompt-tokens", "200", "--output-tokens", "100"], tmp_path / "report.json")
    try:
        two.until(lambda: share_fairly(one, two), "each looks after some deployments, none after the same", LAPSE_S)
        for name in DEPLOYMENTS:
            scale(two, name, 3)
        until_each_has(two, 3)
        check_processes(two)
        one.kill()
        for name in DEPLOYMENTS:
            scale(two, name, 2)
        until_each_has(two, 2)
        assert works_on(two) == set(DEPLOYMENTS), "the survivor does it all"
        check_processes(two)
        one.site = None  # the folder remembers the site, and with it the store
        one.start()
        one.until_ready()
        assert two.stop() == 0, "the other one goes on"
        scale(one, DEPLOYMENTS[0], 3)
        one.until(lambda: len(one.replicas()) == 2 * len(DEPLOYMENTS) + 1, "the other one scales", LAPSE_S)
        check_processes(one)
    finally:
        report = load.stop()
    total = cast("dict[str, object]", report["total"])
    assert total["failed"] == 0, (total["failures"], report["examples"])
    down = one.command("down", "--state-dir", str(one.state_dir))
    assert down.returncode == 0, down.stderr
    assert one.processes() == []


@pytest.mark.e2e
@pytest.mark.timeout(120)
def test_another_folder_is_refused(twins: tuple[Product, Product], tmp_path: Path) -> None:
    one, _ = twins
    one.start()
    one.until_ready()
    elsewhere = Product(tmp_path / "elsewhere", site=tmp_path / "site.yaml", instance="three")
    try:
        refused = one.command("up", *elsewhere.arguments)
    finally:
        elsewhere.end()
    assert refused.returncode == 4, refused.stdout + refused.stderr
    assert "works on this store with another state folder" in refused.stderr.replace("\n", " ")
    alone = one.command("up", "--state-dir", str(one.state_dir), "--control-port", str(elsewhere.control_port))
    assert alone.returncode == 4, "without a name it would be the only one"


def works_on(product: Product) -> set[str]:
    """The deployments whose replicas this control plane looks after."""
    loops = product.get("/api/v1/loops").json()
    return {row["resource"] for row in loops if row["loop"] == "replicas"} & set(DEPLOYMENTS)


def share_fairly(one: Product, two: Product) -> bool:
    """With the watch for strays there are five things to share: three at most for either."""
    parts = works_on(one), works_on(two)
    return (
        all(1 <= len(part) <= 3 for part in parts)
        and parts[0] | parts[1] == set(DEPLOYMENTS)
        and not (parts[0] & parts[1])
    )


def scale(product: Product, name: str, replicas: int) -> None:
    answer = product.post(f"/api/v1/deployments/{name}/scale", {"replicas": replicas})
    assert answer.status_code == 202, answer.text


def until_each_has(product: Product, wanted: int) -> None:
    def settled() -> bool:
        rows = product.replicas()
        return len(rows) == wanted * len(DEPLOYMENTS) and all(row.phase == "ready" for row in rows)

    product.until(settled, f"{wanted} ready replicas of each deployment", LAPSE_S)


def check_processes(product: Product) -> None:
    rows, running = product.replicas(), product.replica_processes()
    assert set(running) == {row.name for row in rows}
    assert all(len(groups) == 1 for groups in running.values()), f"a replica runs twice: {running}"
    held = Counter((row.node, gpu) for row in rows for gpu in row.gpus)
    assert max(held.values()) == 1, f"a GPU is given twice: {held}"
    assert product.roles() == {"gateway": 1, "activator": 1}
