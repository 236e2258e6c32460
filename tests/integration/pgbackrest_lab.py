"""The system's PostgreSQL archiving to a pgBackRest repository, in a folder of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import pytest

from controlplane.adapters.backup.pgbackrest_repository import Repository

INSTALL: Final = "apt-get install postgresql pgbackrest (or `make components` as root)"
STANZA: Final = "lab"
_DEADLINE_S: Final = 60.0
_UNPRIVILEGED: Final = "nobody"
_PORT: Final = 5432
"""Names the socket; nothing listens on a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    folder: Path
    programs: Path
    user: str | None

    @property
    def repository(self) -> Repository:
        return Repository(configuration=self.folder / "pgbackrest.conf", stanza=STANZA)

    @property
    def url(self) -> str:
        return f"postgresql://quarterdeck@/postgres?host={self.folder}/socket&port={_PORT}"

    @property
    def archive(self) -> Path:
        """The folder with the archived segments of the first timeline's first 4 GiB."""
        (found,) = (self.folder / "repository" / "archive" / STANZA).glob("*-1/0000000100000000")
        return found

    def run(self, *argv: str | Path) -> None:
        subprocess.run(
            argv,
            user=self.user,
            extra_groups=[] if self.user else None,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(self.folder)},
            cwd=self.folder,
            check=True,
            capture_output=True,
            timeout=_DEADLINE_S,
        )

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def archived(self) -> None:
        """Everything committed so far is in the repository when this returns."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
            assert row is not None
            name = str(row[0])
            for _ in range(600):
                done = connection.execute(
                    "SELECT last_archived_wal >= %s FROM pg_stat_archiver, pg_sleep(0.05)", (name,)
                ).fetchone()
                if done is not None and done[0]:
                    return
        pytest.fail(f"{name} was not archived")

    def stop(self) -> None:
        self.run(self.programs / "pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "stop")


@contextmanager
def open_lab(*settings: str) -> Iterator[Lab]:
    """Started and with a stanza; gone at the end. `settings` are lines of pgBackRest's configuration."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not programs or shutil.which("pgbackrest") is None:
        pytest.skip(f"no PostgreSQL of the system's, or no pgBackRest; to have them: {INSTALL}")
    folder = Path(tempfile.mkdtemp(prefix="qd-pgbackrest-", dir="/var/tmp"))
    user = _UNPRIVILEGED if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    lab = Lab(folder=folder, programs=programs[-1], user=user)
    try:
        _prepare(lab, settings)
        lab.run(lab.programs / "pg_ctl", "-D", folder / "data", "-l", folder / "log.txt", "-w", "start")
        try:
            lab.run("pgbackrest", f"--config={folder}/pgbackrest.conf", f"--stanza={STANZA}", "stanza-create")
            yield lab
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                lab.stop()
    finally:
        shutil.rmtree(folder)


def _prepare(lab: Lab, settings: tuple[str, ...]) -> None:
    folder = lab.folder
    for name in ("repository", "log", "lock", "spool", "socket"):
        (folder / name).mkdir()
    configuration = [
        "[global]",
        f"repo1-path={folder}/repository",
        "repo1-retention-full=9",
        f"log-path={folder}/log",
        f"lock-path={folder}/lock",
        f"spool-path={folder}/spool",
        "start-fast=y",
        *settings,
        f"[{STANZA}]",
        f"pg1-path={folder}/data",
        f"pg1-port={_PORT}",
        f"pg1-socket-path={folder}/socket",
        "pg1-user=quarterdeck",
    ]
    (folder / "pgbackrest.conf").write_text("\n".join(configuration) + "\n", encoding="utf-8")
    if lab.user is not None:
        account = pwd.getpwnam(lab.user)
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
    lab.run(
        lab.programs / "initdb",
        *("-D", folder / "data", "-U", "quarterdeck", "-A", "trust", "-E", "UTF8", "--no-sync", "--data-checksums"),
    )
    with (folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as file:
        push = f"pgbackrest --config={folder}/pgbackrest.conf --stanza={STANZA} archive-push %p"
        file.write(
            f"listen_addresses = ''\nport = {_PORT}\nunix_socket_directories = '{folder}/socket'\n"
            f"wal_level = replica\narchive_mode = on\narchive_command = '{push}'\n"
            "fsync = off\nfull_page_writes = on\nshared_buffers = 16MB\nautovacuum = off\n"
        )
