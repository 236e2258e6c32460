"""What a site's recovery consists of on this machine: its stores, keys, datasets and scratch folder.

Used by the control plane, and by `quarterdeck restore` where there is none any more.
"""

import fcntl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

from controlplane.adapters.backup.files import FilesDataset
from controlplane.adapters.backup.keyfiles import (
    parse_site_key,
    read_break_glass_private,
    read_break_glass_public,
    site_key_file,
)
from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.mongodb import MongodbDataset
from controlplane.adapters.backup.pgbackrest import PgbackrestDataset
from controlplane.adapters.backup.pgbackrest_coverage import PgbackrestCoverage
from controlplane.adapters.backup.pgbackrest_repository import Repository
from controlplane.adapters.backup.postgresql.dump import PostgreSQLDump
from controlplane.adapters.backup.postgresql.embedded import EmbeddedPostgreSQL
from controlplane.adapters.backup.postgresql.login import named_database
from controlplane.adapters.backup.postgresql.programs import account, first_closed
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.adapters.backup.postgresql.wal_reader import WalReader
from controlplane.adapters.backup.redis import RedisDataset
from controlplane.adapters.backup.sqlite import SqliteDataset
from controlplane.adapters.evidence import EvidenceSigner
from controlplane.adapters.objectstore.bucket import apply_plan, read_state
from controlplane.adapters.objectstore.s3 import S3Store, make_client
from controlplane.adapters.objectstore.seaweedfs import FOLDER, EmbeddedObjectStore, Endpoint
from controlplane.domain.dataset import BucketSpec, DatasetKind, DatasetSpec, KeyPurpose, KeysSpec, WalMode
from controlplane.domain.recovery import LogCoverage
from controlplane.domain.secret import SecretRef
from controlplane.recovery.bucket import declare_bucket
from controlplane.recovery.bucket_plan import plan_bucket
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import DatasetAdapter, LogReader, ObjectStore, SnapshotSource

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

STORE_FILE: Final = "store.sqlite3"
"""The control plane's own store, in the state folder."""
_SHARED_SCRATCH: Final = Path("/var/tmp")  # noqa: S108 - a private folder of ours is made there
_PRIVATE: Final = 0o700


type OpenPoint = Callable[[Manifest], SnapshotSource]


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultPlace:
    state_dir: Path
    site_mark: str
    secret: Callable[[SecretRef], str]
    now: Callable[[], datetime]
    break_glass: Path | None = None
    """The offline key, where a person lends it."""
    passphrase: Callable[[], bytes] | None = None
    """Of the offline key; asked only when it has one."""


class Vault:
    """Safe for several threads. What it starts (the embedded store and PostgreSQL) outlives it, until `stop`."""

    def __init__(self, place: VaultPlace) -> None:
        self._place = place
        self._mutex = threading.Lock()
        self._stores: dict[BucketSpec, S3Store] = {}
        self._keyrings: dict[KeysSpec, SiteKeyring] = {}
        self.object_store: Final = EmbeddedObjectStore(place.state_dir / FOLDER, site_mark=place.site_mark)
        self._endpoint: Endpoint | None = None
        """Where the embedded store was last; after a restart its port may be another."""
        self._postgresql: EmbeddedPostgreSQL | None = None
        self._postgresql_mutex = threading.Lock()

    @property
    def has_break_glass(self) -> bool:
        return self._place.break_glass is not None

    # -- buckets
    def store(self, bucket: BucketSpec) -> ObjectStore:
        """Ready to use. RetryableError when the embedded one does not start."""
        with self._mutex:
            known = self._stores.get(bucket)
            if known is not None:
                return known
            made = self._open(bucket)
            self._stores[bucket] = made
            return made

    def keep_running(self, bucket: BucketSpec) -> None:
        """The embedded store answers when this returns; on another address it is found anew."""
        if not bucket.embedded:
            return
        with self._mutex:
            endpoint = self.object_store.ensure_running()
            if endpoint != self._endpoint:
                self._stores = {spec: store for spec, store in self._stores.items() if not spec.embedded}
                self._endpoint = endpoint

    def client(self, bucket: BucketSpec) -> "S3Client":
        """For looking at the bucket itself."""
        if bucket.embedded:
            there = self._endpoint = self.object_store.ensure_running()
            return make_client(bucket, endpoint=there.url, access_key=there.access_key, secret_key=there.secret_key)
        access, secret = bucket.access_key, bucket.secret_key
        return make_client(
            bucket,
            access_key=None if access is None else self._place.secret(access),
            secret_key=None if secret is None else self._place.secret(secret),
        )

    def _open(self, bucket: BucketSpec) -> S3Store:
        client = self.client(bucket)
        if not bucket.embedded:
            return S3Store(client, bucket.bucket, prefix=bucket.prefix)
        # Nobody else looks after the embedded store. A bucket elsewhere is a person's: `quarterdeck bucket apply`.
        apply_plan(client, plan_bucket(declare_bucket(bucket, ()), read_state(client, bucket.bucket)))
        return S3Store(client, bucket.bucket, prefix=bucket.prefix, flush=self.object_store.flush)

    # -- keys
    def keyring(self, keys: KeysSpec) -> SiteKeyring:
        """Read once. TerminalError with the file and what is wrong with it."""
        with self._mutex:
            if keys not in self._keyrings:
                self._keyrings[keys] = self._open_keyring(keys)
            return self._keyrings[keys]

    def _open_keyring(self, keys: KeysSpec) -> SiteKeyring:
        folder = self._key_folder()
        site = site_key_file(folder / "site.key") if keys.site is None else self._key(keys.site)
        lent = self._place.break_glass
        return SiteKeyring(
            site,
            [self._key(ref) for ref in keys.retired],
            break_glass_public=None if keys.break_glass is None else read_break_glass_public(Path(keys.break_glass)),
            break_glass_private=None if lent is None else read_break_glass_private(lent, self._place.passphrase),
        )

    def _key(self, ref: SecretRef) -> bytes:
        return parse_site_key(self._place.secret(ref), str(ref))

    def signer(self) -> EvidenceSigner:
        return EvidenceSigner.from_file(self._key_folder() / "evidence.key")

    def _key_folder(self) -> Path:
        folder = self._place.state_dir / "keys"
        folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        return folder

    # -- datasets
    def adapter(self, dataset: DatasetSpec, open_point: OpenPoint | None = None) -> DatasetAdapter:
        """`open_point`: reads what an increment is made on. TerminalError when its declaration cannot be read."""
        now = self._place.now
        match dataset.kind:
            case DatasetKind.SQLITE:
                own = self._place.state_dir / STORE_FILE
                return SqliteDataset(path=own if dataset.embedded else self._path(dataset), now=now)
            case DatasetKind.FILES:
                return FilesDataset(path=self._path(dataset), now=now)
            case DatasetKind.REDIS:
                return RedisDataset(url=self._url(dataset), now=now)
            case DatasetKind.MONGODB:
                return MongodbDataset(url=self._url(dataset), now=now)
            case DatasetKind.POSTGRESQL:
                return self.postgresql_adapter(dataset, open_point)
            case DatasetKind.POSTGRESQL_DUMP:
                url = self.postgresql_url(dataset)
                return PostgreSQLDump(url=url, only=None if dataset.embedded else named_database(url))
            case DatasetKind.PGBACKREST:
                return PgbackrestDataset(repository=self._repository(dataset))
            case _ as unknown:
                assert_never(unknown)

    def postgresql_adapter(self, dataset: DatasetSpec, open_point: OpenPoint | None = None) -> PostgreSQLAdapter:
        return PostgreSQLAdapter(url=self.postgresql_url(dataset), dataset=dataset.name, open_point=open_point)

    def postgresql_url(self, dataset: DatasetSpec) -> str:
        return self.postgresql().url if dataset.embedded else self._url(dataset)

    def postgresql(self) -> EmbeddedPostgreSQL:
        """The one that the control plane runs itself; of a site there is one."""
        if self._postgresql is None:
            self._postgresql = EmbeddedPostgreSQL(self._place.state_dir, self._place.site_mark)
        return self._postgresql

    def run_postgresql(self) -> str:
        """Its URL, once it answers. One at a time, of all threads and control planes of the folder: it may be made."""
        lock = self._place.state_dir / "postgresql.lock"
        with self._postgresql_mutex, lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return self.postgresql().ensure_running()

    def _repository(self, dataset: DatasetSpec) -> Repository:
        assert dataset.stanza is not None, f"{dataset.name}: the site file's rules ask for a stanza"
        return Repository(configuration=self._path(dataset), stanza=dataset.stanza)

    def pgbackrest_coverage(self, dataset: DatasetSpec) -> LogCoverage | None:
        """By what lies in pgBackRest's repository."""
        return PgbackrestCoverage(repository=self._repository(dataset), now=self._place.now).look()

    def log_reader(
        self, dataset: DatasetSpec, bucket: BucketSpec, keys: KeysSpec, *, only: KeyPurpose | None
    ) -> LogReader | None:
        if dataset.wal is WalMode.OFF or dataset.kind is not DatasetKind.POSTGRESQL:
            return None
        return WalReader(self.store(bucket), dataset.name, self.keyring(keys), only=only)

    def _path(self, dataset: DatasetSpec) -> Path:
        assert dataset.path is not None, f"{dataset.name}: the site file's rules ask for a path"
        return Path(dataset.path)

    def _url(self, dataset: DatasetSpec) -> str:
        assert dataset.url is not None, f"{dataset.name}: the site file's rules ask for a url"
        return self._place.secret(dataset.url)

    # -- the rest
    def scratch_root(self) -> Path:
        """Where restored copies lie. PostgreSQL refuses to run as root: then it must be able to enter as another."""
        root = self._place.state_dir / "scratch"
        root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        who = account()
        if who is None or first_closed(root.parent, who) is None:
            return root
        return _SHARED_SCRATCH / f"quarterdeck-{self._place.site_mark}-scratch"

    def stop(self) -> None:
        """End what it started. Objects and data stay."""
        if self._postgresql is not None:
            self._postgresql.stop()
        self.object_store.stop()
