"""Between values and what a column holds. Every codec gives back exactly what it was given (property-tested).

Times are whole microseconds since 1970 in UTC: exact, the same in both databases, comparable in SQL, and cheap to
read. Specs and plans are canonical JSON (sorted keys, no blanks), so equal values are equal texts.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from controlplane.domain.deployment import DeploymentSpec, Intent, ServingPlan
from controlplane.domain.node import NodeSpec
from controlplane.domain.recovery import BackupRun, Drill, Inventory, Override
from controlplane.kernel.errors import TerminalError

type EventData = tuple[tuple[str, str | int | float | bool], ...]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def us_from_time(moment: datetime) -> int:
    """Microseconds since the epoch of an aware moment."""
    assert moment.tzinfo is not None, f"{moment} has no time zone"
    return (moment - _EPOCH) // _MICROSECOND


def time_from_us(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def us_from_time_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else us_from_time(moment)


def time_from_us_or_none(at_us: int | None) -> datetime | None:
    return None if at_us is None else time_from_us(at_us)


def us_from_duration(duration: timedelta) -> int:
    return duration // _MICROSECOND


def duration_from_us(duration_us: int) -> timedelta:
    return timedelta(microseconds=duration_us)


def storable(text: str) -> str:
    """`text` with what a database refuses (NUL, lone surrogates) replaced by U+FFFD.

    Sentences quote the output of engines; one odd byte there must not make a transaction fail for ever.
    """
    if text.isascii():
        return text.replace("\0", "\ufffd") if "\0" in text else text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")


class Codec[T]:
    """Canonical JSON of one frozen type.

    Reading is lenient where versions differ: a missing field takes its default, an unknown one is left out.
    """

    def __init__(self, adapter: TypeAdapter[T], *, what: str) -> None:
        self._adapter = adapter
        self._what = what

    def encode(self, value: T) -> str:
        plain = self._adapter.dump_python(value, mode="json")
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def decode(self, text: str) -> T:
        """TerminalError when the text cannot be the value of any version of this program."""
        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            first: Any = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "(whole)"
            raise TerminalError(
                f"the store holds a {self._what} that this program cannot read: {place}: {first['msg']}. "
                "Was it written by another version, or by hand? Restore a backup or apply the site again"
            ) from error


NODE_SPEC: Final = Codec(TypeAdapter(NodeSpec), what="node spec")
DEPLOYMENT_SPEC: Final = Codec(TypeAdapter(DeploymentSpec), what="deployment spec")
SERVING_PLAN: Final = Codec(TypeAdapter(ServingPlan), what="serving plan")
INTENT: Final = Codec(TypeAdapter(Intent), what="intent")
BACKUP_RUN: Final = Codec(TypeAdapter(BackupRun), what="backup run")
DRILL: Final = Codec(TypeAdapter(Drill), what="drill")
INVENTORY: Final = Codec(TypeAdapter(Inventory), what="bucket's inventory")
OVERRIDE: Final = Codec(TypeAdapter(Override), what="override")
EVENT_DATA: Final[Codec[EventData]] = Codec(TypeAdapter(EventData), what="event's data")


def text_from_gpus(gpus: tuple[int, ...]) -> str:
    return ",".join(map(str, gpus))


def gpus_from_text(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()
