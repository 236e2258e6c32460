"""The shell: one transaction, one record per change, a hint after the commit, nothing lost when killed."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.autoscaler.reconciler import AutoscalerReconciler
from controlplane.autoscaler.replay import replay_all
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment, Intent
from controlplane.domain.reason import Reason
from controlplane.domain.store import Claim, Store
from controlplane.domain.telemetry import Fresh, GatewaySample, RouteTraffic
from controlplane.kernel.errors import StaleClaimError
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId
from controlplane.runtime.reconciler import TickReport
from controlplane.testing.builders import make_deployment
from controlplane.testing.effects import FakeClock
from controlplane.testing.killswitch import ControlPlaneKilledError, KillableStore, KillSwitch
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.telemetry import FakeTelemetry

CHAT = DeploymentName("chat")


class HintLog:
    """Implements Hints."""

    def __init__(self) -> None:
        self.hinted: list[str] = []

    def hint(self, loop: str) -> None:
        self.hinted.append(loop)


class DecisionLog:
    """Implements DecisionObserver."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Reason, int, int]] = []

    def on_decision(self, deployment: DeploymentName, reason: Reason, *, wanted_before: int, wanted: int) -> None:
        self.told.append((deployment, reason, wanted_before, wanted))


class Desk:
    """A control plane's autoscaler with one deployment, and a gateway whose counter the test moves."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.telemetry = FakeTelemetry(self.clock)
        self.hints = HintLog()
        self.arrivals = 0.0

    async def set_up(self, deployment: Deployment) -> None:
        async with self.store.transaction() as tx:
            await tx.put_deployment_spec(deployment.spec, deployment.plan, self.clock.now())

    def reconciler(self, store: Store | None = None) -> AutoscalerReconciler:
        return AutoscalerReconciler(
            store=store or self.store, telemetry=self.telemetry, clock=self.clock, hints=self.hints
        )

    async def tick(
        self,
        arrivals: float = 0.0,
        *,
        seconds: float = 1.0,
        store: Store | None = None,
        loop: AutoscalerReconciler | None = None,
    ) -> TickReport:
        """Time passes, requests come, the loop runs: one that just began, or `loop` that remembers its last tick."""
        self.clock.jump(timedelta(seconds=seconds))
        self.arrivals += arrivals
        route = RouteTraffic(
            arrivals_total=self.arrivals, in_flight=0, queued=0, held=0, responses_5xx_total=0.0, servers_up=1
        )
        sample = GatewaySample(at=self.clock.now(), epoch="1", routes={CHAT: route}, servers={})
        self.telemetry.set_gateway(Fresh(sample))
        return await (loop or self.reconciler(store)).tick(CHAT, await self.claim())

    async def state(self) -> str | None:
        async with self.store.transaction() as tx:
            return await tx.policy_state(CHAT)

    async def claim(self) -> Claim:
        now = self.clock.now()
        async with self.store.transaction() as tx:
            claim = await tx.claim(
                f"autoscaler/{CHAT}",
                token=ClaimToken("token"),
                holder=InstanceId("me"),
                now=now,
                expires_at=now + timedelta(seconds=15),
            )
        assert claim is not None
        return claim

    async def wanted(self) -> int:
        async with self.store.transaction() as tx:
            return (await tx.deployment(CHAT)).replicas_wanted

    async def decisions(self) -> Sequence[DecisionRecord]:
        async with self.store.transaction() as tx:
            return await tx.decisions(CHAT, limit=1000, newest_first=False)


async def desk(*, replicas_max: int = 4) -> Desk:
    made = Desk()
    await made.set_up(make_deployment(replicas_max=replicas_max))
    return made


async def test_a_rise_is_written_recorded_told_and_hinted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = await desk(replicas_max=8)
    await made.tick()
    for _ in range(30):
        await made.tick(1000.0)
    changes = [kept for kept in await made.decisions() if kept.wanted != kept.wanted_before]
    async with made.store.transaction() as tx:
        events = await tx.events(kind="decision")
    assert await made.wanted() == changes[-1].wanted > 1
    assert [event.event.sentence for event in events] == [kept.sentence for kept in changes]
    assert [record.message for record in caplog.records] == ["replicas wanted changed"] * len(changes)
    assert made.hints.hinted == ["replicas"] * len(changes)


async def test_quiet_ticks_are_kept_once_a_minute() -> None:
    made = await desk()
    for _ in range(300):
        await made.tick(1.0)
    kept = await made.decisions()
    assert 5 <= len(kept) <= 9
    assert made.hints.hinted == []


async def test_each_record_replays_to_the_same_answer() -> None:
    made = await desk(replicas_max=8)
    for second in range(600):
        await made.tick(1000.0 if 100 < second < 200 else 2.0)
    kept = await made.decisions()
    report = replay_all(kept)
    assert report.is_clean, report.differences
    assert {record.wanted > record.wanted_before for record in kept if record.wanted != record.wanted_before} == {
        True,
        False,
    }


async def test_another_instance_goes_on_where_the_first_stopped() -> None:
    """`tick` makes a new reconciler each time, so everything that counts is in the store."""
    made = await desk(replicas_max=8)
    await made.tick(5.0)
    report = await made.tick(5.0)
    assert "arrivals not known" not in report.sentence


async def test_a_loop_that_remembers_its_last_tick_writes_what_a_new_one_would() -> None:
    remembering, fresh = await desk(), await desk()
    loop = remembering.reconciler()
    for second in range(60):
        arrivals = 40.0 if second > 20 else 0.5 * (second % 3)
        await remembering.tick(arrivals, loop=loop)
        await fresh.tick(arrivals)
        assert await remembering.state() == await fresh.state()


async def test_a_remembered_state_that_is_not_in_the_store_any_more_is_not_used() -> None:
    made, other = await desk(), await desk()
    loop = made.reconciler()
    for _ in range(5):
        await made.tick(3.0, loop=loop)
        await other.tick(9.0)
    text = await other.state()
    assert text is not None
    async with made.store.transaction() as tx:
        await tx.put_policy_state(CHAT, text)
    made.arrivals = other.arrivals
    await made.tick(9.0, loop=loop)
    await other.tick(9.0)
    assert await made.state() == await other.state()


async def test_decisions_that_are_kept_are_told_after_the_commit() -> None:
    made, log = await desk(), DecisionLog()
    loop = AutoscalerReconciler(
        store=made.store, telemetry=made.telemetry, clock=made.clock, hints=made.hints, observer=log
    )
    for second in range(40):
        await made.tick(60.0 if second > 5 else 0.0, loop=loop)
    async with made.store.transaction() as tx:
        kept = await tx.decisions(CHAT, newest_first=False)
    assert log.told == [(CHAT, each.reason, each.wanted_before, each.wanted) for each in kept]
    assert any(wanted > before for _, _, before, wanted in log.told)


async def test_an_unreadable_state_is_dropped_and_the_first_look_holds() -> None:
    made = await desk(replicas_max=8)
    await made.tick(5.0)
    async with made.store.transaction() as tx:
        await tx.put_policy_state(CHAT, '{"of":"another version"}')
    assert "never fewer" in (await made.tick(5.0)).sentence


async def test_intent_is_obeyed() -> None:
    made = await desk(replicas_max=8)
    async with made.store.transaction() as tx:
        await tx.set_intent(CHAT, Intent(replicas_pinned=5))
    await made.tick(1000.0)
    assert await made.wanted() == 5
    async with made.store.transaction() as tx:
        await tx.set_intent(CHAT, Intent(paused=True))
    await made.tick(1000.0)
    assert (await made.decisions())[-1].reason in (Reason.PAUSED, Reason.PINNED)
    assert await made.wanted() == 5


async def test_a_removed_or_vanished_deployment_is_left_alone() -> None:
    made = await desk()
    async with made.store.transaction() as tx:
        await tx.mark_deployment_removed(CHAT)
    assert await made.reconciler().resources() == []
    assert "removed" in (await made.tick(100.0)).sentence
    async with made.store.transaction() as tx:
        await tx.delete_deployment(CHAT)
    assert "gone" in (await made.tick(100.0)).sentence
    assert await made.decisions() == []


async def test_a_lost_claim_writes_nothing() -> None:
    made = await desk()
    claim = replace(await made.claim(), token=ClaimToken("another"))
    with pytest.raises(StaleClaimError):
        await made.reconciler().tick(CHAT, claim)
    assert await made.decisions() == []


async def _play(made: Desk, switch: KillSwitch) -> bool:
    """A rise and a fall under a store that may die; whether it did. Afterwards a healthy one goes on."""
    store = KillableStore(made.store, switch)
    for second in range(90):
        try:
            await made.tick(1000.0 if second < 20 else 0.0, store=store)
        except ControlPlaneKilledError:
            break
    for _ in range(120):
        await made.tick(0.0, seconds=5.0)
    return switch.tripped


async def test_killed_between_any_two_effects_nothing_is_half_done() -> None:
    probe = KillSwitch()
    await _play(await desk(replicas_max=8), probe)
    for moment in range(1, probe.moments + 1, 7):
        made = await desk(replicas_max=8)
        assert await _play(made, KillSwitch(moment))
        kept = await made.decisions()
        changes = [record for record in kept if record.wanted != record.wanted_before]
        async with made.store.transaction() as tx:
            events = await tx.events(kind="decision", limit=1000)
        assert len(events) == len(changes)
        assert await made.wanted() == 1
        assert [record.wanted_before for record in changes[1:]] == [record.wanted for record in changes[:-1]]
        assert replay_all(kept).is_clean
