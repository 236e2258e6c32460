"""pgBackRest: what its listings, its file lists and pg_waldump's lines mean."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.adapters.backup.pgbackrest_archive import end_position, gaps, last_commit, parse_listing, unbroken
from controlplane.adapters.backup.pgbackrest_files import LIST_NAME, compare_files
from controlplane.adapters.backup.pgbackrest_repository import RepositoryInfo
from controlplane.domain.recovery import Verdict
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.units import MIB
from controlplane.testing.backups import RecordingWatch

SHA1 = "6b5e9a81f91274a01d41112c16cf0d656da9a519"
SEGMENT = 16 * MIB
INFO = {
    # Of pgBackRest 2.45, shortened to one backup.
    "archive": [{"database": {"id": 1, "repo-key": 1}, "id": "15-1", "max": "0" * 24, "min": "0" * 24}],
    "backup": [
        {
            "archive": {"start": "000000010000000000000003", "stop": "000000010000000000000003"},
            "backrest": {"format": 5, "version": "2.45"},
            "database": {"id": 1, "repo-key": 1},
            "error": False,
            "info": {"delta": 23197384, "repository": {"delta": 2827832, "size": 2827832}, "size": 23197384},
            "label": "20261122-011408F",
            "lsn": {"start": "0/3000028", "stop": "0/3000100"},
            "prior": None,
            "reference": None,
            "timestamp": {"start": 1795310048, "stop": 1795310050},
            "type": "full",
        }
    ],
    "cipher": "none",
    "db": [{"id": 1, "repo-key": 1, "system-id": 7710797866207798935, "version": "15"}],
    "name": "lab",
    "repo": [{"cipher": "none", "key": 1, "status": {"code": 0, "message": "ok"}}],
    "status": {"code": 0, "lock": {"backup": {"held": False}}, "message": "ok"},
}


def listing(*names: str) -> str:
    paths = {f"{name[:16]}/{name}-{SHA1}.zst": {"type": "file", "size": 100, "time": 1795310048} for name in names}
    others = {
        ".": {"type": "path"},
        "0000000100000000/000000010000000000000003.00000028.backup": {"type": "file", "size": 371, "time": 1},
        "00000002.history": {"type": "file", "size": 42, "time": 1},
        f"0000000100000000/000000010000000000000009.partial-{SHA1}.gz": {"type": "file", "size": 42, "time": 1},
    }
    return json.dumps({**others, **paths})


def segment(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}{number // 256:08X}{number % 256:08X}"


def test_a_listing_gives_segments_in_order_and_histories() -> None:
    archive = parse_listing(listing(segment(4), segment(3), segment(255), segment(256)), SEGMENT)
    assert [found.number for found in archive.segments] == [3, 4, 255, 256]
    first = archive.segments[0]
    assert (first.name, first.sha1, first.suffix, first.stored_bytes) == (segment(3), SHA1, ".zst", 100)
    assert first.stored_at == datetime(2026, 11, 22, 1, 14, 8, tzinfo=UTC)
    assert archive.histories == ("00000002.history",)


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"a": 1}'])
def test_something_that_is_no_listing_is_named(text: str) -> None:
    with pytest.raises(TerminalError, match="expected JSON"):
        parse_listing(text, SEGMENT)


def test_gaps_are_named_across_logs_and_timelines() -> None:
    whole = parse_listing(listing(*map(segment, range(254, 259))), SEGMENT).segments
    assert gaps(whole) == ()
    assert len(unbroken(whole)) == 5
    torn = parse_listing(listing(segment(254), segment(255), segment(258), segment(259)), SEGMENT).segments
    assert gaps(torn) == (f"after {segment(255)} comes {segment(258)}: 2 segments are missing",)
    assert [found.number for found in unbroken(torn)] == [254, 255]
    forked = parse_listing(listing(segment(3), segment(4), segment(4, 2), segment(5, 2)), SEGMENT).segments
    assert gaps(forked) == ()
    far = parse_listing(listing(segment(3), segment(6, 2)), SEGMENT).segments
    assert len(gaps(far)) == 1
    assert gaps(()) == ()


def test_what_follows_a_backup_is_on_its_timeline_or_a_later_one() -> None:
    archive = parse_listing(listing(segment(2), segment(3), segment(9), segment(3, 2), segment(2, 3)), SEGMENT)
    assert [found.name for found in archive.since(segment(3))] == [segment(3), segment(9), segment(3, 2)]
    assert [found.name for found in archive.since(segment(3, 2))] == [segment(3, 2)]


def test_a_position_is_the_end_of_the_segment() -> None:
    (found,) = parse_listing(listing(segment(255, 2)), SEGMENT).segments
    assert end_position(found, SEGMENT) == "2:1/0"


def test_the_last_commit_of_a_segment() -> None:
    said = (
        "rmgr: Transaction len (rec/tot):  34/  34, tx:        731, lsn: 0/04000150, prev 0/04000128, "
        "desc: COMMIT 2026-11-22 01:14:10.606226 UTC\n"
        "rmgr: Transaction len (rec/tot):  34/  34, tx:        729, lsn: 0/04000178, prev 0/04000150, "
        "desc: ABORT 2026-11-22 01:14:11.000001 UTC\n"
        "rmgr: Transaction len (rec/tot): 405/ 405, tx:        730, lsn: 0/040001A0, prev 0/04000178, "
        "desc: COMMIT_PREPARED 733: 2026-11-22 01:14:12.500000 UTC; rels: base/5/16384\n"
        "pg_waldump: error: error in WAL record at 0/4FFFFF0: missing contrecord\n"
    )
    found = last_commit(said)
    assert found is not None
    assert found.at == datetime(2026, 11, 22, 1, 14, 12, 500_000, tzinfo=UTC)
    assert found.newest_xid == 731
    assert last_commit("nothing was committed") is None


def test_newer_versions_may_tell_more() -> None:
    newer = {**INFO, "more": 1, "backup": [{**INFO["backup"][0], "annotation": {"a": "b"}}]}  # type: ignore[index]
    info = RepositoryInfo.model_validate_json(json.dumps(newer))
    assert info.archive_id == "15-1"
    assert info.db[-1].system_id == 7710797866207798935
    assert info.backup[-1].started_at == datetime(2026, 11, 22, 1, 14, 8, tzinfo=UTC)


@pytest.fixture
def restored(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "base" / "1").mkdir(parents=True)
    (data / "base" / "1" / "112").write_bytes(b"x" * 8192)
    (data / "base" / "1" / "113").touch()
    (data / "postgresql.auto.conf").write_text("rewritten", encoding="utf-8")
    checksum = hashlib.sha1(b"x" * 8192, usedforsecurity=False).hexdigest()
    (tmp_path / LIST_NAME).write_text(
        '[backup]\nbackup-label="x"\n\n[target:file]\n'
        f'pg_data/base/1/112={{"checksum":"{checksum}","repo-size":59,"size":8192,"timestamp":1795310030}}\n'
        'pg_data/base/1/113={"size":0,"timestamp":1795310030}\n'
        'pg_data/postgresql.auto.conf={"checksum":"00","size":88,"timestamp":1795310030}\n'
        '\n[target:file:default]\ngroup="nogroup"\n',
        encoding="utf-8",
    )
    return tmp_path


def verdict(folder: Path) -> tuple[Verdict, str]:
    outcome = compare_files(folder / LIST_NAME, folder / "data", RecordingWatch())
    return outcome.verdict, outcome.sentence


def test_files_as_listed_pass(restored: Path) -> None:
    assert verdict(restored) == (Verdict.PASSED, "all 2 files have the length and SHA-1 of the backup")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("flip", "not those of the backup"),
        ("cut", "expected 8192"),
        ("gone", "cannot be read"),
        ("grown", "expected 0"),
    ],
)
def test_other_files_fail(restored: Path, damage: str, words: str) -> None:
    path = restored / "data" / "base" / "1" / "112"
    match damage:
        case "flip":
            path.write_bytes(b"x" * 8191 + b"y")
        case "cut":
            path.write_bytes(b"x" * 8000)
        case "gone":
            path.unlink()
        case _:
            path.with_name("113").write_bytes(b"x")
    found, sentence = verdict(restored)
    assert found is Verdict.FAILED
    assert words in sentence


@pytest.mark.parametrize("body", [None, b"\xff\xfe", b"[target:file]\n", b"", b"[target:file]\npg_data/x={broken\n"])
def test_a_list_that_cannot_be_read_fails(restored: Path, body: bytes | None) -> None:
    (restored / LIST_NAME).unlink()
    if body is not None:
        (restored / LIST_NAME).write_bytes(body)
    assert verdict(restored)[0] is Verdict.FAILED
