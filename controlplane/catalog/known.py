"""Figures known from elsewhere, and how far the fit is from them. Pure.

A figure agrees when the computed one rounds to it: it is kept as text, so that its last digit says how exact it is.
Where another rule lies behind a figure, the tolerance and the reason stand with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from controlplane.catalog.fit import FitAnswer, fit
from controlplane.catalog.memory import kv_bytes_per_token
from controlplane.catalog.model import Catalog, Gpu, ModelCard
from controlplane.catalog.weights import active_parameters_of, parameters_of, total_weight_bytes
from controlplane.kernel.units import GIB, KIB

_GIGA = 1e9
_KILO = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One known figure beside the computed one."""

    section: str
    subject: str
    figure: str
    known: str
    computed: float
    tolerance: float | None = None
    """Relative; None: the computed figure must round to the known one."""

    @property
    def error(self) -> float:
        """Relative to the known figure."""
        return self.computed / float(self.known) - 1.0

    @property
    def agrees(self) -> bool:
        if self.tolerance is not None:
            return abs(self.error) <= self.tolerance
        digit = Decimal(1).scaleb(int(Decimal(self.known).as_tuple().exponent))
        return abs(self.computed - float(self.known)) <= float(digit) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """Parameters in billions, KV in KiB per token and GiB at the longest context, bf16 weights in GiB."""

    model: str
    parameters: str
    weights_gib: str
    active: str | None = None
    kv_kib: str | None = None
    kv_gib: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRoom:
    """Sequences of the longest context on TP1, TP2, TP4."""

    model: str
    sequences: tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCapacity:
    """KV capacity in thousands of tokens on H100, H200, B200."""

    model: str
    precision: str
    tensor_parallel: int
    tokens: tuple[str, ...]


MODELS: Final = (
    KnownModel(model="llama-3-8b", parameters="8.03", weights_gib="15.0", kv_kib="128", kv_gib="1.0"),
    KnownModel(model="llama-3.1-8b", parameters="8.03", weights_gib="15.0", kv_kib="128", kv_gib="16.0"),
    KnownModel(model="llama-3-70b", parameters="70.55", weights_gib="131.4", kv_kib="320", kv_gib="2.5"),
    KnownModel(model="llama-3.1-70b", parameters="70.55", weights_gib="131.4", kv_kib="320", kv_gib="40.0"),
    KnownModel(model="mistral-7b-v0.3", parameters="7.25", weights_gib="13.5", kv_kib="128", kv_gib="4.0"),
    KnownModel(model="mixtral-8x7b", parameters="46.7", active="12.9", weights_gib="87.0", kv_kib="128", kv_gib="4.0"),
    KnownModel(
        model="mixtral-8x22b", parameters="140.6", active="39.2", weights_gib="261.9", kv_kib="224", kv_gib="14.0"
    ),
    KnownModel(model="qwen2-7b", parameters="7.62", weights_gib="14.2", kv_kib="56", kv_gib="1.75"),
    KnownModel(model="qwen2-72b", parameters="72.7", weights_gib="135.4", kv_kib="320", kv_gib="10.0"),
    KnownModel(model="qwen2.5-vl-7b", parameters="8.29", weights_gib="15.4", kv_kib="56", kv_gib="6.8"),
    KnownModel(model="deepseek-coder-6.7b", parameters="6.74", weights_gib="12.6", kv_kib="512", kv_gib="8.0"),
    KnownModel(model="deepseek-coder-7b-v1.5", parameters="6.91", weights_gib="12.9", kv_kib="480", kv_gib="1.9"),
    KnownModel(model="deepseek-v2", parameters="236", active="21", weights_gib="439", kv_kib="67.5", kv_gib="10.5"),
    KnownModel(model="codellama-70b", parameters="69.0", weights_gib="128.5", kv_kib="320", kv_gib="5.0"),
    KnownModel(model="command-r-v01", parameters="35.0", weights_gib="65.2", kv_kib="1280", kv_gib="160"),
    KnownModel(model="command-r-08-2024", parameters="32.3", weights_gib="60.2", kv_kib="160", kv_gib="20"),
    KnownModel(model="whisper-large-v3", parameters="1.54", weights_gib="2.9"),
    KnownModel(model="e5-large-v2", parameters="0.335", weights_gib="0.6"),
    KnownModel(model="multilingual-e5-large", parameters="0.56", weights_gib="1.0"),
    KnownModel(model="bge-m3", parameters="0.568", weights_gib="1.1"),
)
"""Published parameter counts, and the KV figures that follow from the published shapes."""

ROOM_UTILIZATION: Final = 0.9
ROOM_OVERHEAD_BYTES: Final = int(3.5 * GIB)
ROOM_GPU: Final = "b200"

ROOM: Final = (
    KnownRoom(model="llama-3.1-70b", sequences=("0.66", "4.6", "12.5")),
    KnownRoom(model="command-r-v01", sequences=("0.58", "1.6", "3.5")),
    KnownRoom(model="codellama-70b", sequences=("5.8", "37", "100")),
    KnownRoom(model="qwen2-72b", sequences=("2.2", "18", "50")),
)
"""B200 with all of NVML's 183359 MiB, utilization 0.9 and a flat 3.5 GiB of overhead (aiconfigurator's figure)."""

ROOM_DEGREES: Final = (1, 2, 4)

OWN_OVERHEAD_TOLERANCE: Final = 0.12
"""How far the part-by-part overhead may move the same figures: it replaces 3.5 GiB by 2.5 to 6 GiB."""

CAPACITY_UTILIZATION: Final = 0.92
CAPACITY_OVERHEAD_BYTES: Final = 4 * GIB
CAPACITY_GPUS: Final = ("h100", "h200", "b200")

CAPACITIES: Final = (
    KnownCapacity(model="llama-3.1-8b", precision="bf16", tensor_parallel=1, tokens=("444", "902", "1189")),
    KnownCapacity(model="llama-3.1-70b", precision="fp8", tensor_parallel=2, tokens=("238", "604", "833")),
    KnownCapacity(model="llama-3.1-70b", precision="fp8", tensor_parallel=4, tokens=("691", "1425", "1883")),
    KnownCapacity(model="qwen3-32b", precision="bf16", tensor_parallel=2, tokens=("316", "775", "1061")),
)
"""Calibration table's capacities: utilization 0.92 and a flat 4 GiB of overhead."""

CAPACITY_TOLERANCE: Final = 0.012
"""The table takes slightly other memory totals: NVML's for H100 and H200, CUDA's for B200."""

CAPACITY_FP8_TOLERANCE: Final = 0.04
"""It also takes one byte for every parameter; embeddings and output head stay in 16 bits (2 GiB more for 70B)."""

MEASURED_UTILIZATION: Final = 0.9
MEASURED_SEQS: Final = 256
MEASURED_TOKENS: Final = 8192
MEASURED_TOLERANCE: Final = 0.02
"""vLLM 0.6's own log for Llama-3-8B on one H100 (pull request 10511): another engine generation, same shapes."""


def checks(catalog: Catalog) -> Iterator[Check]:
    """Every known figure beside the computed one."""
    for known in MODELS:
        yield from _model_checks(catalog.model(known.model), known)
    for room in ROOM:
        yield from _room_checks(catalog, room)
    for capacity in CAPACITIES:
        yield from _capacity_checks(catalog, capacity)
    yield from _measured_checks(catalog)


def _model_checks(model: ModelCard, known: KnownModel) -> Iterator[Check]:
    shape = model.shape
    assert shape is not None, "known models have a shape"
    figures = [
        ("parameters, B", known.parameters, parameters_of(shape) / _GIGA),
        ("active parameters, B", known.active, active_parameters_of(shape) / _GIGA),
        ("bf16 weights, GiB", known.weights_gib, total_weight_bytes(shape, "bf16") / GIB),
    ]
    per_token = kv_bytes_per_token(shape, "auto", 1)
    figures.append(("KV per token, KiB", known.kv_kib, per_token / KIB))
    figures.append(("KV at longest context, GiB", known.kv_gib, per_token * model.context_tokens / GIB))
    for figure, value, computed in figures:
        if value is not None:
            yield Check(section="shapes", subject=model.id, figure=figure, known=value, computed=computed)


def _room_checks(catalog: Catalog, known: KnownRoom) -> Iterator[Check]:
    model, gpu = catalog.model(known.model), catalog.gpu(ROOM_GPU)
    for degree, sequences in zip(ROOM_DEGREES, known.sequences, strict=True):
        subject = f"{model.id} on {gpu.name} TP{degree}"
        flat = _room(model, replace(gpu, reserved_bytes=0), degree, ROOM_OVERHEAD_BYTES)
        figure = "sequences of the longest context"
        computed = flat.sequences_at_context
        yield Check(section="flat overhead", subject=subject, figure=figure, known=sequences, computed=computed)
        own = _room(model, gpu, degree, None)
        yield Check(
            section="own overhead",
            subject=subject,
            figure=figure,
            known=sequences,
            computed=own.sequences_at_context,
            tolerance=OWN_OVERHEAD_TOLERANCE,
        )


def _room(model: ModelCard, gpu: Gpu, degree: int, overhead_bytes: int | None) -> FitAnswer:
    return fit(
        model,
        gpu,
        tp=degree,
        context=model.context_tokens,
        utilization=ROOM_UTILIZATION,
        overhead_bytes=overhead_bytes,
    )


def _capacity_checks(catalog: Catalog, known: KnownCapacity) -> Iterator[Check]:
    model = catalog.model(known.model)
    for name, tokens in zip(CAPACITY_GPUS, known.tokens, strict=True):
        answer = fit(
            model,
            catalog.gpu(name),
            tp=known.tensor_parallel,
            precision=known.precision,
            context=1,
            utilization=CAPACITY_UTILIZATION,
            overhead_bytes=CAPACITY_OVERHEAD_BYTES,
        )
        yield Check(
            section="capacities",
            subject=f"{model.id} {known.precision} on {name} TP{known.tensor_parallel}",
            figure="KV capacity, thousand tokens",
            known=tokens,
            computed=answer.kv_tokens / _KILO,
            tolerance=CAPACITY_FP8_TOLERANCE if known.precision == "fp8" else CAPACITY_TOLERANCE,
        )


def _measured_checks(catalog: Catalog) -> Iterator[Check]:
    answer = fit(
        catalog.model("llama-3-8b"),
        catalog.gpu("h100"),
        tp=1,
        utilization=MEASURED_UTILIZATION,
        max_num_seqs=MEASURED_SEQS,
        max_batched_tokens=MEASURED_TOKENS,
    )
    budget = answer.budget
    assert budget is not None, "an 8B model's arithmetic can be done"
    subject = "llama-3-8b on h100 TP1"
    yield Check(
        section="measured",
        subject=subject,
        figure="cap, GiB",
        known="71.29",
        computed=budget.cap_bytes / GIB,
        tolerance=MEASURED_TOLERANCE,
    )
    yield Check(
        section="measured",
        subject=subject,
        figure="weights, GiB",
        known="14.96",
        computed=budget.part("weights") / GIB,
    )
    yield Check(
        section="measured",
        subject=subject,
        figure="KV cache, GiB",
        known="53.29",
        computed=budget.kv_bytes / GIB,
        tolerance=MEASURED_TOLERANCE,
    )
