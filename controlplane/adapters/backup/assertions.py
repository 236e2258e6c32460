"""Verdicts about restored data: bytes, counts and the site's own assertions, each in a sentence with its numbers."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.scratch import sha256_of
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.units import format_duration
from controlplane.recovery.manifest import Count, Manifest
from controlplane.recovery.ports import VerifyRequest, Watch

type Value = str | int | float | bytes | datetime | None
"""What an engine answers to a check."""

_NAMED_MAX: Final = 5
"""Differences that a sentence names; more only make it long."""


def passed(name: str, sentence: str) -> CheckOutcome:
    return CheckOutcome(name=name, verdict=Verdict.PASSED, sentence=sentence)


def failed(name: str, sentence: str) -> CheckOutcome:
    return CheckOutcome(name=name, verdict=Verdict.FAILED, sentence=sentence)


def not_run(name: str, sentence: str) -> CheckOutcome:
    return CheckOutcome(name=name, verdict=Verdict.NOT_RUN, sentence=sentence)


def differences(name: str, found: Iterable[str], *, otherwise: str) -> CheckOutcome:
    """Failed, naming the first few differences; passed with the other sentence when there are none."""
    every = tuple(found)
    return failed(name, listed(every)) if every else passed(name, otherwise)


def listed(parts: tuple[str, ...], *, between: str = "; ") -> str:
    """The first few, and how many more there are."""
    more = len(parts) - _NAMED_MAX
    # File names may hold bytes that are no text; a sentence is text.
    named = (part.encode("utf-8", "backslashreplace").decode() for part in parts[:_NAMED_MAX])
    return between.join(named) + (f"{between}and {more} more" if more > 0 else "")


def compare_bytes(name: str, path: Path, stream: str, manifest: Manifest, watch: Watch) -> CheckOutcome:
    """The file is, byte for byte, the stream that was copied."""
    record = next((known for known in manifest.streams if known.name == stream), None)
    if record is None:
        return failed(name, f"the manifest names no stream {stream}")
    try:
        size_bytes = path.stat().st_size
        if size_bytes != record.plain_bytes:
            return failed(name, f"{path.name} has {size_bytes} bytes, expected {record.plain_bytes}")
        found = sha256_of(path, watch)
    except OSError as error:
        return failed(name, f"{path.name} cannot be read: {error.strerror}")
    if found != record.sha256:
        return failed(name, f"{path.name} has the SHA-256 {found}, expected {record.sha256}")
    return passed(name, f"all {size_bytes} bytes of {path.name} are those that were copied")


def compare_counts(
    expected: tuple[Count, ...], found: Mapping[str, int], *, unit: str = "rows", exact: bool = True
) -> CheckOutcome:
    """Each thing that was counted at the copy is there, with as many rows where these hold exactly."""
    wrong = [
        f"{count.name}: not there, expected with {count.rows} {unit}"
        if count.name not in found
        else f"{count.name}: {found[count.name]} {unit}, expected {count.rows}"
        for count in expected
        if count.name not in found or (exact and found[count.name] != count.rows)
    ]
    total = sum(count.rows for count in expected)
    held = (
        f"all {len(expected)} counts hold: {total} {unit}" if exact else f"all {len(expected)} counted things are there"
    )
    return differences("counts", wrong, otherwise=held)


def judge(check: CheckSpec, value: Value, request: VerifyRequest) -> CheckOutcome:
    """The site's assertion, given what the restored data answered."""
    if value is None:
        return failed(check.name, f"`{check.sql}` gave nothing, expected a value")
    problems = [problem for problem in _broken(check, value, request) if problem]
    if problems:
        return failed(check.name, "; ".join(problems))
    return passed(check.name, f"found {printed(value)}{_wanted(check)}")


def printed(value: Value) -> str:
    """As the engine prints it, so far as Python can tell."""
    match value:
        case bytes():
            return value.decode(errors="backslashreplace")
        case datetime():
            return value.isoformat(sep=" ")
        case _:
            return str(value)


def moment_of(value: Value) -> datetime | None:
    """A time from a time, from ISO 8601 text (UTC where it names no zone) or from seconds since 1970; None: no time."""
    match value:
        case datetime():
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        case int() | float():
            return _from_epoch(float(value))
        case str() | bytes():
            return _from_text(printed(value).strip())
        case None:
            return None


def _from_text(text: str) -> datetime | None:
    try:
        return moment_of(datetime.fromisoformat(text))
    except ValueError:
        number = _number(text)
        return None if number is None else _from_epoch(number)


def _from_epoch(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _broken(check: CheckSpec, value: Value, request: VerifyRequest) -> Iterable[str]:
    if check.equals is not None and printed(value) != check.equals:
        yield f"found {printed(value)}, expected {check.equals}"
    yield _outside(check, value)
    yield _late(check, value, request)


def _outside(check: CheckSpec, value: Value) -> str:
    if check.at_least is None and check.at_most is None:
        return ""
    number = _number(value)
    if number is None:
        return f"found {printed(value)}, expected a number"
    if check.at_least is not None and not number >= check.at_least:
        return f"found {printed(value)}, expected at least {check.at_least:g}"
    if check.at_most is not None and not number <= check.at_most:
        return f"found {printed(value)}, expected at most {check.at_most:g}"
    return ""


def _late(check: CheckSpec, value: Value, request: VerifyRequest) -> str:
    if check.fresh_within is None:
        return ""
    moment = moment_of(value)
    if moment is None:
        return f"found {printed(value)}, expected a time"
    reference = request.point_at or request.manifest.consistent_at
    behind = reference - moment
    if behind <= check.fresh_within:
        return ""
    return (
        f"the newest is of {moment:%Y-%m-%d %H:%M:%S} UTC, {format_duration(behind)} before the recovery point; "
        f"expected at most {format_duration(check.fresh_within)}"
    )


def _number(value: Value) -> float | None:
    if isinstance(value, datetime) or value is None:
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _wanted(check: CheckSpec) -> str:
    wishes = [
        f"equal to {check.equals}" if check.equals is not None else "",
        f"at least {check.at_least:g}" if check.at_least is not None else "",
        f"at most {check.at_most:g}" if check.at_most is not None else "",
        f"not older than {format_duration(check.fresh_within)}" if check.fresh_within is not None else "",
    ]
    named = ", ".join(wish for wish in wishes if wish)
    return f", expected {named}" if named else ""
