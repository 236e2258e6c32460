"""`recovery`, `backup` and `drill` over HTTP: what a person reads (golden), what a script reads, and refusals."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from controlplane.api.wire_recovery import BackupRunOut, DrillOut, KeepOut, PermissionOut, PointOut, RecoveryOut
from controlplane.cli.exits import ExitCode
from controlplane.domain.dataset import (
    BucketSpec,
    Cadence,
    DatasetKind,
    DatasetSpec,
    DrillSpec,
    RecoverySpec,
    RetentionPeriod,
    RetentionRule,
    WalMode,
)
from controlplane.domain.recovery import (
    BackupCause,
    BackupPhase,
    BackupRun,
    CheckOutcome,
    Drill,
    DrillPhase,
    DrillTimes,
    Inventory,
    LogCoverage,
    RecoveryPoint,
    Verdict,
)
from controlplane.domain.site import Site
from controlplane.kernel.ids import BucketName, DatasetName
from controlplane.kernel.units import GIB, MIB
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import make_dataset, make_drill, make_point, point_id
from tests.conftest import GoldenText
from tests.unit.cli.conftest import Fleet

BUCKET: Final = BucketName("main")
STORE: Final = DatasetName("control-plane")
NOW: Final = START + timedelta(minutes=8)
"""As the fleet's clock shows it."""
HOUR: Final = timedelta(hours=1)
DRILL: Final = "3f2a9c10-5c1f-4e0f-9f5e-0a1b2c3d4e5f"
FAILED: Final = "8d41e7b2-1f6c-4a87-b0a3-5e6f7a8b9c0d"

ORDERS: Final = replace(make_dataset(rpo=timedelta(minutes=1)), wal=WalMode.STREAMING)
OWN: Final = DatasetSpec(
    name=STORE,
    kind=DatasetKind.SQLITE,
    rpo=timedelta(minutes=15),
    rto=timedelta(minutes=15),
    cadence=Cadence(every=timedelta(minutes=5)),
    retention=(RetentionRule(period=RetentionPeriod.DAILY, keep=timedelta(days=30)),),
    buckets=(BUCKET,),
    embedded=True,
)
RECOVERY: Final = RecoverySpec(
    buckets=(BucketSpec(name=BUCKET, bucket="quarterdeck-lab"),),
    datasets=(ORDERS, OWN),
    drills=(
        DrillSpec(name="orders-daily", dataset=ORDERS.name, cadence=Cadence(every=timedelta(days=1))),
        DrillSpec(name="store-daily", dataset=STORE, cadence=Cadence(every=timedelta(days=1))),
    ),
)

FULL: Final = make_point(
    NOW - 6 * HOUR,
    plain_bytes=12 * GIB,
    kept_by=(RetentionPeriod.DAILY, RetentionPeriod.QUARTERLY),
    locked_until=NOW + timedelta(days=30),
    drilled_at=NOW - 2 * HOUR,
)
INCREMENT: Final = make_point(NOW - HOUR, parent=FULL.point, plain_bytes=512 * MIB)
DAMAGED: Final = make_point(NOW - 30 * HOUR, plain_bytes=12 * GIB, problems=("base.tar/000007 is not there",))
OWN_POINT: Final = replace(make_point(NOW - timedelta(minutes=40), plain_bytes=2 * MIB), dataset=STORE)

LOOKS: Final = {
    "recovery_status": "recovery status",
    "recovery_may_proceed": "recovery may-proceed deploy",
    "backups": "backup list",
    "backups_of_one": "backup list --dataset control-plane",
    "backup": f"backup show {FULL.point}",
    "backup_damaged": f"backup show {DAMAGED.point}",
    "backup_runs": "backup runs",
    "backup_retention": "backup retention orders",
    "drills": "drill list",
    "drill": f"drill show {DRILL[:8]}",
    "drill_failed": f"drill show {FAILED}",
}
"""Golden file and what is typed."""


@pytest.fixture
def site(fleet: Fleet) -> Fleet:
    """Orders are well but for an old damaged copy; of the control plane's own store copies and the drill fail."""
    declared = Site(name="lab", nodes=(), engines=(), deployments=(), recovery=RECOVERY)
    fleet.change(site=lambda: declared)
    asyncio.run(_fill(fleet))
    return fleet


async def _fill(fleet: Fleet) -> None:
    coverage = LogCoverage(
        position="0/9000060", covered_at=NOW - timedelta(seconds=2), segments=300, stored_bytes=3 * GIB
    )
    async with fleet.store.transaction() as tx:
        await tx.put_inventory(_seen(ORDERS.name, DAMAGED, FULL, INCREMENT, coverage=coverage))
        await tx.put_inventory(_seen(STORE, OWN_POINT))
        for drill in _drills():
            await tx.put_drill(drill)
        for run in _runs():
            await tx.put_backup_run(run)


def _seen(dataset: DatasetName, *points: RecoveryPoint, coverage: LogCoverage | None = None) -> Inventory:
    return Inventory(
        dataset=dataset,
        bucket=BUCKET,
        observed_at=NOW - timedelta(seconds=1),
        points=points,
        coverage=coverage,
        since=NOW - timedelta(days=9),
    )


def _drills() -> tuple[Drill, ...]:
    passed = replace(
        make_drill(NOW - 2 * HOUR, plain_bytes=12 * GIB, log_bytes=GIB, point=FULL.point),
        drill=DRILL,
        forecast_s=118.0,
        key_id="site:00000000",
        times=DrillTimes(
            retrieval_wait_s=0.0, fetch_and_restore_s=81.5, start_and_replay_s=12.25, verify_s=19.0, clean_up_s=1.5
        ),
        newest_at=NOW - 2 * HOUR - timedelta(seconds=2),
        achieved_rpo=timedelta(seconds=2),
        checks=(
            CheckOutcome(name="pg_amcheck", verdict=Verdict.PASSED, sentence="every table is consistent in itself"),
            CheckOutcome(name="has-orders", verdict=Verdict.PASSED, sentence="found 41, expected at least 1"),
            CheckOutcome(name="counts", verdict=Verdict.NOT_RUN, sentence="the copy carries no counts"),
        ),
        clean_proof=("no process of postgresql runs in it", f"the folder {DRILL} is gone"),
        evidence_key=f"evidence/{DRILL}.json",
        sentence=f"drill orders-daily: orders back from {FULL.point} in 1m52s; 2 checks passed",
    )
    broken = "integrity_check: page 7 is never used"
    failed = replace(
        make_drill(NOW - HOUR / 2, name="store-daily", phase=DrillPhase.FAILED, plain_bytes=2 * MIB, failure=broken),
        drill=FAILED,
        dataset=STORE,
        point=OWN_POINT.point,
        checks=(CheckOutcome(name="integrity_check", verdict=Verdict.FAILED, sentence="page 7 is never used"),),
        evidence_key=f"evidence/{FAILED}.json",
    )
    before = replace(
        make_drill(NOW - 20 * HOUR, name="store-daily", plain_bytes=2 * MIB, evidence_key="evidence/before.json"),
        dataset=STORE,
        times=DrillTimes(fetch_and_restore_s=0.25, verify_s=0.5),
    )
    return passed, failed, before


def _runs() -> tuple[BackupRun, ...]:
    copying = BackupRun(
        run="r1",
        dataset=ORDERS.name,
        cause=BackupCause.PERSON,
        phase=BackupPhase.COPYING,
        phase_since=NOW - timedelta(seconds=9),
        asked_at=NOW - timedelta(seconds=10),
        asked_by="ada",
        point=point_id(NOW),
        done_bytes=3 * GIB,
        total_bytes=12 * GIB,
        sentence=f"copies orders as {point_id(NOW)}, an increment",
    )
    failed = replace(
        copying,
        run="r2",
        dataset=STORE,
        cause=BackupCause.SCHEDULE,
        phase=BackupPhase.FAILED,
        asked_at=NOW - timedelta(minutes=35),
        asked_by="schedule",
        point=None,
        sentence="control-plane: the disk is full; free some of it",
    )
    return copying, failed


@pytest.mark.parametrize("name", LOOKS)
def test_what_a_person_reads_of_recovery(site: Fleet, golden_text: GoldenText, name: str) -> None:
    result = site.run(*LOOKS[name].split())
    refused = ExitCode.CONFLICT if "may-proceed" in LOOKS[name] else ExitCode.OK
    assert result.exit_code == refused
    assert all(line == line.rstrip() for line in result.output.splitlines())
    golden_text(f"cli_{name}.txt", f"$ quarterdeck {LOOKS[name]}\n{result.output}")


@pytest.mark.parametrize(
    ("typed", "shape"),
    [
        ("backup list", PointOut),
        ("backup runs", BackupRunOut),
        ("backup retention orders", KeepOut),
        ("drill list", DrillOut),
    ],
)
def test_what_a_script_reads_of_recovery(
    site: Fleet, typed: str, shape: type[PointOut | BackupRunOut | KeepOut | DrillOut]
) -> None:
    rows = json.loads(site.run(*typed.split(), "--json").output)
    assert rows
    for row in rows:
        shape.model_validate(row)


def test_the_whole_state_of_recovery_as_a_script_reads_it(site: Fleet) -> None:
    found = RecoveryOut.model_validate_json(site.run("recovery", "status", "--json").output)
    assert {row.name: row.rpo_state for row in found.datasets} == {"orders": "ok", "control-plane": "breached"}
    assert not any(permission.allowed for permission in found.permissions)


def test_a_further_bucket_has_a_line_and_an_age_of_its_own(fleet: Fleet, golden_text: GoldenText) -> None:
    far, away = BucketName("far"), BucketName("away")
    orders = replace(ORDERS, buckets=(BUCKET, far, away))
    declared = replace(RECOVERY, datasets=(orders,), drills=())
    fleet.change(site=lambda: Site(name="lab", nodes=(), engines=(), deployments=(), recovery=declared))

    async def fill() -> None:
        near = LogCoverage(position="0/9000060", covered_at=NOW - timedelta(seconds=2), segments=3, stored_bytes=MIB)
        there = replace(FULL, bucket=far)
        behind = replace(near, covered_at=NOW - timedelta(seconds=4))
        async with fleet.store.transaction() as tx:
            await tx.put_inventory(_seen(ORDERS.name, FULL, coverage=near))
            await tx.put_inventory(replace(_seen(ORDERS.name, there, coverage=behind), bucket=far))

    asyncio.run(fill())
    result = fleet.run("recovery", "status")
    assert result.exit_code == ExitCode.OK
    golden_text("cli_recovery_status_of_two_regions.txt", f"$ quarterdeck recovery status\n{result.output}")


def test_an_override_lets_pass_what_it_names_and_keeps_the_reasons(site: Fleet) -> None:
    said = site.run("recovery", "override", "deploy", "--reason", "an outage", "--by", "ada", "--hours", "2")
    assert said.output == "ada lets deploy proceed until 2026-01-05 10:08 UTC: an outage\n"
    deploy = site.run("recovery", "may-proceed", "deploy", "--json")
    assert deploy.exit_code == ExitCode.OK
    permission = PermissionOut.model_validate_json(deploy.output)
    assert (permission.overridden_by, bool(permission.reasons)) == ("ada", True)
    assert site.run("recovery", "may-proceed", "chaos").exit_code == ExitCode.CONFLICT


def test_evidence_is_written_as_it_lies_in_the_bucket(site: Fleet, tmp_path: Path) -> None:
    target = tmp_path / "evidence.json"

    async def bundle(drill: Drill) -> str:
        return f'{{"drill": "{drill.drill}"}}\n'

    site.change(evidence=bundle)
    assert site.run("drill", "show", DRILL, "--evidence", str(target)).exit_code == ExitCode.OK
    assert json.loads(target.read_text(encoding="utf-8")) == {"drill": DRILL}


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        ("backup now order --no-wait", ExitCode.USAGE, "did you mean 'orders'?"),
        ("backup now orders --no-wait", ExitCode.CONFLICT, "a copy of orders is under way already"),
        ("backup list --dataset orderz", ExitCode.USAGE, "did you mean 'orders'?"),
        ("backup show 20260101T000000.000Z-0000", ExitCode.USAGE, "there is no recovery point"),
        ("drill show ffffffff", ExitCode.USAGE, "there is no drill 'ffffffff'"),
        ("drill run orders --bucket second --no-wait", ExitCode.USAGE, "expected a bucket of orders: main"),
        ("drill run orders --key break-glass --no-wait", ExitCode.CONFLICT, "QUARTERDECK_BREAK_GLASS_KEY=FILE"),
        ("recovery may-proceed deletion", ExitCode.USAGE, "'deploy', 'chaos', 'migration', 'retention'"),
        ("recovery override deploy", ExitCode.USAGE, "Missing option '--reason'"),
    ],
)
def test_a_slip_in_recovery_is_answered_with_what_would_be_right(
    site: Fleet, typed: str, code: ExitCode, said: str
) -> None:
    result = site.run(*typed.split())
    assert result.exit_code == code
    assert said in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("recovery status", "nothing is backed up: the site file has no section `recovery`"),
        ("recovery may-proceed deploy", "deploy may proceed"),
        ("backup list", "none yet"),
        ("backup runs", "none yet"),
        ("drill list", "none yet"),
    ],
)
def test_a_site_without_recovery_is_told_in_words(empty: Fleet, typed: str, said: str) -> None:
    result = empty.run(*typed.split())
    assert result.exit_code == ExitCode.OK
    assert said in result.output
