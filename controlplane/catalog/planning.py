"""Makes a serving plan of a deployment: GPU kinds, degree, context, command line, prior. Pure.

Everything wrong with a deployment is reported at once, each problem under its field's path in the deployment.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from controlplane.catalog.fit import FitAnswer, Refusal, fit
from controlplane.catalog.launch import Rendering, arguments_of, owned_argument_problems, template_of
from controlplane.catalog.licence import licence_note, licence_problem
from controlplane.catalog.memory import cap_bytes
from controlplane.catalog.model import Catalog, Gpu, ModelCard, nearest
from controlplane.catalog.prior import prior_of, sped_up
from controlplane.domain.deployment import DeploymentSpec, EngineKind, LaunchTemplate, ServingPlan
from controlplane.domain.node import NodeSpec
from controlplane.domain.site import EngineSpec
from controlplane.kernel.errors import InvalidError, NotFoundError, Problem
from controlplane.kernel.ids import RevisionId
from controlplane.kernel.units import format_bytes

REVISION_DIGITS: Final = 8

ROPE_ARGUMENTS: Final = frozenset({"hf-overrides", "rope-scaling"})
"""Engine arguments that give a model the documented rope scaling."""

KV_DTYPES: Final = {"auto": "auto", "bfloat16": "bf16", "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}
"""vLLM's kv-cache-dtype, in the fit's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    gpu: Gpu
    gpus_max: int
    """GPUs of the largest node of that kind."""


def plan_serving(
    spec: DeploymentSpec, engine: EngineSpec, nodes: Sequence[NodeSpec], *, catalog: Catalog
) -> ServingPlan:
    """The plan, or InvalidError with every problem found; `field` is a path relative to the deployment.

    Among the GPU kinds of the pool the cheapest that fits decides degree and context; the plan holds on every kind
    on which the same degree and context fit.
    """
    model = _model(spec, catalog)
    beside = _problems_beside_fit(spec, engine, model)
    problems = _problems_before_fit(spec, engine, model)
    candidates, pool_problems = _candidates(spec, nodes, catalog)
    if problems or pool_problems:
        raise InvalidError([*beside, *problems, *pool_problems])
    answers = [(candidate, _fitted(spec, engine, model, candidate)) for candidate in candidates]
    fitting = [(candidate, answer) for candidate, answer in answers if answer.fits]
    if beside or not fitting:
        raise InvalidError([*beside, *([] if fitting else _unfitting(spec, answers))])
    best, answer = min(fitting, key=lambda pair: _cheapness(*pair))
    same = [
        candidate
        for candidate, _ in fitting
        if candidate is best or _fitted(spec, engine, model, candidate, like=answer).fits
    ]
    return _plan(spec, engine, model, catalog, answer, [best, *(item for item in same if item is not best)])


def _model(spec: DeploymentSpec, catalog: Catalog) -> ModelCard:
    try:
        return catalog.model(spec.model)
    except NotFoundError as error:
        hint = nearest(spec.model, catalog.models)
        problem = Problem(field="model", found=spec.model, expected="a model of the catalog", hint=hint)
        raise InvalidError([problem]) from error


def _problems_beside_fit(spec: DeploymentSpec, engine: EngineSpec, model: ModelCard) -> list[Problem]:
    """Those with which the fit can be computed all the same."""
    problems = owned_argument_problems(spec.engine_args, "engine_args")
    problems += owned_argument_problems(engine.args, "engine.args")
    licence = licence_problem(model, accepted=spec.accept_license)
    if licence is not None:
        problems.append(licence)
    return problems


def _problems_before_fit(spec: DeploymentSpec, engine: EngineSpec, model: ModelCard) -> list[Problem]:
    """Those without whose cure there is nothing to compute."""
    problems = []
    if engine.kind not in model.engines:
        elsewhere = f"serve it with {model.served_elsewhere}, or with a simulated engine"
        found = f"{model.id}, not servable by {engine.kind}"
        expected = f"a model that {engine.kind} serves"
        problems.append(Problem(field="model", found=found, expected=expected, hint=elsewhere))
    if model.precision(spec.precision) is None:
        offers = ", ".join(offer.name for offer in model.precisions)
        hint = f"leave it out for {model.precisions[0].name}, or name one of these"
        problems.append(Problem(field="precision", found=str(spec.precision), expected=f"one of {offers}", hint=hint))
    arguments = arguments_of(spec, engine)
    if (spec.context_tokens or 0) > model.context_tokens and not ROPE_ARGUMENTS & arguments.keys():
        problems.append(_too_long(spec, model))
    return [*problems, *_argument_problems(spec, arguments)]


def _too_long(spec: DeploymentSpec, model: ModelCard) -> Problem:
    hint = f"ask for at most {model.context_tokens}"
    if model.context_extended_tokens is not None:
        hint += f", or give the rope scaling for {model.context_extended_tokens} in engine_args.hf-overrides"
    expected = f"at most {model.context_tokens} tokens, the limit of {model.id}"
    return Problem(field="context", found=str(spec.context_tokens), expected=expected, hint=hint)


def _argument_problems(spec: DeploymentSpec, arguments: dict[str, str]) -> list[Problem]:
    """Arguments that the fit reads must be readable."""
    problems = []
    dtype = arguments.get("kv-cache-dtype")
    if dtype is not None and dtype not in KV_DTYPES:
        valid = ", ".join(KV_DTYPES)
        hint = "leave it out for the model's own, or write fp8 to halve the cache"
        problems.append(
            Problem(field=_placed("kv-cache-dtype", spec), found=dtype, expected=f"one of {valid}", hint=hint)
        )
    tokens = arguments.get("max-num-batched-tokens")
    if tokens is not None and not (tokens.isdecimal() and int(tokens) > 0):
        expected = "a whole number of tokens above 0"
        hint = "write the tokens that one step may take, for example 8192, or leave it out for the GPU's default"
        field = _placed("max-num-batched-tokens", spec)
        problems.append(Problem(field=field, found=tokens or "a flag", expected=expected, hint=hint))
    return problems


def _placed(argument: str, spec: DeploymentSpec) -> str:
    """An argument comes from the deployment, whose own wins, or else from its engine."""
    return f"{'engine_args' if argument in dict(spec.engine_args) else 'engine.args'}.{argument}"


def _candidates(
    spec: DeploymentSpec, nodes: Sequence[NodeSpec], catalog: Catalog
) -> tuple[list[_Candidate], list[Problem]]:
    """GPU kinds of the pool, by name."""
    mine = [node for node in nodes if node.gpus > 0 and spec.pool in (None, node.pool)]
    if not mine:
        pools = sorted({str(node.pool) for node in nodes})
        found = f"{spec.pool or 'no pool'}, with no GPU node"
        hint = "name a pool whose nodes have GPUs" if pools else "declare a pool under node_pools"
        expected = f"one of {', '.join(pools) or 'no pool at all'}"
        return [], [Problem(field="pool", found=found, expected=expected, hint=hint)]
    largest: dict[str, int] = {}
    for node in mine:
        largest[node.gpu_model] = max(node.gpus, largest.get(node.gpu_model, 0))
    unknown = [name for name in sorted(largest) if name not in catalog.gpus]
    problems = [
        Problem(field="pool", found=f"GPU {name}", expected="a GPU of the catalog", hint=nearest(name, catalog.gpus))
        for name in unknown
    ]
    known = [name for name in sorted(largest) if name not in unknown]
    return [_Candidate(gpu=catalog.gpu(name), gpus_max=largest[name]) for name in known], problems


def _fitted(
    spec: DeploymentSpec,
    engine: EngineSpec,
    model: ModelCard,
    candidate: _Candidate,
    *,
    like: FitAnswer | None = None,
) -> FitAnswer:
    """The fit on one kind of GPU; `like`: with the degree and context of an answer found on another."""
    if model.shape is None:
        return _opaque(spec, engine, model, candidate)
    arguments = arguments_of(spec, engine)
    batched = arguments.get("max-num-batched-tokens")
    degree = like.tensor_parallel if like is not None else spec.tensor_parallel
    answer = fit(
        model,
        candidate.gpu,
        tp=degree,
        precision=spec.precision,
        context=like.context_tokens if like is not None else spec.context_tokens,
        utilization=engine.memory_utilization,
        kv_precision=KV_DTYPES[arguments.get("kv-cache-dtype", "auto")],
        max_num_seqs=like.max_num_seqs if like is not None else spec.max_num_seqs,
        max_batched_tokens=int(batched) if batched is not None else None,
        gpus_max=candidate.gpus_max,
        eager=arguments.get("enforce-eager") in {"", "true"},
    )
    if degree is not None and degree > candidate.gpus_max:
        expected = f"at most the {candidate.gpus_max} GPUs of a {candidate.gpu.name} node"
        refusal = Refusal(
            field="tensor_parallel", found=str(degree), expected=expected, advice="a replica is one node's"
        )
        return replace(answer, refusals=(refusal,))
    return answer


def _opaque(spec: DeploymentSpec, engine: EngineSpec, model: ModelCard, candidate: _Candidate) -> FitAnswer:
    """A model without a shape: one GPU, a stated memory, nothing to compute."""
    cap = cap_bytes(candidate.gpu, engine.memory_utilization)
    at = f"{format_bytes(model.resident_bytes)} resident of {format_bytes(cap)} on {candidate.gpu.name}"
    refusals = []
    if model.resident_bytes > cap:
        expected = f"at most {format_bytes(cap)}"
        refusals.append(Refusal(field="model", found=at, expected=expected, advice="take a larger GPU"))
    if (spec.tensor_parallel or 1) != 1:
        found = str(spec.tensor_parallel)
        refusals.append(Refusal(field="tensor_parallel", found=found, expected="1", advice="it cannot be split"))
    return FitAnswer(
        model=model.id,
        gpu=candidate.gpu.name,
        precision=model.precisions[0].name,
        kv_precision="auto",
        tensor_parallel=1,
        utilization=engine.memory_utilization,
        context_tokens=0,
        concurrency=1,
        mean_tokens=0,
        refusals=tuple(refusals),
        proof=(f"{model.id}: {at}, a planning figure: no shape to compute from",),
        cap_bytes=model.resident_bytes,
        max_num_seqs=spec.max_num_seqs or candidate.gpu.max_num_seqs,
    )


def _cheapness(candidate: _Candidate, answer: FitAnswer) -> tuple[float, int, str]:
    return candidate.gpu.price_usd_per_hour * answer.tensor_parallel, answer.tensor_parallel, candidate.gpu.name


def _unfitting(spec: DeploymentSpec, answers: Sequence[tuple[_Candidate, FitAnswer]]) -> list[Problem]:
    """The refusals of every kind of GPU; one that the deployment did not set is about the model itself."""
    given = {"tensor_parallel": spec.tensor_parallel, "context": spec.context_tokens}
    problems = []
    for _, answer in answers:
        for refusal in answer.refusals:
            unset = refusal.field in given and given[refusal.field] is None
            problems.append(replace(refusal, field="model" if unset else refusal.field).as_problem())
    return problems


def _plan(
    spec: DeploymentSpec,
    engine: EngineSpec,
    model: ModelCard,
    catalog: Catalog,
    answer: FitAnswer,
    places: Sequence[_Candidate],
) -> ServingPlan:
    card = catalog.engine(engine.kind)
    measured = catalog.engine(EngineKind.VLLM).calibrations
    prior = prior_of(model, places[0].gpu, answer, calibrations=measured, start=card.start)
    cold_start, wake = prior.cold_start, prior.wake
    shown = prior
    if engine.kind is EngineKind.SIMULATED:
        cold_start = engine.cold_start if engine.cold_start is not None else _divided(cold_start, engine.speed)
        wake = engine.wake if engine.wake is not None else _divided(wake, engine.speed)
        shown = sped_up(prior, engine.speed)
    rendering = Rendering(
        spec=spec,
        engine=engine,
        card=card,
        model=model,
        gpu=places[0].gpu,
        answer=answer,
        prior=prior,
        cold_start=cold_start,
        wake=wake,
    )
    template = template_of(rendering)
    return ServingPlan(
        revision=_revision(template),
        gpus_per_replica=answer.tensor_parallel,
        gpu_models=tuple(place.gpu.name for place in places),
        memory_bytes_per_gpu=answer.memory_bytes_per_gpu,
        launch=template,
        prior=replace(shown, cold_start=cold_start, wake=wake),
        proof=(*answer.proof, *_weights_note(spec), f"licence: {licence_note(model)}"),
    )


def _weights_note(spec: DeploymentSpec) -> tuple[str, ...]:
    """Nothing here reads weights: that they have the model's shape and precision is the site file's word."""
    return () if spec.weights is None else (f"weights: {spec.weights}, taken to have the shape of {spec.model}",)


def _divided(duration: timedelta, speed: float) -> timedelta:
    return timedelta(seconds=round(duration.total_seconds() / speed, 2))


def _revision(template: LaunchTemplate) -> RevisionId:
    """All that needs a restart to change is in the command line and the environment; deadlines are not."""
    text = json.dumps([template.engine, template.argv, template.env], separators=(",", ":"))
    return RevisionId(hashlib.sha256(text.encode()).hexdigest()[:REVISION_DIGITS])
