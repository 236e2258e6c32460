"""The section `recovery`: what is left out, and each thing that can be wrong with it, found where it stands."""

from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.adapters.sitefile.parse import load_site, parse_site
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
from controlplane.domain.secret import SecretRef
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.ids import BucketName, DatasetName

HEAD = """\
site: {name: lab}
node_pools: [{name: h100, gpu: h100, nodes: 1, gpus_per_node: 8, simulated: true}]
engines: [{name: sim, kind: simulated}]
deployments: [{name: chat, model: llama-3.1-8b, replicas: {min: 1, max: 2}}]
"""
BUCKETS = "  buckets: [{name: main}, {name: far, region: eu-west-1}]\n"
DAY = timedelta(days=1)
MAIN, FAR = BucketName("main"), BucketName("far")
EXAMPLE = Path(__file__).parents[3] / "examples" / "demo" / "site.yaml"


def site(recovery: str, head: str = HEAD) -> str:
    return f"{head}recovery:\n{recovery}"


def recovery_of(recovery: str, head: str = HEAD) -> RecoverySpec:
    return parse_site(site(recovery, head), file="site.yaml").recovery


def dataset_of(fields: str) -> DatasetSpec:
    (dataset,) = recovery_of(
        f"{BUCKETS}  own_store: false\n  datasets: [{{name: orders, rto: 1h, {fields}}}]\n"
    ).datasets
    return dataset


def problems(recovery: str) -> list[Problem]:
    with pytest.raises(InvalidError) as caught:
        parse_site(site(recovery), file="site.yaml")
    return list(caught.value.problems)


# -- what is left out


def test_without_the_section_nothing_is_protected() -> None:
    assert parse_site(HEAD, file="site.yaml").recovery == RecoverySpec()


def test_the_control_planes_own_store_is_a_dataset_and_every_dataset_is_drilled_daily() -> None:
    recovery = recovery_of("  buckets: [{name: main, embedded: true}]\n")
    assert recovery.buckets == (BucketSpec(name=MAIN, bucket="quarterdeck-lab-main", embedded=True),)
    (own,) = recovery.datasets
    assert (own.name, own.kind, own.embedded) == ("control-plane", DatasetKind.SQLITE, True)
    assert (own.rpo, own.rto, own.cadence.every) == (15 * DAY / 1440, 15 * DAY / 1440, 5 * DAY / 1440)
    assert [(rule.period, rule.keep) for rule in own.retention] == [
        (RetentionPeriod.HOURLY, DAY),
        (RetentionPeriod.DAILY, 30 * DAY),
    ]
    assert recovery.drills == (
        DrillSpec(name="control-plane-daily", dataset=DatasetName("control-plane"), cadence=Cadence(every=DAY)),
    )
    assert recovery.keys == KeysSpec()


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ("  own_store: false\n", []),
        ("  datasets: [{name: control-plane, kind: sqlite, rpo: 1h, rto: 1h}]\n", ["control-plane"]),
    ],
)
def test_the_own_store_can_be_left_out_or_declared(more: str, names: list[str]) -> None:
    recovery = recovery_of(f"  buckets: [{{name: main}}]\n{more}")
    assert [dataset.name for dataset in recovery.datasets] == names
    assert all(dataset.embedded for dataset in recovery.datasets)


def test_a_store_that_is_no_sqlite_is_no_dataset_by_itself() -> None:
    head = f"{HEAD}store: {{kind: postgresql, url: {{env: STORE_URL}}}}\n"
    assert recovery_of("  buckets: [{name: main}]\n", head).datasets == ()


def test_what_a_dataset_leaves_out() -> None:
    orders = dataset_of("kind: redis, url: {env: REDIS_URL}, rpo: 10m")
    assert orders == DatasetSpec(
        name=DatasetName("orders"),
        kind=DatasetKind.REDIS,
        rpo=timedelta(minutes=10),
        rto=timedelta(hours=1),
        cadence=Cadence(every=timedelta(minutes=10)),
        retention=(RetentionRule(period=RetentionPeriod.DAILY, keep=30 * DAY),),
        buckets=(MAIN,),
        url=SecretRef("env", "REDIS_URL"),
    )


@pytest.mark.parametrize(
    ("fields", "wal", "every"),
    [
        ("", WalMode.STREAMING, DAY),
        (", wal: synchronous", WalMode.SYNCHRONOUS, DAY),
        (", wal: off", WalMode.OFF, timedelta(minutes=10)),
        (", every: 6h", WalMode.STREAMING, timedelta(hours=6)),
    ],
)
def test_with_a_log_snapshots_are_daily_without_one_they_are_the_rpo(
    fields: str, wal: WalMode, every: timedelta
) -> None:
    orders = dataset_of(f"kind: postgresql, url: {{env: U}}, rpo: 10m{fields}")
    assert (orders.wal, orders.cadence) == (wal, Cadence(every=every))


def test_a_dump_is_as_old_as_its_rpo_allows_and_may_be_of_the_embedded_postgresql() -> None:
    orders = dataset_of("kind: postgresql-dump, embedded: true, rpo: 92d")
    assert (orders.wal, orders.cadence) == (WalMode.OFF, Cadence(every=92 * DAY))
    assert orders.of_embedded_postgresql
    assert not dataset_of("kind: postgresql-dump, url: {env: U}, rpo: 92d").of_embedded_postgresql


def test_everything_that_can_be_said() -> None:
    recovery = recovery_of("""\
  own_store: false
  buckets:
    - {name: main, bucket: acme-backups, endpoint: "https://s3.acme.example", region: eu-1, prefix: prod/qd/,
       access_key: {env: KEY}, secret_key: {file: /run/secret}, lock: compliance}
    - {name: far, embedded: true, lock: governance}
  datasets:
    - name: orders
      kind: postgresql
      url: {env: ORDERS_URL}
      rpo: 5m
      rto: 1h
      cron: "15 3 * * *"
      warn_at: 0.25
      buckets: [main, far]
      retention:
        - {period: hourly, keep: 1d}
        - {period: yearly, keep: 2557d, storage_class: deep-archive, rto: 3d}
      checks:
        - {name: has-orders, sql: SELECT count(*) FROM orders, at_least: 1, at_most: 9, fresh_within: 1m, equals: "4"}
  drills:
    - {name: glass, dataset: orders, cron: "0 4 1 * *", selection: quarterly, key: break-glass, bucket: far,
       stale_after: 100d}
  keys: {site: {env: SITE_KEY}, retired: [{env: OLD}], break_glass: keys/offline.pub}
""")
    main, far = recovery.buckets
    assert main == BucketSpec(
        name=MAIN,
        bucket="acme-backups",
        endpoint="https://s3.acme.example",
        region="eu-1",
        prefix="prod/qd/",
        access_key=SecretRef("env", "KEY"),
        secret_key=SecretRef("file", "/run/secret"),
        lock=LockMode.COMPLIANCE,
    )
    assert (far.embedded, far.lock) == (True, LockMode.GOVERNANCE)
    (orders,) = recovery.datasets
    assert (orders.cadence, orders.warn_at, orders.buckets) == (Cadence(cron="15 3 * * *"), 0.25, (MAIN, FAR))
    assert orders.retention[1] == RetentionRule(
        period=RetentionPeriod.YEARLY, keep=2557 * DAY, storage_class=StorageClass.DEEP_ARCHIVE, rto=3 * DAY
    )
    assert orders.checks == (
        CheckSpec(
            name="has-orders", sql="SELECT count(*) FROM orders", at_least=1, at_most=9, equals="4",
            fresh_within=timedelta(minutes=1),
        ),
    )  # fmt: skip
    assert recovery.drills == (
        DrillSpec(
            name="glass", dataset=DatasetName("orders"), cadence=Cadence(cron="0 4 1 * *"),
            selection=DrillSelection.QUARTERLY, key=KeyPurpose.BREAK_GLASS, bucket=FAR, stale_after=100 * DAY,
        ),
    )  # fmt: skip
    assert (recovery.keys.site, recovery.keys.retired) == (SecretRef("env", "SITE_KEY"), (SecretRef("env", "OLD"),))
    assert recovery.keys.break_glass is not None
    assert recovery.keys.break_glass.endswith("keys/offline.pub")


def test_the_demo_protects_its_orders_and_its_own_store() -> None:
    recovery = load_site(EXAMPLE)[0].recovery
    assert [dataset.name for dataset in recovery.datasets] == ["orders", "control-plane"]
    assert {drill.dataset for drill in recovery.drills} == {"orders", "control-plane"}


# -- what is wrong


@pytest.mark.parametrize(
    ("bucket", "field", "found"),
    [
        ("embedded: true, endpoint: 'https://s3.example'", "endpoint", "endpoint with embedded: true"),
        (
            "embedded: true, access_key: {env: A}, secret_key: {env: B}",
            "access_key",
            "access_key with embedded: true",
        ),
        ("access_key: {env: A}", "secret_key", "nothing"),
        ("secret_key: {env: A}", "access_key", "nothing"),
    ],
)
def test_buckets(bucket: str, field: str, found: str) -> None:
    first = problems(f"  buckets: [{{name: main, {bucket}}}]\n")[0]
    assert (first.field, first.found) == (f"recovery.buckets[main].{field}", found)


@pytest.mark.parametrize(
    ("fields", "field", "found", "words"),
    [
        ("kind: postgresql", "url", "nothing", "url: {env: ORDERS_URL}"),
        ("kind: postgresql-dump", "url", "nothing", "url: {env: ORDERS_URL}"),
        ("kind: postgresql-dump, embedded: true, wal: off", "wal", "wal with kind: postgresql-dump", "delete wal"),
        (
            "kind: postgresql-dump, url: {env: U}, every: 1h",
            "every",
            "a snapshot every 1h for an rpo of 10m",
            "nothing is kept between two snapshots",
        ),
        ("kind: redis", "url", "nothing", "url: {env: REDIS_URL}"),
        ("kind: mongodb", "url", "nothing", "url: {env: MONGODB_URL}"),
        ("kind: sqlite", "path", "nothing", "path: "),
        ("kind: files", "path", "nothing", "path: "),
        ("kind: pgbackrest, path: /etc/p.conf", "stanza", "nothing", "stanza: main"),
        ("kind: files, path: /srv, url: {env: U}", "url", "url with kind: files", "delete url"),
        ("kind: postgresql, embedded: true, url: {env: U}", "url", "url with kind: postgresql, embedded", "delete url"),
        ("kind: redis, url: {env: U}, embedded: true", "embedded", "embedded with kind: redis", "delete embedded"),
        ("kind: redis, url: {env: U}, wal: streaming", "wal", "wal with kind: redis", "only kind: postgresql has it"),
        ('kind: files, path: /srv, every: 5m, cron: "15 3 * * *"', "every", "every beside cron", "delete one"),
        ('kind: files, path: /srv, cron: "15 25 * * *"', "cron", '"15 25 * * *"', "bad hour"),
        ('kind: files, path: /srv, cron: "0 0 31 2 *"', "cron", '"0 0 31 2 *"', "every day at 03:15"),
        ('kind: files, path: /srv, cron: "0 15 3 * * *"', "cron", '"0 15 3 * * *"', "5 fields"),
        (
            "kind: files, path: /srv, every: 1h",
            "every",
            "a snapshot every 1h for an rpo of 10m",
            "which rpo is really needed",
        ),
        (
            "kind: postgresql, url: {env: U}, wal: off, every: 1h",
            "every",
            "a snapshot every 1h for an rpo of 10m",
            "shorten every",
        ),
        (
            "kind: files, path: /srv, checks: [{name: one, sql: a}]",
            "checks[one]",
            "a check that expects nothing",
            "at_least: 1",
        ),
        ("kind: files, path: /srv, buckets: [mian]", "buckets[0]", 'an unknown bucket "mian"', 'did you mean "main"'),
    ],
)
def test_datasets(fields: str, field: str, found: str, words: str) -> None:
    (problem,) = problems(f"{BUCKETS}  datasets: [{{name: orders, rpo: 10m, rto: 1h, {fields}}}]\n")
    assert (problem.field, problem.found) == (f"recovery.datasets[orders].{field}", found)
    assert words.lower() in f"{problem.expected} {problem.hint}".lower()
    assert problem.line == 7


def test_the_own_store_has_no_path() -> None:
    (problem,) = problems(f"{BUCKETS}  datasets: [{{name: control-plane, kind: sqlite, path: /x, rpo: 1h, rto: 1h}}]\n")
    assert problem.found == "path of the control plane's own store"


@pytest.mark.parametrize(
    ("drill", "field", "found", "words"),
    [
        ("dataset: orders, bucket: far", "bucket", "far", "a bucket of orders: main"),
        ("dataset: orders, bucket: fra", "bucket", 'an unknown bucket "fra"', 'did you mean "far"'),
        ("dataset: order", "dataset", 'an unknown dataset "order"', 'did you mean "orders"'),
        (
            "dataset: orders, key: break-glass",
            "key",
            "break-glass without such a key",
            "quarterdeck backup break-glass",
        ),
        ('dataset: orders, cron: "61 * * * *"', "cron", '"61 * * * *"', "bad minute"),
        ('dataset: orders, every: 1d, cron: "1 * * * *"', "every", "every beside cron", "delete one"),
    ],
)
def test_drills(drill: str, field: str, found: str, words: str) -> None:
    orders = "{name: orders, kind: files, path: /srv, rpo: 10m, rto: 1h, buckets: [main]}"
    (problem,) = problems(f"{BUCKETS}  datasets: [{orders}]\n  drills: [{{name: daily, {drill}}}]\n")
    assert (problem.field, problem.found) == (f"recovery.drills[daily].{field}", found)
    assert words.lower() in f"{problem.expected} {problem.hint}".lower()


def test_a_promise_that_no_restore_can_keep_is_refused_with_the_arithmetic() -> None:
    rule = "{period: yearly, keep: 2557d, storage_class: deep-archive}"
    (problem,) = problems(
        f"{BUCKETS}  datasets: [{{name: o, kind: files, path: /srv, rpo: 1h, rto: 4h, retention: [{rule}]}}]\n"
    )
    assert problem.found == "DEEP_ARCHIVE for an RTO of 4h00m"
    assert "12h" in problem.hint
    kept = recovery_of(
        f"{BUCKETS}  datasets: [{{name: o, kind: files, path: /srv, rpo: 1h, rto: 4h, "
        f"retention: [{rule.replace('deep-archive', 'deep-archive, rto: 3d')}]}}]\n"
    )
    assert kept.datasets[0].retention == (
        RetentionRule(
            period=RetentionPeriod.YEARLY, keep=2557 * DAY, storage_class=StorageClass.DEEP_ARCHIVE, rto=3 * DAY
        ),
    )


@pytest.mark.parametrize("what", ["buckets: [{name: a}, {name: a}]", "buckets: []"])
def test_names_are_given_once_and_there_is_a_bucket(what: str) -> None:
    assert problems(f"  {what}\n")[0].field.startswith("recovery.buckets")
