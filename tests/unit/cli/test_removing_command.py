"""`backup delete` over HTTP: the plan a person reads (golden), refusals, and the deletion."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Final

import pytest

from controlplane.api.wire_removal import RemovalOut
from controlplane.cli.exits import ExitCode
from controlplane.domain.dataset import BucketSpec, RecoverySpec, RetentionPeriod, RetentionRule
from controlplane.domain.recovery import Inventory
from controlplane.domain.site import Site
from controlplane.kernel.ids import BucketName
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import DATASET, make_dataset, make_point
from controlplane.testing.recovery_site import RecoverySite
from tests.conftest import GoldenText
from tests.unit.cli.conftest import Fleet, removals_of

NOW: Final = START + timedelta(minutes=8)
HOUR: Final = timedelta(hours=1)
BUCKET: Final = BucketName("main")
ROTTEN: Final = "orders/points/x/manifest.json: is no JSON (unexpected end of data), expected a manifest"
ORDERS: Final = replace(
    make_dataset(), retention=(RetentionRule(period=RetentionPeriod.DAILY, keep=timedelta(days=10)),)
)
RECOVERY: Final = RecoverySpec(buckets=(BucketSpec(name=BUCKET, bucket="quarterdeck-lab"),), datasets=(ORDERS,))
BAD: Final = make_point(NOW - 50 * HOUR, problems=(ROTTEN,))
KEPT: Final = make_point(NOW - 26 * HOUR)
NEWEST: Final = make_point(NOW - HOUR)


@pytest.fixture
async def rotten(fleet: Fleet) -> Fleet:
    """Of three copies the manifest of the oldest cannot be read."""
    world = RecoverySite(fleet.clock, RECOVERY)
    for row in (BAD, KEPT, NEWEST):
        world.put(ORDERS, BUCKET, row)
    world.buckets[BUCKET].points[DATASET, BAD.point].unreadable = ROTTEN
    declared = Site(name="lab", nodes=(), engines=(), deployments=(), recovery=RECOVERY)
    fleet.change(site=lambda: declared, removals=removals_of(world, fleet.store))
    async with fleet.store.transaction() as tx:
        await tx.put_inventory(
            Inventory(
                dataset=DATASET,
                bucket=BUCKET,
                observed_at=NOW,
                points=(BAD, KEPT, NEWEST),
                unreadable=(ROTTEN,),
                since=NOW - timedelta(days=9),
            )
        )
    return fleet


@pytest.mark.parametrize(
    ("name", "typed", "code"),
    [
        ("backup_delete", f"backup delete {BAD.point} --dry-run", ExitCode.OK),
        ("backup_delete_promised", f"backup delete {KEPT.point} --dry-run", ExitCode.CONFLICT),
        ("backup_delete_refused", f"backup delete {NEWEST.point} --dry-run", ExitCode.CONFLICT),
    ],
)
def test_the_plan_a_person_reads(rotten: Fleet, golden_text: GoldenText, name: str, typed: str, code: ExitCode) -> None:
    result = rotten.run(*typed.split())
    assert result.exit_code == code
    golden_text(f"cli_{name}.txt", f"$ quarterdeck {typed}\n{result.output}")


def test_deleted_once_it_is_confirmed(rotten: Fleet) -> None:
    words = ("backup", "delete", BAD.point, "--reason", "bit rot", "--by", "ada")
    unanswered = rotten.run(*words)
    assert unanswered.exit_code == ExitCode.CONFLICT
    assert "nobody answered `Delete?`; add --yes where nobody can" in unanswered.output
    done = rotten.run(*words, "--yes")
    assert done.exit_code == ExitCode.OK
    assert f"orders in main: {BAD.point} deleted by ada: bit rot (it was unreadable: " in done.output
    again = rotten.run(*words, "--yes")
    assert again.exit_code == ExitCode.USAGE
    assert "there is no recovery point" in again.output


def test_what_a_script_reads(rotten: Fleet) -> None:
    plan = rotten.run("backup", "delete", BAD.point, "--dry-run", "--json")
    assert RemovalOut.model_validate_json(plan.output).allowed
    done = rotten.run("backup", "delete", BAD.point, "--reason", "bit rot", "--yes", "--json")
    assert RemovalOut.model_validate_json(done.output).deleted
    refused = rotten.run("backup", "delete", NEWEST.point, "--reason", "x", "--yes", "--json")
    assert refused.exit_code == ExitCode.CONFLICT
    assert not RemovalOut.model_validate_json(refused.stdout).allowed


def test_a_promise_goes_with_a_name_to_it(rotten: Fleet) -> None:
    said = rotten.run("recovery", "override", "retention", "--reason", "disk full", "--by", "ada", "--json")
    assert json.loads(said.output)["subject"] == "retention"
    done = rotten.run("backup", "delete", KEPT.point, "--reason", "disk full", "--yes")
    assert done.exit_code == ExitCode.OK, done.output
    assert "override   by ada" in done.output


def test_the_status_names_the_command(rotten: Fleet) -> None:
    assert (
        f"quarterdeck backup delete {BAD.point} --dataset orders --dry-run" in rotten.run("recovery", "status").output
    )


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (f"backup delete {BAD.point}", ExitCode.USAGE, "--reason: found none, expected why it goes"),
        (f"backup delete {BAD.point} --reason x --json", ExitCode.USAGE, "expected --yes or --dry-run with it"),
        (f"backup delete {BAD.point} --dataset order --dry-run", ExitCode.USAGE, "did you mean 'orders'?"),
        (f"backup delete {BAD.point} --bucket mian --dry-run", ExitCode.USAGE, "did you mean 'main'?"),
        ("backup delete x --dataset orders --dry-run", ExitCode.USAGE, "nothing of a recovery point x of orders lies"),
        (f"backup delete {BAD.point} --dry-run --control-plane http://127.0.0.1:9", ExitCode.UNREACHABLE, "answers at"),
        (f"backup show {BAD.point} --bucket mian", ExitCode.USAGE, "did you mean 'main'?"),
        ("backup list --bucket mian", ExitCode.USAGE, "did you mean 'main'?"),
        ("backup runs --dataset order", ExitCode.USAGE, "did you mean 'orders'?"),
        ("drill list --dataset order", ExitCode.USAGE, "did you mean 'orders'?"),
        (
            "drill run orders --to-time yesterday",
            ExitCode.USAGE,
            "found 'yesterday', expected a time such as",
        ),
        ("drill run orders --to-time 2031-01-01T00:00:00+01:00", ExitCode.USAGE, "found 2030-12-31 23:00:00 UTC"),
        ("drill run orders --point x", ExitCode.USAGE, "there is no recovery point 'x'"),
    ],
)
def test_a_slip_is_answered_with_what_would_be_right(rotten: Fleet, typed: str, code: ExitCode, said: str) -> None:
    result = rotten.run(*typed.split())
    assert result.exit_code == code
    assert said in " ".join(result.output.split())
