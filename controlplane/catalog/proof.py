"""The fit's arithmetic as lines for people. Pure."""

from dataclasses import dataclass

from controlplane.catalog.memory import Budget, Serving, explain_kv
from controlplane.catalog.model import Gpu, ModelCard
from controlplane.catalog.shape import Shape
from controlplane.catalog.weights import active_parameters_of, parameters_of
from controlplane.kernel.units import MIB, format_bytes

_GIGA = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was computed for one degree."""

    budget: Budget
    serving: Serving
    kv_tokens: int
    context_tokens: int
    sequences_at_context: float
    largest_context: int
    concurrency: int
    mean_tokens: int
    largest_concurrency: int


def proof_of(model: ModelCard, shape: Shape, gpu: Gpu, finding: Finding) -> tuple[str, ...]:
    """Line by line from parameters to sequences, each with its terms."""
    return (
        parameters_line(model, shape),
        _cap_line(gpu, finding),
        *(f"- {part.name}: {format_bytes(part.size_bytes)} ({part.arithmetic})" for part in finding.budget.parts),
        *_kv_lines(shape, finding),
    )


def parameters_line(model: ModelCard, shape: Shape) -> str:
    total, active = parameters_of(shape), active_parameters_of(shape)
    sparse = f", {active / _GIGA:.2f} B active" if active != total else ""
    known = "" if shape.exact else " (architecture not known: read as a Llama-like decoder)"
    return f"{model.id}: {total / _GIGA:.2f} B parameters{sparse}, {shape.architecture}{known}"


def _cap_line(gpu: Gpu, finding: Finding) -> str:
    reserved = f" - {gpu.reserved_bytes // MIB} MiB the driver keeps" if gpu.reserved_bytes else ""
    share = f"x {finding.serving.utilization:g} utilization"
    cap = format_bytes(finding.budget.cap_bytes)
    return f"{gpu.name}: ({gpu.memory_bytes // MIB} MiB{reserved}) {share} = {cap} per GPU"


def _kv_lines(shape: Shape, finding: Finding) -> tuple[str, ...]:
    left = f"= {format_bytes(finding.budget.kv_bytes)} left per GPU"
    if not shape.keeps_kv:
        return (f"{left}; pooling keeps no KV cache", _verdict(finding))
    lines = [f"{left} for the KV cache", explain_kv(shape, finding.serving)]
    if shape.text.sliding_window is not None:
        lines.append(f"a window of {shape.text.sliding_window} tokens limits what one sequence keeps")
    if shape.audio is not None:
        lines.append(f"each request also caches {shape.audio.frames} encoder frames for the cross attention")
    tokens = f"{finding.kv_tokens} tokens at TP{finding.serving.tensor_parallel}"
    at_context = f"{finding.sequences_at_context:.2f} sequences of {finding.context_tokens}"
    return (*lines, f"KV cache: {tokens} = {at_context}; largest context {finding.largest_context}", _verdict(finding))


def _verdict(finding: Finding) -> str:
    enough = "enough for" if finding.largest_concurrency >= finding.concurrency else "not enough for"
    room = f"room for {finding.largest_concurrency} sequences of {finding.mean_tokens} tokens"
    return f"{room} (max_num_seqs {finding.serving.max_num_seqs}): {enough} {finding.concurrency} at once"
