"""The loops of an instance, and that everything is put together from them."""

from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.adapters.db.engine import sqlite_url
from controlplane.adapters.db.store import open_store
from controlplane.bootstrap.compose import LOOPS, put_together
from controlplane.bootstrap.loops import DECISIONS_KEPT, EVENTS_KEPT, TICKS_KEPT, Beat, Housekeeping
from controlplane.bootstrap.site_work import SiteWork
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.kernel.errors import StaleClaimError
from controlplane.kernel.ids import ClaimToken, InstanceId
from controlplane.testing.effects import FakeClock
from controlplane.testing.memory_store import MemoryStore


async def test_history_is_kept_for_its_time_and_then_goes() -> None:
    store, clock = MemoryStore(), FakeClock()
    for age in (timedelta(days=31), timedelta(days=29)):
        event = NewEvent(
            at=clock.now() - age, kind=EventKind.SITE, subject="lab", reason=Reason.SITE_APPLIED, sentence=f"{age}"
        )
        async with store.transaction() as tx:
            await tx.append_events([event])
    loop = Housekeeping(store=store, clock=clock)
    async with store.transaction() as tx:
        claim = await tx.claim(
            "housekeeping", token=ClaimToken("t1"), holder=InstanceId("one"), now=clock.now(),
            expires_at=clock.now() + timedelta(minutes=1),
        )  # fmt: skip
    assert claim is not None
    assert await loop.resources() == ["site"]
    report = await loop.tick("site", claim)
    assert report.changed
    assert report.sentence == "rows of old history deleted: 1"
    assert not (await loop.tick("site", claim)).changed
    async with store.transaction() as tx:
        assert [event.event.sentence for event in await tx.events()] == [str(timedelta(days=29))]
        await tx.release_claim(claim.resource, claim.token)
    with pytest.raises(StaleClaimError):
        await loop.tick("site", claim)


def test_what_explains_an_incident_is_kept_longest() -> None:
    assert TICKS_KEPT < DECISIONS_KEPT < EVENTS_KEPT


class Hurrying(FakeClock):
    """Sleeping is moving on, and always a little late, as on a busy machine."""

    def __init__(self, late: timedelta = timedelta(0)) -> None:
        super().__init__()
        self._late = late

    async def sleep(self, duration: timedelta) -> None:
        self.jump(duration + self._late)


async def beaten(clock: Hurrying, *took_s: float, after: timedelta = timedelta(0)) -> list[float]:
    """When the body of a beat of two seconds began, if it takes so long each time."""
    begun: list[float] = []

    async def body() -> None:
        begun.append(round(clock.monotonic(), 3))
        clock.jump(timedelta(seconds=took_s[len(begun) - 1]))
        if len(begun) == len(took_s):
            beat.stop()

    beat = Beat(body=body, period=timedelta(seconds=2), clock=clock, after=after)
    await beat.run()
    return begun


async def test_a_beat_keeps_its_period_whatever_its_body_takes() -> None:
    assert await beaten(Hurrying(), 0.5, 4.0, 0.0, 0.0) == [0.0, 2.0, 6.0, 8.0]


async def test_two_beats_of_one_period_keep_their_distance() -> None:
    late = timedelta(milliseconds=10)
    assert await beaten(Hurrying(late), 0.5, 0.1, 0.1, 0.1) == [0.0, 2.01, 4.01, 6.01]
    assert await beaten(Hurrying(late), 0.0, 0.0, 0.0, 0.0, after=timedelta(seconds=0.25)) == [0.26, 2.26, 4.26, 6.26]


async def test_everything_is_put_together_and_nothing_runs_yet(tmp_path: Path) -> None:
    store = await open_store(sqlite_url(tmp_path / "store.sqlite3"))
    site_work = SiteWork(store=store, clock=FakeClock(), gateway_port=9123)
    site = (await site_work.begin(None)).site
    parts = put_together(
        store=store,
        site_work=site_work,
        site=site,
        state_dir=tmp_path,
        control_url="http://127.0.0.1:8080",
        instance=InstanceId("one"),
    )
    try:
        assert {driver.name for driver in parts.drivers} == LOOPS
        beats = {"telemetry", "gateway-telemetry", "site", "embedded", "recovery-gauges"}
        assert {service.name for service in parts.services} == LOOPS | beats
        assert parts.context.gateway_url == "http://127.0.0.1:9123"
        assert "quarterdeck_build_info" in parts.context.metrics()
        answer = await parts.context.replay(None, 10)
        assert (answer.replayed, answer.differing) == (0, ())
    finally:
        await parts.telemetry.close()
        await store.close()
