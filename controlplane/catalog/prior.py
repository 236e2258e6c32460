"""What one replica is believed to do before it has served anything. Pure.

Where the catalog has measured coefficients for exactly this model, precision, degree and GPU they are used. Otherwise
a roofline from bytes, bandwidth and FLOP/s, with efficiencies taken from those same measurements.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from controlplane.catalog.engine import Calibration, StartFigures
from controlplane.catalog.fit import FitAnswer
from controlplane.catalog.model import Gpu, ModelCard
from controlplane.catalog.shape import Shape
from controlplane.catalog.weights import COMPUTE, tensors_of, total_weight_bytes, weight_bytes
from controlplane.domain.deployment import CapacityPrior

BANDWIDTH_EFFICIENCY: Final = 0.80
"""Share of peak bandwidth at which a decode step reads weights. With the layer overhead below it puts every calibrated
row's step (16 sequences of 1000 tokens) within 25 %."""

LAYER_OVERHEAD_S: Final[dict[str, float]] = {"bf16": 32e-6, "fp8": 52e-6, "fp4": 52e-6}
"""Launches, norms and all-reduces of one layer in a decode step: 25 to 42 us in the calibrated bf16 rows, 39 to 73 us
in fp8, where activations are quantized too; fp4 is taken like fp8."""

KV_EFFICIENCY: Final = 0.93
"""Share of peak bandwidth at which attention reads the KV cache: 0.88 to 0.95 in the calibrated bf16 rows."""

PREFILL_EFFICIENCY: Final[dict[str, float]] = {"bf16": 0.70, "fp8": 0.55, "fp4": 0.45}
"""Share of peak FLOP/s of a prefill: 0.54 to 0.92 in bf16 and 0.32 to 0.66 in fp8 in the calibrated rows, lower with
more GPUs; fp4 is an extrapolation."""

ATTENTION_EFFICIENCY: Final = 0.40
"""Share of peak FLOP/s of the quadratic part: 0.38 for 8B on H100."""

PREFILL_BASE_SHARE: Final = 0.8
"""A prefill's fixed part as a share of a decode step's: 0.7 to 1.1 in the calibrated rows."""

MS: Final = 1e-3

OPAQUE_STEP_S: Final = 5e-3
OPAQUE_PREFILL_PER_TOKEN_S: Final = 1e-3
"""A model without a shape (speech synthesis): about 20 characters a token and real-time factors near 0.02 make a
millisecond per token a middling guess; the site's own measurements replace it."""

OPAQUE_LAYERS: Final = 12
"""Layers that a model without a shape is taken to have for its start-up time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    step_base_s: float
    step_per_seq_s: float
    step_per_context_token_s: float
    prefill_base_s: float
    prefill_per_token_s: float
    prefill_per_token2_s: float
    calibrated: bool


def prior_of(
    model: ModelCard, gpu: Gpu, answer: FitAnswer, *, calibrations: Iterable[Calibration], start: StartFigures
) -> CapacityPrior:
    """The prior for a model as fitted on that GPU, in the hardware's own time (no simulated speed-up)."""
    rates = _rates(model, gpu, answer, calibrations)
    return CapacityPrior(
        step_base_s=_rounded(rates.step_base_s),
        step_per_seq_s=_rounded(rates.step_per_seq_s),
        step_per_context_token_s=_rounded(rates.step_per_context_token_s),
        prefill_base_s=_rounded(rates.prefill_base_s),
        prefill_per_token_s=_rounded(rates.prefill_per_token_s),
        prefill_per_token2_s=_rounded(rates.prefill_per_token2_s),
        kv_tokens=answer.kv_tokens,
        max_num_seqs=answer.max_num_seqs,
        cold_start=_cold_start(model, answer, start),
        wake=_wake(model, answer, start),
        calibrated=rates.calibrated,
    )


def sped_up(prior: CapacityPrior, speed: float) -> CapacityPrior:
    """What the wall clock shows of a replica played `speed` times faster.

    Start and wake are left alone: a site gives them separately.
    """
    return replace(
        prior,
        step_base_s=prior.step_base_s / speed,
        step_per_seq_s=prior.step_per_seq_s / speed,
        step_per_context_token_s=prior.step_per_context_token_s / speed,
        prefill_base_s=prior.prefill_base_s / speed,
        prefill_per_token_s=prior.prefill_per_token_s / speed,
        prefill_per_token2_s=prior.prefill_per_token2_s / speed,
    )


def _rounded(seconds: float) -> float:
    """Six digits are more than is known, and read well in a command line."""
    return float(f"{seconds:.6g}")


def _rates(model: ModelCard, gpu: Gpu, answer: FitAnswer, calibrations: Iterable[Calibration]) -> _Rates:
    for row in calibrations:
        key = (row.precision, row.tensor_parallel, row.gpu)
        if model.id in row.models and key == (answer.precision, answer.tensor_parallel, gpu.name):
            return _calibrated(row)
    if model.shape is None:
        return _Rates(
            step_base_s=OPAQUE_STEP_S,
            step_per_seq_s=OPAQUE_STEP_S,
            step_per_context_token_s=0.0,
            prefill_base_s=OPAQUE_STEP_S,
            prefill_per_token_s=OPAQUE_PREFILL_PER_TOKEN_S,
            prefill_per_token2_s=0.0,
            calibrated=False,
        )
    return _roofline(model.shape, gpu, answer)


def _calibrated(row: Calibration) -> _Rates:
    return _Rates(
        step_base_s=row.step_base_ms * MS,
        step_per_seq_s=row.step_per_seq_ms * MS,
        step_per_context_token_s=row.step_per_context_token_ms * MS,
        prefill_base_s=row.prefill_base_ms * MS,
        prefill_per_token_s=row.prefill_per_token_ms * MS,
        prefill_per_token2_s=row.prefill_per_token2_ms * MS,
        calibrated=True,
    )


def _roofline(shape: Shape, gpu: Gpu, answer: FitAnswer) -> _Rates:
    """Bytes over bandwidth and operations over FLOP/s.

    A decode step reads all weights but the embedding table once (a mixture: every expert, as soon as some sequences
    run) and each sequence's KV cache; computation adds two operations per active parameter.
    """
    degree, stack = answer.tensor_parallel, shape.text
    table = shape.vocab * stack.hidden * 2 // degree if not shape.tied_embeddings else 0
    read = weight_bytes(shape, answer.precision, degree) - table
    compute = COMPUTE.get(answer.precision, "bf16")
    compute = compute if compute in gpu.flops else "bf16"
    flops = gpu.flops_of(compute)
    per_token = 2.0 * _computed_parameters(shape) / degree / flops
    step_base = read / (gpu.bandwidth_bytes_s * BANDWIDTH_EFFICIENCY) + stack.layers * LAYER_OVERHEAD_S[compute]
    # Scores and their product with the values: 2 x 2 operations per head value and pair, half of the pairs.
    attention = 2.0 * stack.layers * stack.heads * stack.head_dim / degree / gpu.flops_of("bf16")
    return _Rates(
        step_base_s=step_base,
        step_per_seq_s=per_token,
        step_per_context_token_s=answer.kv_bytes_per_token / (gpu.bandwidth_bytes_s * KV_EFFICIENCY),
        prefill_base_s=step_base * PREFILL_BASE_SHARE,
        prefill_per_token_s=per_token / PREFILL_EFFICIENCY[compute],
        prefill_per_token2_s=attention / ATTENTION_EFFICIENCY,
        calibrated=False,
    )


def _computed_parameters(shape: Shape) -> float:
    """Parameters that a token is multiplied with: the active ones less the tables that are only looked up."""
    looked_up = {"embeddings", "positions and types"} if not shape.tied_embeddings else {"positions and types"}
    return float(sum(item.parameters * item.active for item in tensors_of(shape) if item.name not in looked_up))


def _cold_start(model: ModelCard, answer: FitAnswer, start: StartFigures) -> timedelta:
    whole, layers = model.resident_bytes, OPAQUE_LAYERS
    if model.shape is not None:
        whole, layers = total_weight_bytes(model.shape, answer.precision), model.shape.text.layers
    seconds = start.process_s + whole / start.load_bytes_s
    seconds += start.collective_s if answer.tensor_parallel > 1 else 0.0
    if model.shape is None or model.shape.keeps_kv:
        seconds += layers * (start.compile_s_per_layer + start.graphs_s_per_layer)
    return timedelta(seconds=round(seconds, 1))


def _wake(model: ModelCard, answer: FitAnswer, start: StartFigures) -> timedelta:
    mine = model.resident_bytes
    if model.shape is not None:
        mine = weight_bytes(model.shape, answer.precision, answer.tensor_parallel)
    return timedelta(seconds=round(start.wake_fixed_s + mine / start.wake_bytes_s, 1))
