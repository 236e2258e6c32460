"""Renders a plan into the command line and environment of one replica. Pure.

Placeholders `{host} {port} {name} {gpus} {python}` are left for the launcher.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from controlplane.catalog.engine import EngineCard
from controlplane.catalog.fit import FitAnswer
from controlplane.catalog.model import Gpu, ModelCard
from controlplane.domain.deployment import (
    CapacityPrior,
    DeploymentSpec,
    EngineKind,
    IdleMode,
    LaunchTemplate,
)
from controlplane.domain.site import EngineSpec
from controlplane.kernel.errors import Problem
from controlplane.kernel.ids import ServedName

OWNED_BY: Final[Mapping[str, str]] = {
    "model": "weights",
    "host": "the launcher",
    "port": "the launcher",
    "served-model-name": "the deployment's name",
    "tensor-parallel-size": "tensor_parallel",
    "max-model-len": "context",
    "max-num-seqs": "max_num_seqs",
    "gpu-memory-utilization": "the engine's memory_utilization",
    "quantization": "precision",
    "lora-modules": "adapters",
    "enable-sleep-mode": "idle_mode: sleep",
}
"""Options that the plan renders from a field of its own: given twice they would contradict the fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """Everything that a command line is made of."""

    spec: DeploymentSpec
    engine: EngineSpec
    card: EngineCard
    model: ModelCard
    gpu: Gpu
    answer: FitAnswer
    prior: CapacityPrior
    """In the hardware's own time."""
    cold_start: timedelta
    """On the wall clock."""
    wake: timedelta


def owned_argument_problems(args: Iterable[tuple[str, str]], prefix: str) -> list[Problem]:
    """One problem for each argument that belongs to a field of the deployment or engine."""
    return [
        Problem(
            field=f"{prefix}.{name}",
            found=value or "a flag",
            expected="an argument that no other field sets",
            hint=f"set {OWNED_BY[name]} instead",
        )
        for name, value in args
        if name in OWNED_BY
    ]


def template_of(rendering: Rendering) -> LaunchTemplate:
    card, spec = rendering.card, rendering.spec
    stop, start = card.stop, card.start
    deadline = max(start.deadline_min, start.deadline_factor * rendering.cold_start)
    return LaunchTemplate(
        engine=card.kind,
        task=rendering.model.task,
        argv=_argv(rendering),
        env=tuple(_environment(rendering).items()),
        health_path=card.health_path,
        metrics_path=card.metrics_path,
        probe_model=_own_names(spec)[0],
        start_deadline=deadline,
        drain_deadline=stop.drain_deadline,
        stop_deadline=stop.stop_deadline,
    )


def arguments_of(spec: DeploymentSpec, engine: EngineSpec) -> dict[str, str]:
    """The engine's arguments, then the deployment's own, which win."""
    return {**dict(engine.args), **dict(spec.engine_args)}


def _own_names(spec: DeploymentSpec) -> tuple[ServedName, ...]:
    adapters = {name for name, _ in spec.adapters}
    return tuple(name for name in spec.served_names if name not in adapters)


def _argv(rendering: Rendering) -> tuple[str, ...]:
    engine, card = rendering.engine, rendering.card
    own = arguments_of(rendering.spec, engine)
    options = {**_planned(rendering), **dict(card.args), **dict(card.task_args.get(rendering.model.task, ()))}
    if rendering.spec.idle_mode is IdleMode.SLEEP and rendering.spec.idle_after is not None:
        options |= dict(card.sleep.args)
    argv = [*(engine.command or card.program), _weights(rendering)]
    for name, value in {**options, **own}.items():
        argv += _option(name, value)
    return tuple(argv)


def _weights(rendering: Rendering) -> str:
    """The deployment's own, else the repository of the precision. A simulated engine loads none: it tells the name."""
    model = rendering.model
    offer = model.precision(rendering.answer.precision)
    simulated = rendering.card.kind is EngineKind.SIMULATED
    return rendering.spec.weights or (model.id if simulated else offer.repo if offer is not None else model.repo)


def _planned(rendering: Rendering) -> dict[str, str | tuple[str, ...]]:
    """Every option that the plan itself sets, under the engine's own name for it, in a fixed order."""
    spec, engine, answer, card = rendering.spec, rendering.engine, rendering.answer, rendering.card
    values: dict[str, str | tuple[str, ...]] = {
        "host": "{host}",
        "port": "{port}",
        "served_names": _own_names(spec),
        "tensor_parallel": str(answer.tensor_parallel),
        "context_tokens": str(answer.context_tokens),
        "memory_utilization": f"{engine.memory_utilization:g}",
        "max_num_seqs": str(answer.max_num_seqs),
        "shutdown_timeout": f"{card.stop.shutdown_timeout.total_seconds():g}",
    }
    if answer.context_tokens == 0:
        del values["context_tokens"]
    offer = rendering.model.precision(answer.precision)
    if offer is not None and offer.quantize_at_start:
        values["quantization"] = answer.precision
    if spec.adapters:
        values["adapters_enabled"] = "true"
        values["adapters_max"] = str(len(spec.adapters))
        values["adapters"] = tuple(f"{name}={path}" for name, path in spec.adapters)
    if card.kind is EngineKind.SIMULATED:
        values |= _simulated(rendering)
    return {card.options[name]: value for name, value in values.items() if name in card.options}


def _simulated(rendering: Rendering) -> dict[str, str]:
    prior = rendering.prior
    profile = {
        "step_base_s": prior.step_base_s,
        "step_per_seq_s": prior.step_per_seq_s,
        "step_per_context_token_s": prior.step_per_context_token_s,
        "prefill_base_s": prior.prefill_base_s,
        "prefill_per_token_s": prior.prefill_per_token_s,
        "prefill_per_token2_s": prior.prefill_per_token2_s,
        "kv_tokens": prior.kv_tokens,
        "max_num_seqs": prior.max_num_seqs,
    }
    return {
        "profile": json.dumps(profile, sort_keys=True, separators=(",", ":")),
        "speed": f"{rendering.engine.speed:g}",
        "cold_start": f"{rendering.cold_start.total_seconds():g}",
        "wake": f"{rendering.wake.total_seconds():g}",
        "task": rendering.model.task.value,
        "max_batched_tokens": str(rendering.gpu.max_batched_tokens),
        "gpu_memory": str(rendering.gpu.memory_bytes),
    }


def _option(name: str, value: str | tuple[str, ...]) -> list[str]:
    """`true` and the empty string are bare flags, `false` is the flag's negation."""
    if isinstance(value, tuple):
        return [f"--{name}", *value]
    if value in {"", "true"}:
        return [f"--{name}"]
    if value == "false":
        return [f"--no-{name}"]
    return [f"--{name}", value]


def _environment(rendering: Rendering) -> dict[str, str]:
    env = {"CUDA_VISIBLE_DEVICES": "{gpus}", **dict(rendering.card.env)}
    if rendering.spec.idle_mode is IdleMode.SLEEP and rendering.spec.idle_after is not None:
        env |= dict(rendering.card.sleep.env)
    return {**env, **dict(rendering.engine.env)}
