"""The routes that delete a recovery point; and that a slip begins no drill."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest

from controlplane.domain.dataset import BucketSpec, Cadence, DrillSpec, RecoverySpec
from controlplane.domain.recovery import Inventory
from controlplane.domain.site import Site
from controlplane.kernel.ids import BucketName
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import BUCKET, DATASET, make_dataset, make_point
from controlplane.testing.recovery_site import FakeBucket
from tests.unit.api.conftest import Edge

HOUR: Final = timedelta(hours=1)
FAR: Final = BucketName("far")
ORDERS: Final = replace(make_dataset(rpo=HOUR), buckets=(BUCKET, FAR))
RECOVERY: Final = RecoverySpec(
    buckets=(BucketSpec(name=BUCKET, bucket="main"), BucketSpec(name=FAR, bucket="far")),
    datasets=(ORDERS,),
    drills=(DrillSpec(name="orders-daily", dataset=DATASET, cadence=Cadence(every=24 * HOUR)),),
)
ROTTEN: Final = "orders/points/x/manifest.json: is no JSON"
BAD: Final = make_point(START - 2 * HOUR, problems=(ROTTEN,))
NEWEST: Final = make_point(START - HOUR / 2)


@pytest.fixture
def rotten(edge: Edge) -> Edge:
    """The manifest of the older of two copies cannot be read."""
    edge.known.site = Site(name="lab", nodes=(), engines=(), deployments=(), recovery=RECOVERY)
    edge.world.declared = RECOVERY
    edge.world.buckets = {one.name: FakeBucket() for one in RECOVERY.buckets}
    for row in (BAD, NEWEST):
        edge.world.put(ORDERS, BUCKET, row)
    edge.world.buckets[BUCKET].points[DATASET, BAD.point].unreadable = ROTTEN
    seen = Inventory(
        dataset=DATASET, bucket=BUCKET, observed_at=START, points=(BAD, NEWEST), unreadable=(ROTTEN,), since=START
    )

    async def put() -> None:
        async with edge.store.transaction() as tx:
            await tx.put_inventory(seen)

    asyncio.run(put())
    return edge


def get(edge: Edge, path: str) -> Any:
    return edge.client.get(f"/api/v1/recovery{path}").json()


def delete(edge: Edge, **body: object) -> Any:
    return edge.client.post("/api/v1/recovery/removals", json={"by": "ada", "reason": "bit rot", **body})


def test_a_copy_that_cannot_be_read_is_shown_with_the_command_that_tells_more(rotten: Edge) -> None:
    (dataset,) = get(rotten, "")["datasets"]
    (held,) = dataset["held"]
    assert held.startswith("retention deletes nothing of orders in main while a copy there cannot be read: ")
    assert f"`quarterdeck backup delete {BAD.point} --dataset orders --dry-run`" in held


def test_a_plan_and_the_deletion(rotten: Edge) -> None:
    plan = get(rotten, f"/removal?point={BAD.point}")
    assert (plan["allowed"], plan["unreadable"], plan["deleted"]) == (True, True, False)
    assert (plan["sentence"], plan["state"]) == ("it may go", f"unreadable: {ROTTEN}")
    assert len(rotten.world.rows(DATASET, BUCKET)) == 2
    done = delete(rotten, point=BAD.point)
    assert (done.status_code, done.json()["deleted"]) == (200, True)
    assert done.json()["sentence"].startswith(f"{BAD.point} deleted by ada: bit rot (it was unreadable: {ROTTEN}")
    assert [row.point for row in rotten.world.rows(DATASET, BUCKET)] == [NEWEST.point]
    assert rotten.hints.hinted == ["recovery-points"]
    assert delete(rotten, point=BAD.point).status_code == 404


def test_the_newest_stays_with_every_reason(rotten: Edge) -> None:
    plan = get(rotten, f"/removal?point={NEWEST.point}")
    assert not plan["allowed"]
    assert any("never deleted" in refusal for refusal in plan["refusals"])
    assert any("retention promises it" in objection for objection in plan["objections"])
    refused = delete(rotten, point=NEWEST.point)
    assert refused.status_code == 409
    assert "never deleted" in refused.json()["detail"]
    assert len(rotten.world.rows(DATASET, BUCKET)) == 2


@pytest.mark.parametrize("body", [{"point": ""}, {"point": "x", "reason": ""}, {"point": "x", "by": ""}, {}])
def test_nobody_deletes_without_a_name_and_a_reason(rotten: Edge, body: dict[str, object]) -> None:
    assert delete(rotten, **body).status_code == 422


@pytest.mark.parametrize(
    ("wish", "status", "said"),
    [
        ({"point": "20260101"}, 404, "there is no recovery point '20260101'"),
        ({"to_time": "2026-01-05T05:00:00Z"}, 422, "2026-01-05 06:00:00 UTC, of which the oldest copy is, or later"),
        ({"to_time": "2026-01-05T08:00:01Z"}, 422, "a moment that has passed; now it is 2026-01-05 08:00:00 UTC"),
        ({"to_time": "2026-01-05T07:00:00"}, 422, "a time with its zone"),
        (
            {"to_time": "2026-01-05T07:00:00Z", "point": NEWEST.point},
            422,
            "2026-01-05 07:30:00 UTC, of which that copy is, or later",
        ),
        ({"dataset": "orders-dayly"}, 404, "did you mean 'orders-daily'?"),
    ],
)
def test_a_drill_of_what_is_not_there_does_not_begin(
    rotten: Edge, wish: dict[str, object], status: int, said: str
) -> None:
    answer = rotten.client.post("/api/v1/recovery/drills", json={"dataset": "orders", **wish})
    assert answer.status_code == status
    assert said in answer.text
    assert get(rotten, "/drills") == [], "one that failed would hold deploys up"


def test_a_drill_of_what_is_there_begins(rotten: Edge) -> None:
    wish = {"dataset": "orders", "point": NEWEST.point, "to_time": "2026-01-05T09:45:00+02:00"}
    assert rotten.client.post("/api/v1/recovery/drills", json=wish).status_code == 202


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/points?bucket=mian", "did you mean 'main'?"),
        ("/backups?dataset=order", "did you mean 'orders'?"),
        ("/drills?dataset=order", "did you mean 'orders'?"),
    ],
)
def test_a_list_of_what_is_not_declared_is_no_empty_list(rotten: Edge, path: str, said: str) -> None:
    answer = rotten.client.get(f"/api/v1/recovery{path}")
    assert answer.status_code == 404
    assert said in answer.json()["detail"]
