"""Retention and locks over 10,000 random histories of 20 years each: no promise is broken, whatever comes.

A history has its own rules, cadence, chains, damage, drills, crashes in the middle of deletions, pauses of months and a
bucket that locks or does not. After each plan, and after each single deletion, the checkers look at the world. They are
written from the promise, not from the code: they know nothing of how a plan is made.
"""

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain.dataset import RetentionPeriod, RetentionRule
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.ids import PointId
from controlplane.recovery.locks import lock_until, plan_locks
from controlplane.recovery.retention import RetentionPlan, plan_retention
from controlplane.testing.recovery_points import DAY, make_point

HISTORIES = 10_000
SHARDS = 20
YEARS = 20
BEGINNING = datetime(2026, 1, 5, 3, 0, tzinfo=UTC)
END = BEGINNING.replace(year=BEGINNING.year + YEARS)
HOUR = timedelta(hours=1)
CLOSE_ENOUGH = timedelta(minutes=1)
"""Locks are compared to the minute."""
NEWEST_OF_THREE_KINDS = 3
"""Of all, of the usable, of the proven: never deleted."""

RULES: tuple[tuple[RetentionRule, ...], ...] = tuple(
    tuple(RetentionRule(period=period, keep=keep) for period, keep in rules)
    for rules in (
        ((RetentionPeriod.DAILY, 30 * DAY), (RetentionPeriod.QUARTERLY, 7 * 365 * DAY)),
        ((RetentionPeriod.DAILY, 7 * DAY), (RetentionPeriod.WEEKLY, 35 * DAY), (RetentionPeriod.MONTHLY, 365 * DAY)),
        ((RetentionPeriod.HOURLY, DAY), (RetentionPeriod.DAILY, 14 * DAY), (RetentionPeriod.YEARLY, 10 * 365 * DAY)),
        ((RetentionPeriod.WEEKLY, 90 * DAY), (RetentionPeriod.YEARLY, 20 * 365 * DAY)),
        ((RetentionPeriod.MONTHLY, 2 * 365 * DAY),),
        ((RetentionPeriod.YEARLY, 5 * 365 * DAY), (RetentionPeriod.DAILY, 3 * DAY)),
    )
)


def period_of(period: RetentionPeriod, at: datetime) -> object:
    """Which period a moment is in; told apart from the code under test on purpose."""
    match period:
        case RetentionPeriod.HOURLY:
            return at.strftime("%Y-%m-%d %H")
        case RetentionPeriod.DAILY:
            return at.date()
        case RetentionPeriod.WEEKLY:
            return at.isocalendar()[:2]
        case RetentionPeriod.MONTHLY:
            return at.year, at.month
        case RetentionPeriod.QUARTERLY:
            return at.year, (at.month + 2) // 3
        case RetentionPeriod.YEARLY:
            return at.year


@dataclass
class World:
    """A bucket, and what was ever promised about it."""

    rng: random.Random
    rules: tuple[RetentionRule, ...]
    locks: bool
    now: datetime = BEGINNING
    bucket: dict[PointId, RecoveryPoint] = field(default_factory=dict)
    taken: int = 0
    deleted: int = 0

    def back_up(self, *, increment: bool) -> None:
        """A point of this moment; an increment on the newest usable one where there is one."""
        self.taken += 1
        parent = max(self.usable(), key=lambda point: point.consistent_at, default=None) if increment else None
        point = make_point(
            self.now,
            point=PointId(f"{self.taken:06d}"),
            parent=None if parent is None else parent.point,
            locked_until=lock_until(self.rules, self.now) if self.locks else None,
            problems=("a pack is not there",) if self.rng.random() < 0.03 else (),
        )
        self.bucket[point.point] = point

    def usable(self) -> list[RecoveryPoint]:
        whole: dict[PointId, bool] = {}
        return [point for point in self.bucket.values() if self.is_whole(point, whole)]

    def is_whole(self, point: RecoveryPoint, whole: dict[PointId, bool]) -> bool:
        """In these worlds parents are older than their children, so no chain goes in a circle."""
        if point.point not in whole:
            parent = None if point.parent is None else self.bucket.get(point.parent)
            has_parent = point.parent is None or (parent is not None and self.is_whole(parent, whole))
            whole[point.point] = not point.problems and has_parent
        return whole[point.point]

    def suffer(self) -> None:
        """Now and then a point goes bad, or a drill proves one."""
        ids = list(self.bucket)
        if ids and self.rng.random() < 0.05:
            bad = self.rng.choice(ids)
            self.bucket[bad] = replace(self.bucket[bad], problems=("a pack does not match",))
        usable = self.usable()
        if usable and self.rng.random() < 0.5:
            proven = self.rng.choice(usable)
            self.bucket[proven.point] = replace(proven, drilled_at=self.now)

    def keep_house(self) -> None:
        """Locks are lengthened, then points deleted; now and then the process dies half-way."""
        points = list(self.bucket.values())
        self.rng.shuffle(points)
        in_use = frozenset(point.point for point in points if self.rng.random() < 0.02)
        plan = plan_retention(points, self.rules, self.now, in_use=in_use)
        usable = {point.point for point in self.usable()}
        self.check_plan(plan, usable)
        if self.locks:
            for extension in plan_locks(plan, self.rules, self.now):
                before = self.bucket[extension.point].locked_until
                assert before is None or extension.until > before
                self.bucket[extension.point] = replace(self.bucket[extension.point], locked_until=extension.until)
            self.check_locks(self.those(usable))
        self.delete(plan, in_use, self.those(usable))

    def those(self, ids: set[PointId]) -> list[RecoveryPoint]:
        return [point for point in self.bucket.values() if point.point in ids]

    def delete(self, plan: RetentionPlan, in_use: frozenset[PointId], usable: list[RecoveryPoint]) -> None:
        guarded = self.never_deleted(usable) | in_use
        promised = {link.point for rule in self.rules for head in self.heads(rule, usable) for link in self.links(head)}
        children = Counter(point.parent for point in self.bucket.values())
        killed = self.rng.random() < 0.1
        done = self.rng.randint(0, len(plan.deletions)) if killed else len(plan.deletions)
        for deletion in plan.deletions[:done]:
            gone = deletion.point.point
            assert gone not in guarded, f"{gone} is guarded: {deletion.sentence}"
            assert gone not in promised, f"{gone} is promised: {deletion.sentence}"
            assert not children[gone], f"{gone} goes before what needs it: {deletion.sentence}"
            children[deletion.point.parent] -= 1
            del self.bucket[gone]
        self.deleted += done
        left = [point for point in usable if point.point in self.bucket]
        assert self.usable() == left, "a deletion made a usable point unusable"
        if not killed:
            self.check_bound(left, in_use)
        if self.rng.random() < 0.1:
            again = plan_retention(list(self.bucket.values()), self.rules, self.now, in_use=in_use)
            assert [one.point for one in again.deletions] == [one.point for one in plan.deletions[done:]]

    # -- checkers
    def never_deleted(self, usable: list[RecoveryPoint]) -> set[PointId]:
        points = self.bucket.values()
        proven = [point for point in usable if point.drilled_at is not None]
        newest = [max(some, key=lambda point: point.consistent_at) for some in (points, usable, proven) if some]
        return {point.point for point in (*newest, *self.locked())}

    def locked(self) -> list[RecoveryPoint]:
        return [one for one in self.bucket.values() if one.locked_until is not None and one.locked_until > self.now]

    def heads(self, rule: RetentionRule, usable: list[RecoveryPoint]) -> list[RecoveryPoint]:
        """The promise of a rule: of each period that it still covers, the newest usable point."""
        newest: dict[object, RecoveryPoint] = {}
        for point in usable:
            if self.now - point.consistent_at <= rule.keep:
                period = period_of(rule.period, point.consistent_at)
                if period not in newest or newest[period].consistent_at < point.consistent_at:
                    newest[period] = point
        return list(newest.values())

    def links(self, point: RecoveryPoint) -> list[RecoveryPoint]:
        links = [point]
        while links[-1].parent is not None and links[-1].parent in self.bucket:
            links.append(self.bucket[links[-1].parent])
        return links

    def check_plan(self, plan: RetentionPlan, usable: set[PointId]) -> None:
        """Each point is judged once; what stays says why."""
        named = [kept.point.point for kept in plan.kept] + [deletion.point.point for deletion in plan.deletions]
        assert len(named) == len(set(named)) == len(self.bucket)
        assert all(kept.reasons for kept in plan.kept)
        assert usable or not plan.deletions

    def check_locks(self, usable: list[RecoveryPoint]) -> None:
        """What a rule promises of a period that is over is locked for so long; parents at least like their children."""
        for rule in self.rules:
            running = period_of(rule.period, self.now)
            for head in self.heads(rule, usable):
                until = head.consistent_at + rule.keep
                if until > self.now and period_of(rule.period, head.consistent_at) != running:
                    assert head.locked_until is not None
                    assert head.locked_until >= until - CLOSE_ENOUGH
        for point in self.locked():
            assert point.locked_until is not None
            for link in self.links(point)[1:]:
                assert link.locked_until is not None
                assert link.locked_until >= point.locked_until - CLOSE_ENOUGH

    def check_bound(self, usable: list[RecoveryPoint], in_use: frozenset[PointId]) -> None:
        """What stays has a use: one point at most for each period that rules cover, its chain, and what is guarded."""
        as_of = max((point.consistent_at for point in usable), default=self.now)
        periods = {
            (rule.period, period_of(rule.period, point.consistent_at))
            for rule in self.rules
            for point in self.bucket.values()
            if as_of - point.consistent_at <= rule.keep
        }
        young = sum(self.now - point.finished_at < DAY for point in self.bucket.values() if point.problems)
        longest = max((len(self.links(point)) for point in self.bucket.values()), default=1)
        guarded = len(in_use) + young + NEWEST_OF_THREE_KINDS + len(self.locked())
        if usable:
            assert len(self.bucket) <= (len(periods) + guarded) * longest


def live(seed: int) -> World:
    """Twenty years in some fifteen strides: bursts of backups close together, then leaps of weeks to years."""
    rng = random.Random(seed)
    world = World(rng=rng, rules=rng.choice(RULES), locks=rng.random() < 0.3)
    step = rng.choice((HOUR, 6 * HOUR, DAY, DAY, 7 * DAY))
    chain_max = rng.choice((1, 1, 4, 7))
    while world.now < END:
        for _ in range(rng.randint(1, 5)):
            world.now += step * rng.uniform(0.5, 1.5)
            world.back_up(increment=world.taken % chain_max != 0)
        world.suffer()
        world.keep_house()
        world.now += DAY * rng.choice((1, 30, 150, 600, 1_500, 2_000)) * rng.random()
    return world


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_promise_is_broken_in_twenty_years(shard: int) -> None:
    taken = deleted = 0
    for seed in range(shard, HISTORIES, SHARDS):
        world = live(seed)
        taken += world.taken
        deleted += world.deleted
    # Histories in which nothing comes to its end would prove nothing.
    assert taken > 30 * HISTORIES / SHARDS
    assert deleted > taken * 0.4
