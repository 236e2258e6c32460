"""The log that lies in a pgBackRest repository: which segments, where one is missing, how far a restore gets. Pure."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from controlplane.kernel.errors import TerminalError

LOG_BYTES: Final = 1 << 32
"""A segment's name counts in logs of 4 GiB and segments within one (PostgreSQL's xlog_internal.h)."""
_TIMELINE_DIGITS: Final = 8
_SEGMENT: Final = re.compile(
    r"^(?P<path>.+/)?(?P<name>(?P<timeline>[0-9A-F]{8})(?P<log>[0-9A-F]{8})(?P<low>[0-9A-F]{8}))-(?P<sha1>[0-9a-f]{40})"
    r"(?P<suffix>\.\w+)?$"
)
_HISTORY: Final = re.compile(r"^(?P<path>.+/)?(?P<name>[0-9A-F]{8}\.history)$")
_COMMIT: Final = re.compile(
    r"tx:\s*(?P<xid>\d+),.* desc: (?:COMMIT|ABORT)(?:_PREPARED)?\b.*?(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    path: str
    """In the archive's folder, with the hash and the compression in its name."""
    name: str
    timeline: int
    number: int
    """Segments since the beginning of the log."""
    sha1: str
    """Of the segment's plain bytes, as pgBackRest took it."""
    suffix: str
    stored_bytes: int
    stored_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    segments: tuple[Segment, ...]
    """By timeline, then by number."""
    histories: tuple[str, ...]
    """Paths of timeline history files."""

    def since(self, name: str) -> tuple[Segment, ...]:
        """From the segment on, on its timeline and on later ones."""
        timeline, position = name[:_TIMELINE_DIGITS], name[_TIMELINE_DIGITS:]
        return tuple(
            segment
            for segment in self.segments
            if segment.name[:_TIMELINE_DIGITS] >= timeline and segment.name[_TIMELINE_DIGITS:] >= position
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LastCommit:
    at: datetime
    """When it (or the last rollback) was written: everything acknowledged before is in the log before it."""
    newest_xid: int
    """The highest transaction number in the segment, 32 bits."""


def parse_listing(text: str, segment_bytes: int) -> Archive:
    """Of `repo-ls --output=json --recurse`. TerminalError when it is something else."""
    try:
        entries = json.loads(text)
        files = {path: entry for path, entry in entries.items() if entry["type"] == "file"}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise TerminalError(f"pgBackRest listed its archive as {text[:80]!r}, expected JSON") from error
    per_log = LOG_BYTES // segment_bytes
    segments = [
        _segment(match, entry, per_log) for path, entry in files.items() if (match := _SEGMENT.match(path)) is not None
    ]
    return Archive(
        segments=tuple(sorted(segments, key=lambda segment: segment.name)),
        histories=tuple(sorted(path for path in files if _HISTORY.match(path))),
    )


def gaps(segments: Sequence[Segment]) -> tuple[str, ...]:
    """Where the next segment is missing, in words; a timeline goes on where the one before it is left."""
    return tuple(
        f"after {before.name} comes {after.name}: {after.number - before.number - 1} segments are missing"
        for before, after in pairwise(segments)
        if after.number > before.number + 1
    )


def unbroken(segments: Sequence[Segment]) -> Sequence[Segment]:
    """Up to the first gap: no restore gets further."""
    for index, (before, after) in enumerate(pairwise(segments)):
        if after.number > before.number + 1:
            return segments[: index + 1]
    return segments


def end_position(segment: Segment, segment_bytes: int) -> str:
    """`1:0/5000000`: timeline, and the first byte after the segment."""
    lsn = (segment.number + 1) * segment_bytes
    return f"{segment.timeline}:{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def last_commit(said: str) -> LastCommit | None:
    """Of what pg_waldump prints of the transactions in one segment, in UTC."""
    found = list(_COMMIT.finditer(said))
    if not found:
        return None
    return LastCommit(
        at=datetime.fromisoformat(found[-1]["at"]).replace(tzinfo=UTC),
        newest_xid=max(int(match["xid"]) for match in found),
    )


def stored_bytes(segments: Iterable[Segment]) -> int:
    return sum(segment.stored_bytes for segment in segments)


def _segment(match: re.Match[str], entry: dict[str, int], per_log: int) -> Segment:
    return Segment(
        path=match[0],
        name=match["name"],
        timeline=int(match["timeline"], 16),
        number=int(match["log"], 16) * per_log + int(match["low"], 16),
        sha1=match["sha1"],
        suffix=match["suffix"] or "",
        stored_bytes=int(entry["size"]),
        stored_at=datetime.fromtimestamp(int(entry["time"]), UTC),
    )
