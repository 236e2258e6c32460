"""The section `recovery` of the site file. What a field means is its docstring, as in `schema.py`."""

from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from controlplane.adapters.sitefile.quantities import DurationBetween
from controlplane.adapters.sitefile.section import Section
from controlplane.adapters.sitefile.values import FilledText, HttpUrl, Name, SecretReference, expected

_SECOND: Final = timedelta(seconds=1)
_MINUTE: Final = timedelta(minutes=1)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_YEAR: Final = 366 * _DAY

DATASETS_MAX: Final = 256
"""More databases than a team of ten looks after."""
CHECKS_MAX: Final = 64
"""Of one dataset: a drill runs each of them."""

BucketInStore = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"),
    Field(json_schema_extra=expected("a bucket's name as S3 has it: 3 to 63 of a-z, 0-9, dots and hyphens")),
]
KeyPrefix = Annotated[
    str,
    StringConstraints(pattern=r"^(?:[A-Za-z0-9][A-Za-z0-9._-]*/)+$", max_length=256),
    Field(json_schema_extra=expected("folders, each followed by a slash, for example quarterdeck/prod/")),
]
CronText = Annotated[
    str,
    StringConstraints(min_length=9, max_length=100),
    Field(json_schema_extra=expected('a cron expression of five fields in UTC, for example "15 3 * * *"')),
]
Cadence = Annotated[timedelta, DurationBetween(10 * _SECOND, _YEAR, usual_unit="h")]
StorageClassName = Literal["standard", "standard-ia", "glacier-ir", "glacier", "deep-archive"]


class Bucket(Section):
    """Where copies lie: a bucket of AWS S3, of an S3-compatible store, or of the one that comes along."""

    name: Name = Field(examples=["main"])
    """What datasets and drills call it."""
    bucket: BucketInStore | None = None
    """Its name in the store; left out: `quarterdeck-` and the site's name."""
    embedded: bool = False
    """In the store that the control plane runs itself (SeaweedFS, in the state folder): no endpoint, no credentials."""
    endpoint: HttpUrl | None = None
    """Where an S3-compatible store answers; left out: AWS."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{2,40}$")] = "us-east-1"
    """Its region."""
    prefix: KeyPrefix | None = None
    """Before every key, where the bucket is shared."""
    access_key: SecretReference | None = None
    """Reference to the access key's id; left out: environment, profile or instance role, as boto3 looks for them."""
    secret_key: SecretReference | None = None
    """Reference to the secret of the access key."""
    lock: Literal["none", "governance", "compliance"] = "none"
    """Object Lock, as long as the retention rule of each copy. Nobody can shorten `compliance`."""


class Retention(Section):
    """Keep the newest recovery point of each period."""

    period: Literal["hourly", "daily", "weekly", "monthly", "quarterly", "yearly"] = Field(examples=["daily"])
    """Of the calendar, in UTC."""
    keep: Annotated[timedelta, DurationBetween(_HOUR, 100 * _YEAR, usual_unit="d")] = Field(examples=["30d"])
    """For so long; seven years are 2557d."""
    storage_class: StorageClassName = "standard"
    """Where these copies lie once no stricter rule keeps them."""
    rto: Annotated[timedelta, DurationBetween(_MINUTE, 60 * _DAY, usual_unit="h")] | None = None
    """How soon such a copy must be back; left out: the dataset's `rto`."""


class Check(Section):
    """What must be true of the restored data: one query, one value. A failed one fails the drill."""

    name: Name = Field(examples=["has-orders"])
    """Of the check, as evidence shows it."""
    sql: FilledText = Field(examples=["SELECT count(*) FROM orders"])
    """The query; for Redis a command, for files a path whose size is the value."""
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    """The value is a number, and this or more."""
    at_most: float | None = Field(default=None, allow_inf_nan=False)
    """The value is a number, and this or less."""
    equals: str | None = None
    """The value, as the engine prints it."""
    fresh_within: Annotated[timedelta, DurationBetween(_SECOND, _YEAR)] | None = None
    """The value is a time, at most so long before the moment that was restored to."""


class Dataset(Section):
    """Data that must survive."""

    name: Name = Field(examples=["orders"])
    """Name of the dataset; `control-plane` is the control plane's own store."""
    kind: Literal["postgresql", "pgbackrest", "postgresql-dump", "redis", "mongodb", "sqlite", "files"] = Field(
        examples=["postgresql"]
    )
    """What it is; `pgbackrest`: PostgreSQL that pgBackRest backs up; `postgresql-dump`: PostgreSQL by pg_dump."""
    url: SecretReference | None = None
    """PostgreSQL, Redis, MongoDB: reference to its URL, since that carries a password."""
    path: FilledText | None = None
    """SQLite: the file. Files: the folder. pgBackRest: its configuration file."""
    stanza: Name | None = None
    """pgBackRest: the stanza."""
    embedded: bool = False
    """A PostgreSQL that the control plane runs itself, in the state folder."""
    wal: Literal["off", "streaming", "synchronous"] | None = None
    """PostgreSQL: WAL into the bucket as it is written; `synchronous`: commits wait for that. Left out: `streaming`."""
    rpo: Annotated[timedelta, DurationBetween(_SECOND, _YEAR, usual_unit="m")] = Field(examples=["5m"])
    """Recovery point objective: at most so much of the newest data may be lost."""
    rto: Annotated[timedelta, DurationBetween(10 * _SECOND, 60 * _DAY, usual_unit="m")] = Field(examples=["1h"])
    """Recovery time objective: back, started and verified within so long."""
    every: Cadence | None = None
    """A snapshot so often; left out, and without `cron`: the RPO, or a day where WAL is streamed."""
    cron: CronText | None = None
    """A snapshot at these times (UTC), instead of `every`."""
    retention: list[Retention] = Field(
        default=[],
        max_length=16,
        examples=[[{"period": "daily", "keep": "30d"}, {"period": "quarterly", "keep": "2557d"}]],
    )
    """What is kept; left out: daily, 30 days."""
    buckets: list[Name] = Field(default=[], max_length=8, examples=[["main"]])
    """The first is written and read, each further one holds a copy; left out: the first of `recovery.buckets`."""
    warn_at: float = Field(default=0.5, ge=0.1, le=1.0, allow_inf_nan=False)
    """Share of the RPO at which it warns and takes a snapshot out of turn."""
    checks: list[Check] = Field(default=[], max_length=CHECKS_MAX)
    """What a drill asserts about the restored data, beside the engine's own checks."""


class DrillSection(Section):
    """A restore that proves itself, again and again."""

    name: Name = Field(examples=["orders-daily"])
    """Name of the drill."""
    dataset: Name = Field(examples=["orders"])
    """What is restored, into a scratch folder."""
    every: Cadence | None = None
    """So often; left out, and without `cron`: daily."""
    cron: CronText | None = None
    """At these times (UTC), instead of `every`."""
    selection: Literal["latest", "random", "oldest", "quarterly"] = "latest"
    """Which recovery point; latest alone never proves the old ones."""
    key: Literal["site", "break-glass"] = "site"
    """Which key may open it; `break-glass` waits for a person with the offline key."""
    bucket: Name | None = None
    """Read from this one of the dataset's buckets, for example the second region; left out: the first."""
    stale_after: Annotated[timedelta, DurationBetween(_MINUTE, 2 * _YEAR, usual_unit="d")] | None = None
    """Without a passed drill for so long, risky work is refused; left out: twice the cadence."""


class Keys(Section):
    """Who can open the copies. Every copy has a key of its own, sealed for each of these."""

    site: SecretReference | None = None
    """Reference to the site key, 256 bits in base64 or hexadecimal; left out: made once in the state folder."""
    retired: list[SecretReference] = Field(default=[], max_length=16)
    """Former site keys: they open old copies until `quarterdeck backup rewrap` is done."""
    break_glass: FilledText | None = None
    """File with the public half of the offline key (`quarterdeck backup break-glass`); left out: none."""


class Recovery(Section):
    """Backups, and the drills that prove them."""

    buckets: list[Bucket] = Field(min_length=1, max_length=16)
    """Where copies lie."""
    datasets: list[Dataset] = Field(default=[], max_length=DATASETS_MAX)
    """What must survive."""
    own_store: bool = True
    """The control plane's own SQLite store is a dataset too, `control-plane`, unless it is declared above."""
    drills: list[DrillSection] = Field(default=[], max_length=DATASETS_MAX)
    """Restores on a schedule; left out: one a day for each dataset."""
    keys: Keys = Keys()
    """Who can open the copies."""
