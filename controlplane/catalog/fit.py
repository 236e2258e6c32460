"""Does a model fit a GPU, at which tensor parallel degree, with which context and how many sequences. Pure.

The rule: the KV budget must hold one sequence of the whole context (else vLLM refuses to start), and `concurrency`
sequences of `mean_tokens`. No multiplier anywhere: see docs/models.md for the parts and their error.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from controlplane.catalog.divisibility import degree_problems
from controlplane.catalog.memory import (
    KV_BYTES,
    Budget,
    Serving,
    budget_of,
    cap_bytes,
    kv_bytes_per_token,
    kv_slots,
    kv_tokens,
)
from controlplane.catalog.model import Gpu, ModelCard
from controlplane.catalog.proof import Finding, parameters_line, proof_of
from controlplane.catalog.shape import Shape, ShapeKind
from controlplane.catalog.weights import LINEAR_BITS
from controlplane.domain.deployment import EngineKind
from controlplane.kernel.errors import Problem
from controlplane.kernel.ids import ModelId
from controlplane.kernel.units import format_bytes

UTILIZATION_DEFAULT: Final = 0.92
"""vLLM 0.33's gpu_memory_utilization."""

DEGREES: Final = (1, 2, 4, 8, 16)
"""Tensor parallel degrees that are searched: the sizes of NVLink groups in use."""

CONTEXT_MIN_TOKENS: Final = 2048
"""A context chosen because nothing longer fits is refused below this: too short to serve anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why not, with the arithmetic, and what to do."""

    field: str
    found: str
    expected: str
    advice: str

    @property
    def sentence(self) -> str:
        return f"{self.found}; needed is {self.expected}. {self.advice}"

    def as_problem(self) -> Problem:
        return Problem(field=self.field, found=self.found, expected=self.expected, hint=self.advice)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitAnswer:
    model: ModelId
    gpu: str
    precision: str
    kv_precision: str
    tensor_parallel: int
    utilization: float
    context_tokens: int
    """The context asked for, or the one chosen."""
    concurrency: int
    mean_tokens: int
    refusals: tuple[Refusal, ...]
    proof: tuple[str, ...]
    cap_bytes: int = 0
    budget: Budget | None = None
    """None: the arithmetic could not start (not servable, no such precision, degree impossible)."""
    kv_bytes_per_token: int = 0
    """On one GPU."""
    kv_tokens: int = 0
    """Of one replica."""
    sequences_at_context: float = 0.0
    largest_context: int = 0
    largest_concurrency: int = 0
    """Sequences of `mean_tokens` at once, at most the engine's max_num_seqs."""
    smallest_tensor_parallel: int | None = None
    """The smallest degree that holds everything asked; None: none up to the node's size."""
    max_num_seqs: int = 0

    @property
    def fits(self) -> bool:
        return not self.refusals

    @property
    def memory_bytes_per_gpu(self) -> int:
        """What the engine takes: everything up to the cap with a KV cache, only the parts without."""
        if self.budget is None or self.kv_bytes_per_token:
            return self.cap_bytes
        return self.cap_bytes - self.budget.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """The question, with every default filled in but degree and context."""

    model: ModelCard
    shape: Shape
    gpu: Gpu
    serving: Serving
    context: int | None
    concurrency: int
    mean_tokens: int | None

    @property
    def limit(self) -> int:
        """The longest sequence that may be served: beyond the model's own only when that was asked for."""
        extended, own = self.model.context_extended_tokens, self.model.context_tokens
        return extended if extended is not None and self.context is not None and self.context > own else own


def fit(
    model: ModelCard,
    gpu: Gpu,
    *,
    tp: int | None = None,
    precision: str | None = None,
    context: int | None = None,
    concurrency: int = 1,
    mean_tokens: int | None = None,
    utilization: float = UTILIZATION_DEFAULT,
    kv_precision: str = "auto",
    max_num_seqs: int | None = None,
    max_batched_tokens: int | None = None,
    gpus_max: int | None = None,
    eager: bool = False,
    overhead_bytes: int | None = None,
) -> FitAnswer:
    """The answer for one kind of GPU.

    `tp` None: the smallest that holds everything. `context` None: the model's own limit where it fits at some degree,
    else the largest that does. `mean_tokens` None: as long as the context, the worst case. `gpus_max` None: as many
    as a node has. Never raises for a model that does not fit: `refusals` say why.
    """
    shape = model.shape
    refused = _cannot_start(model, precision, kv_precision)
    serving = Serving(
        tensor_parallel=tp or 1,
        precision=precision or model.precisions[0].name,
        kv_precision=kv_precision,
        utilization=utilization,
        max_num_seqs=max_num_seqs or gpu.max_num_seqs,
        max_batched_tokens=max_batched_tokens or _batched_tokens(model, gpu),
        eager=eager,
        overhead_bytes=overhead_bytes,
    )
    if shape is None or refused:
        return _unanswerable(model, gpu, serving, refused, context, concurrency)
    ask = _Ask(
        model=model,
        shape=shape,
        gpu=gpu,
        serving=serving,
        context=context,
        concurrency=concurrency,
        mean_tokens=mean_tokens,
    )
    degrees = [degree for degree in DEGREES if degree <= (gpus_max or gpu.gpus_per_node_max)]
    if tp is None:
        return _smallest(ask, degrees)
    answer = _at_degree(ask, tp, ask.context)
    if answer.fits and tp in degrees:
        return replace(answer, smallest_tensor_parallel=_first_fitting(ask, degrees, answer.context_tokens))
    return _advised(ask, answer, _first_fitting(ask, degrees, context or model.context_tokens))


def _batched_tokens(model: ModelCard, gpu: Gpu) -> int:
    """The default of vLLM; a pooling model cannot split a prompt, so one must fit whole."""
    pooling = model.shape is not None and model.shape.kind is ShapeKind.ENCODER
    return max(gpu.max_batched_tokens, model.context_tokens) if pooling else gpu.max_batched_tokens


def _cannot_start(model: ModelCard, precision: str | None, kv_precision: str) -> tuple[Refusal, ...]:
    if model.shape is None or EngineKind.VLLM not in model.engines:
        elsewhere = f"serve it with {model.served_elsewhere}" if model.served_elsewhere else "serve it elsewhere"
        return (
            Refusal(
                field="model",
                found=f"{model.id}, not servable by vllm",
                expected="a model with an architecture that vLLM has",
                advice=f"{elsewhere}; the simulated engine can play it",
            ),
        )
    offers = ", ".join(offer.name for offer in model.precisions)
    if model.precision(precision) is None:
        advice = f"choose one of {offers}, or add the precision and its repository to the model's catalog file"
        return (Refusal(field="precision", found=str(precision), expected=f"one of {offers}", advice=advice),)
    if kv_precision not in KV_BYTES:
        valid = ", ".join(KV_BYTES)
        return (Refusal(field="kv_precision", found=kv_precision, expected=f"one of {valid}", advice="see vLLM"),)
    return ()


def _unanswerable(
    model: ModelCard, gpu: Gpu, serving: Serving, refusals: tuple[Refusal, ...], context: int | None, concurrency: int
) -> FitAnswer:
    return FitAnswer(
        model=model.id,
        gpu=gpu.name,
        precision=serving.precision,
        kv_precision=serving.kv_precision,
        tensor_parallel=serving.tensor_parallel,
        utilization=serving.utilization,
        context_tokens=context or model.context_tokens,
        concurrency=concurrency,
        mean_tokens=context or model.context_tokens,
        refusals=refusals,
        proof=tuple(refusal.sentence for refusal in refusals),
        cap_bytes=cap_bytes(gpu, serving.utilization),
        max_num_seqs=serving.max_num_seqs,
    )


def _smallest(ask: _Ask, degrees: Iterable[int]) -> FitAnswer:
    """The smallest degree that holds the context, or else the answer that comes nearest."""
    wanted = ask.context or ask.model.context_tokens
    tried = [_at_degree(ask, degree, wanted) for degree in degrees]
    for answer in tried:
        if answer.fits:
            return replace(answer, smallest_tensor_parallel=answer.tensor_parallel)
    nearest = max(tried, key=lambda answer: (answer.largest_context, answer.largest_concurrency))
    if ask.context is not None:
        return _advised(ask, nearest, None)
    shorter = _at_degree(ask, nearest.tensor_parallel, None)
    if shorter.fits:
        return replace(shorter, smallest_tensor_parallel=shorter.tensor_parallel)
    return _advised(ask, nearest, None)


def _first_fitting(ask: _Ask, degrees: Iterable[int], context: int) -> int | None:
    return next((degree for degree in degrees if _at_degree(ask, degree, context).fits), None)


def _advised(ask: _Ask, answer: FitAnswer, degree: int | None) -> FitAnswer:
    """Adds to each refusal what would help: the degree, the context or the cache precision that fits."""
    advice = "; ".join(_ways(ask, answer, degree)) or "take a larger GPU or a smaller model"
    refusals = tuple(replace(item, advice=item.advice or advice) for item in answer.refusals)
    proof = (*answer.proof, *(f"refused: {item.sentence}" for item in refusals))
    return replace(answer, refusals=refusals, proof=proof, smallest_tensor_parallel=degree)


def _ways(ask: _Ask, answer: FitAnswer, degree: int | None) -> list[str]:
    ways = []
    if degree is not None and degree != answer.tensor_parallel:
        ways.append(f"tensor_parallel: {degree} fits")
    if answer.budget is None:
        return ways
    floor = min(CONTEXT_MIN_TOKENS, ask.model.context_tokens)
    if floor <= answer.largest_context < answer.context_tokens:
        ways.append(f"context: {answer.largest_context} fits at TP{answer.tensor_parallel}")
    if answer.kv_bytes_per_token and KV_BYTES[answer.kv_precision] > 1 and answer.budget.kv_bytes > 0:
        ways.append("an fp8 KV cache halves the KV bytes")
    lighter = [offer.name for offer in ask.model.precisions if LINEAR_BITS[offer.name] < LINEAR_BITS[answer.precision]]
    if lighter:
        ways.append(f"weights are lighter in {' and '.join(lighter)}")
    return ways


def _at_degree(ask: _Ask, degree: int, context: int | None) -> FitAnswer:
    """One degree; `context` None: the largest that fits, up to the model's limit."""
    serving = replace(ask.serving, tensor_parallel=degree)
    problems = degree_problems(ask.shape, serving.precision, degree)
    if problems:
        return _impossible(ask, serving, problems, context)
    budget = budget_of(ask.shape, ask.gpu, serving)
    tokens = kv_tokens(ask.shape, budget, serving)
    largest = _largest_context(ask, budget, tokens, serving)
    # Nothing asked: the largest that fits, if it is of any use; else the model's own, which the refusal then names.
    useful = largest >= min(CONTEXT_MIN_TOKENS, ask.model.context_tokens)
    wanted = context or (largest if useful else ask.model.context_tokens)
    mean = min(ask.mean_tokens or wanted, wanted)
    concurrent = _concurrent(ask.shape, budget, tokens, mean, serving)
    finding = Finding(
        budget=budget,
        serving=serving,
        kv_tokens=tokens,
        context_tokens=wanted,
        sequences_at_context=_sequences(ask.shape, tokens, wanted, serving),
        largest_context=largest,
        concurrency=ask.concurrency,
        mean_tokens=mean,
        largest_concurrency=concurrent,
    )
    return FitAnswer(
        model=ask.model.id,
        gpu=ask.gpu.name,
        precision=serving.precision,
        kv_precision=serving.kv_precision,
        tensor_parallel=degree,
        utilization=serving.utilization,
        context_tokens=wanted,
        concurrency=ask.concurrency,
        mean_tokens=mean,
        refusals=_memory_refusals(ask, finding),
        proof=proof_of(ask.model, ask.shape, ask.gpu, finding),
        cap_bytes=budget.cap_bytes,
        budget=budget,
        kv_bytes_per_token=kv_bytes_per_token(ask.shape, serving.kv_precision, degree),
        kv_tokens=tokens,
        sequences_at_context=finding.sequences_at_context,
        largest_context=largest,
        largest_concurrency=concurrent,
        max_num_seqs=serving.max_num_seqs,
    )


def _impossible(ask: _Ask, serving: Serving, problems: Sequence[str], context: int | None) -> FitAnswer:
    """A degree that does not divide the model: nothing can be split, so nothing is computed."""
    found = f"TP{serving.tensor_parallel}"
    refusal = Refusal(field="tensor_parallel", found=found, expected=" and ".join(problems), advice="")
    answer = _unanswerable(ask.model, ask.gpu, serving, (refusal,), context, ask.concurrency)
    return replace(
        answer,
        mean_tokens=min(ask.mean_tokens or answer.context_tokens, answer.context_tokens),
        proof=(parameters_line(ask.model, ask.shape),),
    )


def _largest_context(ask: _Ask, budget: Budget, tokens: int, serving: Serving) -> int:
    if not ask.shape.keeps_kv:
        return ask.limit if budget.kv_bytes >= 0 else 0
    if kv_slots(ask.shape, ask.limit, serving) <= tokens:
        return ask.limit
    return max(0, min(ask.limit, tokens - kv_slots(ask.shape, 0, serving)))


def _sequences(shape: Shape, tokens: int, context: int, serving: Serving) -> float:
    slots = kv_slots(shape, context, serving)
    return tokens / slots if slots else float(serving.max_num_seqs)


def _concurrent(shape: Shape, budget: Budget, tokens: int, mean: int, serving: Serving) -> int:
    slots = kv_slots(shape, mean, serving)
    if slots == 0:
        return serving.max_num_seqs if budget.kv_bytes >= 0 else 0
    return min(serving.max_num_seqs, tokens // slots)


def _memory_refusals(ask: _Ask, finding: Finding) -> tuple[Refusal, ...]:
    budget, serving = finding.budget, finding.serving
    at = f"TP{serving.tensor_parallel} on {ask.gpu.name}"
    limit = ask.limit
    if finding.context_tokens > limit:
        advice = f"ask for at most {limit}"
        found = f"{finding.context_tokens} tokens, beyond the model's {limit}"
        return (Refusal(field="context", found=found, expected=f"at most {limit}", advice=advice),)
    if budget.kv_bytes < 0:
        needed = budget.cap_bytes - budget.kv_bytes
        found = f"weights and overheads of {format_bytes(needed)} per GPU at {at}"
        expected = f"at most {format_bytes(budget.cap_bytes)} per GPU"
        return (Refusal(field="tensor_parallel", found=found, expected=expected, advice=""),)
    if not ask.shape.keeps_kv:
        return _too_many(finding, at)
    slots = kv_slots(ask.shape, finding.context_tokens, serving)
    if finding.kv_tokens < slots:
        found = (
            f"KV cache of {finding.kv_tokens} tokens at {at}, "
            f"{finding.sequences_at_context:.2f} of one sequence of {finding.context_tokens}"
        )
        return (Refusal(field="context", found=found, expected=f"at least {slots} tokens", advice=""),)
    return _too_many(finding, at)


def _too_many(finding: Finding, at: str) -> tuple[Refusal, ...]:
    if finding.largest_concurrency >= finding.concurrency:
        return ()
    found = f"room for {finding.largest_concurrency} sequences of {finding.mean_tokens} tokens at {at}"
    return (Refusal(field="concurrency", found=found, expected=f"{finding.concurrency} at once", advice=""),)
