"""Recovery as a new user meets it, and as the machine may end it: real PostgreSQL, real store, real processes.

Slow: copies, drills and restores of a real server, and a restart after each of eight deaths.
"""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import psutil
import psycopg
import pytest

from benchmarks.product import Product
from controlplane.adapters.backup.drill_work import RESTORED
from controlplane.adapters.backup.postgresql.embedded import EmbeddedPostgreSQL
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.adapters.backup.vault import Vault, VaultPlace
from controlplane.adapters.instance import site_mark
from controlplane.adapters.sitefile.parse import parse_site
from controlplane.recovery.ports import restoring_prefix
from tests.integration.postgresql_lab import enterable_folder

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

type Json = dict[str, object]

RECOVERY: Final = """\
recovery:
  buckets:
    - {name: local, embedded: true}
  datasets:
    - name: orders
      kind: postgresql
      embedded: true
      wal: streaming
      rpo: 30s
      rto: 5m
      every: 30m
      checks:
        - {name: has-orders, sql: SELECT count(*) FROM orders, at_least: 1}
"""
OWN_STORE: Final = """\
    - name: control-plane
      kind: sqlite
      rpo: 15m
      rto: 5m
      every: 5m
  drills:
    - {name: orders-latest, dataset: orders, every: 15m}
    - {name: store-latest, dataset: control-plane, every: 15m}
"""
SITE: Final = """\
site: {name: recovering}
node_pools:
  - {name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}
engines:
  - {name: simulated, kind: simulated, cold_start: 500ms}
deployments:
  - {name: chat, model: llama-3.1-8b, served_names: [chat], engine: simulated, replicas: {min: 1, max: 1}}
gateway: {host: 127.0.0.1, port: 8000}
load: {deployments: {chat: 1}, peak_rps: 1, trough_rps: 1, duration: 10m, writes_per_second: 5}
"""
SHOWN_WITHIN_S: Final = 180.0
AGE_MAX_S: Final = 10.0
"""Of a log that streams; the RPO is 30 s."""
STEP_S: Final = 90.0
VERIFIER: Final = Path(__file__).parents[2] / "tools" / "verify_evidence.py"


def started(folder: Path, site: str, *, load: bool) -> Product:
    (folder / "site.yaml").write_text(site)
    product = Product(folder / "state", site=folder / "site.yaml", load=load)
    product.start()
    return product


def get_list(product: Product, path: str) -> list[Json]:
    answer = product.get(f"/api/v1/recovery/{path}")
    answer.raise_for_status()
    return cast("list[Json]", answer.json())


def datasets(product: Product) -> dict[str, Json]:
    answer = product.get("/api/v1/recovery")
    answer.raise_for_status()
    return {cast("str", row["name"]): row for row in answer.json()["datasets"]}


# -- the first three minutes
@pytest.fixture(scope="module")
def demo() -> Iterator[Product]:
    with enterable_folder() as folder:
        product = started(folder, SITE + RECOVERY + OWN_STORE, load=True)
        try:
            product.until(lambda: proven(product), "both datasets copied, streamed and drilled", SHOWN_WITHIN_S)
            yield product
        finally:
            product.end()


def proven(product: Product) -> bool:
    rows = datasets(product)
    drilled = all(row["last_drill"] and cast("Json", row["last_drill"])["phase"] == "passed" for row in rows.values())
    orders = rows["orders"]
    return drilled and bool(orders["by_log"]) and orders["age_s"] is not None and cast("float", orders["age_s"]) < 30


@pytest.mark.timeout(SHOWN_WITHIN_S + 60)
def test_the_age_of_a_streamed_database_is_seconds(demo: Product) -> None:
    ages = []
    for _ in range(5):
        orders = datasets(demo)["orders"]
        assert orders["rpo_state"] == "ok", orders["sentence"]
        ages.append(cast("float", orders["age_s"]))
        time.sleep(0.5)
    assert max(ages) < AGE_MAX_S, ages
    own = datasets(demo)["control-plane"]
    assert cast("int", own["points"]) >= 1
    said = demo.command("recovery", "status")
    assert said.returncode == 0, said.stderr
    assert "orders" in said.stdout
    assert "control-plane" in said.stdout


@pytest.mark.timeout(120)
def test_evidence_verifies_with_and_without_our_code(demo: Product, tmp_path: Path) -> None:
    bundles = []
    for row in datasets(demo).values():
        drill = cast("str", cast("Json", row["last_drill"])["drill"])
        bundles.append(tmp_path / f"{drill}.json")
        shown = demo.command("drill", "show", drill, "--evidence", str(bundles[-1]))
        assert shown.returncode == 0, shown.stdout + shown.stderr
    bundles.sort(key=lambda path: cast("int", json.loads(path.read_text())["sequence"]))
    assert demo.command("evidence", "verify", *map(str, bundles)).returncode == 0
    assert verified_alone(*bundles) == 0
    for bundle in bundles:
        content = json.loads(bundle.read_text())["content"]
        assert content["verdict"]["passed"] is True
    body = bytearray(bundles[0].read_bytes())
    body[len(body) // 3] ^= 0x01
    bundles[0].write_bytes(body)
    assert demo.command("evidence", "verify", *map(str, bundles)).returncode == 1
    assert verified_alone(*bundles) == 1


def verified_alone(*bundles: Path) -> int:
    return subprocess.run(
        [sys.executable, "-I", VERIFIER, *bundles], check=False, capture_output=True, timeout=60
    ).returncode


@pytest.mark.timeout(180)
def test_a_moment_is_restored_into_a_folder(demo: Product) -> None:
    """While everything goes on: nothing live is touched, and what was written later is not in it."""
    with psycopg.connect(live_url(demo)) as connection:
        row = connection.execute("SELECT count(*), clock_timestamp() FROM orders").fetchone()
    assert row is not None
    rows, moment = cast("int", row[0]), cast("datetime", row[1]).astimezone(UTC)
    demo.until(lambda: covered_at(demo) > moment, "the log reaches that moment", STEP_S)
    into = demo.state_dir.parent / "back"
    words = ("--into", str(into), "--to-time", f"{moment:%Y-%m-%d %H:%M:%S.%f}", "--state-dir", str(demo.state_dir))
    done = demo.command("restore", "orders", *words, "--yes", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert {check["verdict"] for check in told["checks"]} == {"passed"}
    found = next(check["sentence"] for check in told["checks"] if check["name"] == "has-orders")
    assert f"found {rows}" in found, "as many rows as there were then"
    assert claims(demo)[:1] + claims(demo)[-1:] == [False, True], "it announced itself, and gave that back"
    again = demo.command("restore", "orders", *words, "--yes")
    assert again.returncode != 0, "a folder that holds something is no target"
    with psycopg.connect(live_url(demo)) as connection:
        later = connection.execute("SELECT count(*) FROM orders").fetchone()
    assert later is not None
    assert cast("int", later[0]) > rows, "the live one goes on"
    own = demo.command("restore", "control-plane", "--into", str(into.parent / "store"), "--state-dir",
                       str(demo.state_dir), "--yes")  # fmt: skip
    assert own.returncode == 0, own.stdout + own.stderr
    with closing(sqlite3.connect(into.parent / "store" / "store.sqlite3")) as store:
        assert store.execute("SELECT count(*) FROM drills").fetchone()[0] >= 0
    PostgreSQLAdapter(url="", dataset="orders").end_leftovers(into)


def live_url(product: Product) -> str:
    return EmbeddedPostgreSQL(product.state_dir, site_mark(product.state_dir)).url


def claims(product: Product) -> list[bool]:
    """Of restores of the orders, every version, the oldest first: whether it is the mark of a deletion."""
    bucket = parse_site(SITE + RECOVERY, file="site.yaml").recovery.buckets[0]
    found = Vault(vault_place(product)).store(bucket).versions(restoring_prefix("orders"))
    return [info.deleted for info in sorted(found, key=lambda info: (info.modified_at, info.deleted))]


def covered_at(product: Product) -> datetime:
    return datetime.fromisoformat(cast("str", datasets(product)["orders"]["covered_at"]))


@pytest.mark.timeout(120)
def test_down_leaves_no_process(demo: Product) -> None:
    assert demo.roles()["postgresql"] == 1
    assert demo.roles()["object-store"] == 1
    assert demo.stop() == 0
    assert demo.processes() == []
    assert servers_of(demo) == []


def servers_of(product: Product) -> list[int]:
    """Every postgres that works below the folder, marked or not."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if process.info["name"] == "postgres" and str(product.state_dir.parent) in words:
            found.append(process.pid)
    return found


# -- a death at every phase of a drill
UNHURRIED: Final = """\
        - {name: unhurried, sql: "SELECT count(*) FROM orders, pg_sleep(2.5)", at_least: 1}
"""
"""So that a look of the loop, once a second, falls into the verification."""
IN_ONE: Final = ("reserving", "fetching", "restoring", "verifying", "measuring", "cleaning", "recording")
"""One drill meets them all, although it dies in each: two lost attempts are fewer than it may have."""
IN_ANOTHER: Final = ("starting",)
"""Over in less than a second: whether it is met is luck."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """By process: what outlives the control plane must be adopted, neither doubled nor replaced."""

    postgresql: int | None
    store: int | None


def embedded(product: Product) -> Embedded:
    mark = site_mark(product.state_dir)
    vault = Vault(vault_place(product))
    return Embedded(postgresql=EmbeddedPostgreSQL(product.state_dir, mark).pid, store=vault.object_store.pid)


def vault_place(product: Product) -> VaultPlace:
    return VaultPlace(
        state_dir=product.state_dir,
        site_mark=site_mark(product.state_dir),
        secret=str,
        now=lambda: datetime.now(UTC),
    )


@pytest.mark.timeout(600)
def test_a_death_at_every_phase_of_a_drill() -> None:
    with enterable_folder() as folder:
        product = started(folder, SITE + RECOVERY + UNHURRIED, load=True)
        try:
            product.until(lambda: bool(datasets(product)["orders"]["points"]), "a first copy", SHOWN_WITHIN_S)
            before = embedded(product)
            assert dies_in(product, IN_ONE, before) == IN_ONE
            dies_in(product, IN_ANOTHER, before)
            assert product.stop() == 0
            assert product.processes() == []
        finally:
            product.end()
        assert servers_of(product) == []


def dies_in(product: Product, phases: tuple[str, ...], before: Embedded) -> tuple[str, ...]:
    """The phases in which the drill was met, and the control plane killed. It ends all the same, and leaves nothing."""
    answer = product.post("/api/v1/recovery/drills", {"dataset": "orders"})
    assert answer.status_code == 202, answer.text
    drill = cast("str", answer.json()["drill"])
    died: list[str] = []
    for phase in phases:
        if meet(product.state_dir / "store.sqlite3", drill, phase):
            product.kill()
            died.append(phase)
            product.start()
    product.until(lambda: ended(product, drill), f"the drill that died in {died} ends", STEP_S)
    row = next(one for one in get_list(product, "drills") if one["drill"] == drill)
    assert row["phase"] == "passed", row["sentence"]
    root = Vault(vault_place(product)).scratch_root()
    assert list(PostgreSQLAdapter(url="", dataset="orders").leftovers(root / drill / RESTORED)) == []
    assert not list(root.iterdir()), "the scratch folder is empty"
    assert embedded(product) == before, "what it runs itself was not adopted"
    roles = product.roles()
    assert (roles["postgresql"], roles["object-store"]) == (1, 1)
    return tuple(died)


def meet(store: Path, drill: str, phase: str) -> bool:
    """Look into the store's file until the drill is in the phase; False when it ended without being seen there."""
    end = time.monotonic() + STEP_S
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as rows:
        while time.monotonic() < end:
            found = rows.execute("SELECT body FROM drills WHERE drill = ?", (drill,)).fetchone()
            now = "pending" if found is None else str(json.loads(found[0])["phase"])
            if now == phase:
                return True
            if now in {"passed", "failed"}:
                return False
            time.sleep(0.002)
    raise AssertionError(f"the drill stays before {phase}")


def ended(product: Product, drill: str) -> bool:
    return any(row["drill"] == drill and row["phase"] in {"passed", "failed"} for row in get_list(product, "drills"))
