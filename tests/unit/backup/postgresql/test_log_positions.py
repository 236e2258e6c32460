"""Positions, segments and histories of PostgreSQL's log."""

import pytest

from controlplane.adapters.backup.postgresql.lsn import (
    SEGMENT_BYTES,
    Position,
    Switch,
    format_lsn,
    is_segment_name,
    parse_history,
    parse_lsn,
    segment_end,
    segment_name,
    segment_start,
)
from controlplane.kernel.errors import TerminalError


@pytest.mark.parametrize("text", ["0/0", "0/3000028", "16/B374D848", "FFFFFFFF/FFFFFFFF"])
def test_what_is_printed_is_what_was_read(text: str) -> None:
    assert format_lsn(parse_lsn(text)) == text


@pytest.mark.parametrize("text", ["", "0", "0/", "x/1", "1:0/3", "0/123456789"])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(TerminalError, match="0/3000028"):
        parse_lsn(text)


def test_a_position_is_of_a_timeline() -> None:
    assert Position.parse("2:0/3000028") == Position(2, 0x3000028)
    assert str(Position(2, 0x3000028)) == "2:0/3000028"
    assert Position(1, 99) < Position(2, 1)
    with pytest.raises(TerminalError, match="1:0/3000028"):
        Position.parse("0/3000028")


@pytest.mark.parametrize(
    ("lsn", "segment_bytes", "name"),
    [
        ("0/0", SEGMENT_BYTES, "000000010000000000000000"),
        ("0/1FFFFFF", SEGMENT_BYTES, "000000010000000000000001"),
        ("0/FF000000", SEGMENT_BYTES, "0000000100000000000000FF"),
        ("1/0", SEGMENT_BYTES, "000000010000000100000000"),
        ("0/C0000000", 1024**3, "000000010000000000000003"),
        ("2/100000", 1024**2, "000000010000000200000001"),
    ],
)
def test_segments_are_named_as_postgresql_names_them(lsn: str, segment_bytes: int, name: str) -> None:
    assert segment_name(1, parse_lsn(lsn), segment_bytes) == name
    assert is_segment_name(name)
    assert not is_segment_name(name.lower() + "x")


def test_a_segment_has_a_start_and_an_end() -> None:
    assert segment_start(0x3000028, SEGMENT_BYTES) == 0x3000000
    assert segment_end(0x3000028, SEGMENT_BYTES) == 0x4000000
    assert segment_end(0x3000000, SEGMENT_BYTES) == 0x3000000


def test_a_history_names_the_ancestors_and_their_forks() -> None:
    text = "1\t0/A000198\tno recovery target specified\n\n# a comment\n2\t0/B000000\tbefore 2026-01-01\n"
    assert parse_history(text) == (Switch(1, 0xA000198), Switch(2, 0xB000000))
