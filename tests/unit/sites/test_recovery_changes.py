"""Buckets, datasets, drills and keys of two sites compared: sentences that a person can judge before applying."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.dataset import (
    BucketSpec,
    Cadence,
    CheckSpec,
    DrillSelection,
    DrillSpec,
    KeysSpec,
    LockMode,
    RecoverySpec,
    RetentionPeriod,
    RetentionRule,
    StorageClass,
    WalMode,
)
from controlplane.domain.secret import SecretRef
from controlplane.domain.site import Site
from controlplane.kernel.ids import BucketName
from controlplane.sites.change import compare_sites
from controlplane.testing.recovery_points import BUCKET, DAILY, DATASET, QUARTERLY, make_dataset

MAIN = BucketSpec(name=BUCKET, bucket="acme")
ORDERS = make_dataset()
OFTEN = DrillSpec(name="daily", dataset=DATASET, cadence=Cadence(every=timedelta(days=1)))
RECOVERY = RecoverySpec(buckets=(MAIN,), datasets=(ORDERS,), drills=(OFTEN,))
SITE = Site(name="lab", nodes=(), engines=(), deployments=(), recovery=RECOVERY)


def changes(after: RecoverySpec, before: RecoverySpec = RECOVERY) -> list[str]:
    return list(compare_sites(replace(SITE, recovery=before), {}, replace(SITE, recovery=after), {}).sentences())


def test_the_same_is_no_change() -> None:
    assert changes(RECOVERY) == []


def test_what_comes_is_described_and_what_goes_is_named() -> None:
    here = [
        "bucket main is added: acme",
        "dataset orders is added: postgresql, RPO 24h00m, RTO 4h00m",
        "drill daily is added: of orders, every 24h00m",
    ]
    assert changes(RECOVERY, RecoverySpec()) == here
    assert changes(RecoverySpec(), RECOVERY) == [
        "bucket main is removed",
        "dataset orders is removed",
        "drill daily is removed",
    ]


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (replace(ORDERS, rpo=timedelta(minutes=5)), "dataset orders.rpo: 24h00m -> 5m00s"),
        (replace(ORDERS, wal=WalMode.STREAMING), "dataset orders.wal: off -> streaming"),
        (replace(ORDERS, warn_at=0.25), "dataset orders.warn_at: 0.5 -> 0.25"),
        (
            replace(ORDERS, cadence=Cadence(cron="15 3 * * *")),
            "dataset orders.cadence: every 24h00m -> at 15 3 * * * UTC",
        ),
        (replace(ORDERS, buckets=(BUCKET, BucketName("far"))), "dataset orders.buckets: main -> main, far"),
        (replace(ORDERS, url=SecretRef("env", "ORDERS")), "dataset orders.url: not set -> env:ORDERS"),
        (
            replace(ORDERS, checks=(CheckSpec(name="some", sql="SELECT 1", at_least=1),)),
            "dataset orders.checks: none -> some (SELECT 1)",
        ),
        (
            replace(
                ORDERS,
                retention=(
                    RetentionRule(
                        period=RetentionPeriod.WEEKLY,
                        keep=timedelta(days=60),
                        storage_class=StorageClass.GLACIER,
                        rto=timedelta(hours=12),
                    ),
                ),
            ),
            f"dataset orders.retention: {DAILY}, {QUARTERLY} -> weekly for 1440h00m in GLACIER, back within 12h00m",
        ),
    ],
)
def test_datasets_field_by_field(after: object, sentence: str) -> None:
    assert changes(replace(RECOVERY, datasets=(after,))) == [sentence]  # type: ignore[arg-type]  # a DatasetSpec


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (replace(MAIN, lock=LockMode.COMPLIANCE), "bucket main.lock: none -> COMPLIANCE"),
        (replace(MAIN, region="eu-1"), "bucket main.region: us-east-1 -> eu-1"),
        (replace(MAIN, secret_key=SecretRef("file", "/k")), "bucket main.secret_key: not set -> file:/k"),
    ],
)
def test_buckets_field_by_field(after: BucketSpec, sentence: str) -> None:
    assert changes(replace(RECOVERY, buckets=(after,))) == [sentence]


def test_drills_and_keys_field_by_field() -> None:
    drill = replace(OFTEN, selection=DrillSelection.OLDEST, stale_after=timedelta(days=3))
    keys = KeysSpec(site=SecretRef("env", "NEW"), retired=(SecretRef("env", "OLD"),), break_glass="offline.pub")
    assert changes(replace(RECOVERY, drills=(drill,), keys=keys)) == [
        "drill daily.selection: latest -> oldest",
        "drill daily.stale_after: not set -> 72h00m",
        "recovery.keys.site: not set -> env:NEW",
        "recovery.keys.retired: none -> env:OLD",
        "recovery.keys.break_glass: not set -> offline.pub",
    ]
