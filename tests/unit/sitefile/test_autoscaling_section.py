"""`autoscaling` of a deployment: read into the domain's units, noted, compared; what is wrong is in the golden file."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from controlplane.adapters.sitefile.parse import parse_site, read_site
from controlplane.adapters.sitefile.planned import PlannedFile, plan_site_file
from controlplane.domain.deployment import DeploymentSpec, ServingPlan
from controlplane.domain.node import NodeSpec
from controlplane.domain.scaling import AutoscalingSpec, ScalingPolicy, ScalingRule, Signal
from controlplane.domain.site import EngineSpec
from controlplane.kernel.ids import DeploymentName
from controlplane.sites.change import compare_sites
from controlplane.testing.builders import make_plan

TEXT = """\
site: {name: lab}
node_pools:
  - {name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}
engines:
  - {name: sim, kind: simulated}
deployments:
  - name: chat
    model: m1
    replicas: {min: 1, max: 4}
"""
RULES = """\
    autoscaling:
      policy: rules
      shadow: true
      rules:
        - {signal: gpu_memory, target: 75%, above: 85%, below: 50%}
        - {signal: in_flight, target: 12.5, window: 1m}
        - {signal: queue_depth, above: 1000, below: 10, up: 2, down: 3}
        - {signal: ttft, percentile: p99.9, above: 500ms}
      max_up_per_minute: 10
      max_down_per_minute: 5
      cooldown: {up: 10s, down: 3m}
      lookahead: 5m
      confidence: 0.9
"""
CHAT = DeploymentName("chat")


def planned(text: str) -> PlannedFile:
    def planner(spec: DeploymentSpec, _: EngineSpec, __: Sequence[NodeSpec]) -> ServingPlan:
        return make_plan(spec.name)

    return plan_site_file(read_site(text, file="site.yaml"), planner)


def changed(after: str, before: str = TEXT) -> list[str]:
    plans = {CHAT: make_plan("chat")}
    sites = [parse_site(text, file="site.yaml") for text in (before, after)]
    return list(compare_sites(sites[0], plans, sites[1], plans).sentences())


def test_left_out_the_slo_decides_and_is_acted_upon() -> None:
    (spec,) = parse_site(TEXT, file="site.yaml").deployments
    assert spec.autoscaling == AutoscalingSpec()
    assert (spec.autoscaling.policy, spec.autoscaling.shadow) == (ScalingPolicy.SLO, False)


def test_values_are_read_into_the_domains_units() -> None:
    (spec,) = parse_site(TEXT + RULES, file="site.yaml").deployments
    assert spec.autoscaling == AutoscalingSpec(
        policy=ScalingPolicy.RULES,
        shadow=True,
        rules=(
            ScalingRule(signal=Signal.GPU_MEMORY, target=0.75, above=0.85, below=0.5),
            ScalingRule(signal=Signal.IN_FLIGHT, target=12.5, window=timedelta(minutes=1)),
            ScalingRule(signal=Signal.QUEUE_DEPTH, above=1000.0, below=10.0, step_up=2, step_down=3),
            ScalingRule(signal=Signal.TTFT, percentile=0.999, above=0.5),
        ),
        up_per_minute_max=10,
        down_per_minute_max=5,
        cooldown_up=timedelta(seconds=10),
        cooldown_down=timedelta(minutes=3),
        lookahead=timedelta(minutes=5),
        confidence=0.9,
    )


def test_gpu_memory_is_noted_at_its_line() -> None:
    result = planned(TEXT + RULES)
    (note,) = result.notes
    assert (note.field, note.line) == ("deployments[chat].autoscaling.rules[0].signal", 13)
    assert "KV cache" in note.expected
    assert result.warnings == ()
    assert planned(TEXT).notes == ()


def test_rules_that_never_give_back_and_a_shadow_that_nothing_wakes_are_warned_of() -> None:
    rules = "    autoscaling: {policy: rules, rules: [{signal: queue_depth, above: 1000}]}\n"
    (rising,) = planned(TEXT + rules).warnings
    assert (rising.field, rising.line) == ("deployments[chat].autoscaling.rules", 10)
    zero = TEXT.replace("{min: 1, max: 4}", "{min: 0, max: 4}\n    idle_after: 5m")
    (asleep,) = planned(zero + "    autoscaling: {shadow: true}\n").warnings
    assert asleep.field == "deployments[chat].autoscaling.shadow"
    assert "quarterdeck scale chat N" in asleep.hint


def test_a_diff_names_each_field_and_restarts_nothing() -> None:
    written = (
        "gpu_memory target 75% above 85% below 50% over 30s, in_flight target 12.5 over 60s, "
        "queue_depth above 1000 below 10 up 2 down 3 over 30s, ttft p99.9 above 500ms up 1 over 30s"
    )
    assert changed(TEXT + RULES) == [
        "deployment chat changes autoscaling.policy: slo -> rules",
        "deployment chat changes autoscaling.shadow: false -> true",
        f"deployment chat changes autoscaling.rules: none -> {written}",
        "deployment chat changes autoscaling.up_per_minute_max: not set -> 10",
        "deployment chat changes autoscaling.down_per_minute_max: not set -> 5",
        "deployment chat changes autoscaling.cooldown_up: 0ms -> 10.0s",
        "deployment chat changes autoscaling.cooldown_down: 5m00s -> 3m00s",
        "deployment chat changes autoscaling.lookahead: not set -> 5m00s",
        "deployment chat changes autoscaling.confidence: 0.95 -> 0.9",
    ]
    assert changed(TEXT + RULES, TEXT + RULES) == []


def test_a_rule_reads_as_it_was_written() -> None:
    rule = ScalingRule(signal=Signal.ERROR_RATE, above=0.015)
    assert str(rule) == "error_rate above 1.5% up 1 over 30s"
    assert str(replace(rule, signal=Signal.END_TO_END, above=2.5)) == "end_to_end p99 above 2.50s up 1 over 30s"
