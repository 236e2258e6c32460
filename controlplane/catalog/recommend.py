"""Which hardware for a model, which models for a GPU. Pure: both ask the fit and rank its answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.catalog.fit import UTILIZATION_DEFAULT, FitAnswer, fit
from controlplane.catalog.licence import licence_problem
from controlplane.catalog.model import Gpu, ModelCard
from controlplane.catalog.weights import LINEAR_BITS, parameters_of
from controlplane.domain.deployment import TaskKind

BITS_KEPT_MIN: Final = 8
"""Above this many bits a weight, quality is taken as that of the original; below, as a step down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A model on some GPUs of one kind."""

    answer: FitAnswer
    price_usd_per_hour: float
    """Of all GPUs of one replica, at the catalog's indicative or the caller's own price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    model: ModelCard
    answer: FitAnswer
    licence_accepted: bool
    """False: it would fit, but its licence needs an explicit yes first."""

    @property
    def fits(self) -> bool:
        return self.answer.fits and self.licence_accepted


def placements(
    model: ModelCard,
    gpus: Iterable[Gpu],
    *,
    precision: str | None = None,
    context: int | None = None,
    concurrency: int = 1,
    mean_tokens: int | None = None,
    utilization: float = UTILIZATION_DEFAULT,
    kv_precision: str = "auto",
    prices: Mapping[str, float] | None = None,
) -> tuple[Placement, ...]:
    """Where one replica fits, cheapest first; then fewer GPUs, then more KV room.

    A `context` of None means the model's own limit here: a cheaper place that only holds less is no answer.
    """
    found = []
    for gpu in gpus:
        answer = fit(
            model,
            gpu,
            precision=precision,
            context=context or model.context_tokens or None,
            concurrency=concurrency,
            mean_tokens=mean_tokens,
            utilization=utilization,
            kv_precision=kv_precision,
        )
        if answer.fits:
            each = (prices or {}).get(gpu.name, gpu.price_usd_per_hour)
            found.append(Placement(answer=answer, price_usd_per_hour=each * answer.tensor_parallel))
    return tuple(sorted(found, key=_cheapness))


def recommend(
    models: Iterable[ModelCard],
    gpu: Gpu,
    *,
    context: int,
    concurrency: int,
    mean_tokens: int | None = None,
    gpus: int = 1,
    task: TaskKind = TaskKind.GENERATE,
    accept_licence: bool = False,
    utilization: float = UTILIZATION_DEFAULT,
    kv_precision: str = "auto",
) -> tuple[Recommendation, ...]:
    """Every model of the task in the best precision that fits `gpus` of that GPU: what fits first, largest first.

    Size stands for ability, which the catalog does not measure; among equals the higher precision and then the
    larger KV room win. Models that do not fit follow, with the refusal of their smallest precision.
    """
    found = []
    for model in models:
        if model.task is not task or model.shape is None:
            continue
        answers = [
            fit(
                model,
                gpu,
                precision=offer.name,
                context=context,
                concurrency=concurrency,
                mean_tokens=mean_tokens,
                utilization=utilization,
                kv_precision=kv_precision,
                gpus_max=gpus,
            )
            for offer in model.precisions
        ]
        best = next((answer for answer in answers if answer.fits), answers[-1])
        allowed = licence_problem(model, accepted=accept_licence) is None
        found.append(Recommendation(model=model, answer=best, licence_accepted=allowed))
    return tuple(sorted(found, key=_worth, reverse=True))


def _cheapness(placement: Placement) -> tuple[float, int, int]:
    return placement.price_usd_per_hour, placement.answer.tensor_parallel, -placement.answer.kv_tokens


def _worth(item: Recommendation) -> tuple[bool, bool, int, bool, int]:
    parameters = parameters_of(item.model.shape) if item.model.shape is not None else 0
    whole = LINEAR_BITS[item.answer.precision] >= BITS_KEPT_MIN
    return item.fits, item.answer.fits, parameters, whole, item.answer.largest_concurrency
