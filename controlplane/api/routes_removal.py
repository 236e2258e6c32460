"""Deleting one recovery point: what it is and what speaks against it, and the deletion."""

from datetime import timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query

from controlplane.api.context import Context
from controlplane.api.wire_removal import NAME_CHARACTERS_MAX, RemovalIn, RemovalOut, removal_out
from controlplane.kernel.errors import RetryableError
from controlplane.recovery.removals import RemovalWish
from controlplane.runtime.deadline import deadline

router = APIRouter(prefix="/recovery", tags=["recovery"])

REMOVAL_MAX: Final = timedelta(minutes=9)
"""Some hundred objects a second go: a copy of a terabyte has 30,000. What is left then, the same again removes."""
_LOOK_MAX: Final = timedelta(seconds=60)
"""One listing, some locks, a manifest."""

_Name = Annotated[str, Query(min_length=1, max_length=NAME_CHARACTERS_MAX)]


@router.get("/removal")
async def get_removal(
    context: Context, point: _Name, dataset: str | None = None, bucket: str | None = None
) -> RemovalOut:
    """What deleting it would mean, and whether it may go. Nothing is deleted by asking."""
    try:
        async with deadline(context.clock, _LOOK_MAX):
            plan = await context.removals.plan(RemovalWish(point=point, dataset=dataset, bucket=bucket))
    except TimeoutError:
        raise RetryableError(f"the bucket said nothing for {_LOOK_MAX.total_seconds():.0f} s; try again") from None
    sentence = "it may go" if plan.allowed else f"it stays: {plan.why_not}"
    return removal_out(plan, deleted=False, sentence=sentence)


@router.post("/removals")
async def remove_point(context: Context, body: RemovalIn) -> RemovalOut:
    """Judged anew, then deleted, its manifest first. ConflictError with every reason when it may not go.

    The same again, after an answer that was lost, is answered with 404 or goes on with what is left.
    """
    wish = RemovalWish(point=body.point, dataset=body.dataset, bucket=body.bucket)
    try:
        async with deadline(context.clock, REMOVAL_MAX):
            plan = await context.removals.remove(wish, by=body.by, reason=body.reason)
    except TimeoutError:
        raise RetryableError(
            f"{body.point} is not all gone after {REMOVAL_MAX.total_seconds():.0f} s; without its manifest it is no "
            "copy any more, and the same again deletes the rest"
        ) from None
    context.hints.hint("recovery-points")
    return removal_out(plan, deleted=True, sentence=plan.done_sentence(body.by, body.reason))
