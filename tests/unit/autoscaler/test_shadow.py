"""Shadow: decided, recorded and shown, while the number stays what people and the site say."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.autoscaler.model import POLICY_NAME, Observation
from controlplane.autoscaler.policy import decide
from controlplane.autoscaler.replay import record, replay_all
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment, Intent
from controlplane.domain.scaling import AutoscalingSpec, ScalingPolicy, ScalingRule, Signal
from controlplane.testing.autoscaling import make_observation
from controlplane.testing.builders import make_deployment
from tests.unit.autoscaler.test_policy import CALM, CHAT, PARAMS, after_calm, tick
from tests.unit.autoscaler.test_reconciler import DecisionLog, Desk

BY_RULES = AutoscalingSpec(
    policy=ScalingPolicy.RULES,
    shadow=True,
    rules=(ScalingRule(signal=Signal.REQUESTS_PER_SECOND, target=100.0),),
    cooldown_down=timedelta(seconds=30),
)
POLICIES = {"slo": AutoscalingSpec(shadow=True), "rules": BY_RULES}


def shadowed(spec: AutoscalingSpec, *, wanted: int = 2, replicas_max: int = 8) -> Deployment:
    made = make_deployment(wanted=wanted, replicas_max=replicas_max)
    return replace(made, spec=replace(made.spec, autoscaling=spec))


async def desk(spec: AutoscalingSpec) -> Desk:
    made = Desk()
    await made.set_up(shadowed(spec))
    return made


def changes(kept: Sequence[DecisionRecord]) -> list[DecisionRecord]:
    return [one for one in kept if one.wanted != one.wanted_before]


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_day_in_shadow_changes_nothing_and_tells_all(policy: str) -> None:
    made, log = await desk(POLICIES[policy]), DecisionLog()
    loop = made.reconciler()
    for second in range(900):
        await made.tick(1000.0 if 100 < second < 200 else 2.0, loop=loop)
        assert await made.wanted() == 1
    kept = await made.decisions()
    assert made.hints.hinted == []
    assert log.told == []
    assert {one.wanted > one.wanted_before for one in changes(kept)} == {True, False}
    assert all(one.in_shadow for one in kept)
    assert all(one.sentence.startswith("would ") and "(in shadow, 1 stays)" in one.sentence for one in kept)
    assert [after.wanted_before for after in changes(kept)[1:]] == [before.wanted for before in changes(kept)[:-1]]
    report = replay_all(kept)
    assert report.is_clean, report.differences
    async with made.store.transaction() as tx:
        events = await tx.events(kind="decision", limit=1000)
    assert [event.event.sentence for event in events] == [one.sentence for one in changes(kept)]


async def test_a_person_pins_it_and_the_shadow_goes_on() -> None:
    made = await desk(POLICIES["slo"])
    async with made.store.transaction() as tx:
        await tx.set_intent(CHAT, Intent(replicas_pinned=3))
    for second in range(60):
        await made.tick(1000.0 if second > 10 else 2.0)
    assert await made.wanted() == 3
    last = (await made.decisions())[-1]
    assert last.wanted > 3
    assert "(in shadow, 3 stay)" in last.sentence


async def test_a_pause_holds_also_the_shadow() -> None:
    made = await desk(POLICIES["slo"])
    async with made.store.transaction() as tx:
        await tx.set_intent(CHAT, Intent(paused=True, replicas_pinned=3))
    for _ in range(40):
        await made.tick(1000.0)
    assert await made.wanted() == 1
    assert changes(await made.decisions()) == []


async def test_it_is_switched_at_run_time_over_the_site_file() -> None:
    made = Desk()
    await made.set_up(make_deployment(replicas_max=8))
    async with made.store.transaction() as tx:
        await tx.set_intent(CHAT, Intent(shadow=True))
    for _ in range(40):
        await made.tick(1000.0)
    assert await made.wanted() == 1
    async with made.store.transaction() as tx:
        await tx.set_intent(CHAT, Intent())
    await made.tick(1000.0)
    assert await made.wanted() > 1
    assert replay_all(await made.decisions()).is_clean


async def test_the_sites_minimum_holds_in_shadow() -> None:
    made = await desk(POLICIES["slo"])
    deployment = shadowed(POLICIES["slo"])
    raised = replace(deployment.spec, replicas_min=3)
    async with made.store.transaction() as tx:
        await tx.put_deployment_spec(raised, deployment.plan, made.clock.now())
    await made.tick(1.0)
    assert await made.wanted() == 3


async def test_changing_the_policy_begins_anew_and_keeps_the_number() -> None:
    made = await desk(AutoscalingSpec())
    for _ in range(30):
        await made.tick(1000.0)
    before = await made.wanted()
    deployment = shadowed(replace(BY_RULES, shadow=False))
    async with made.store.transaction() as tx:
        await tx.put_deployment_spec(deployment.spec, deployment.plan, made.clock.now())
    await made.tick(1000.0)
    assert await made.wanted() >= before
    async with made.store.transaction() as tx:
        await tx.put_deployment_spec(make_deployment(replicas_max=8).spec, deployment.plan, made.clock.now())
    await made.tick(400.0)
    assert await made.wanted() >= before
    for _ in range(70):
        await made.tick(1000.0)
    kept = await made.decisions()
    assert {one.policy for one in kept} == {POLICY_NAME}
    assert replay_all(kept).is_clean


def test_a_shortage_that_only_the_shadow_knows_is_no_fault() -> None:
    """It wants four and two stay: a turn within the lead is as forbidden as it would be with four."""
    turned = after_calm(60.0, direction=-1, turned_s=CALM.at_s)
    seen = tick(60.0, wanted=4, ready=2, engines_fresh=2, shadow_of=2)
    assert decide(PARAMS, seen, turned).wanted == 4
    assert decide(PARAMS, replace(seen, ready=1, engines_fresh=1), turned).wanted > 4


def test_a_record_of_before_shadow_was_known_replays() -> None:
    observation: Observation = make_observation(arrivals=50.0)
    kept = record(CHAT, PARAMS, observation, CALM, decide(PARAMS, observation, CALM))
    assert '"shadow_of":null,' in kept.observation_json
    old = replace(kept, observation_json=kept.observation_json.replace('"shadow_of":null,', ""))
    assert replay_all([old]).is_clean
