"""The driver in fake time: pace, hints, back-off, deadline, claims, books."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise

from controlplane.domain.store import Claim, TickRecord
from controlplane.kernel.errors import RetryableError, StaleClaimError
from controlplane.kernel.ids import ClaimToken, InstanceId
from controlplane.runtime.driver import Driver
from controlplane.runtime.reconciler import Pace, TickReport
from controlplane.runtime.status import SURVEY, LoopStatus, TickOutcome
from controlplane.testing.effects import CountingIds, FakeClock, SeededRng, settle
from controlplane.testing.memory_store import MemoryStore

SECOND = timedelta(seconds=1)
PACE = Pace(
    period=2 * SECOND,
    deadline=5 * SECOND,
    floor=timedelta(milliseconds=500),
    backoff_max=16 * SECOND,
    claim_ttl=15 * SECOND,
)
QUIET = TickReport(sentence="nothing to do")


class Recorded:
    """A reconciler whose ticks are written down; what they do is set by the test."""

    def __init__(self, clock: FakeClock, *resources: str) -> None:
        self.clock = clock
        self.names = list(resources or ("a",))
        self.starts: list[tuple[str, float]] = []
        self.claims: list[Claim] = []
        self.work: Callable[[str], Awaitable[TickReport]] = self.quiet

    @property
    def name(self) -> str:
        return "loop"

    @property
    def times(self) -> list[float]:
        return [round(at, 3) for _, at in self.starts]

    async def resources(self) -> Sequence[str]:
        return self.names

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        self.starts.append((resource, self.clock.monotonic()))
        self.claims.append(claim)
        return await self.work(resource)

    async def quiet(self, _resource: str) -> TickReport:
        return QUIET


class Counted:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, TickOutcome]] = []

    def on_tick(self, loop: str, resource: str, outcome: TickOutcome, duration: timedelta) -> None:
        assert duration >= timedelta(0)
        self.seen.append((loop, resource, outcome))


def make_driver(
    reconciler: Recorded,
    store: MemoryStore,
    *,
    pace: Pace = PACE,
    instance: str = "one",
    observer: Counted | None = None,
    concurrency: int = 8,
) -> Driver:
    return Driver(
        reconciler=reconciler,
        pace=pace,
        store=store,
        clock=reconciler.clock,
        rng=SeededRng(1),
        ids=CountingIds(instance),
        instance=InstanceId(instance),
        observer=observer,
        concurrency=concurrency,
    )


@asynccontextmanager
async def running(driver: Driver) -> AsyncIterator[asyncio.Task[None]]:
    """Stopped in order at the end, unless the test ended it."""
    task = asyncio.create_task(driver.run())
    await settle()
    try:
        yield task
    finally:
        driver.stop()
        await settle()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ticks_of(store: MemoryStore) -> Sequence[TickRecord]:
    async with store.transaction() as tx:
        return (await tx.ticks())[::-1]


def status_of(driver: Driver, resource: str = "a") -> LoopStatus:
    (found,) = [status for status in driver.status() if status.resource == resource]
    return found


class TestPeriod:
    async def test_each_resource_is_ticked_once_a_period_from_the_start(self) -> None:
        reconciler, store = Recorded(FakeClock(), "a", "b"), MemoryStore()
        async with running(make_driver(reconciler, store)):
            await reconciler.clock.advance(5 * SECOND)
        assert sorted(reconciler.starts) == [("a", 0.0), ("a", 2.0), ("a", 4.0), ("b", 0.0), ("b", 2.0), ("b", 4.0)]

    async def test_a_slow_tick_keeps_the_beat_and_leaves_a_pause(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        durations = iter([1.0, 3.0, 0.0])

        async def slow(_resource: str) -> TickReport:
            await reconciler.clock.sleep(timedelta(seconds=next(durations, 0.0)))
            return QUIET

        reconciler.work = slow
        async with running(make_driver(reconciler, store)):
            await reconciler.clock.advance(8 * SECOND)
        assert reconciler.times == [0.0, 2.0, 5.5, 7.5]

    async def test_a_tick_may_ask_for_an_earlier_one_but_not_under_the_floor(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        wishes = iter([timedelta(seconds=1), timedelta(0)])

        async def again(_resource: str) -> TickReport:
            return TickReport(sentence="", again_after=next(wishes, None))

        reconciler.work = again
        async with running(make_driver(reconciler, store)):
            await reconciler.clock.advance(4 * SECOND)
        assert reconciler.times == [0.0, 1.0, 1.5, 3.5]

    async def test_resources_come_and_go(self) -> None:
        reconciler, store = Recorded(FakeClock(), "a"), MemoryStore()
        async with running(make_driver(reconciler, store)):
            reconciler.names = ["b"]
            await reconciler.clock.advance(3 * SECOND)
            assert [resource for resource, _ in reconciler.starts] == ["a", "b"]
            async with store.transaction() as tx:
                assert [claim.resource for claim in await tx.claims()] == ["loop/@one", "loop/b"]

    async def test_at_most_so_many_at_once_and_none_is_left_out(self) -> None:
        reconciler, store = Recorded(FakeClock(), *"abcdef"), MemoryStore()
        now_running, most = 0, 0

        async def count(_resource: str) -> TickReport:
            nonlocal now_running, most
            now_running += 1
            most = max(most, now_running)
            await reconciler.clock.sleep(SECOND / 2)
            now_running -= 1
            return QUIET

        reconciler.work = count
        async with running(make_driver(reconciler, store, concurrency=2)):
            await reconciler.clock.advance(timedelta(seconds=1.6))
        assert most == 2
        assert sorted(resource for resource, _ in reconciler.starts[:6]) == list("abcdef")

    async def test_a_slow_resource_does_not_hold_up_the_others(self) -> None:
        reconciler, store = Recorded(FakeClock(), "slow", "quick"), MemoryStore()

        async def by_name(resource: str) -> TickReport:
            if resource == "slow":
                await reconciler.clock.sleep(4 * SECOND)
            return QUIET

        reconciler.work = by_name
        async with running(make_driver(reconciler, store)):
            await reconciler.clock.advance(4 * SECOND)
        assert [at for resource, at in reconciler.starts if resource == "quick"] == [0.0, 2.0, 4.0]


class TestHints:
    async def test_a_hint_wakes_at_once_but_not_under_the_floor(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        driver = make_driver(reconciler, store)
        async with running(driver):
            await reconciler.clock.advance(SECOND)
            driver.hint()
            await settle()
            assert reconciler.times == [0.0, 1.0]
            for _ in range(10):
                driver.hint()
                await reconciler.clock.advance(timedelta(milliseconds=50))
            assert reconciler.times == [0.0, 1.0, 1.5]
            await reconciler.clock.advance(timedelta(milliseconds=1900))
            assert reconciler.times == [0.0, 1.0, 1.5]
            await reconciler.clock.advance(timedelta(milliseconds=100))
            assert reconciler.times == [0.0, 1.0, 1.5, 3.5]

    async def test_hints_during_a_tick_cause_exactly_one_more(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()

        async def slow(_resource: str) -> TickReport:
            await reconciler.clock.sleep(SECOND)
            return QUIET

        reconciler.work = slow
        driver = make_driver(reconciler, store)
        async with running(driver):
            for _ in range(3):
                driver.hint()
                await reconciler.clock.advance(timedelta(milliseconds=200))
            await reconciler.clock.advance(timedelta(seconds=2.3))
            assert reconciler.times == [0.0, 1.0]
            await reconciler.clock.advance(SECOND)
            assert reconciler.times == [0.0, 1.0, 3.0]

    async def test_a_hint_finds_a_new_resource(self) -> None:
        reconciler, store = Recorded(FakeClock(), "a"), MemoryStore()
        driver = make_driver(reconciler, store)
        async with running(driver):
            await reconciler.clock.advance(SECOND)
            reconciler.names.append("b")
            driver.hint()
            await settle()
            assert ("b", 1.0) in reconciler.starts


class TestFailure:
    async def test_the_pause_doubles_up_to_its_limit_and_starts_anew_after_a_success(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        failing = True

        async def fail(_resource: str) -> TickReport:
            if failing:
                raise RuntimeError("on purpose")
            return QUIET

        reconciler.work = fail
        driver = make_driver(reconciler, store)
        async with running(driver):
            await reconciler.clock.advance(60 * SECOND)
            times = reconciler.times
            pauses = [after - before for before, after in pairwise(times)]
            for pause, doubled in zip(pauses, [2, 4, 8, 16, 16], strict=False):
                assert 0.75 * doubled <= pause <= doubled
            assert len(pauses) >= 5
            status = status_of(driver)
            assert (status.outcome, status.consecutive_failures) == (TickOutcome.FAILED, len(times))
            assert status.sentence == "RuntimeError: on purpose"
            assert not status.overdue
            failing = False
            await reconciler.clock.advance(16 * SECOND)
            assert status_of(driver).consecutive_failures == 0
            assert reconciler.times[-1] - reconciler.times[-2] == 2.0

    async def test_a_hint_comes_through_a_back_off_but_a_stream_of_hints_does_not(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()

        async def fail(_resource: str) -> TickReport:
            raise RetryableError("not now")

        reconciler.work = fail
        driver = make_driver(reconciler, store)
        async with running(driver):
            for _ in range(400):
                driver.hint()
                await reconciler.clock.advance(timedelta(milliseconds=50))
        assert len(reconciler.times) <= 8  # floors of 0.5, 1, 2, 4, 8 ... s in 20 s
        assert reconciler.times[1] == 0.5

    async def test_a_failure_may_advise_when_to_come_back(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()

        async def fail(_resource: str) -> TickReport:
            raise RetryableError("busy", after=7 * SECOND)

        reconciler.work = fail
        async with running(make_driver(reconciler, store)):
            await reconciler.clock.advance(8 * SECOND)
        assert reconciler.times == [0.0, 7.0]

    async def test_a_tick_over_its_deadline_is_cancelled_and_tried_again_with_a_new_token(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        cancelled = 0

        async def hang(_resource: str) -> TickReport:
            nonlocal cancelled
            try:
                await reconciler.clock.sleep(1000 * SECOND)
            except asyncio.CancelledError:
                cancelled += 1
                raise
            return QUIET

        reconciler.work = hang
        driver = make_driver(reconciler, store)
        async with running(driver):
            await reconciler.clock.advance(5 * SECOND)
            status = status_of(driver)
            assert (status.outcome, status.duration) == (TickOutcome.TIMED_OUT, 5 * SECOND)
            await reconciler.clock.advance(3 * SECOND)
            assert cancelled == 1
            assert len(reconciler.times) == 2
        assert reconciler.claims[0].token != reconciler.claims[1].token
        first, *_ = await ticks_of(store)
        assert (first.outcome, first.sentence) == ("timed_out", "not finished after 5 s")

    async def test_a_timeout_inside_a_tick_is_a_failure(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()

        async def fail(_resource: str) -> TickReport:
            raise TimeoutError("the engine did not answer")

        reconciler.work = fail
        driver = make_driver(reconciler, store)
        async with running(driver):
            assert status_of(driver).outcome is TickOutcome.FAILED

    async def test_a_failing_survey_backs_off_and_shows(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        observer = Counted()
        driver = make_driver(Failing(reconciler.clock), store, observer=observer)
        async with running(driver):
            await reconciler.clock.advance(10 * SECOND)
            status = status_of(driver, SURVEY)
            assert status.outcome is TickOutcome.FAILED
            assert 2 <= status.consecutive_failures <= 5
        assert set(observer.seen) == {("loop", SURVEY, TickOutcome.FAILED)}


class Failing(Recorded):
    async def resources(self) -> Sequence[str]:
        raise RetryableError("the store is away")


class TestBooks:
    async def test_only_changes_and_failures_are_recorded_and_all_are_observed(self) -> None:
        reconciler, store, observer = Recorded(FakeClock()), MemoryStore(), Counted()
        reports = iter([QUIET, TickReport(sentence="launched one", changed=True), QUIET])

        async def report(_resource: str) -> TickReport:
            return next(reports, QUIET)

        reconciler.work = report
        driver = make_driver(reconciler, store, observer=observer)
        async with running(driver):
            await reconciler.clock.advance(4 * SECOND)
            status = status_of(driver)
        assert (status.loop, status.outcome, status.sentence) == ("loop", TickOutcome.QUIET, "nothing to do")
        assert status.last_tick_at == reconciler.clock.now()
        (tick,) = await ticks_of(store)
        assert (tick.loop, tick.resource, tick.holder) == ("loop", "a", "one")
        assert (tick.outcome, tick.sentence) == ("changed", "launched one")
        outcomes = [outcome for _, resource, outcome in observer.seen if resource == "a"]
        assert outcomes == [TickOutcome.QUIET, TickOutcome.CHANGED, TickOutcome.QUIET]

    async def test_a_loop_that_hangs_is_overdue(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        driver = make_driver(reconciler, store)
        async with running(driver):
            assert not any(status.overdue for status in driver.status())
            reconciler.clock.jump(60 * SECOND)
            assert all(status.overdue for status in driver.status())


class TestClaims:
    async def test_one_claim_is_kept_and_renewed_and_given_back_at_the_stop(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        async with running(make_driver(reconciler, store)) as task:
            await reconciler.clock.advance(60 * SECOND)
            assert len({claim.token for claim in reconciler.claims}) == 1
            assert all(
                claim.expires_at - reconciler.clock._start >= timedelta(seconds=at) + PACE.deadline
                for claim, at in zip(reconciler.claims, reconciler.times, strict=True)
            )
        assert task.done()
        async with store.transaction() as tx:
            assert await tx.claims() == []

    async def test_a_stop_lets_the_tick_under_way_end(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        ended = False

        async def slow(_resource: str) -> TickReport:
            nonlocal ended
            await reconciler.clock.sleep(SECOND)
            ended = True
            return QUIET

        reconciler.work = slow
        driver = make_driver(reconciler, store)
        async with running(driver) as task:
            driver.stop()
            await settle()
            assert not task.done()
            await reconciler.clock.advance(SECOND)
            assert task.done()
        assert ended
        assert reconciler.times == [0.0]

    async def test_a_stale_claim_is_counted_dropped_and_not_a_failure(self) -> None:
        reconciler, store, observer = Recorded(FakeClock()), MemoryStore(), Counted()

        async def stale(_resource: str) -> TickReport:
            if len(reconciler.starts) == 1:
                raise StaleClaimError("taken by another")
            if len(reconciler.starts) == 2:
                raise ExceptionGroup("steps", [StaleClaimError("taken by another")])
            return QUIET

        reconciler.work = stale
        driver = make_driver(reconciler, store, observer=observer)
        async with running(driver):
            await reconciler.clock.advance(4 * SECOND)
            assert status_of(driver).consecutive_failures == 0
        assert reconciler.times == [0.0, 2.0, 4.0]
        outcomes = [outcome for _, resource, outcome in observer.seen if resource == "a"]
        assert outcomes == [TickOutcome.STALE_CLAIM, TickOutcome.STALE_CLAIM, TickOutcome.QUIET]
        assert [tick.outcome for tick in await ticks_of(store)] == ["stale_claim", "stale_claim"]

    async def test_a_restart_under_the_same_name_goes_on_at_once(self) -> None:
        clock, store = FakeClock(), MemoryStore()
        first, second = Recorded(clock), Recorded(clock)
        task = asyncio.create_task(make_driver(first, store).run())
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with running(make_driver(second, store)):
            assert second.times == [0.0]

    async def test_two_instances_share_and_the_survivor_takes_over(self) -> None:
        clock, store = FakeClock(), MemoryStore()
        names = [f"r{number}" for number in range(7)]
        one, two = Recorded(clock, *names), Recorded(clock, *names)
        dying = asyncio.create_task(make_driver(one, store, instance="one").run())
        async with running(make_driver(two, store, instance="two")):
            await clock.advance(10 * SECOND)
            first, second = ({resource for resource, at in side.starts if at >= 6.0} for side in (one, two))
            assert first | second == set(names)
            assert not first & second
            assert {len(first), len(second)} == {3, 4}
            dying.cancel()
            await asyncio.gather(dying, return_exceptions=True)
            await clock.advance(PACE.claim_ttl + PACE.period)
            before = len(two.starts)
            await clock.advance(PACE.period)
            assert {resource for resource, _ in two.starts[before:]} == set(names)

    async def test_another_holder_keeps_what_it_has(self) -> None:
        reconciler, store = Recorded(FakeClock()), MemoryStore()
        now = reconciler.clock.now()
        async with store.transaction() as tx:
            await tx.claim(
                "loop/a", token=ClaimToken("t"), holder=InstanceId("two"), now=now, expires_at=now + 5 * SECOND
            )
        async with running(make_driver(reconciler, store)):
            await reconciler.clock.advance(timedelta(seconds=4.9))
            assert reconciler.times == []
            await reconciler.clock.advance(3 * SECOND)
        assert reconciler.times[0] == 6.0
