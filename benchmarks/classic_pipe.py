"""What most teams have: `pg_dump | gpg --symmetric`, then upload; and download, `gpg --decrypt | psql`."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.servers import Server
from controlplane.adapters.backup.postgresql.programs import Programs

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

DEFAULTS: Final = "pg_dump | gpg"
"""They compress."""
PLAIN: Final = "the same, uncompressed"
_OPTIONS: Final = {DEFAULTS: (), PLAIN: ("--compress-algo", "none")}
_KEY: Final = "classic/dump.sql.gpg"
_PASSPHRASE: Final = "of data that the benchmark made"
_DEADLINE_S: Final = 900.0


class ClassicPipe:
    """Implements `recovery_lab.Peer`."""

    def __init__(
        self,
        name: str,
        *,
        server: Server,
        programs: Programs,
        client: "S3Client",
        bucket: str,
        folder: Path,
        empty_server: Callable[[Path], Server],
    ) -> None:
        """`folder`: of its own, not there yet. `empty_server`: one in such a folder, not started."""
        folder.mkdir(mode=0o700)  # gpg's home, and for the file that is sent
        self.name: Final = name
        self._server = server
        self._programs = programs
        self._client = client
        self._bucket = bucket
        self._archive = folder / "dump.sql.gpg"
        self._empty_server = empty_server
        words = folder / "passphrase"
        words.write_text(_PASSPHRASE, encoding="utf-8")
        self._environment = {**os.environ, "GNUPGHOME": str(folder)}
        how = ("--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase-file", str(words))
        self._gpg: tuple[str, ...] = ("gpg", *how)

    def back_up(self) -> None:
        options = ("--symmetric", "--cipher-algo", "AES256", *_OPTIONS[self.name], "--output", str(self._archive))
        self._piped([self._programs.path("pg_dump"), self._server.url], [*self._gpg, *options])
        self._client.upload_file(str(self._archive), self._bucket, _KEY)
        self._archive.unlink()

    def restore(self, home: Path) -> Server:
        self._client.download_file(self._bucket, _KEY, str(self._archive))
        restored = self._empty_server(home)
        url = restored.ensure_running()
        psql = [self._programs.path("psql"), "--quiet", "--set", "ON_ERROR_STOP=1", "--output", os.devnull, url]
        self._piped([*self._gpg, "--decrypt", str(self._archive)], psql)
        self._archive.unlink()
        return restored

    def _piped(self, first: Sequence[str], second: Sequence[str]) -> None:
        """`first | second`."""
        with subprocess.Popen(first, stdout=subprocess.PIPE, env=self._environment) as source:
            subprocess.run(second, stdin=source.stdout, env=self._environment, check=True, timeout=_DEADLINE_S)
        if source.returncode:
            raise subprocess.CalledProcessError(source.returncode, list(first))
