"""Whether the evidence of drills that count is still in the bucket, and still what was signed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from controlplane.adapters.evidence import follows, previous_key, proves, verify_bundle
from controlplane.domain.recovery import Drill, EvidenceSeen
from controlplane.kernel.errors import NotFoundError, QuarterdeckError
from controlplane.recovery.ports import ObjectInfo, ObjectStore
from controlplane.recovery.proofs import verify_due


def look_for_evidence(
    store: ObjectStore,
    public_key: Callable[[], bytes],
    proofs: Sequence[Drill],
    before: Sequence[EvidenceSeen],
    now: datetime,
) -> tuple[EvidenceSeen, ...]:
    """A HEAD for each; read and verified when it is new, changed, or was not for long.

    What the store cannot tell now stays as it was, with the age that it has: not to know is not to have lost.
    `public_key`: of the key that must have signed it.
    """
    known: Mapping[str, EvidenceSeen] = {one.drill: one for one in before}
    return tuple(
        seen for drill in proofs if (seen := _looked_for(store, public_key, drill, known.get(drill.drill), now))
    )


def _looked_for(
    store: ObjectStore, public_key: Callable[[], bytes], drill: Drill, before: EvidenceSeen | None, now: datetime
) -> EvidenceSeen | None:
    """None: it was never seen, and cannot be now."""
    key = drill.evidence_key
    assert key is not None, f"drill {drill.drill} counts without evidence"
    try:
        file = _mark(store.head(key))
        if before is not None and not verify_due(before, file, now):
            return replace(before, seen_at=now)
        problem = "; ".join(_findings(store, key, store.get(key), drill, public_key()))
    except NotFoundError:
        return EvidenceSeen(drill=drill.drill, key=key, seen_at=now, problem=f"{key} is not in {drill.bucket}")
    except QuarterdeckError:
        return before
    return EvidenceSeen(drill=drill.drill, key=key, seen_at=now, file=file, verified_at=now, problem=problem)


def _mark(info: ObjectInfo) -> str:
    return f"{info.modified_at.isoformat()} {info.size_bytes} {info.version or ''}".rstrip()


def _findings(store: ObjectStore, key: str, bundle: bytes, drill: Drill, public_key: bytes) -> Iterator[str]:
    yield from (f"{key} {finding}" for finding in verify_bundle(bundle, public_key))
    if not proves(bundle, drill):
        yield f"{key} is not the evidence of this drill, or not of a pass"
    previous = previous_key(bundle)
    if previous is None:
        return
    try:
        if not follows(bundle, store.get(previous)):
            yield f"{previous}, which comes before it in the chain, is not the bundle whose hash it carries"
    except NotFoundError:
        yield f"{previous}, which comes before it in the chain, is not in {drill.bucket}"
