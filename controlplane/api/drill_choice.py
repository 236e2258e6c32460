"""What no drill could restore is refused before one begins: a drill that fails holds risky work up, a slip must not."""

from collections.abc import Iterator
from datetime import datetime

from controlplane.api.wire_recovery import DrillIn
from controlplane.domain.recovery import Inventory, RecoveryPoint
from controlplane.domain.refusals import not_found
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.ids import PointId
from controlplane.recovery.phrases import moment


def check_choice(inventory: Inventory | None, body: DrillIn, now: datetime) -> None:
    """By what was last seen in the drill's bucket.

    NotFoundError: no such recovery point. InvalidError: a moment that nothing there reaches, or that has not come.
    """
    points = () if inventory is None else inventory.points
    named = None
    if body.point is not None and inventory is not None:
        named = inventory.find(PointId(body.point))
        if named is None:
            raise not_found("recovery point", body.point, [one.point for one in points])
    if body.to_time is not None:
        problems = list(_moment_problems(body.to_time, points, named, now))
        if problems:
            raise InvalidError(problems)


def _moment_problems(
    wanted: datetime, points: tuple[RecoveryPoint, ...], named: RecoveryPoint | None, now: datetime
) -> Iterator[Problem]:
    if wanted.tzinfo is None:
        yield Problem(field="to_time", found=f"{wanted:%Y-%m-%dT%H:%M:%S}", expected="a time with its zone, e.g. ...Z")
        return
    if wanted > now:
        yield Problem(
            field="to_time", found=moment(wanted), expected=f"a moment that has passed; now it is {moment(now)}"
        )
    first = named.consistent_at if named is not None else min((one.consistent_at for one in points), default=None)
    if first is not None and wanted < first:
        which = "that copy" if named is not None else "the oldest copy"
        yield Problem(field="to_time", found=moment(wanted), expected=f"{moment(first)}, of which {which} is, or later")
