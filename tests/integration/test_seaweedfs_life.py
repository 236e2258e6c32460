"""The embedded object store as a process: started once, found again after any death, moved when its ports are taken.

Each start of SeaweedFS takes 2 to 7 s.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from controlplane.adapters.haproxy.processes import is_alive
from controlplane.adapters.objectstore.seaweedfs import EmbeddedObjectStore
from controlplane.adapters.objectstore.weed import Places, find_program
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.ports import ObjectStore
from tests.seaweedfs import RunningSeaweed, embedded_client

KILL_TIMEOUT_S = 10
BUCKET = "backups"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedObjectStore]:
    try:
        find_program()
    except TerminalError as error:
        pytest.skip(str(error))
    store = EmbeddedObjectStore(tmp_path / "object-store", site_mark=f"test-{uuid.uuid4().hex[:16]}")
    yield store
    store.stop()
    shutil.rmtree(tmp_path / "object-store", ignore_errors=True)


def bucket_of(server: EmbeddedObjectStore, *, new: bool = False) -> ObjectStore:
    endpoint = server.ensure_running()
    running = RunningSeaweed(server=server, endpoint=endpoint, client=embedded_client(endpoint))
    if new:
        running.client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    return running.store(BUCKET)


def pid_of(server: EmbeddedObjectStore) -> int | None:
    return server.pid


def kill(pid: int | None) -> None:
    assert pid is not None
    process = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=KILL_TIMEOUT_S)
    assert not is_alive(process)


def test_it_is_started_once_and_what_was_acknowledged_survives_kill_and_move(
    server: EmbeddedObjectStore, tmp_path: Path
) -> None:
    assert pid_of(server) is None
    first = server.ensure_running()
    pid = server.pid
    store = bucket_of(server, new=True)
    bodies = {f"db/wal/{number:03d}": os.urandom(30_000) for number in range(40)}
    for key, body in bodies.items():
        store.put(key, body, metadata=[("part", key)])
    large = os.urandom(9_000_000)
    version = store.put("db/points/1/base/000000", large).version

    assert server.ensure_running() == first
    assert server.pid == pid, "it is found, not started again"

    kill(pid)
    assert server.ensure_running() == first, "the same ports and credentials"
    assert server.pid != pid
    assert {info.key: store.get(info.key) for info in store.objects("db/wal/")} == bodies

    server.stop()
    assert server.pid is None
    settings = Places(tmp_path / "object-store").settings()
    assert settings is not None
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", settings.ports.s3))
        squatter.listen()
        moved = server.ensure_running()
        assert moved.url != first.url
        assert moved.secret_key == first.secret_key
        assert bucket_of(server).get("db/points/1/base/000000", version=version) == large


def test_two_who_start_it_at_once_get_one(server: EmbeddedObjectStore) -> None:
    with ThreadPoolExecutor(3) as pool:
        endpoints = list(pool.map(lambda _: server.ensure_running(), range(3)))

    assert len(set(endpoints)) == 1
    assert server.pid is not None


def test_another_process_adopts_it_after_its_starter_was_killed(tmp_path: Path) -> None:
    """The starter is a process of its own, killed as soon as it says the address; the store outlives it."""
    mark = f"test-{uuid.uuid4().hex[:16]}"
    folder = tmp_path / "adopted"
    program = (
        "import sys, time; from pathlib import Path\n"
        "from controlplane.adapters.objectstore.seaweedfs import EmbeddedObjectStore\n"
        "print(EmbeddedObjectStore(Path(sys.argv[1]), site_mark=sys.argv[2]).ensure_running().url, flush=True)\n"
        "time.sleep(600)\n"
    )
    adopter = EmbeddedObjectStore(folder, site_mark=mark)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder), mark], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        started = adopter.pid
        starter.kill()
    try:
        assert adopter.ensure_running().url == url
        assert adopter.pid == started
    finally:
        adopter.stop()
    assert started is not None
    assert adopter.pid is None


def test_only_who_knows_the_secret_gets_in(server: EmbeddedObjectStore, tmp_path: Path) -> None:
    """S3 asks for a signature; the parts behind it ask for a token, or neighbours could delete blocks below S3."""
    bucket_of(server, new=True).put("key", b"secret")
    settings = Places(tmp_path / "object-store").settings()
    assert settings is not None

    for port, path in (
        (settings.ports.s3, f"/{BUCKET}/key"),
        (settings.ports.filer, f"/buckets/{BUCKET}/key"),
        (settings.ports.filer, "/"),
    ):
        assert http_status(port, path) in {401, 403, 404}
    assert http_status(settings.ports.filer, "/buckets/x", method="PUT") in {401, 403}


def http_status(port: int, path: str, *, method: str = "GET") -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n".encode())
        return int(connection.recv(64).split()[1])


def test_a_server_that_does_not_start_says_why(server: EmbeddedObjectStore, tmp_path: Path) -> None:
    """A file is where its metadata should be: SeaweedFS ends at once, and its words are in the error."""
    places = Places(tmp_path / "object-store")
    places.create()
    (places.data / "filerldb2").write_text("no folder", encoding="utf-8")

    with pytest.raises(RetryableError, match="filerldb2"):
        server.ensure_running()
    assert server.pid is None


def test_a_place_that_is_taken_is_told(server: EmbeddedObjectStore, tmp_path: Path) -> None:
    (tmp_path / "object-store").write_text("no folder", encoding="utf-8")

    with pytest.raises(TerminalError, match="object-store"):
        server.ensure_running()
