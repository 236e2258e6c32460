"""Serving plans: what is chosen, what is rendered, what is refused and under which field."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final

import pytest

from controlplane.catalog.files import load_catalog
from controlplane.catalog.planning import plan_serving
from controlplane.domain.deployment import DeploymentSpec, EngineKind, IdleMode, ServingPlan, TaskKind
from controlplane.domain.node import NodeSpec
from controlplane.domain.site import EngineSpec
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.ids import ModelId, PoolName, ServedName
from controlplane.simulation.engine.options import parse_options
from controlplane.testing.builders import make_node_spec, make_spec

CATALOG: Final = load_catalog()
VLLM: Final = EngineSpec(name="default", kind=EngineKind.VLLM)
SIMULATED: Final = EngineSpec(name="default", kind=EngineKind.SIMULATED)
B200_NODE: Final = make_node_spec("node-1")


def spec(model: str = "llama-3-8b") -> DeploymentSpec:
    return replace(make_spec("chat"), model=ModelId(model))


def plan(asked: DeploymentSpec, engine: EngineSpec = VLLM, nodes: tuple[NodeSpec, ...] = (B200_NODE,)) -> ServingPlan:
    return plan_serving(asked, engine, nodes, catalog=CATALOG)


def problems(
    asked: DeploymentSpec, engine: EngineSpec = VLLM, nodes: tuple[NodeSpec, ...] = (B200_NODE,)
) -> tuple[Problem, ...]:
    with pytest.raises(InvalidError) as caught:
        plan(asked, engine, nodes)
    return caught.value.problems


def option(planned: ServingPlan, name: str) -> str | None:
    argv = planned.launch.argv
    return argv[argv.index(name) + 1] if name in argv else None


# -- command lines


def test_a_vllm_command_line() -> None:
    planned = plan(spec("llama-3.1-70b"))

    assert planned.launch.argv == (
        "vllm",
        "serve",
        "meta-llama/Llama-3.1-70B-Instruct",
        "--host",
        "{host}",
        "--port",
        "{port}",
        "--served-model-name",
        "chat",
        "--tensor-parallel-size",
        "2",
        "--max-model-len",
        "131072",
        "--gpu-memory-utilization",
        "0.92",
        "--max-num-seqs",
        "1024",
        "--shutdown-timeout",
        "60",
    )
    assert dict(planned.launch.env)["CUDA_VISIBLE_DEVICES"] == "{gpus}"
    assert planned.gpus_per_replica == 2
    assert planned.gpu_models == ("b200",)
    assert planned.launch.stop_deadline > timedelta(seconds=60)
    assert any("KV cache" in line for line in planned.proof)


def test_a_precision_names_its_repository_or_is_made_at_start() -> None:
    awq = plan(replace(spec("llama-3.1-8b"), precision="awq"))
    fp8 = plan(replace(spec("llama-3.1-8b"), precision="fp8"))

    assert awq.launch.argv[2] == "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"
    assert option(awq, "--quantization") is None
    assert fp8.launch.argv[2] == "meta-llama/Llama-3.1-8B-Instruct"
    assert option(fp8, "--quantization") == "fp8"


@pytest.mark.parametrize("engine", [VLLM, SIMULATED])
def test_adapters_are_loaded_and_are_no_names_of_the_base(engine: EngineSpec) -> None:
    asked = replace(spec(), served_names=(ServedName("chat"), ServedName("law")), adapters=(("law", "/models/law"),))
    argv = plan(asked, engine).launch.argv

    assert argv[argv.index("--lora-modules") + 1] == "law=/models/law"
    assert argv[argv.index("--served-model-name") + 1 : argv.index("--served-model-name") + 3] == (
        "chat",
        "--tensor-parallel-size",
    )


def test_arguments_of_the_deployment_win_over_those_of_the_engine() -> None:
    engine = replace(VLLM, args=(("enable-prefix-caching", "true"), ("block-size", "32"), ("seed", "1")))
    asked = replace(spec(), engine_args=(("block-size", "64"), ("enable-prefix-caching", "false")))
    planned = plan(asked, engine)

    assert option(planned, "--block-size") == "64"
    assert option(planned, "--seed") == "1"
    assert "--no-enable-prefix-caching" in planned.launch.argv
    assert "--enable-prefix-caching" not in planned.launch.argv


@pytest.mark.parametrize("weights", ["/models/mine", "our-team/llama-3-8b-support"])
@pytest.mark.parametrize("engine", [VLLM, SIMULATED])
def test_weights_of_its_own_change_what_is_loaded_and_nothing_else(engine: EngineSpec, weights: str) -> None:
    usual, planned = plan(spec(), engine), plan(replace(spec(), weights=weights), engine)
    place = planned.launch.argv.index(weights)

    assert place == 2 if engine is VLLM else 3
    assert planned.launch.argv[:place] + planned.launch.argv[place + 1 :] == (
        usual.launch.argv[:place] + usual.launch.argv[place + 1 :]
    )
    assert planned.revision != usual.revision
    as_usual = replace(planned, revision=usual.revision, launch=usual.launch, proof=usual.proof)
    assert as_usual == usual
    assert f"weights: {weights}, taken to have the shape of {spec().model}" in planned.proof


def test_an_engine_command_replaces_the_program() -> None:
    planned = plan(spec(), replace(VLLM, command=("/opt/vllm/bin/vllm", "serve"), env=(("HF_HOME", "/models"),)))

    assert planned.launch.argv[:3] == ("/opt/vllm/bin/vllm", "serve", "meta-llama/Meta-Llama-3-8B-Instruct")
    assert ("HF_HOME", "/models") in planned.launch.env


def test_sleep_mode_is_switched_on_only_where_it_is_used() -> None:
    awake = plan(spec("bge-m3"))
    asleep = plan(replace(spec("bge-m3"), idle_after=timedelta(minutes=5), idle_mode=IdleMode.SLEEP))

    assert "--enable-sleep-mode" not in awake.launch.argv
    assert "--enable-sleep-mode" in asleep.launch.argv
    assert dict(asleep.launch.env)["VLLM_SERVER_DEV_MODE"] == "1"


def test_an_embedding_model_pools() -> None:
    planned = plan(spec("bge-m3"))

    assert planned.launch.task is TaskKind.EMBED
    assert option(planned, "--runner") == "pooling"
    assert planned.prior.kv_tokens == 0


# -- the simulated engine


def test_a_simulated_engine_plays_the_prior_in_the_hardwares_time() -> None:
    engine = replace(SIMULATED, speed=10.0)
    planned = plan(spec(), engine)
    profile = json.loads(option(planned, "--sim-profile") or "")

    assert planned.launch.argv[:4] == ("{python}", "-m", "controlplane.simulation.engine", "llama-3-8b")
    assert option(planned, "--sim-speed") == "10"
    assert option(planned, "--sim-task") == "generate"
    assert profile["step_base_s"] == pytest.approx(3.39e-3)
    assert planned.prior.step_base_s == pytest.approx(3.39e-4)
    assert profile["kv_tokens"] == planned.prior.kv_tokens > 1_000_000


def test_a_simulated_start_takes_the_sites_time_or_the_catalogs_sped_up() -> None:
    real = plan(spec()).prior.cold_start
    sped = plan(spec(), replace(SIMULATED, speed=10.0))
    own = plan(spec(), replace(SIMULATED, speed=10.0, cold_start=timedelta(seconds=3), wake=timedelta(seconds=1)))

    assert sped.prior.cold_start.total_seconds() == pytest.approx(real.total_seconds() / 10, abs=0.01)
    assert option(own, "--sim-cold-start") == "3"
    assert own.prior.cold_start == timedelta(seconds=3)
    assert own.prior.wake == timedelta(seconds=1)


def test_speech_synthesis_is_played_though_vllm_cannot_serve_it() -> None:
    planned = plan(spec("styletts2"), SIMULATED)

    assert option(planned, "--sim-task") == "speak"
    assert option(planned, "--max-model-len") is None
    assert planned.gpus_per_replica == 1


# -- choices


def test_the_cheapest_kind_of_gpu_decides_and_others_may_hold_too() -> None:
    nodes = (make_node_spec("a", gpu_model="b200"), make_node_spec("b", gpu_model="h100"))
    small, large = plan(spec(), nodes=nodes), plan(spec("llama-3.1-70b"), nodes=nodes)

    assert small.gpu_models == ("h100", "b200")
    assert large.gpu_models[0] == "b200"
    assert large.gpus_per_replica == 2


def test_a_pool_restricts_the_choice() -> None:
    far = replace(make_node_spec("b", gpu_model="h100"), pool=PoolName("far"))
    planned = plan(replace(spec(), pool=PoolName("far")), nodes=(B200_NODE, far))

    assert planned.gpu_models == ("h100",)


def test_a_small_node_limits_the_degree() -> None:
    found = problems(spec("llama-3-70b"), nodes=(make_node_spec("a", gpus=1, gpu_model="h100"),))

    assert [problem.field for problem in found] == ["model"]
    assert "weights and overheads" in found[0].found


def test_a_given_context_saves_gpus() -> None:
    planned = plan(replace(spec("llama-3.1-70b"), context_tokens=16384, tensor_parallel=1))

    assert planned.gpus_per_replica == 1
    assert option(planned, "--max-model-len") == "16384"


# -- refusals


@pytest.mark.parametrize(
    ("change", "engine", "field", "words"),
    [
        (lambda s: replace(s, model=ModelId("lama-3-8b")), VLLM, "model", "did you mean llama-3-8b?"),
        (lambda s: replace(s, model=ModelId("styletts2")), VLLM, "model", "not servable by vllm"),
        (lambda s: replace(s, model=ModelId("command-r-v01")), VLLM, "accept_license", "CC-BY-NC-4.0"),
        (lambda s: replace(s, precision="int3"), VLLM, "precision", "one of bf16, fp8"),
        (lambda s: replace(s, tensor_parallel=3), VLLM, "tensor_parallel", "32 attention heads"),
        (lambda s: replace(s, tensor_parallel=16), VLLM, "tensor_parallel", "8 GPUs of a b200 node"),
        (lambda s: replace(s, context_tokens=9000), VLLM, "context", "at most 8192"),
        (lambda s: replace(s, pool=PoolName("nowhere")), VLLM, "pool", "one of b200"),
        (lambda s: replace(s, engine_args=(("max-model-len", "1"),)), VLLM, "engine_args.max-model-len", "set context"),
        (lambda s: replace(s, engine_args=(("model", "/mine"),)), VLLM, "engine_args.model", "set weights"),
        (
            lambda s: replace(s, engine_args=(("kv-cache-dtype", "int1"),)),
            VLLM,
            "engine_args.kv-cache-dtype",
            "fp8_e4m3",
        ),
        (
            lambda s: replace(s, engine_args=(("max-num-batched-tokens", "many"),)),
            VLLM,
            "engine_args.max-num-batched-tokens",
            "a whole number of tokens",
        ),
        (
            lambda s: s,
            replace(VLLM, args=(("tensor-parallel-size", "2"),)),
            "engine.args.tensor-parallel-size",
            "set tensor_parallel",
        ),
    ],
)
def test_each_mistake_is_named_at_its_field(
    change: Callable[[DeploymentSpec], DeploymentSpec], engine: EngineSpec, field: str, words: str
) -> None:
    found = problems(change(spec()), engine)

    assert [problem.field for problem in found] == [field]
    assert words in str(found[0])


def test_all_mistakes_are_reported_at_once() -> None:
    asked = replace(spec("command-r-v01"), precision="int3", pool=PoolName("nowhere"))

    assert {problem.field for problem in problems(asked)} == {"accept_license", "precision", "pool"}


def test_a_missing_yes_to_the_licence_does_not_hide_that_the_model_does_not_fit() -> None:
    asked = replace(spec("command-r-v01"), context_tokens=131072, tensor_parallel=3)
    assert [problem.field for problem in problems(asked)] == ["accept_license", "tensor_parallel"]


def test_an_argument_of_the_engine_is_named_there() -> None:
    engine = replace(VLLM, args=(("max-num-batched-tokens", "foo"), ("kv-cache-dtype", "int3")))
    found = problems(spec(), engine)
    assert [problem.field for problem in found] == ["engine.args.kv-cache-dtype", "engine.args.max-num-batched-tokens"]
    assert all(problem.hint for problem in found)


def test_a_non_commercial_model_is_served_after_a_yes() -> None:
    planned = plan(replace(spec("command-r-v01"), accept_license=True))

    assert planned.gpus_per_replica == 2
    assert any("CC-BY-NC-4.0" in line for line in planned.proof)


def test_an_unknown_gpu_is_a_problem_of_the_pool() -> None:
    found = problems(spec(), nodes=(make_node_spec("a", gpu_model="b20"),))

    assert found[0].field == "pool"
    assert "did you mean b200?" in found[0].hint


def test_a_context_beyond_the_model_needs_its_rope_scaling() -> None:
    long = replace(spec("qwen2-7b"), context_tokens=131072)
    scaled = replace(long, engine_args=(("hf-overrides", '{"rope_scaling": {"type": "yarn"}}'),))

    assert "hf-overrides" in problems(long)[0].hint
    assert option(plan(scaled), "--max-model-len") == "131072"


# -- revisions


def test_a_revision_changes_with_all_that_needs_a_restart_and_with_nothing_else() -> None:
    first = plan(spec())
    same = plan(replace(spec(), replicas_max=9, idle_after=timedelta(minutes=1)))
    others = {
        plan(replace(spec(), precision="fp8")).revision,
        plan(replace(spec(), tensor_parallel=2)).revision,
        plan(replace(spec(), context_tokens=4096)).revision,
        plan(replace(spec(), engine_args=(("seed", "1"),))).revision,
        plan(replace(spec(), adapters=(("law", "/models/law"),))).revision,
        plan(replace(spec(), weights="/models/mine")).revision,
        plan(spec(), replace(VLLM, env=(("A", "1"),))).revision,
        plan(spec(), replace(VLLM, command=("other",))).revision,
        plan(spec(), SIMULATED).revision,
    }

    assert same.revision == first.revision
    assert len(others) == 9
    assert first.revision not in others
    assert len(first.revision) == 8


def test_a_revision_is_the_same_in_another_process() -> None:
    """Python's own hashes differ between processes: this one must not."""
    script = (
        "from controlplane.catalog.files import load_catalog\n"
        "from controlplane.catalog.planning import plan_serving\n"
        "from controlplane.domain.deployment import EngineKind\n"
        "from controlplane.domain.site import EngineSpec\n"
        "from controlplane.testing.builders import make_node_spec, make_spec\n"
        "engine = EngineSpec(name='default', kind=EngineKind.VLLM)\n"
        "print(plan_serving(make_spec('chat'), engine, [make_node_spec()], catalog=load_catalog()).revision)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONHASHSEED": "1"},
    )

    assert done.stdout.strip() == plan(make_spec("chat")).revision


@pytest.mark.parametrize("model", ["llama-3.1-70b", "bge-m3", "whisper-large-v3", "styletts2", "deepseek-v2"])
def test_the_simulated_engine_understands_its_command_line(model: str) -> None:
    planned = plan(spec(model), SIMULATED)
    filled = [word.replace("{host}", "127.0.0.1").replace("{port}", "20000") for word in planned.launch.argv[3:]]
    options = parse_options(filled, {})

    assert options.model == model
    assert options.served_names == ("chat",)
    assert options.task.value == planned.launch.task.value
    assert options.limits.max_num_seqs == planned.prior.max_num_seqs
