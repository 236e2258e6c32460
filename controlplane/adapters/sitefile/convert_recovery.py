"""The section `recovery` as the domain's values, with the defaults that depend on other fields."""

from datetime import timedelta
from typing import Final

from controlplane.adapters.sitefile.schema_recovery import Bucket, Check, Dataset, DrillSection, Recovery, Retention
from controlplane.domain.dataset import (
    BucketSpec,
    Cadence,
    CheckSpec,
    DatasetKind,
    DatasetSpec,
    DrillSelection,
    DrillSpec,
    KeyPurpose,
    KeysSpec,
    LockMode,
    RecoverySpec,
    RetentionPeriod,
    RetentionRule,
    StorageClass,
    WalMode,
)
from controlplane.domain.site import StoreKind
from controlplane.kernel.ids import BucketName, DatasetName

OWN_DATASET: Final = "control-plane"
"""The control plane's own store."""

_DAY: Final = timedelta(days=1)
_DEFAULT_RETENTION: Final = RetentionRule(period=RetentionPeriod.DAILY, keep=30 * _DAY)
"""As a small team keeps backups that nobody has thought about: a month of days."""
_OWN_RPO: Final = timedelta(minutes=15)
_OWN_RTO: Final = timedelta(minutes=15)
"""The store holds what was decided and what is wanted; replicas serve on without it. A copy of it takes a second."""
_LOGGED: Final = frozenset({DatasetKind.POSTGRESQL, DatasetKind.PGBACKREST})
"""Kinds with a log between two copies; pgBackRest archives it by itself."""
_DRILL_EVERY: Final = _DAY


def to_recovery(section: Recovery | None, store: StoreKind, *, site_name: str) -> RecoverySpec:
    if section is None:
        return RecoverySpec()
    buckets = tuple(_bucket(bucket, site_name) for bucket in section.buckets)
    datasets = tuple(_dataset(dataset, buckets) for dataset in section.datasets)
    if section.own_store and store is StoreKind.SQLITE and all(one.name != OWN_DATASET for one in datasets):
        datasets = (*datasets, _own(buckets))
    drills = tuple(_drill(drill) for drill in section.drills) or tuple(_daily(dataset) for dataset in datasets)
    keys = KeysSpec(site=section.keys.site, retired=tuple(section.keys.retired), break_glass=section.keys.break_glass)
    return RecoverySpec(buckets=buckets, datasets=datasets, drills=drills, keys=keys)


def _bucket(bucket: Bucket, site_name: str) -> BucketSpec:
    return BucketSpec(
        name=BucketName(bucket.name),
        bucket=bucket.bucket or f"quarterdeck-{site_name}-{bucket.name}",
        embedded=bucket.embedded,
        endpoint=bucket.endpoint,
        region=bucket.region,
        prefix=bucket.prefix or "",
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
        lock=LockMode.NONE if bucket.lock == "none" else LockMode(bucket.lock.upper()),
    )


def _dataset(dataset: Dataset, buckets: tuple[BucketSpec, ...]) -> DatasetSpec:
    kind = DatasetKind(dataset.kind)
    wal = WalMode(dataset.wal or ("streaming" if kind in _LOGGED else "off"))
    usual = _DAY if wal is not WalMode.OFF else dataset.rpo
    return DatasetSpec(
        name=DatasetName(dataset.name),
        kind=kind,
        rpo=dataset.rpo,
        rto=dataset.rto,
        cadence=_cadence(dataset.every, dataset.cron, usual=usual),
        retention=tuple(_rule(rule) for rule in dataset.retention) or (_DEFAULT_RETENTION,),
        buckets=tuple(BucketName(name) for name in dataset.buckets) or (buckets[0].name,),
        url=dataset.url,
        path=dataset.path,
        stanza=dataset.stanza,
        embedded=dataset.embedded or (dataset.name == OWN_DATASET and kind is DatasetKind.SQLITE),
        wal=wal,
        warn_at=dataset.warn_at,
        checks=tuple(_check(check) for check in dataset.checks),
    )


def _own(buckets: tuple[BucketSpec, ...]) -> DatasetSpec:
    return DatasetSpec(
        name=DatasetName(OWN_DATASET),
        kind=DatasetKind.SQLITE,
        rpo=_OWN_RPO,
        rto=_OWN_RTO,
        cadence=Cadence(every=_OWN_RPO / 3),
        retention=(RetentionRule(period=RetentionPeriod.HOURLY, keep=_DAY), _DEFAULT_RETENTION),
        buckets=(buckets[0].name,),
        embedded=True,
    )


def _daily(dataset: DatasetSpec) -> DrillSpec:
    return DrillSpec(name=f"{dataset.name}-daily"[:40], dataset=dataset.name, cadence=Cadence(every=_DRILL_EVERY))


def _cadence(every: timedelta | None, cron: str | None, *, usual: timedelta) -> Cadence:
    if cron is not None:
        return Cadence(cron=cron)
    return Cadence(every=every or usual)


def _rule(rule: Retention) -> RetentionRule:
    return RetentionRule(
        period=RetentionPeriod(rule.period),
        keep=rule.keep,
        storage_class=StorageClass(rule.storage_class.upper().replace("-", "_")),
        rto=rule.rto,
    )


def _check(check: Check) -> CheckSpec:
    return CheckSpec(
        name=check.name,
        sql=check.sql,
        at_least=check.at_least,
        at_most=check.at_most,
        equals=check.equals,
        fresh_within=check.fresh_within,
    )


def _drill(drill: DrillSection) -> DrillSpec:
    return DrillSpec(
        name=drill.name,
        dataset=DatasetName(drill.dataset),
        cadence=_cadence(drill.every, drill.cron, usual=_DRILL_EVERY),
        selection=DrillSelection(drill.selection),
        key=KeyPurpose(drill.key),
        bucket=None if drill.bucket is None else BucketName(drill.bucket),
        stale_after=drill.stale_after,
    )
