"""What recovery points cost a month: storage by class, overheads of archives, requests, minimum days."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from controlplane.domain.dataset import DatasetSpec, RetentionRule, StorageClass
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.units import GIB, MIB, format_bytes
from controlplane.recovery.classes import CLASS_FACTS, rank
from controlplane.recovery.periods import mean_length, period_number, period_start
from controlplane.recovery.phrases import count_of, span
from controlplane.recovery.schedule import mean_gap, occurrence_at_or_before
from controlplane.recovery.tiering import class_of_new, strictest

PACK_BYTES: Final = 64 * MIB
"""Of one object of a copy, where the caller does not say: 40 KiB of an archive's overhead are nothing beside it."""
_MONTH: Final = timedelta(days=365.2425 / 12)
_PER: Final = 1000
"""Requests are priced by the thousand."""
_A_TICK: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrice:
    gib_month: float
    put_1000: float
    """Also of a lifecycle's move into the class."""
    read_gib: float = 0.0
    """Retrieval fee; of archives with the tier Standard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    currency: str
    region: str
    as_of: date
    source: str
    classes: Mapping[StorageClass, ClassPrice]


AWS_US_EAST_1: Final = PriceTable(
    currency="USD",
    region="us-east-1",
    as_of=date(2025, 10, 28),
    source="AWS's price list of AmazonS3 (first 50 TB of a month) and aws.amazon.com/s3/pricing (requests, retrieval)",
    classes={
        StorageClass.STANDARD: ClassPrice(gib_month=0.023, put_1000=0.005),
        StorageClass.STANDARD_IA: ClassPrice(gib_month=0.0125, put_1000=0.01, read_gib=0.01),
        StorageClass.GLACIER_IR: ClassPrice(gib_month=0.004, put_1000=0.02, read_gib=0.03),
        StorageClass.GLACIER: ClassPrice(gib_month=0.0036, put_1000=0.03, read_gib=0.01),
        StorageClass.DEEP_ARCHIVE: ClassPrice(gib_month=0.00099, put_1000=0.05, read_gib=0.02),
    },
)
"""Prices move; a site gives its own table where it matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    what: str
    per_month: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    lines: tuple[CostLine, ...]
    prices: PriceTable
    notes: tuple[str, ...] = ()

    @property
    def per_month(self) -> float:
        return sum(line.per_month for line in self.lines)

    @property
    def sentence(self) -> str:
        prices = self.prices
        return f"{self.per_month:.2f} {prices.currency} a month at {prices.region} prices of {prices.as_of:%Y-%m-%d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """What one copy of a dataset stores, on average."""

    stored_bytes: int
    log_bytes_a_day: int = 0
    pack_bytes: int = PACK_BYTES


def restore_fee(storage_class: StorageClass, stored_bytes: int, *, prices: PriceTable = AWS_US_EAST_1) -> float:
    """Of reading a copy once, without traffic that leaves the region."""
    return stored_bytes / GIB * prices.classes[storage_class].read_gib


def inventory_cost(
    points: Sequence[RecoveryPoint], *, prices: PriceTable = AWS_US_EAST_1, pack_bytes: int = PACK_BYTES
) -> Cost:
    """Of what lies in the buckets, if nothing changed for a month. A point in two classes counts in the dearer one."""
    by_class: dict[StorageClass, list[int]] = {}
    for point in points:
        storage_class = min(point.storage_classes, key=rank, default=StorageClass.STANDARD)
        by_class.setdefault(storage_class, []).append(point.stored_bytes)
    lines = [
        _storage(storage_class, by_class[storage_class], prices, pack_bytes)
        for storage_class in sorted(by_class, key=rank)
    ]
    return Cost(lines=tuple(lines), prices=prices)


def steady_cost(spec: DatasetSpec, volume: Volume, now: datetime, *, prices: PriceTable = AWS_US_EAST_1) -> Cost:
    """Of a dataset whose retention is filled, in all of its buckets; copies are counted as full ones."""
    counts = steady_points(spec, now)
    lines = [
        _storage(storage_class, [volume.stored_bytes] * counts[storage_class], prices, volume.pack_bytes)
        for storage_class in sorted(counts, key=rank)
    ]
    lines.extend(_log(spec, volume, prices))
    lines.extend(_requests(spec, volume, now, prices))
    notes: list[str] = []
    for line, note in _early(spec, volume, now, prices):
        lines.append(line)
        notes.append(note)
    copies = len(spec.buckets)
    return Cost(
        lines=tuple(CostLine(what=line.what, per_month=line.per_month * copies) for line in lines),
        prices=prices,
        notes=(*notes, *([f"times {copies}: one copy in each bucket"] if copies > 1 else [])),
    )


def steady_points(spec: DatasetSpec, now: datetime) -> Mapping[StorageClass, int]:
    """How many recovery points lie in which class once the retention is filled and nothing was missed."""
    newest = occurrence_at_or_before(spec.cadence, now)
    rules_of: dict[datetime, list[RetentionRule]] = {}
    for rule in spec.retention:
        for taken_at in _stand_for(rule, spec, newest):
            rules_of.setdefault(taken_at, []).append(rule)
    counts: dict[StorageClass, int] = {}
    for rules in rules_of.values():
        says = strictest(rules, spec)
        assert says is not None, "every point here is kept by a rule"
        counts[says.storage_class] = counts.get(says.storage_class, 0) + 1
    return counts


def _stand_for(rule: RetentionRule, spec: DatasetSpec, newest: datetime) -> Iterator[datetime]:
    """When the points were taken that the rule keeps, the newest first."""
    end = newest
    while (taken_at := occurrence_at_or_before(spec.cadence, end)) >= newest - rule.keep:
        yield taken_at
        end = period_start(rule.period, period_number(rule.period, taken_at)) - _A_TICK


def _storage(storage_class: StorageClass, sizes: Sequence[int], prices: PriceTable, pack_bytes: int) -> CostLine:
    facts, price = CLASS_FACTS[storage_class], prices.classes[storage_class]
    standard = prices.classes[StorageClass.STANDARD]
    billed = archive = hot = 0
    for size in sizes:
        objects = _objects(size, pack_bytes)
        billed += max(size, objects * facts.billed_at_least_bytes)
        archive += objects * facts.archive_overhead_bytes
        hot += objects * facts.standard_overhead_bytes
    per_month = ((billed + archive) * price.gib_month + hot * standard.gib_month) / GIB
    overhead = f" and {format_bytes(archive + hot)} of overhead" if archive + hot else ""
    what = f"{count_of(len(sizes), 'point')} in {storage_class}: {format_bytes(sum(sizes))}{overhead}"
    return CostLine(what=what, per_month=per_month)


def _log(spec: DatasetSpec, volume: Volume, prices: PriceTable) -> Iterator[CostLine]:
    """The log reaches back as far as the finest rule, in STANDARD: small objects do not move."""
    if not volume.log_bytes_a_day or not spec.retention:
        return
    kept_for = min(spec.retention, key=lambda rule: mean_length(rule.period)).keep
    stored = volume.log_bytes_a_day * (kept_for / timedelta(days=1))
    per_month = stored / GIB * prices.classes[StorageClass.STANDARD].gib_month
    yield CostLine(what=f"log of {span(kept_for)} in STANDARD: {format_bytes(stored)}", per_month=per_month)


def _requests(spec: DatasetSpec, volume: Volume, now: datetime, prices: PriceTable) -> Iterator[CostLine]:
    backups = _MONTH / mean_gap(spec.cadence, now)
    objects = _objects(volume.stored_bytes, volume.pack_bytes)
    price = prices.classes[class_of_new(spec)].put_1000
    yield CostLine(what=f"requests of {backups:.0f} backups", per_month=backups * (objects + 1) / _PER * price)
    for rule, arrivals, _ in _colder(spec):
        moved = arrivals * objects / _PER * prices.classes[rule.storage_class].put_1000
        yield CostLine(what=f"moves into {rule.storage_class} ({rule.period} rule)", per_month=moved)


def _early(spec: DatasetSpec, volume: Volume, now: datetime, prices: PriceTable) -> Iterator[tuple[CostLine, str]]:
    """Days that are billed after a point is gone."""
    if not spec.retention:
        return
    finest = min(spec.retention, key=lambda rule: mean_length(rule.period))
    new = class_of_new(spec)
    superseded = _MONTH / mean_gap(spec.cadence, now) - _MONTH / mean_length(finest.period)
    short = [(new, superseded, timedelta(), "points that another of their period replaces")] if superseded > 0 else []
    short.append((new, _MONTH / mean_length(finest.period), finest.keep, f"the {finest.period} rule"))
    short.extend(
        (rule.storage_class, arrivals, stays, f"the {rule.period} rule") for rule, arrivals, stays in _colder(spec)
    )
    for storage_class, a_month, stays, whose in short:
        missing = CLASS_FACTS[storage_class].minimum - stays
        if missing > timedelta():
            per_month = (
                a_month * (missing / _MONTH) * volume.stored_bytes / GIB * prices.classes[storage_class].gib_month
            )
            what = f"{storage_class} billed for at least {span(CLASS_FACTS[storage_class].minimum)}"
            note = f"{whose}: {span(stays)} in {storage_class}, billed for {span(CLASS_FACTS[storage_class].minimum)}"
            yield CostLine(what=f"{what} ({whose})", per_month=per_month), note


def _colder(spec: DatasetSpec) -> Iterator[tuple[RetentionRule, float, timedelta]]:
    """Rules into whose class points move when a hotter rule lets go of them: moves a month, and how long they stay."""
    new = class_of_new(spec)
    for rule in spec.retention:
        if rank(rule.storage_class) <= rank(new):
            continue
        hotter = [other.keep for other in spec.retention if rank(other.storage_class) < rank(rule.storage_class)]
        stays = rule.keep - max((keep for keep in hotter if keep < rule.keep), default=timedelta())
        yield rule, _MONTH / mean_length(rule.period), stays


def _objects(stored_bytes: int, pack_bytes: int) -> int:
    return max(1, -(-stored_bytes // pack_bytes))
