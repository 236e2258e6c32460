"""The store that the control plane runs itself: started, found again after any crash, stopped."""

import fcntl
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from controlplane.adapters.haproxy import processes
from controlplane.adapters.haproxy.places import tail
from controlplane.adapters.objectstore.errors import Asked, told
from controlplane.adapters.objectstore.flush import FolderFlush
from controlplane.adapters.objectstore.s3 import make_client
from controlplane.adapters.objectstore.weed import HOST, Places, Settings, find_program
from controlplane.domain.dataset import BucketSpec
from controlplane.kernel.errors import QuarterdeckError, RetryableError
from controlplane.kernel.ids import BucketName

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

ROLE: Final = "object-store"
FOLDER: Final = "object-store"
"""Of the control plane's own one, in the state folder."""

START_TIMEOUT_S: Final = 60.0
"""It takes 2 to 7 s on an idle machine (its parts wait for one another), several times that on a busy one."""
STOP_GRACE_S: Final = 1.0
"""From SIGTERM to SIGKILL. SeaweedFS takes 17 s to leave politely (measured); what it acknowledged is synced."""
KILL_TIMEOUT_S: Final = 5.0
PORTS_TIMEOUT_S: Final = 3.0
"""What is taken for longer is taken by somebody else: the store moves."""
LOCK_TIMEOUT_S: Final = START_TIMEOUT_S + 10.0
"""Another control plane of the folder may be starting it."""
_ASK_TIMEOUT_S: Final = 2.0
_POLL_S: Final = 0.05
_SHOWN_CHARS: Final = 600
"""Of its first words: a trace of the Go runtime follows them."""
_PROBE: Final = BucketSpec(name=BucketName("embedded"), bucket="embedded", embedded=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    url: str
    access_key: str
    secret_key: str


class EmbeddedObjectStore:
    """SeaweedFS in a folder. It outlives the control plane, as the gateway does; `stop` ends it.

    Blocks: call it in a worker thread. Safe for several threads and several control planes of one folder.
    """

    def __init__(self, folder: Path, *, site_mark: str) -> None:
        self._places = Places(folder.resolve())
        self._site = site_mark
        self.flush = FolderFlush(self._places.data)
        """To be given to each `S3Store` over this one: what it acknowledged is durable after it."""
        self._client: tuple[Settings, S3Client] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running server; None when none runs."""
        return next((process.pid for process in processes.leaders(self._site, ROLE)), None)

    def ensure_running(self) -> Endpoint:
        """It answers S3 when this returns: adopted, or started. RetryableError with its words when it does not."""
        self._places.create()
        with self._alone():
            settings = self._places.settings()
            found = processes.leaders(self._site, ROLE)
            if settings is not None and len(found) == 1 and self._answers(found[0], settings):
                return _endpoint(settings)
            for deaf in found:
                _end(deaf)
            return _endpoint(self._start(settings))

    def stop(self) -> None:
        """No error when nothing runs. Objects stay. TerminalError, after it ended, when its disk refuses."""
        if not self._places.folder.is_dir():
            return
        with self._alone():
            try:
                self.flush()
            finally:
                for process in processes.leaders(self._site, ROLE):
                    _end(process)
            settings = self._places.settings()
            if settings is not None:
                _released(settings)
                _forget_sockets(settings)

    def _start(self, before: Settings | None) -> Settings:
        settings = before or Settings.fresh()
        if not _released(settings):
            _forget_sockets(settings)
            settings = settings.moved()
        self._places.keep(settings)
        log = self._places.log
        before_bytes = log.stat().st_size if log.exists() else 0
        process = processes.spawn(
            self._places.command(find_program(), settings),
            site=self._site,
            role=ROLE,
            log=log,
            env=self._places.environment(settings),
        )
        if self._answers(process, settings):
            return settings
        _end(process)
        said = tail(log, before_bytes)[:_SHOWN_CHARS].strip()
        raise RetryableError(f"the embedded object store did not start; see {log}: {said or 'it said nothing'}")

    def _answers(self, process: psutil.Process, settings: Settings) -> bool:
        """Waits for it. False when it ended, or the time is up."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and processes.is_alive(process):
            if _listens(settings.ports.s3) and _has_volumes(settings.ports.master) and self._serves(settings):
                return True
            time.sleep(_POLL_S)
        return False

    def _serves(self, settings: Settings) -> bool:
        if self._client is None or self._client[0] != settings:
            self._client = (settings, _client(settings))
        with suppress(QuarterdeckError), told(Asked(verb="list the buckets of", bucket="the embedded store")):
            self._client[1].list_buckets()
            return True
        return False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Starting and stopping is for one at a time. RetryableError when another does not end."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        with self._places.lock.open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise RetryableError(
                            f"somebody else has been starting or stopping the object store of {self._places.folder} "
                            f"for {LOCK_TIMEOUT_S:.0f} s"
                        ) from error
                    time.sleep(_POLL_S)
            yield


def _endpoint(settings: Settings) -> Endpoint:
    return Endpoint(
        url=f"http://{HOST}:{settings.ports.s3}", access_key=settings.access_key, secret_key=settings.secret_key
    )


def _client(settings: Settings) -> "S3Client":
    there = _endpoint(settings)
    return make_client(
        _PROBE, endpoint=there.url, access_key=there.access_key, secret_key=there.secret_key, tries_max=1
    )


def _listens(port: int) -> bool:
    return _status(port, "/healthz") is not None


def _has_volumes(master: int) -> bool:
    """The volume server has reported to the master: before, a PUT fails."""
    answer = _status(master, "/dir/status")
    if answer is None:
        return False
    with suppress(ValueError, KeyError, TypeError):
        centres = json.loads(answer)["Topology"]["DataCenters"] or []
        return any(rack["DataNodes"] for centre in centres for rack in centre["Racks"] or [])
    return False


def _status(port: int, path: str) -> bytes | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=_ASK_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if answer.status == http.client.OK else None


def _released(settings: Settings) -> bool:
    """Waits for the ports. A killed process reads as dead before its last thread has let go of them."""
    deadline = time.monotonic() + PORTS_TIMEOUT_S
    while settings.ports.taken():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _forget_sockets(settings: Settings) -> None:
    for path in settings.ports.sockets:
        path.unlink(missing_ok=True)


def _end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    if _ended(process, STOP_GRACE_S):
        return
    with suppress(psutil.NoSuchProcess):
        process.kill()
    _ended(process, KILL_TIMEOUT_S)


def _ended(process: psutil.Process, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while processes.is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
