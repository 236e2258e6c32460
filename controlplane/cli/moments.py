"""Moments as people type them."""

from datetime import UTC, datetime

from controlplane.kernel.errors import InvalidError, Problem


def typed_moment(option: str, text: str) -> datetime:
    """In UTC, as everything that is printed, where it names no zone. InvalidError for what is no time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        expected = "a time such as 2026-01-31T12:00:00 (UTC) or 2026-01-31T13:00:00+01:00"
        raise InvalidError([Problem(field=option, found=repr(text), expected=expected)]) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
