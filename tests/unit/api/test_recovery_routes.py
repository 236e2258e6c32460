"""The routes of recovery, and that a deploy is refused while what must survive might not come back."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest
from httpx2 import Response

from controlplane.bootstrap.site_work import SiteWork
from controlplane.domain.dataset import BucketSpec, Cadence, DrillSpec, RecoverySpec
from controlplane.domain.event import EventKind
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import BackupPhase, BackupRun, DrillPhase, Inventory, Override, RiskyAction
from controlplane.domain.site import Site
from controlplane.domain.store import Transaction
from controlplane.kernel.errors import ConflictError
from controlplane.kernel.ids import BucketName
from controlplane.recovery.rpo import RpoState
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.recovery_points import BUCKET, DATASET, make_dataset, make_drill, make_point
from tests.unit.api.conftest import Edge

HOUR: Final = timedelta(hours=1)
ORDERS: Final = replace(make_dataset(rpo=HOUR), buckets=(BUCKET, BucketName("far")))
DAILY: Final = DrillSpec(name="orders-daily", dataset=DATASET, cadence=Cadence(every=24 * HOUR))
RECOVERY: Final = RecoverySpec(
    buckets=(BucketSpec(name=BUCKET, bucket="main"), BucketSpec(name=BucketName("far"), bucket="far")),
    datasets=(ORDERS,),
    drills=(DAILY,),
)
POINT: Final = make_point(START - HOUR / 2)


def inventory(*, problem: str = "", since: timedelta = HOUR * 48) -> Inventory:
    return Inventory(
        dataset=DATASET, bucket=BUCKET, observed_at=START, points=(make_point(START - 2 * HOUR), POINT),
        problem=problem, since=START - since, rpo_state=RpoState.OK,
    )  # fmt: skip


def put(edge: Edge, *rows: object) -> None:
    async def write(tx: Transaction) -> None:
        for row in rows:
            match row:
                case Inventory():
                    await tx.put_inventory(row)
                case BackupRun():
                    await tx.put_backup_run(row)
                case Override():
                    await tx.append_override(row)
                case _:
                    await tx.put_drill(row)  # type: ignore[arg-type]  # the only kind that is left

    async def transact() -> None:
        async with edge.store.transaction() as tx:
            await write(tx)

    asyncio.run(transact())


@pytest.fixture
def protected(edge: Edge) -> Edge:
    """A copy half an hour old, and a drill that passed."""
    edge.known.site = Site(name="lab", nodes=(), engines=(), deployments=(), recovery=RECOVERY)
    put(edge, inventory(), replace(make_drill(START - HOUR), point=POINT.point, drill="d1f2a3"))
    return edge


def get(edge: Edge, path: str) -> Any:
    response = edge.client.get(f"/api/v1/recovery{path}")
    assert response.status_code == 200, response.text
    return response.json()


def post(edge: Edge, path: str, body: Mapping[str, object], key: str | None = None) -> Response:
    headers = {"Idempotency-Key": key} if key else {}
    return edge.client.post(f"/api/v1/recovery{path}", json=body, headers=headers)


def test_how_it_stands(protected: Edge) -> None:
    found = get(protected, "")
    (dataset,) = found["datasets"]
    assert (dataset["name"], dataset["rpo_state"], dataset["age_s"]) == ("orders", "warning", 1800.0)
    assert (dataset["points"], dataset["newest_point"]) == (2, POINT.point)
    assert dataset["last_drill"]["phase"] == "passed"
    assert dataset["rto_forecast_s"] > 0
    assert {one["action"]: one["allowed"] for one in found["permissions"]} == dict.fromkeys(RiskyAction, True)


def test_each_further_bucket_has_an_age_of_its_own_and_is_not_judged(protected: Edge) -> None:
    (unseen,) = get(protected, "")["datasets"][0]["further"]
    assert (unseen["bucket"], unseen["rpo_state"], unseen["age_s"]) == ("far", "unknown", None)
    far = BucketName("far")
    put(protected, replace(inventory(), bucket=far, points=(make_point(START - 2 * HOUR, bucket=far),)))
    (dataset,) = get(protected, "")["datasets"]
    (seen,) = dataset["further"]
    assert (seen["rpo_state"], seen["age_s"], seen["points"]) == ("breached", 7200.0, 1)
    assert (dataset["rpo_state"], dataset["age_s"]) == ("warning", 1800.0)


def test_without_a_site_there_is_nothing_and_nothing_is_refused(edge: Edge) -> None:
    found = get(edge, "")
    assert found["datasets"] == []
    assert all(one["allowed"] for one in found["permissions"])


def test_may_proceed_answers_with_every_reason(protected: Edge) -> None:
    assert get(protected, "/may-proceed?action=deploy")["allowed"]
    put(protected, inventory(problem="the store does not answer"))
    refused = get(protected, "/may-proceed?action=deploy")
    assert (refused["allowed"], refused["sentence"]) == (False, "deploy may not proceed")
    assert "could not be read" in refused["reasons"][0]
    assert protected.client.get("/api/v1/recovery/may-proceed?action=lunch").status_code == 422


def test_a_backup_begins_and_is_not_begun_twice(protected: Edge) -> None:
    begun = post(protected, "/datasets/orders/backup", {"asked_by": "ann"}, key="k1")
    assert begun.status_code == 202
    assert (begun.json()["phase"], begun.json()["asked_by"], begun.json()["cause"]) == ("pending", "ann", "person")
    assert protected.hints.hinted == ["backups"]
    again = post(protected, "/datasets/orders/backup", {"asked_by": "ann"}, key="k1")
    assert again.json() == begun.json(), "the same wish under the same key is one backup"
    other = post(protected, "/datasets/orders/backup", {"asked_by": "bob"})
    assert other.status_code == 409
    assert "a copy of orders is under way already" in other.json()["detail"]
    assert len(get(protected, "/backups?dataset=orders")) == 1


def test_one_that_ended_is_no_hindrance(protected: Edge) -> None:
    run = post(protected, "/datasets/orders/backup", {}).json()["run"]

    async def end() -> None:
        async with protected.store.transaction() as tx:
            (row,) = await tx.backup_runs()
            await tx.put_backup_run(replace(row, phase=BackupPhase.FAILED, sentence="no route"))

    asyncio.run(end())
    protected.clock.jump(HOUR / 60)
    assert post(protected, "/datasets/orders/backup", {}).status_code == 202
    assert [row["run"] for row in get(protected, "/backups")][1] == run


@pytest.mark.parametrize(("path", "body"), [("/datasets/order/backup", {}), ("/drills", {"dataset": "order"})])
def test_an_unknown_dataset_is_404_with_the_nearest_name(protected: Edge, path: str, body: dict[str, object]) -> None:
    response = post(protected, path, body)
    assert response.status_code == 404
    assert "orders" in response.json()["detail"]


def test_a_drill_begins_and_is_not_begun_twice(protected: Edge) -> None:
    begun = post(protected, "/drills", {"dataset": "orders", "selection": "oldest", "bucket": "far", "asked_by": "ann"})
    assert begun.status_code == 202
    assert {begun.json()[key] for key in ("phase", "selection", "bucket")} == {"pending", "oldest", "far"}
    assert protected.hints.hinted == ["drills"]
    other = post(protected, "/drills", {"dataset": "orders"})
    assert other.status_code == 409
    assert "runs already" in other.json()["detail"]
    drill = begun.json()["drill"]
    assert get(protected, f"/drills/{drill[:8]}")["drill"] == drill
    no_evidence = protected.client.get(f"/api/v1/recovery/drills/{drill}/evidence")
    assert no_evidence.status_code == 404
    assert "it is pending" in no_evidence.json()["detail"]


def test_a_declared_drill_runs_as_it_is_declared(protected: Edge) -> None:
    begun = post(protected, "/drills", {"dataset": "orders-daily"})
    assert begun.status_code == 202
    assert {key: begun.json()[key] for key in ("name", "dataset", "selection", "bucket")} == {
        "name": "orders-daily", "dataset": "orders", "selection": "latest", "bucket": "main",
    }  # fmt: skip


def test_a_drill_of_a_bucket_that_is_not_the_datasets_is_refused_with_those_that_are(protected: Edge) -> None:
    response = post(protected, "/drills", {"dataset": "orders", "bucket": "mars"})
    assert response.status_code == 422
    assert "a bucket of orders: main, far" in response.text


def test_the_break_glass_key_is_not_here_unless_a_person_lent_it(protected: Edge) -> None:
    body = {"dataset": "orders", "key": "break-glass"}
    refused = post(protected, "/drills", body)
    assert refused.status_code == 409
    assert "QUARTERDECK_BREAK_GLASS_KEY" in refused.json()["detail"]
    protected.known.break_glass = True
    assert post(protected, "/drills", body).json()["key"] == "break-glass"


def test_evidence_is_read_from_the_bucket(protected: Edge) -> None:
    found = get(protected, "/drills/d1f2/evidence")
    assert (found["key"], found["bundle"]) == ("evidence/drill.json", "signed bundle of d1f2a3\n")
    assert protected.client.get("/api/v1/recovery/drills/zzz").status_code == 404


def test_points_and_what_keeps_them(protected: Edge) -> None:
    points = get(protected, "/points?dataset=orders")
    assert [point["point"] for point in points] == [POINT.point, make_point(START - 2 * HOUR).point]
    assert get(protected, f"/points/{POINT.point}")["plain_bytes"] == POINT.plain_bytes
    missing = protected.client.get("/api/v1/recovery/points/20260101")
    assert missing.status_code == 404
    kept = {row["point"]: row["stays"] for row in get(protected, "/retention?dataset=orders")}
    assert kept == {POINT.point: True, make_point(START - 2 * HOUR).point: False}
    assert protected.client.get("/api/v1/recovery/retention?dataset=orderz").status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"hours": 0},
        {"hours": -1},
        {"hours": 24.1},
        {"by": ""},
        {"reason": ""},
        {"reason": "   "},
        {"by": "  "},
        {"action": "lunch"},
    ],
)
def test_an_override_is_named_has_a_reason_and_lasts_a_day_at_most(protected: Edge, fields: dict[str, object]) -> None:
    body = {"action": "deploy", "by": "ann", "reason": "rollback of a bad release", "hours": 1, **fields}
    response = post(protected, "/overrides", body)
    assert response.status_code == 422, response.text


def test_an_override_lets_its_action_pass_for_its_time_and_is_an_event(protected: Edge) -> None:
    put(protected, inventory(problem="the store does not answer"))
    accepted = post(protected, "/overrides", {"action": "deploy", "by": "ann", "reason": "rollback", "hours": 24})
    assert accepted.status_code == 202
    passed = get(protected, "/may-proceed?action=deploy")
    assert (passed["allowed"], passed["overridden_by"]) == (True, "ann")
    assert passed["reasons"]
    assert not get(protected, "/may-proceed?action=chaos")["allowed"]
    protected.clock.jump(24 * HOUR)
    assert not get(protected, "/may-proceed?action=deploy")["allowed"]
    events = protected.client.get("/api/v1/events", params={"kind": EventKind.RECOVERY.value}).json()
    rows = events if isinstance(events, list) else events["events"]
    (event,) = [row for row in rows if row["reason"] == Reason.GATE_OVERRIDDEN]
    assert event["sentence"].startswith("ann lets deploy proceed until 2026-01-06 08:00 UTC: rollback")


# -- a deploy asks first

SITE: Final = """\
site: {name: small}
node_pools: [{name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}]
engines: [{name: default, kind: simulated}]
deployments:
  - {name: chat, model: llama-3.1-8b, replicas: {min: 1, max: 2}, max_num_seqs: 64}
recovery:
  own_store: false
  buckets: [{name: main, embedded: true}]
  datasets: [{name: orders, kind: files, path: /srv, rpo: 1h, rto: 1h}]
  drills: [{name: orders-daily, dataset: orders}]
"""
RESTARTS: Final = SITE.replace("max_num_seqs: 64", "max_num_seqs: 32")
GROWS: Final = SITE.replace("max: 2", "max: 3")


async def begun(store: MemoryStore, clock: FakeClock) -> SiteWork:
    work = SiteWork(store=store, clock=clock, gateway_port=None)
    await work.apply_document(SITE, False)
    async with store.transaction() as tx:
        await tx.put_inventory(inventory(problem="the store does not answer"))
        await tx.put_drill(replace(make_drill(START - HOUR), phase=DrillPhase.FAILED, failure="rows: 3, not 4"))
    return work


async def served_seqs(store: MemoryStore) -> int | None:
    async with store.transaction() as tx:
        (deployment,) = await tx.deployments()
    return deployment.spec.max_num_seqs


async def test_a_changed_deployment_is_refused_while_recovery_says_no() -> None:
    store, clock = MemoryStore(), FakeClock()
    work = await begun(store, clock)
    with pytest.raises(ConflictError) as refused:
        await work.apply_document(RESTARTS, False)
    text = str(refused.value)
    assert text.startswith("replicas of chat would be replaced, and recovery refuses deploys now: orders: the bucket")
    assert "rows: 3, not 4" in text
    assert "quarterdeck recovery override deploy" in text
    assert await served_seqs(store) == 64


async def test_what_replaces_nothing_that_serves_is_let_pass() -> None:
    store, clock = MemoryStore(), FakeClock()
    work = await begun(store, clock)
    answer = await work.apply_document(GROWS, False)
    assert answer.changed


async def test_looking_is_free_and_says_that_it_would_be_refused() -> None:
    store, clock = MemoryStore(), FakeClock()
    work = await begun(store, clock)
    answer = await work.apply_document(RESTARTS, True)
    assert "recovery refuses deploys now" in answer.sentences[-1]
    assert len(answer.sentences) > 1
    assert await served_seqs(store) == 64


async def test_taking_the_dataset_out_with_the_same_document_opens_no_door() -> None:
    store, clock = MemoryStore(), FakeClock()
    work = await begun(store, clock)
    with pytest.raises(ConflictError):
        await work.apply_document(RESTARTS.partition("recovery:")[0], False)


async def test_a_named_person_can_let_it_pass() -> None:
    store, clock = MemoryStore(), FakeClock()
    work = await begun(store, clock)
    async with store.transaction() as tx:
        await tx.append_override(
            Override(action=RiskyAction.DEPLOY, by="ann", reason="rollback", at=START, until=START + HOUR)
        )
    assert (await work.apply_document(RESTARTS, False)).changed
    assert await served_seqs(store) == 32


def test_over_http_it_is_409_with_the_reason(edge: Edge) -> None:
    store, clock = MemoryStore(), FakeClock()
    work = asyncio.run(begun(store, clock))
    edge.known.apply = work.apply_document
    response = edge.client.put("/api/v1/site", json={"document": RESTARTS})
    assert response.status_code == 409, response.text
    assert "recovery refuses deploys now" in response.json()["detail"]
