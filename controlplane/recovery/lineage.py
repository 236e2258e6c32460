"""The recovery points of one dataset in one bucket: in order of time, with their chains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from controlplane.domain.dataset import StorageClass
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.ids import BucketName, DatasetName, PointId


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What a restore of a recovery point has to read."""

    links: tuple[RecoveryPoint, ...]
    """The full copy first, then its increments in order; the last one is the recovery point."""

    @property
    def point(self) -> RecoveryPoint:
        return self.links[-1]

    @property
    def plain_bytes(self) -> int:
        return sum(link.plain_bytes for link in self.links)

    @property
    def stored_bytes(self) -> int:
        return sum(link.stored_bytes for link in self.links)

    @property
    def storage_classes(self) -> frozenset[StorageClass]:
        return frozenset().union(*(link.storage_classes for link in self.links))


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenChain:
    point: RecoveryPoint
    problem: str
    """A sentence: which link is damaged or not there."""


class Lineage:
    """An index, read only. Points must be of one dataset in one bucket, each once."""

    def __init__(self, points: Sequence[RecoveryPoint]) -> None:
        self.points: tuple[RecoveryPoint, ...] = tuple(sorted(points, key=_moment))
        """Oldest first."""
        self.by_id: Mapping[PointId, RecoveryPoint] = {point.point: point for point in points}
        assert len(self.by_id) == len(points), "a recovery point is listed once in a bucket"

    @cached_property
    def usable(self) -> tuple[RecoveryPoint, ...]:
        """Oldest first: complete, and so is every link that they need."""
        fit: dict[PointId, bool] = {}
        return tuple(point for point in self.points if self._is_fit(point, fit))

    @cached_property
    def usable_ids(self) -> frozenset[PointId]:
        return frozenset(point.point for point in self.usable)

    @property
    def newest(self) -> RecoveryPoint | None:
        return self.points[-1] if self.points else None

    @property
    def newest_usable(self) -> RecoveryPoint | None:
        return self.usable[-1] if self.usable else None

    @property
    def newest_drilled(self) -> RecoveryPoint | None:
        """The newest usable one that a drill has restored with success."""
        return next((point for point in reversed(self.usable) if point.drilled_at is not None), None)

    def ancestors(self, point: RecoveryPoint) -> list[RecoveryPoint]:
        """Parents that are here, nearest first; ends before a missing one, and before going round in a circle."""
        found: list[RecoveryPoint] = []
        seen = {point.point}
        parent = point.parent
        while parent is not None and parent not in seen and (link := self.by_id.get(parent)) is not None:
            seen.add(parent)
            found.append(link)
            parent = link.parent
        return found

    def chain(self, point: RecoveryPoint) -> Chain | BrokenChain:
        links = (*reversed(self.ancestors(point)), point)
        first = links[0]
        if first.parent is not None:
            there = first.parent in self.by_id
            why = "its parents go round in a circle" if there else f"{first.parent} is not in the bucket"
            return BrokenChain(point=point, problem=f"{point.point} needs {first.parent}, and {why}")
        for link in links:
            if link.problems:
                needs = "" if link is point else f" needs {link.point}, which"
                return BrokenChain(point=point, problem=f"{point.point}{needs} is damaged: {link.problems[0]}")
        return Chain(links=links)

    def _is_fit(self, point: RecoveryPoint, fit: dict[PointId, bool]) -> bool:
        """Each link is looked at once, however many chains go through it."""
        known = fit.get(point.point)
        if known is not None:
            return known
        # Looked at again on the way up, it is in a circle: not fit.
        fit[point.point] = False
        if point.complete:
            parent = None if point.parent is None else self.by_id.get(point.parent)
            fit[point.point] = point.parent is None or (parent is not None and self._is_fit(parent, fit))
        return fit[point.point]


def lineage_of(points: Sequence[RecoveryPoint], dataset: DatasetName, bucket: BucketName) -> Lineage:
    return Lineage([point for point in points if point.dataset == dataset and point.bucket == bucket])


def chain_of(point: RecoveryPoint, points: Sequence[RecoveryPoint]) -> Chain | BrokenChain:
    """The chain of a point among those of its own dataset and bucket."""
    return lineage_of(points, point.dataset, point.bucket).chain(point)


def _moment(point: RecoveryPoint) -> tuple[datetime, PointId]:
    return point.consistent_at, point.point
