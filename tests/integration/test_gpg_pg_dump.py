"""Coming from `pg_dump | gpg`: old archives are dumps again, by the commands of docs/datasets.md, and load."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
from typer.testing import CliRunner

from controlplane.adapters.backup.postgresql.embedded import DATABASE, MAJOR
from controlplane.adapters.backup.postgresql.programs import programs_for
from controlplane.cli.main import app as program
from tests.integration.postgresql_lab import Primary, enterable_folder, primary_in
from tests.seaweedfs import RunningSeaweed, running_seaweedfs

DEMO: Final = Path(__file__).parents[2] / "examples" / "demo" / "site.yaml"
PASSPHRASE: Final = "correct horse"
DEADLINE_S: Final = 120
ROWS: Final = 2000

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed: `apt-get install gnupg`")


@pytest.fixture(scope="module")
def primary() -> Iterator[Primary]:
    with enterable_folder() as folder, primary_in(folder / "old") as primary:
        with psycopg.connect(primary.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE orders (id bigint PRIMARY KEY, note text)")
            connection.execute(f"INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(1, {ROWS}) i".encode())
        yield primary


@pytest.fixture(scope="module")
def seaweed() -> Iterator[RunningSeaweed]:
    with running_seaweedfs() as running:
        yield running


def called(program_name: str, *arguments: str | Path) -> bytes:
    """A program of PostgreSQL."""
    command = [programs_for(MAJOR).path(program_name), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def encrypted(plain: bytes, folder: Path) -> bytes:
    """As the classic script does."""
    home, file = folder / "gnupg", folder / "plain"
    home.mkdir(mode=0o700)
    file.write_bytes(plain)
    options = ["--batch", "--no-autostart", "--pinentry-mode", "loopback", "--passphrase", PASSPHRASE, "-o", "-"]
    command = ["gpg", "--homedir", str(home), *options, "--symmetric", "--cipher-algo", "AES256", str(file)]
    # Its exit code is 2 where no agent runs.
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False).stdout


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(f"{PASSPHRASE}\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def read_gpg(*arguments: str | Path, env: dict[str, str] | None = None) -> None:
    done = CliRunner().invoke(program, ["backup", "read-gpg", *(str(one) for one in arguments)], env=env)
    assert done.exit_code == 0, done.output


def database(primary: Primary, name: str) -> str:
    """A new one, and its URL."""
    primary.sql(f"CREATE DATABASE {name}")
    return primary.url.replace(f"/{DATABASE}?", f"/{name}?")


def rows(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM orders WHERE note = md5(id::text)").fetchone()
    assert row is not None
    return int(row[0])


def test_a_plain_dump_from_a_file_into_a_new_database(primary: Primary, tmp_path: Path, words: Path) -> None:
    archive, dump = tmp_path / "orders-2019.sql.gpg", tmp_path / "orders-2019.sql"
    archive.write_bytes(encrypted(called("pg_dump", "--no-owner", "-d", primary.url), tmp_path))
    read_gpg(archive, "--into", dump, "--passphrase-file", words)
    url = database(primary, "orders_2019")
    called("psql", "-d", url, "-v", "ON_ERROR_STOP=1", "--single-transaction", "-f", dump)
    assert rows(url) == ROWS


def test_a_custom_dump_from_a_bucket(primary: Primary, tmp_path: Path, words: Path, seaweed: RunningSeaweed) -> None:
    bucket, dump = seaweed.new_bucket(), tmp_path / "orders.dump"
    plain = called("pg_dump", "--format", "custom", "-d", primary.url)
    seaweed.store(bucket).put("old/orders.dump.gpg", encrypted(plain, tmp_path))
    endpoint = seaweed.endpoint
    spec = (
        f"- {{name: local, bucket: {bucket}, endpoint: '{endpoint.url}', prefix: ours/, "
        "access_key: {env: QD_TEST_ACCESS}, secret_key: {env: QD_TEST_SECRET}}"
    )
    site = tmp_path / "site.yaml"
    site.write_text(DEMO.read_text(encoding="utf-8").replace("- {name: local, embedded: true}", spec), encoding="utf-8")
    read_gpg(
        f"s3://{bucket}/old/orders.dump.gpg", "--into", dump, "--passphrase-file", words,
        "--site", site, "--state-dir", tmp_path / "state",
        env={"QD_TEST_ACCESS": endpoint.access_key, "QD_TEST_SECRET": endpoint.secret_key},
    )  # fmt: skip
    assert dump.read_bytes() == plain
    url = database(primary, "orders_dump")
    called("pg_restore", "--exit-on-error", "--no-owner", "-d", url, dump)
    assert rows(url) == ROWS
