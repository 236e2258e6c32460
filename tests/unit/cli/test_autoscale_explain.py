"""`quarterdeck autoscale explain`: what a person and a script read, by number and by time, and every way to fail."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.autoscaler.learning import first_state
from controlplane.autoscaler.model import Bucket, PolicyState
from controlplane.autoscaler.params import params_for, rules_params_for
from controlplane.autoscaler.policy import decide
from controlplane.autoscaler.replay import record
from controlplane.autoscaler.rules import decide_by_rules
from controlplane.autoscaler.rules_model import RulesObservation
from controlplane.autoscaler.signals import Signals
from controlplane.cli.exits import ExitCode
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.scaling import AutoscalingSpec, ScalingPolicy, ScalingRule, Signal
from controlplane.kernel.ids import DeploymentName
from controlplane.testing.autoscaling import make_observation
from controlplane.testing.builders import make_deployment
from controlplane.testing.effects import START
from tests.conftest import GoldenText
from tests.unit.cli.conftest import NOBODY, Fleet, run

CHAT = DeploymentName("chat-8b")
EXPLAIN = ("autoscale", "explain")
SOON = (START + timedelta(seconds=460)).timestamp()
RULES = AutoscalingSpec(
    policy=ScalingPolicy.RULES,
    rules=(
        ScalingRule(signal=Signal.GPU_MEMORY, target=0.75, above=0.85, below=0.5),
        ScalingRule(signal=Signal.IN_FLIGHT, target=12.0),
        ScalingRule(signal=Signal.QUEUE_DEPTH, above=1000.0, step_up=2),
    ),
    up_per_minute_max=1,
)


def by_slo(*, shadow_of: int | None = None) -> DecisionRecord:
    params = params_for(make_deployment(str(CHAT)))
    observation = make_observation(
        at_s=SOON, arrivals=300.0, wanted=3, ready=3, engines_fresh=3, running=40, kv_usage=0.31, shadow_of=shadow_of
    )
    state: PolicyState = replace(
        first_state(params, replace(observation, at_s=SOON - 400.0)),
        at_s=SOON - 1.0,
        buckets=tuple(
            Bucket(end_s=SOON - 180.0 + 3.0 * place, seconds=3.0, arrivals=900.0, need=3) for place in range(60)
        ),
    )
    return record(CHAT, params, observation, state, decide(params, observation, state))


def by_rules() -> DecisionRecord:
    deployment = make_deployment(str(CHAT))
    params = rules_params_for(replace(deployment, spec=replace(deployment.spec, autoscaling=RULES)))
    seen = make_observation(at_s=SOON + 1.0, wanted=3, ready=3, engines_fresh=3, kv_usage=0.92, in_flight=70)
    moment = RulesObservation(seen=seen, signals=Signals())
    return record(CHAT, params, moment, None, decide_by_rules(params, moment, None))


def keep(fleet: Fleet, kept: DecisionRecord) -> None:
    async def write() -> None:
        async with fleet.store.transaction() as tx:
            await tx.append_decision(kept)

    asyncio.run(write())


@pytest.mark.parametrize(
    ("name", "kept"),
    [("explain", by_slo()), ("explain_shadow", by_slo(shadow_of=2)), ("explain_rules", by_rules())],
    ids=["slo", "shadow", "rules"],
)
def test_what_a_person_reads(fleet: Fleet, golden_text: GoldenText, name: str, kept: DecisionRecord) -> None:
    keep(fleet, kept)
    result = fleet.run(*EXPLAIN, CHAT)
    assert result.exit_code == ExitCode.OK, result.output
    golden_text(f"cli_{name}.txt", f"$ quarterdeck autoscale explain {CHAT}\n{result.output}")


def test_what_a_script_reads(fleet: Fleet) -> None:
    kept = by_slo()
    keep(fleet, kept)
    answer = json.loads(fleet.run(*EXPLAIN, CHAT, "--json").output)
    assert sorted(answer) == ["capacity", "decision", "demand", "inputs", "learned", "needs", "rules", "times"]
    assert answer["decision"]["sentence"] == kept.sentence
    assert (answer["inputs"]["arrivals"], answer["inputs"]["ready"]) == (300.0, 3)
    assert answer["demand"]["up_rps"] >= answer["demand"]["level_rps"] > 250.0
    assert [rule["rule"] for rule in answer["rules"] if rule["applied"]]
    keep(fleet, by_rules())
    answer = json.loads(fleet.run(*EXPLAIN, CHAT, "--json").output)
    assert [said["signal"] for said in answer["answers"]] == ["gpu_memory", "in_flight", "queue_depth"]
    assert answer["answers"][1]["asked"] == 6


def test_by_number_and_by_time(fleet: Fleet) -> None:
    keep(fleet, by_slo())
    keep(fleet, by_rules())
    by_number = fleet.run(*EXPLAIN, CHAT, "--decision", "5").output
    assert "decision 5" in by_number
    for text in ("2026-01-05T08:07:40", "2026-01-05T08:07:40.9Z", "2026-01-05T09:07:40+01:00"):
        assert fleet.run(*EXPLAIN, CHAT, "--at", text).output == by_number
    assert "decision 6" in fleet.run(*EXPLAIN, CHAT, "--at", "2026-01-06").output


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        ("chat-9b", ExitCode.USAGE, "chat-8b"),
        ("chat-8b --decision 2", ExitCode.USAGE, "decision 2 is on embed, not on chat-8b"),
        ("chat-8b --decision 99", ExitCode.USAGE, "no decision has the number 99"),
        ("chat-8b --at 2025-01-01", ExitCode.USAGE, "no decision on chat-8b is kept at or before 2025-01-01"),
        ("chat-8b --at noon", ExitCode.USAGE, "expected a time such as 2026-01-31T12:00:00 (UTC)"),
        ("chat-8b --at 2026-01-01 --decision 1", ExitCode.USAGE, "expected one of them"),
        ("chat-8b", ExitCode.FAILED, "was made by learned-capacity/1; this version can take apart"),
    ],
)
def test_every_way_to_fail(fleet: Fleet, typed: str, code: ExitCode, said: str) -> None:
    result = fleet.run(*EXPLAIN, *typed.split())
    assert result.exit_code == code, result.output
    assert said in result.output


def test_without_a_control_plane() -> None:
    assert run(*EXPLAIN, "chat", "--control-plane", NOBODY).exit_code == ExitCode.UNREACHABLE


def test_shadow_where_people_look(fleet: Fleet) -> None:
    keep(fleet, by_slo(shadow_of=3))
    said = fleet.run("shadow", "chat-8b", "on", "--reason", "trial")
    assert "is in shadow: decisions are shown, the number stays. trial" in said.output
    assert "`quarterdeck shadow chat-8b site`" in said.output
    assert "3 in shadow: " in fleet.run("deployments").output
    assert "(3 -> " in fleet.run("decisions", "--limit", "1").output or "(3)" in fleet.run("decisions").output
    row = json.loads(fleet.run("deployments", "chat-8b", "--json").output)
    assert (row["shadow"], row["replicas_target"], row["scaling_policy"]) == (True, 3, "slo")
    assert row["replicas_shadow"] is not None
    assert "follows its autoscaler" in fleet.run("shadow", "chat-8b", "site").output
    assert fleet.run("shadow", "chat-8b", "maybe").exit_code == ExitCode.USAGE
