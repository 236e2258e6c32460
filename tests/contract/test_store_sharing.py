"""Two control planes on one real database share work without a double action, also when one of them dies or pauses."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.adapters.db.store import SqlStore, open_store
from controlplane.adapters.system import SystemClock, SystemRng, UuidIds
from controlplane.domain.store import Claim, Store
from controlplane.kernel.errors import StaleClaimError
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId
from controlplane.runtime.driver import Driver
from controlplane.runtime.reconciler import Pace, TickReport
from controlplane.runtime.status import TickOutcome

RESOURCES = [f"d{number}" for number in range(6)]
PATIENT = Pace(
    period=timedelta(milliseconds=40),
    deadline=timedelta(seconds=20),
    floor=timedelta(milliseconds=10),
    backoff_max=timedelta(milliseconds=200),
    claim_ttl=timedelta(seconds=25),
)
BRISK = replace(PATIENT, deadline=timedelta(seconds=2), claim_ttl=timedelta(seconds=2.4))
"""A take-over within the test's time. A tick usually takes 10 ms."""
PATIENCE_S = 30.0
"""Of a test, on a machine that does many other things. Usual is a tenth."""


class World:
    """Where actions take effect, and how often each was done."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self.overlapped = False


class Stepper:
    """Claim, work, apply: each tick does step n of its resource in the world, then moves the resource's row to n+1."""

    def __init__(self, store: Store, world: World, *, steps: int) -> None:
        self._store = store
        self._world = world
        self._steps = steps
        self.worked_on: set[str] = set()
        self.mid_tick = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    @property
    def name(self) -> str:
        return "steps"

    async def resources(self) -> Sequence[str]:
        return RESOURCES

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        deployment = DeploymentName(resource)
        async with self._store.transaction() as tx:
            step = int(await tx.policy_state(deployment) or 0)
        if step == self._steps:
            return TickReport(sentence="all steps done")
        self.worked_on.add(resource)
        await self._act(resource, step)
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            assert int(await tx.policy_state(deployment) or 0) == step, "somebody else moved the row under our claim"
            await tx.put_policy_state(deployment, str(step + 1))
        return TickReport(sentence=f"step {step}", changed=True)

    async def _act(self, resource: str, step: int) -> None:
        world = self._world
        world.under_way[resource] += 1
        world.overlapped |= world.under_way[resource] > 1
        try:
            self.mid_tick.set()
            await self.go_on.wait()
            await asyncio.sleep(0.002)  # the world takes its time
            world.done[f"{resource}/{step}"] += 1
        finally:
            world.under_way[resource] -= 1


class Outcomes:
    def __init__(self) -> None:
        self.seen: list[TickOutcome] = []

    def on_tick(self, loop: str, resource: str, outcome: TickOutcome, duration: timedelta) -> None:
        self.seen.append(outcome)


@pytest.fixture
async def twins(database_url: str) -> AsyncIterator[tuple[SqlStore, SqlStore]]:
    one, two = await open_store(database_url), await open_store(database_url)
    yield one, two
    await one.close()
    await two.close()


def make_driver(
    stepper: Stepper, store: Store, name: str, *, pace: Pace = PATIENT, observer: Outcomes | None = None
) -> Driver:
    return Driver(
        reconciler=stepper,
        pace=pace,
        store=store,
        clock=SystemClock(),
        rng=SystemRng(),
        ids=UuidIds(),
        instance=InstanceId(name),
        observer=observer,
    )


def _token(ids: UuidIds) -> ClaimToken:
    return ClaimToken(ids.new_id())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is about a database's work
            await asyncio.sleep(0.01)


async def steps_of(store: Store) -> list[int]:
    async with store.transaction() as tx:
        return [int(await tx.policy_state(DeploymentName(resource)) or 0) for resource in RESOURCES]


async def stop(driver: Driver, task: asyncio.Task[None]) -> None:
    driver.stop()
    async with asyncio.timeout(PATIENCE_S):
        await task


async def test_they_share_the_work_and_do_each_step_once(twins: tuple[SqlStore, SqlStore]) -> None:
    world, steps = World(), 20
    steppers = [Stepper(store, world, steps=steps) for store in twins]
    drivers = [make_driver(*made) for made in zip(steppers, twins, ("one", "two"), strict=True)]
    tasks = [asyncio.create_task(driver.run()) for driver in drivers]
    await until(lambda: len(world.done) == steps * len(RESOURCES))
    for driver, task in zip(drivers, tasks, strict=True):
        await stop(driver, task)
    assert set(world.done.values()) == {1}, "an action was done twice"
    assert not world.overlapped
    assert await steps_of(twins[0]) == [steps] * len(RESOURCES)
    assert all(stepper.worked_on for stepper in steppers), "one of them did everything"
    async with twins[0].transaction() as tx:
        assert await tx.claims() == []


async def test_when_one_dies_in_a_tick_the_other_takes_over(twins: tuple[SqlStore, SqlStore]) -> None:
    world, steps = World(), 12
    dying, surviving = (Stepper(store, world, steps=steps) for store in twins)
    dying.go_on.clear()
    first = asyncio.create_task(make_driver(dying, twins[0], "one", pace=BRISK).run())
    async with asyncio.timeout(PATIENCE_S):
        await dying.mid_tick.wait()
    driver = make_driver(surviving, twins[1], "two", pace=BRISK)
    second = asyncio.create_task(driver.run())
    await until(lambda: bool(surviving.worked_on))
    first.cancel()  # without a release: as kill -9 would
    await asyncio.gather(first, return_exceptions=True)
    await until(lambda: len(world.done) == steps * len(RESOURCES))
    await stop(driver, second)
    assert surviving.worked_on == set(RESOURCES)
    assert set(world.done.values()) == {1}
    assert await steps_of(twins[0]) == [steps] * len(RESOURCES)


async def test_one_that_was_paused_comes_back_to_a_stale_claim_and_leaves_no_trace(
    twins: tuple[SqlStore, SqlStore],
) -> None:
    world = World()
    late, prompt = Stepper(twins[0], world, steps=1), Stepper(twins[1], world, steps=3)
    late.go_on.clear()
    clock, ids = SystemClock(), UuidIds()
    name = "steps/d0"
    async with twins[0].transaction() as tx:
        now = clock.now()
        claim = await tx.claim(name, token=_token(ids), holder=InstanceId("one"), now=now, expires_at=now)
    assert claim is not None
    resuming = asyncio.create_task(late.tick("d0", claim))
    await late.mid_tick.wait()  # paused here, long enough for its claim to expire
    driver = make_driver(prompt, twins[1], "two")
    task = asyncio.create_task(driver.run())
    await until(lambda: world.done["d0/2"] == 1)
    await stop(driver, task)
    before = await steps_of(twins[0])
    late.go_on.set()
    with pytest.raises(StaleClaimError):
        await resuming
    assert await steps_of(twins[0]) == before
    assert before[0] == 3


async def test_a_driver_that_lost_its_claim_counts_it_and_goes_on(twins: tuple[SqlStore, SqlStore]) -> None:
    world, outcomes = World(), Outcomes()
    stepper = Stepper(twins[0], world, steps=2)
    stepper.go_on.clear()
    driver = make_driver(stepper, twins[0], "one", pace=BRISK, observer=outcomes)
    task = asyncio.create_task(driver.run())
    async with asyncio.timeout(PATIENCE_S):
        await stepper.mid_tick.wait()
    clock = SystemClock()
    far = clock.now() + timedelta(hours=1)
    async with twins[1].transaction() as tx:  # a person, or a clock that is far ahead
        for resource in RESOURCES:
            held = f"steps/{resource}"
            await tx.claim(held, token=_token(UuidIds()), holder=InstanceId("two"), now=far, expires_at=clock.now())
    stepper.go_on.set()
    await until(lambda: TickOutcome.STALE_CLAIM in outcomes.seen)
    await until(lambda: all(world.done[f"{resource}/1"] for resource in RESOURCES))
    await stop(driver, task)
    assert await steps_of(twins[0]) == [2] * len(RESOURCES)
    assert TickOutcome.FAILED not in outcomes.seen
