"""Each example site loads, plans on its GPUs, and asks for what its people asked for."""

from functools import partial
from pathlib import Path
from typing import Final

import pytest

from controlplane.adapters.sitefile.parse import load_site, read_site, read_text
from controlplane.adapters.sitefile.planned import PlannedFile, plan_site_file
from controlplane.catalog.files import load_catalog
from controlplane.catalog.planning import plan_serving
from controlplane.domain.deployment import DeploymentSpec, IdleMode
from controlplane.domain.site import Site

EXAMPLES: Final = Path(__file__).parents[3] / "examples"
NAMES: Final = ("demo", "sovren", "sophia", "nura", "nova", "agent")


def site(name: str) -> Site:
    return load_site(EXAMPLES / name / "site.yaml")[0]


def deployments(name: str) -> dict[str, DeploymentSpec]:
    return {spec.name: spec for spec in site(name).deployments}


def planned(name: str) -> PlannedFile:
    catalog = load_catalog()
    path = EXAMPLES / name / "site.yaml"
    read = read_site(
        read_text(path), file=str(path), known_models=frozenset(catalog.models), known_gpus=frozenset(catalog.gpus)
    )
    return plan_site_file(read, partial(plan_serving, catalog=catalog))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_named_as_its_folder_and_plans(name: str) -> None:
    result = planned(name)
    assert result.site.name == name
    assert set(result.plans) == {spec.name for spec in result.site.deployments}


def test_every_folder_of_examples_with_a_site_is_tested() -> None:
    assert sorted(path.parent.name for path in EXAMPLES.glob("*/site.yaml")) == sorted(NAMES)


def test_the_demo_runs_on_sixteen_simulated_gpus() -> None:
    demo = site("demo")
    assert [node.gpus for node in demo.nodes if node.simulated and node.gpu_model == "b200"] == [8, 8]
    plans = planned("demo").plans
    assert {str(name): plan.gpus_per_replica for name, plan in plans.items()} == {
        "chat-8b": 1,
        "chat-70b": 4,
        "embed": 1,
    }
    embed = deployments("demo")["embed"]
    assert (embed.replicas_min, embed.idle_mode) == (0, IdleMode.SLEEP)
    assert demo.load is not None
    assert {name for name, _ in demo.load.deployment_weights} == {spec.name for spec in demo.deployments}


def test_the_minima_of_the_demo_leave_room_to_scale() -> None:
    """Scaling must be seen in the demo: at its minima most GPUs are free."""
    result = planned("demo")
    held = sum(spec.replicas_min * result.plans[spec.name].gpus_per_replica for spec in result.site.deployments)
    assert held == 5


def test_sovren_promises_what_its_people_ask() -> None:
    specs = deployments("sovren")
    whisper, llama = specs["whisper"].slo.end_to_end, specs["llama-70b"].slo.end_to_end
    assert whisper is not None
    assert (whisper.percentile, whisper.limit.total_seconds()) == (0.5, 0.5)
    assert llama is not None
    assert (llama.percentile, llama.limit.total_seconds()) == (0.5, 0.7)
    assert specs["llama-70b"].max_num_seqs == 16


def test_sophia_scales_from_3_to_100() -> None:
    (assistant,) = site("sophia").deployments
    assert (assistant.replicas_min, assistant.replicas_max) == (3, 100)
    assert {tenant.requests_per_minute for tenant in site("sophia").gateway.tenants} == {1000}


def test_nura_runs_two_70b_models_at_tensor_parallel_4_and_embeddings_from_zero() -> None:
    plans, specs = planned("nura").plans, deployments("nura")
    assert sorted(plan.gpus_per_replica for plan in plans.values()) == [1, 4, 4]
    assert (specs["embed"].replicas_min, specs["embed"].replicas_max) == (0, 5)


def test_agents_three_models_take_turns_on_one_card() -> None:
    assert sum(node.gpus for node in site("agent").nodes) == 1
    assert [(spec.replicas_min, spec.idle_mode) for spec in site("agent").deployments] == [(0, IdleMode.STOP)] * 3
