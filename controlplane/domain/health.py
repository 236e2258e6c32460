"""What a check of a running thing found."""

from dataclasses import dataclass
from enum import StrEnum


class ProbeVerdict(StrEnum):
    STARTING = "starting"
    """Refuses connections, or is loading: only its process tells whether it lives."""
    PASSED = "passed"
    """Answered a real request (a completion of one token, one embedding...)."""
    ASLEEP = "asleep"
    FAILED = "failed"
    """Answers, but wrongly, or not within the deadline. /health 200 alone proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    verdict: ProbeVerdict
    detail: str
