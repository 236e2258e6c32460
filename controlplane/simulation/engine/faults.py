"""Ways to misbehave, as seen on real vLLM, switched on at start or while running. One at most of each name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Final

from controlplane.kernel.errors import InvalidError, Problem


class Fault(StrEnum):
    HANG = "hang"
    """/health 200, /metrics frozen, requests get no byte (SIGSTOP of vLLM's engine process)."""
    ABORT_HANG = "abort-hang"
    """SIGTERM with timeout 0 loses the abort messages: requests hang, the process stays until the clients give up."""
    LOST_SIGTERM = "lost-sigterm"
    """The first SIGTERM during start-up is lost; the engine goes on to become healthy."""
    SLOW_START = "slow-start"
    """The cold start takes VALUE times as long."""
    CRASH = "crash"
    """The process ends with rc 0, mid-flight, on the VALUE-th inference request; without VALUE, at once."""
    ORPHAN = "orphan"
    """A child of the process group, holding the GPUs' memory, survives a SIGKILL of the leader."""
    SLOW = "slow"
    """Every step takes VALUE times as long."""
    ERROR_RATE = "error-rate"
    """That share of inference requests is answered with 500."""
    FLAKY_HEALTH = "flaky-health"
    """That share of /health requests is answered with 503 (default one half)."""
    ADMISSION = "admission"
    """Every inference request is refused as by a full queue: 503 without Retry-After."""


@dataclass(frozen=True, slots=True)
class _Value:
    default: float | None
    """None: a value must be given."""
    low: float
    high: float


_SWITCH: Final = _Value(1.0, 1.0, 1.0)
_VALUES: Final[Mapping[Fault, _Value]] = {
    Fault.SLOW_START: _Value(None, 1.0, 1000.0),
    Fault.CRASH: _Value(0.0, 0.0, 1e9),
    Fault.SLOW: _Value(None, 1.0, 1000.0),
    Fault.ERROR_RATE: _Value(None, 0.0, 1.0),
    Fault.FLAKY_HEALTH: _Value(0.5, 0.0, 1.0),
}

START_ONLY: Final = frozenset({Fault.LOST_SIGTERM, Fault.SLOW_START, Fault.ORPHAN})
"""What is over, or can no longer be arranged, once the engine serves."""


def parse_fault(name: str, value: str | float | None) -> tuple[Fault, float]:
    """InvalidError names what was found, what there is, and the nearest valid name."""
    names = [fault.value for fault in Fault]
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        raise InvalidError(
            [Problem(field="--sim-fault", found=repr(name), expected=f"one of {', '.join(names)}", hint=hint)]
        )
    fault = Fault(name)
    bounds = _VALUES.get(fault, _SWITCH)
    given = bounds.default if value is None else _number(value)
    if given is None or not bounds.low <= given <= bounds.high:
        expected = f"{name}=VALUE with {bounds.low:g} <= VALUE <= {bounds.high:g}"
        raise InvalidError([Problem(field=f"--sim-fault {name}", found=repr(value), expected=expected)])
    return fault, given


def parse_faults(texts: Iterable[str]) -> dict[Fault, float]:
    """`NAME` or `NAME=VALUE`, as on the command line."""
    faults: dict[Fault, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        fault, number = parse_fault(name, value if equals else None)
        faults[fault] = number
    return faults


def _number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
