"""Plain pgBackRest over the same server and the same object store, as a peer of ours.

It speaks S3 over https only. So the embedded store gets a second front for it, with a certificate made here.
"""

import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from benchmarks.servers import PORT, SUPERUSER, SystemPostgreSQL
from controlplane.adapters.backup.postgresql.programs import Programs, account, give, must_run
from controlplane.adapters.backup.postgresql.server import make_private, tail
from controlplane.adapters.objectstore.weed import HOST, Places, find_program
from controlplane.kernel.errors import TerminalError

BUCKET: Final = "pgbackrest"
STANZA: Final = "events"
_DEADLINE_S: Final = 900.0
_START_DEADLINE_S: Final = 60.0
_LOOK_S: Final = 0.02
_VERSION_DEADLINE_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    settled: str
    """In words."""
    folder: str
    settings: tuple[str, ...]
    """Lines of its configuration."""


WAYS: Final = (
    Way(
        settled="as ours",
        folder="tuned",
        settings=("compress-type=zst", "compress-level=1", "process-max=2", "repo1-bundle=y"),
    ),
    Way(settled="defaults", folder="defaults", settings=()),
)
"""Both with its own cipher. The first is compressed as ours; a bundle holds many small files in one object."""


def version() -> str:
    """`pgBackRest 2.45`. TerminalError when there is none."""
    if shutil.which("pgbackrest") is None:
        raise TerminalError("no pgBackRest here: apt-get install pgbackrest")
    said = subprocess.run(
        ["pgbackrest", "version"], check=True, capture_output=True, text=True, timeout=_VERSION_DEADLINE_S
    )
    return said.stdout.strip()


class HttpsFront:
    """A second front of the embedded store, for https on the loopback address."""

    def __init__(self, store: Path, folder: Path) -> None:
        """`store`: the folder of the embedded store, which runs."""
        places = Places(store)
        settings = places.settings()
        assert settings is not None, "the embedded store was started"
        self.access_key: Final = settings.access_key
        self.secret_key: Final = settings.secret_key
        with ExitStack() as held:
            probes = [held.enter_context(socket.socket()) for _ in range(2)]
            for probe in probes:
                probe.bind((HOST, 0))
            self.port, grpc = (int(probe.getsockname()[1]) for probe in probes)
        self._sockets = (f"/tmp/seaweedfs-s3-{self.port}.sock", f"/tmp/seaweedfs-s3-grpc-{grpc}.sock")
        make_certificate(folder / "front.crt", folder / "front.key")
        (folder / "front").mkdir()
        options = {
            "port": self.port,
            "port.grpc": grpc,
            "port.iceberg": 0,
            "port.lance": 0,
            "ip.bind": HOST,
            "cert.file": folder / "front.crt",
            "key.file": folder / "front.key",
            "filer": f"{HOST}:{settings.ports.filer}.{settings.ports.filer_grpc}",
            "iam": "false",
            "autoCreateBucket": "false",
        }
        words = [str(find_program()), f"-logdir={folder / 'front'}", "s3"]
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        self._log = folder / "front.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*words, *(f"-{name}={value}" for name, value in options.items())],
                env={**places.environment(settings), **keys},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._await_listening()

    def stop(self) -> None:
        """It keeps nothing: what it was given lies in the store."""
        self._process.kill()
        self._process.wait()
        for path in self._sockets:
            Path(path).unlink(missing_ok=True)

    def _await_listening(self) -> None:
        deadline = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            time.sleep(_LOOK_S)
        self.stop()
        raise TerminalError(f"the store's front for https did not start: {tail(self._log)}")


def make_certificate(certificate: Path, key: Path) -> None:
    """Signed by itself; nobody checks it."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    key.touch(mode=0o600)
    key.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class PgBackRest:
    """One way of it, as `recovery_lab.Peer`: a repository of its own in the bucket."""

    def __init__(
        self,
        way: Way,
        version: str,
        *,
        server: SystemPostgreSQL,
        programs: Programs,
        front: HttpsFront,
        folder: Path,
    ) -> None:
        self.name: Final = f"{version}, {way.settled}"
        self._server = server
        self._programs = programs
        self._folder = folder = make_private(folder / f"pgbackrest-{way.folder}")
        lines = ["[global]", *way.settings, *_repository(way, front), f"[{STANZA}]", f"pg1-path={server.data}"]
        for kind in ("log", "lock", "spool"):
            lines.insert(1, f"{kind}-path={make_private(folder / kind)}")
        lines += [f"pg1-port={PORT}", f"pg1-socket-path={server.sockets}", f"pg1-user={SUPERUSER}"]
        self._configuration = folder / "pgbackrest.conf"
        self._configuration.touch(mode=0o600)
        self._configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        give(self._configuration, account())

    def create(self) -> None:
        """TerminalError with its own words, such as that it does not know the server's version."""
        self._run("stanza-create")

    def back_up(self) -> None:
        with self._server.archiving(" ".join((*self._words(), "archive-push", "%p"))):
            self._run("--type=full", "backup")

    def restore(self, home: Path) -> SystemPostgreSQL:
        """The newest backup, with all of the log."""
        # Its log is nobody's, and it answers once it is promoted, as ours does.
        restored = SystemPostgreSQL(home, self._programs, {"archive_mode": "off", "hot_standby": "off"})
        make_private(restored.data)
        self._run(f"--pg1-path={restored.data}", "restore")
        restored.ensure_running()
        return restored

    def _run(self, *words: str) -> None:
        must_run([*self._words(), *words], cwd=self._folder, deadline_s=_DEADLINE_S)

    def _words(self) -> list[str]:
        program = shutil.which("pgbackrest")
        assert program is not None, "its version was asked"
        return [program, f"--config={self._configuration}", f"--stanza={STANZA}", "--log-level-console=warn"]


def _repository(way: Way, front: HttpsFront) -> tuple[str, ...]:
    return (
        "repo1-type=s3",
        f"repo1-path=/{way.folder}",
        f"repo1-s3-bucket={BUCKET}",
        f"repo1-s3-endpoint={HOST}",
        "repo1-s3-region=us-east-1",
        f"repo1-s3-key={front.access_key}",
        f"repo1-s3-key-secret={front.secret_key}",
        "repo1-s3-uri-style=path",
        f"repo1-storage-host={HOST}",
        f"repo1-storage-port={front.port}",
        "repo1-storage-verify-tls=n",
        "repo1-cipher-type=aes-256-cbc",
        "repo1-cipher-pass=of data that the benchmark made",
        "repo1-retention-full=99",
        "log-level-file=off",
        "start-fast=y",
    )
