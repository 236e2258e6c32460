"""Datasets as declared: what must survive, how little may be lost, how soon it must be back, where its copies lie."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from controlplane.domain.secret import SecretRef
from controlplane.kernel.ids import BucketName, DatasetName
from controlplane.kernel.units import format_duration


class DatasetKind(StrEnum):
    POSTGRESQL = "postgresql"
    """Physical copies and streamed WAL, by Quarterdeck itself."""
    PGBACKREST = "pgbackrest"
    """PostgreSQL at a site that already runs pgBackRest: its repository is watched and drilled."""
    POSTGRESQL_DUMP = "postgresql-dump"
    """PostgreSQL as pg_dump writes it: for the long term, and for later major versions."""
    REDIS = "redis"
    MONGODB = "mongodb"
    SQLITE = "sqlite"
    FILES = "files"


class StorageClass(StrEnum):
    """S3's names."""

    STANDARD = "STANDARD"
    STANDARD_IA = "STANDARD_IA"
    GLACIER_IR = "GLACIER_IR"
    """Glacier Instant Retrieval."""
    GLACIER = "GLACIER"
    """Glacier Flexible Retrieval: hours until a byte can be read."""
    DEEP_ARCHIVE = "DEEP_ARCHIVE"


class RetrievalTier(StrEnum):
    """How fast an archived object is brought back; S3's names."""

    EXPEDITED = "Expedited"
    STANDARD = "Standard"
    BULK = "Bulk"


class RetentionPeriod(StrEnum):
    """Of each such period of the calendar (UTC) the newest recovery point is kept: grandfather, father, son."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    QUARTERLY = "quarterly"
    YEARLY = "yearly"


class LockMode(StrEnum):
    """S3 Object Lock. Compliance cannot be shortened by anybody; governance by who holds the permission."""

    NONE = "none"
    GOVERNANCE = "GOVERNANCE"
    COMPLIANCE = "COMPLIANCE"


class WalMode(StrEnum):
    """What an acknowledged commit of a PostgreSQL dataset means."""

    OFF = "off"
    """Snapshots only: what was committed since the last one may be lost."""
    STREAMING = "streaming"
    """WAL goes to the bucket as it is written; an acknowledged commit may be lost for about a second."""
    SYNCHRONOUS = "synchronous"
    """A commit is acknowledged when its WAL is durable in the bucket: nothing acknowledged is lost."""


class DrillSelection(StrEnum):
    LATEST = "latest"
    RANDOM = "random"
    OLDEST = "oldest"
    QUARTERLY = "quarterly"
    """The newest one kept under a quarterly or yearly rule: what latest-only drills never prove."""


class KeyPurpose(StrEnum):
    SITE = "site"
    """The key that the control plane holds."""
    BREAK_GLASS = "break-glass"
    """The offline key: its private half is not on any machine of the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """How often: a fixed distance, or a cron expression in UTC. Exactly one is set."""

    every: timedelta | None = None
    cron: str | None = None

    def __post_init__(self) -> None:
        assert (self.every is None) != (self.cron is None), "a cadence is a distance or a cron expression"

    def __str__(self) -> str:
        if self.every is not None:
            return f"every {format_duration(self.every)}"
        return f"at {self.cron} UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSpec:
    """A bucket of AWS S3 or of an S3-compatible store."""

    name: BucketName
    bucket: str
    """Its name in the store."""
    embedded: bool = False
    """The store that the control plane runs itself (SeaweedFS): no endpoint and no credentials to give."""
    endpoint: str | None = None
    """URL of an S3-compatible store; None: AWS."""
    region: str = "us-east-1"
    prefix: str = ""
    """Before every key; empty or ending in `/`."""
    access_key: SecretRef | None = None
    """None: boto3's own chain (environment, profile, instance role)."""
    secret_key: SecretRef | None = None
    lock: LockMode = LockMode.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """Keep the newest recovery point of each period for so long, in such a class."""

    period: RetentionPeriod
    keep: timedelta
    storage_class: StorageClass = StorageClass.STANDARD
    rto: timedelta | None = None
    """For recovery points kept by this rule alone; None: the dataset's own."""

    def __str__(self) -> str:
        rto = "" if self.rto is None else f", back within {format_duration(self.rto)}"
        return f"{self.period} for {format_duration(self.keep)} in {self.storage_class}{rto}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSpec:
    """An assertion about the restored data: one SQL query that gives one value."""

    name: str
    sql: str
    at_least: float | None = None
    at_most: float | None = None
    equals: str | None = None
    """As the engine prints it."""
    fresh_within: timedelta | None = None
    """The value is a time; the recovery point's moment may be so much later at most."""

    def __str__(self) -> str:
        return f"{self.name} ({self.sql})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    name: DatasetName
    kind: DatasetKind
    rpo: timedelta
    """Recovery point objective: at most so much of the newest data may be lost."""
    rto: timedelta
    """Recovery time objective: restored, started and verified within so long."""
    cadence: Cadence
    """Of snapshots. WAL, where the kind has it, flows all the time."""
    retention: tuple[RetentionRule, ...]
    buckets: tuple[BucketName, ...]
    """The first is written by backups and read by restores; each further one holds a copy (another region)."""
    url: SecretRef | None = None
    """PostgreSQL, Redis, MongoDB: where it answers, by reference since it carries a password."""
    path: str | None = None
    """SQLite: the file. Files: the folder. pgBackRest: its configuration file."""
    stanza: str | None = None
    """pgBackRest only."""
    embedded: bool = False
    """PostgreSQL that the control plane runs itself, or its own store: the demo, and a site that needs no other."""
    wal: WalMode = WalMode.OFF
    warn_at: float = 0.5
    """An early warning, and an extra snapshot, at this share of the RPO."""
    checks: tuple[CheckSpec, ...] = ()

    @property
    def of_embedded_postgresql(self) -> bool:
        """The source is the PostgreSQL that the control plane runs itself."""
        return self.embedded and self.kind in {DatasetKind.POSTGRESQL, DatasetKind.POSTGRESQL_DUMP}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillSpec:
    name: str
    dataset: DatasetName
    cadence: Cadence
    selection: DrillSelection = DrillSelection.LATEST
    key: KeyPurpose = KeyPurpose.SITE
    bucket: BucketName | None = None
    """None: the dataset's first."""
    stale_after: timedelta | None = None
    """No passed drill for so long is a reason to refuse risky work; None: twice the cadence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysSpec:
    site: SecretRef | None = None
    """256 bits, base64 or hexadecimal; None: made on the first start in the state folder."""
    retired: tuple[SecretRef, ...] = ()
    """Former site keys: they open old manifests until these are rewrapped."""
    break_glass: str | None = None
    """File with the public half of the offline key; None: no break-glass recipient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySpec:
    buckets: tuple[BucketSpec, ...] = ()
    datasets: tuple[DatasetSpec, ...] = ()
    drills: tuple[DrillSpec, ...] = ()
    keys: KeysSpec = KeysSpec()

    def dataset(self, name: str) -> DatasetSpec | None:
        return next((dataset for dataset in self.datasets if dataset.name == name), None)

    def bucket(self, name: str) -> BucketSpec | None:
        return next((bucket for bucket in self.buckets if bucket.name == name), None)
