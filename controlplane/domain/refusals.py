"""The sentences with which a store refuses, the same from the fake and from every real one."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from controlplane.kernel.errors import ConflictError, NotFoundError, StaleClaimError

_LISTED_MAX: Final = 8
"""Names that fit into a sentence."""


def not_found(kind: str, name: str, known: Iterable[str]) -> NotFoundError:
    """Names the nearest valid one, or where none is near some that there are."""
    valid = sorted(known)
    near = get_close_matches(name, valid, n=1)
    if near:
        return NotFoundError(f"there is no {kind} {name!r}; did you mean {near[0]!r}?")
    listed = ", ".join(valid[:_LISTED_MAX]) + (", ..." if len(valid) > _LISTED_MAX else "")
    return NotFoundError(f"there is no {kind} {name!r}; there {'is' if len(valid) == 1 else 'are'} {listed or 'none'}")


def generation_conflict(kind: str, name: str, *, expected: int, found: int) -> ConflictError:
    return ConflictError(
        f"{kind} {name!r} is at generation {found}, not {expected}: somebody changed it first. "
        "Read it again, then repeat the change"
    )


def gpu_taken(replica: str, *, node: str, gpu: int, holder: str) -> ConflictError:
    return ConflictError(f"replica {replica} cannot have GPU {gpu} of {node}: {holder} holds it")


def port_taken(replica: str, *, node: str, port: int, holder: str) -> ConflictError:
    return ConflictError(f"replica {replica} cannot have port {port} of {node}: {holder} holds it")


def claim_lost(resource: str) -> StaleClaimError:
    return StaleClaimError(f"the claim on {resource} has passed to another worker; the result is dropped")


def key_reused(key: str) -> ConflictError:
    return ConflictError(
        f"idempotency key {key!r} was used before for another request; use a fresh key for a different request"
    )
