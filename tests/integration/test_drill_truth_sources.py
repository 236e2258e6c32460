"""Copies that are whole and yet not right: the source, the declaration or the key was wrong. A drill shows it."""

import gzip
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from controlplane.adapters.backup.keyfiles import generate_break_glass
from controlplane.domain.dataset import CheckSpec, DatasetKind, KeyPurpose, KeysSpec
from controlplane.domain.recovery import BackupPhase, DrillPhase
from controlplane.recovery.rpo import RpoState
from tests.integration.recovery_lab import DAY, RecoveryLab, declare, forged_snapshot, must_fail
from tests.integration.recovery_sources import fill, plant

HOUR: Final = timedelta(hours=1)
LOG_N: Final = 10
"""Of scrypt, for keys that protect nothing."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "shop.sqlite3"
    fill(path)
    return path


@pytest.fixture
def lab(database: Path, tmp_path: Path) -> RecoveryLab:
    own = Path(shutil.copy(database, tmp_path))
    return RecoveryLab(tmp_path / "state", declare(DatasetKind.SQLITE, own))


def alter(statement: str) -> Callable[[dict[str, bytes]], None]:
    """The copy holds a database that differs by a statement from what the manifest tells."""

    def change(streams: dict[str, bytes]) -> None:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(streams["database"])
            connection.executescript(statement)
            streams["database"] = connection.serialize()

    return change


def garbage(streams: dict[str, bytes]) -> None:
    """As of a pipe whose first program failed."""
    streams["database"] = gzip.compress(random.Random(3).randbytes(50_000))


def nothing(streams: dict[str, bytes]) -> None:
    streams["database"] = b""


def half(streams: dict[str, bytes]) -> None:
    streams["database"] = streams["database"][: len(streams["database"]) // 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(garbage, "file is not a database", id="gzipped-garbage"),
        pytest.param(nothing, "there, expected|no such table|is missing", id="nothing"),
        pytest.param(half, "integrity_check|malformed", id="half-of-it"),
        pytest.param(alter("DELETE FROM orders WHERE id > 590"), "orders: 591 rows, expected 600", id="rows-lost"),
        pytest.param(alter("UPDATE orders SET customer = 1"), "orders: its 600 rows are not those", id="other-rows"),
        pytest.param(alter("DROP INDEX by_time"), "schema: index by_time is missing", id="index-lost"),
        pytest.param(alter("ALTER TABLE orders ADD COLUMN x"), "orders is defined otherwise", id="schema-drift"),
        pytest.param(alter("DELETE FROM customers"), "foreign_key_check: rows that name a parent", id="parents-lost"),
    ],
)
async def test_a_copy_that_was_never_right(
    change: Callable[[dict[str, bytes]], None], says: str, lab: RecoveryLab
) -> None:
    """Sealed, signed and whole: only opening it shows that it is not what it says."""
    manifest = lab.copy(forged_snapshot(lab, change))
    assert lab.is_whole(manifest.point)
    must_fail(await lab.drill(), says)


async def test_a_source_that_was_damaged_already(lab: RecoveryLab) -> None:
    """SQLite copies such pages without a word; nobody reads an index to count."""
    with closing(sqlite3.connect(lab.source)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'by_time'").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    body = bytearray(lab.source.read_bytes())
    first_cell = root * page_bytes - 60  # cells fill a page from its end
    body[first_cell : first_cell + 40] = bytes(40)
    lab.source.write_bytes(body)
    assert (await lab.back_up()).phase is BackupPhase.DONE
    await lab.look()
    must_fail(await lab.drill(), "integrity_check")


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (CheckSpec(name="orders", sql="SELECT count(*) FROM orders", at_least=10_000), "found 600, expected at least"),
        (CheckSpec(name="drift", sql="SELECT max(shipped_at) FROM orders", at_least=0), "no such column: shipped_at"),
        (CheckSpec(name="gone", sql="SELECT count(*) FROM invoices", at_least=0), "no such table: invoices"),
        (CheckSpec(name="owner", sql="SELECT name FROM customers WHERE id = 1", equals="x"), "found customer 1"),
        (CheckSpec(name="none", sql="SELECT id FROM orders WHERE id < 0", at_least=0), "gave nothing"),
        (CheckSpec(name="writes", sql="DELETE FROM orders RETURNING 1", at_least=0), "readonly"),
    ],
    ids=lambda value: value.name if isinstance(value, CheckSpec) else "",
)
async def test_an_assertion_that_does_not_hold(check: CheckSpec, says: str, lab: RecoveryLab) -> None:
    lab.dataset = replace(lab.dataset, checks=(check,))
    lab.copy()
    must_fail(await lab.drill(), f"{check.name}: .*{says}")


async def test_an_empty_database(lab: RecoveryLab) -> None:
    lab.dataset = replace(
        lab.dataset, checks=(CheckSpec(name="orders", sql="SELECT count(*) FROM orders", at_least=1),)
    )
    with closing(sqlite3.connect(lab.source)) as connection:
        connection.executescript("DELETE FROM orders; DELETE FROM customers; VACUUM")
    lab.copy()
    must_fail(await lab.drill(), "orders: found 0, expected at least 1")


async def test_a_stale_source(lab: RecoveryLab) -> None:
    """Copied on time, from a replica that stopped following two days ago."""
    fresh = CheckSpec(name="newest", sql="SELECT max(placed_at) FROM orders", fresh_within=HOUR)
    lab.dataset = replace(lab.dataset, checks=(fresh,))
    lab.copy()
    assert (await lab.drill()).phase is DrillPhase.PASSED
    lab.fake_clock.jump(2 * DAY)
    lab.copy()
    await lab.look()
    must_fail(await lab.drill(), "newest: the newest is of 2026-01-05 08:00:00 UTC, 48h00m before the recovery point")


async def test_a_stale_copy(lab: RecoveryLab) -> None:
    """No copy was made for two days: the drill of the newest says what that costs, the verdict as well."""
    lab.copy()
    lab.fake_clock.jump(2 * DAY)
    assert (await lab.verdict()).state is RpoState.BREACHED
    must_fail(await lab.drill(), "newest restored moment is 48h00m before .* the RPO is 24h00m")


async def test_a_clock_ahead(lab: RecoveryLab) -> None:
    """A copy that was dated by a wrong clock must not look fresh for a year."""
    lab.copy()
    lab.fake_clock.jump(365 * DAY)
    lab.copy()
    lab.fake_clock.jump(-365 * DAY)
    verdict = await lab.verdict()
    assert any("a clock is wrong" in note for note in verdict.notes)
    must_fail(await lab.drill(), "in the future: a clock is wrong")
    lab.fake_clock.jump(2 * DAY)
    assert (await lab.verdict()).state is RpoState.BREACHED


async def test_too_slow(lab: RecoveryLab) -> None:
    lab.copy()
    lab.dataset = replace(lab.dataset, rto=timedelta(microseconds=1))
    must_fail(await lab.drill(), "it took .*, the RTO is")


async def test_another_site_key(lab: RecoveryLab, tmp_path: Path) -> None:
    lab.copy()
    stranger = lab.elsewhere(tmp_path / "stranger")
    assert (await stranger.verdict()).state is RpoState.NEVER
    must_fail(await stranger.drill(), "site:[0-9a-f]{8}")


def keys_in(folder: Path) -> tuple[KeysSpec, Path]:
    """The public half declared at the site, and the private one, which lies in a safe."""
    folder.mkdir()
    private, public = folder / "private", folder / "public"
    generate_break_glass(private, public, log_n=LOG_N)
    return KeysSpec(break_glass=str(public)), private


async def test_the_break_glass_key_alone(lab: RecoveryLab, tmp_path: Path) -> None:
    """It passes with the right one only; the site's own key, which is at hand as well, does not help out."""
    keys, private = keys_in(tmp_path / "safe")
    _, foreign = keys_in(tmp_path / "other safe")

    def holding(key: Path | None) -> RecoveryLab:
        return lab.elsewhere(lab.folder, keys=keys, break_glass=key)

    site = holding(None)
    site.copy()
    must_fail(await site.drill(key=KeyPurpose.BREAK_GLASS), "break-glass:[0-9a-f]{8}")
    must_fail(await holding(foreign).drill(key=KeyPurpose.BREAK_GLASS), "break-glass:[0-9a-f]{8}")
    passed = await holding(private).drill(key=KeyPurpose.BREAK_GLASS)
    assert passed.phase is DrillPhase.PASSED, passed.sentence
    assert (passed.key_id or "").startswith("break-glass:")


async def test_a_copy_that_no_break_glass_key_opens(lab: RecoveryLab, tmp_path: Path) -> None:
    keys, private = keys_in(tmp_path / "safe")
    lab.copy()
    later = lab.elsewhere(lab.folder, keys=keys, break_glass=private)
    must_fail(await later.drill(key=KeyPurpose.BREAK_GLASS), "break-glass")


@pytest.fixture
def files(tmp_path: Path) -> RecoveryLab:
    folder = tmp_path / "documents"
    plant(folder, random.Random(5))
    return RecoveryLab(tmp_path / "state", declare(DatasetKind.FILES, folder))


def in_the_tree(streams: dict[str, bytes]) -> None:
    body = bytearray(streams["tree"])
    body[body.index(b"two and forty")] = ord("T")
    streams["tree"] = bytes(body)


def tree_cut(streams: dict[str, bytes]) -> None:
    streams["tree"] = streams["tree"][: len(streams["tree"]) // 3]


def index_garbage(streams: dict[str, bytes]) -> None:
    streams["index"] = gzip.compress(streams["index"])


def index_short(streams: dict[str, bytes]) -> None:
    streams["index"] = streams["index"].partition(b"\n")[2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(in_the_tree, "größe.txt: its 13 bytes are not those that were copied", id="other-contents"),
        pytest.param(tree_cut, "tar|is missing|ends", id="tree-cut-off"),
        pytest.param(index_garbage, "cannot be compared|index", id="index-is-garbage"),
        pytest.param(index_short, "is there, and was not at the copy", id="index-names-less"),
    ],
)
async def test_files_that_were_never_right(
    change: Callable[[dict[str, bytes]], None], says: str, files: RecoveryLab
) -> None:
    files.copy(forged_snapshot(files, change))
    must_fail(await files.drill(), says)


async def test_an_empty_folder(files: RecoveryLab) -> None:
    """Somebody forgot to mount it."""
    check = CheckSpec(name="some", sql="SELECT count(*) FROM files WHERE type = 'file'", at_least=1)
    files.dataset = replace(files.dataset, checks=(check,))
    shutil.rmtree(files.source)
    files.source.mkdir()
    files.copy()
    must_fail(await files.drill(), "some: found 0, expected at least 1")
