"""Catalog entries: models, GPUs, and the catalog itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import StrEnum

from controlplane.catalog.engine import EngineCard
from controlplane.catalog.shape import Shape
from controlplane.domain.deployment import EngineKind, TaskKind
from controlplane.kernel.errors import NotFoundError
from controlplane.kernel.ids import ModelId
from controlplane.kernel.units import MIB


class Commercial(StrEnum):
    """Whether the model may be used for money."""

    YES = "yes"
    NO = "no"
    CONDITIONAL = "conditional"


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    name: str
    commercial: Commercial
    condition: str = ""
    """What has to hold, or why not; empty for an unconditional yes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionOffer:
    """One precision in which the model can be had."""

    name: str
    """`bf16`, `fp8`, `awq`..."""
    repo: str
    """Repository with the weights in this precision."""
    quantize_at_start: bool = False
    """The engine quantizes the unquantized repository while it loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    id: ModelId
    title: str
    repo: str
    family: str
    task: TaskKind
    licence: Licence
    shape: Shape | None
    """None: no transformer that vLLM serves; then `resident_bytes` says what it takes."""
    precisions: tuple[PrecisionOffer, ...]
    """Best quality first; the first is the default."""
    engines: frozenset[EngineKind]
    """Engines that can serve it."""
    context_tokens: int
    """Longest sequence served without changing the model; 0 where a sequence has no tokens."""
    context_extended_tokens: int | None = None
    """Longest with the documented rope scaling, given through engine arguments."""
    parameters: int | None = None
    """What the shape must give: a slip in the file shows as another total."""
    parameters_active: int | None = None
    resident_bytes: int = 0
    """Memory of a model without a shape."""
    served_elsewhere: str = ""
    """What serves it, when vLLM does not."""
    source: str = ""
    unconfirmed: tuple[str, ...] = ()
    """Facts that no source confirmed."""

    def precision(self, name: str | None) -> PrecisionOffer | None:
        """The named one, the default for None, or None when the model is not offered so."""
        if name is None:
            return self.precisions[0]
        return next((offer for offer in self.precisions if offer.name == name), None)


class Interconnect(StrEnum):
    NVLINK = "nvlink"
    PCIE = "pcie"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU. Rates are dense peak figures; prices are indicative."""

    name: str
    title: str
    memory_bytes: int
    """What NVML reports as total."""
    reserved_bytes: int
    """Part of it that the driver keeps: CUDA, and so the engine, sees the rest."""
    bandwidth_bytes_s: float
    flops: Mapping[str, float]
    """Dense FLOP/s by compute precision: bf16 always; fp8, fp4 where the hardware has them."""
    interconnect: Interconnect
    interconnect_bytes_s: float
    """Per GPU, both directions together."""
    gpus_per_node_max: int
    collective_bytes: Mapping[int, int]
    """NCCL and all-reduce buffers per GPU, by tensor parallel degree; the largest known degree holds beyond."""
    runtime_bytes: int
    """CUDA context, library handles and attention workspace of one engine process."""
    max_batched_tokens: int
    """vLLM's max_num_batched_tokens default for its server on this GPU."""
    max_num_seqs: int
    price_usd_per_hour: float
    tier: bool = False
    """A memory class, not a product: rates are those of a typical card of that size."""
    source: str = ""
    unconfirmed: tuple[str, ...] = ()

    @property
    def usable_bytes(self) -> int:
        return self.memory_bytes - self.reserved_bytes

    @property
    def usable_mib(self) -> int:
        return self.usable_bytes // MIB

    def flops_of(self, compute: str) -> float:
        """FLOP/s in that precision; without such units the computation runs in bf16."""
        return self.flops.get(compute, self.flops["bf16"])

    def collectives(self, tensor_parallel: int) -> int:
        known = [degree for degree in self.collective_bytes if degree <= tensor_parallel]
        return self.collective_bytes[max(known)] if known else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    models: Mapping[str, ModelCard]
    gpus: Mapping[str, Gpu]
    engines: Mapping[str, EngineCard] = field(default_factory=dict)

    def model(self, name: str) -> ModelCard:
        """NotFoundError with the nearest name."""
        return _find(self.models, name, "model")

    def gpu(self, name: str) -> Gpu:
        """NotFoundError with the nearest name."""
        return _find(self.gpus, name, "GPU")

    def engine(self, kind: EngineKind) -> EngineCard:
        """NotFoundError when the catalog has no such engine."""
        return _find(self.engines, kind.value, "engine")

    def adding(self, card: ModelCard) -> "Catalog":
        """The same catalog with one more model, or another in place of the one with its id."""
        return replace(self, models={**self.models, card.id: card})


def nearest(name: str, valid: Mapping[str, object]) -> str:
    """`did you mean X?`, or the whole list when nothing is near."""
    close = get_close_matches(name.lower(), list(valid), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(valid))}"


def _find[T](mapping: Mapping[str, T], name: str, kind: str) -> T:
    if name not in mapping:
        raise NotFoundError(f"the catalog has no {kind} {name!r}: {nearest(name, mapping)}")
    return mapping[name]
