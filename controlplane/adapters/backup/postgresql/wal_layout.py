"""How a dataset's log lies in its bucket.

    <dataset>/wal/<timeline>/<segment>/<start>-<end>.<covered>.<epoch>  a sealed range of the log
    <dataset>/wal/history/<timeline>.<epoch>                            a sealed timeline history
    <dataset>/wal/keys/<epoch>.json                                     the wrapped key of an epoch
    <dataset>/wal/head.json                                             how far an idle log is covered

Positions are 16 hexadecimal digits, timelines 8, `covered` is in milliseconds since 1970. A range is a piece of a
segment or all of it: both have the same kind of name, so a listing alone tells what is there and up to which moment.
Each blob is sealed for its own key: a renamed or copied object does not open.
"""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from controlplane.adapters.backup.postgresql.lsn import Position, segment_name
from controlplane.adapters.backup.sealing import derived_key
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.manifest import WrappedKey
from controlplane.recovery.ports import ObjectInfo

_RANGE: Final = re.compile(r"/wal/([0-9A-F]{8})/([0-9A-F]{24})/([0-9A-F]{16})-([0-9A-F]{16})\.(\d+)\.([0-9A-Za-z-]+)$")
_HISTORY: Final = re.compile(r"/wal/history/([0-9A-F]{8})\.([0-9A-Za-z-]+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class WalRange:
    """An object with a range of the log."""

    key: str
    timeline: int
    segment: str
    start: int
    end: int
    covered_ms: int
    epoch: str
    stored_bytes: int = 0
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryObject:
    key: str
    timeline: int
    epoch: str


class EpochFile(BaseModel):
    """The key under which one stream wrote, wrapped; plain JSON, since it tells nothing without the site's key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    epoch: str
    system_id: str
    """Of the PostgreSQL cluster: a bucket takes the log of one only."""
    segment_bytes: int
    began_at: datetime
    keys: tuple[WrappedKey, ...]


class HeadFile(BaseModel):
    """Every commit acknowledged by `covered_at` lies below `position`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    epoch: str
    position: str
    covered_at: datetime
    mac: str = ""

    def sealed(self, data_key: bytes) -> "HeadFile":
        return self.model_copy(update={"mac": self._mac(data_key)})

    def is_genuine(self, data_key: bytes) -> bool:
        return hmac.compare_digest(self.mac, self._mac(data_key))

    @property
    def at(self) -> Position:
        return Position.parse(self.position)

    def _mac(self, data_key: bytes) -> str:
        body = orjson.dumps(self.model_dump(mode="json", exclude={"mac"}), option=orjson.OPT_SORT_KEYS)
        return hmac.digest(derived_key(data_key, "wal-head"), body, "sha256").hex()


def wal_prefix(dataset: str) -> str:
    return f"{dataset}/wal/"


def range_key(
    dataset: str, *, timeline: int, start: int, end: int, segment_bytes: int, covered_us: int, epoch: str
) -> str:
    segment = segment_name(timeline, start, segment_bytes)
    covered_ms = covered_us // 1000  # rounded down: never covered later than it is
    return f"{wal_prefix(dataset)}{timeline:08X}/{segment}/{start:016X}-{end:016X}.{covered_ms}.{epoch}"


def segment_prefix(dataset: str, segment: str) -> str:
    """Of the ranges of one segment; its name begins with the timeline."""
    return f"{wal_prefix(dataset)}{segment[:8]}/{segment}/"


def history_prefix(dataset: str) -> str:
    return f"{wal_prefix(dataset)}history/"


def history_key(dataset: str, timeline: int, epoch: str) -> str:
    return f"{history_prefix(dataset)}{timeline:08X}.{epoch}"


def epoch_prefix(dataset: str) -> str:
    return f"{wal_prefix(dataset)}keys/"


def epoch_key(dataset: str, epoch: str) -> str:
    return f"{epoch_prefix(dataset)}{epoch}.json"


def head_key(dataset: str) -> str:
    return f"{wal_prefix(dataset)}head.json"


def key_context(dataset: str, epoch: str) -> str:
    """What the key of an epoch is wrapped for."""
    return f"{dataset}/wal/{epoch}"


def parse_range(info: ObjectInfo) -> WalRange | None:
    """None: another kind of object."""
    match = _RANGE.search(info.key)
    if match is None:
        return None
    return WalRange(
        key=info.key,
        timeline=int(match[1], 16),
        segment=match[2],
        start=int(match[3], 16),
        end=int(match[4], 16),
        covered_ms=int(match[5]),
        epoch=match[6],
        stored_bytes=info.size_bytes,
        version=info.version,
    )


def parse_history_key(key: str) -> HistoryObject | None:
    match = _HISTORY.search(key)
    return HistoryObject(key=key, timeline=int(match[1], 16), epoch=match[2]) if match else None


def is_head(key: str) -> bool:
    return key.endswith("/wal/head.json")


def encode(model: BaseModel) -> bytes:
    return orjson.dumps(model.model_dump(mode="json"), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)


def decode[Model: BaseModel](kind: type[Model], key: str, data: bytes) -> Model:
    """TerminalError, naming the object, for anything that is not one."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise TerminalError(f"{key}: found no valid {kind.__name__} in it ({error.error_count()} problems)") from error


def moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def sorted_ranges(infos: Sequence[WalRange]) -> list[WalRange]:
    """By timeline and start, the longest of each start first."""
    return sorted(infos, key=lambda found: (found.timeline, found.start, -found.end))
