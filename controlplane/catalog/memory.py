"""Memory of one GPU under one engine process, part by part. Pure arithmetic; every part says how it came about.

What vLLM does at start: it runs the largest batch once, adds weights, that run's peak, what the run left outside the
allocator and the CUDA graphs, and gives the KV cache the rest of `memory x gpu_memory_utilization`. The same is
computed here from shapes. The CUDA context is counted inside the cap too, although vLLM lets it lie in the remainder:
a replica must never need more than the operator granted, and several may share one card.
"""

from dataclasses import dataclass
from typing import Final

from controlplane.catalog.model import Gpu
from controlplane.catalog.shape import Shape, ShapeKind, Stack
from controlplane.catalog.weights import padded_vocab, total_weight_bytes, weight_bytes
from controlplane.kernel.units import KIB, MIB, format_bytes

ACTIVATION_BYTES: Final = 2
"""Activations are computed in 16 bits whatever the weights are."""

ACTIVATIONS_MIN_BYTES: Final = 70 * MIB
"""Floor of any run, from NVIDIA's aiconfigurator."""

SAMPLER_BYTES_PER_LOGIT: Final = 14
"""Gathered logits in 16 bits, then 32-bit logits, probabilities and a working copy: 2 + 4 + 4 + 4."""

GRAPH_BYTES_PER_LAYER: Final = int(0.3 * MIB)
"""Of one captured batch size. vLLM 0.2x logs give 0.11 GiB for 19 sizes of a small model and 0.36 to 1.1 GiB for
models of 64 to 94 layers with the full list: 0.15 to 0.35 MiB for each size and layer."""

GRAPH_BATCH_MAX: Final = 512
"""vLLM captures no larger decode batch by default."""

KV_BYTES: Final[dict[str, int]] = {"auto": 2, "bf16": 2, "fp16": 2, "fp8": 1}
"""Bytes of one value of the KV cache; `auto` follows the model's 16 bits."""

NO_CONTEXT_TOKENS: Final = 1
"""A model whose sequences have no tokens still occupies one slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Settings that memory depends on."""

    tensor_parallel: int
    precision: str
    kv_precision: str
    utilization: float
    max_num_seqs: int
    max_batched_tokens: int
    block_tokens: int = 16
    eager: bool = False
    """No CUDA graphs."""
    overhead_bytes: int | None = None
    """A flat figure per GPU in place of activations, graphs, collectives and runtime: for comparing with rules of
    thumb and published tables that use one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    size_bytes: int
    arithmetic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Where one GPU's memory goes."""

    cap_bytes: int
    parts: tuple[Part, ...]

    @property
    def kv_bytes(self) -> int:
        """Left for the KV cache; negative when the parts alone exceed the cap."""
        return self.cap_bytes - sum(part.size_bytes for part in self.parts)

    def part(self, name: str) -> int:
        return sum(part.size_bytes for part in self.parts if part.name == name)


def budget_of(shape: Shape, gpu: Gpu, serving: Serving) -> Budget:
    """Weights and overheads of one GPU, in the order in which the engine takes them."""
    parts = [_weights(shape, serving)]
    if serving.overhead_bytes is not None:
        flat = Part(name="overhead", size_bytes=serving.overhead_bytes, arithmetic="a flat figure, as asked")
        return Budget(cap_bytes=cap_bytes(gpu, serving.utilization), parts=(*parts, flat))
    parts.append(_activations(shape, serving))
    parts.append(_graphs(shape, serving))
    collective = gpu.collectives(serving.tensor_parallel)
    parts.append(
        Part(name="collectives", size_bytes=collective, arithmetic=f"NCCL and all-reduce buffers at TP{_tp(serving)}")
    )
    parts.append(
        Part(name="runtime", size_bytes=gpu.runtime_bytes, arithmetic="CUDA context, handles, attention workspace")
    )
    return Budget(cap_bytes=cap_bytes(gpu, serving.utilization), parts=tuple(parts))


def cap_bytes(gpu: Gpu, utilization: float) -> int:
    """What the engine may take of one GPU."""
    return int(gpu.usable_bytes * utilization)


def kv_bytes_per_token(shape: Shape, kv_precision: str, tensor_parallel: int) -> int:
    """On one GPU. 0 for models that keep no KV cache.

    Grouped-query attention: 2 x layers x KV heads on the GPU x head_dim x bytes; KV heads are repeated once there are
    more GPUs than heads. Latent attention: layers x (kv_rank + rope_dim) x bytes, whole on every GPU.
    """
    if not shape.keeps_kv:
        return 0
    stack, size = shape.text, KV_BYTES[kv_precision]
    if stack.latent is not None:
        return stack.layers * (stack.latent.kv_rank + stack.latent.rope_dim) * size
    return 2 * stack.layers * kv_heads_on_gpu(stack, tensor_parallel) * stack.head_dim * size


def kv_heads_on_gpu(stack: Stack, tensor_parallel: int) -> int:
    return max(1, stack.kv_heads // tensor_parallel)


def kv_slots(shape: Shape, tokens: int, serving: Serving) -> int:
    """Token slots that one sequence of that length occupies, in whole blocks.

    A window limits them to what vLLM keeps of it while a chunk is computed; an audio encoder adds its frames, which
    the cross attention caches once per request.
    """
    if not shape.keeps_kv:
        return 0
    kept = tokens
    if shape.text.sliding_window is not None:
        kept = min(tokens, shape.text.sliding_window - 1 + serving.max_batched_tokens)
    frames = shape.audio.frames if shape.audio is not None else 0
    return _blocks(kept, serving) * serving.block_tokens + _blocks(frames, serving) * serving.block_tokens


def kv_tokens(shape: Shape, budget: Budget, serving: Serving) -> int:
    """Token slots of one replica, in whole blocks; every GPU of it holds its part of each token."""
    per_token = kv_bytes_per_token(shape, serving.kv_precision, serving.tensor_parallel)
    if per_token == 0 or budget.kv_bytes <= 0:
        return 0
    return budget.kv_bytes // (per_token * serving.block_tokens) * serving.block_tokens


def explain_kv(shape: Shape, serving: Serving) -> str:
    """The arithmetic of one token's KV bytes on one GPU, as text."""
    per_token = kv_bytes_per_token(shape, serving.kv_precision, serving.tensor_parallel)
    stack, size = shape.text, KV_BYTES[serving.kv_precision]
    if stack.latent is not None:
        latent = stack.latent
        terms = f"{stack.layers} layers x ({latent.kv_rank} + {latent.rope_dim}) x {size} B, whole on each GPU"
    else:
        heads = kv_heads_on_gpu(stack, serving.tensor_parallel)
        repeated = " (repeated: more GPUs than KV heads)" if serving.tensor_parallel > stack.kv_heads else ""
        terms = f"2 x {stack.layers} layers x {heads} KV heads{repeated} x {stack.head_dim} x {size} B"
    return f"{terms} = {per_token / KIB:g} KiB per token on each GPU"


def _tp(serving: Serving) -> int:
    return serving.tensor_parallel


def _blocks(tokens: int, serving: Serving) -> int:
    return -(-tokens // serving.block_tokens)


def _weights(shape: Shape, serving: Serving) -> Part:
    whole = total_weight_bytes(shape, serving.precision)
    mine = weight_bytes(shape, serving.precision, serving.tensor_parallel)
    arithmetic = f"{format_bytes(whole)} in {serving.precision}, over TP{serving.tensor_parallel}"
    return Part(name="weights", size_bytes=mine, arithmetic=arithmetic)


def _activations(shape: Shape, serving: Serving) -> Part:
    tokens = serving.max_batched_tokens
    layer = _layer_bytes(shape.text, tokens, serving.tensor_parallel)
    parts = [(layer, f"one layer at {tokens} tokens")]
    if shape.keeps_kv:
        seqs = serving.max_num_seqs
        sampler = seqs * padded_vocab(shape) * SAMPLER_BYTES_PER_LOGIT
        parts.append((sampler, f"logits of {seqs} sequences"))
    if shape.audio is not None:
        parts.append((_layer_bytes(shape.audio.stack, tokens, serving.tensor_parallel), "one encoder layer"))
    outputs = 0
    if shape.vision is not None:
        images = shape.vision.image_tokens_max
        patches = images * shape.vision.merged_patches
        tower = _layer_bytes(shape.vision.stack, patches, serving.tensor_parallel)
        parts.append((tower, f"vision tower at {patches} patches"))
        outputs = images * shape.text.hidden * ACTIVATION_BYTES
    largest, why = max(parts)
    held = f" + {format_bytes(outputs)} image embeddings" if outputs else ""
    size = max(ACTIVATIONS_MIN_BYTES, largest + outputs)
    return Part(name="activations", size_bytes=size, arithmetic=f"peak is {why}{held}")


def _layer_bytes(stack: Stack, tokens: int, tensor_parallel: int) -> int:
    """Peak of one layer: input and residual, then the larger of attention and MLP; the parts of a GPU only."""
    stream = 2 * stack.hidden
    attention = _attention_width(stack) // tensor_parallel
    width = stream + max(attention, _mlp_width(stack, tensor_parallel))
    return tokens * width * ACTIVATION_BYTES


def _attention_width(stack: Stack) -> int:
    """Values per token of queries, keys, values and output, all heads."""
    if stack.latent is not None:
        latent = stack.latent
        return stack.heads * (2 * (latent.nope_dim + latent.rope_dim) + 2 * latent.value_dim)
    return 2 * stack.heads * stack.head_dim + 2 * stack.kv_heads * stack.head_dim


def _mlp_width(stack: Stack, tensor_parallel: int) -> int:
    """Values per token between the MLP's matrices; a mixture holds them for each expert that a token uses."""
    dense = stack.mlp_matrices * stack.intermediate // tensor_parallel
    if stack.experts is None:
        return dense
    part = stack.experts.intermediate // tensor_parallel
    # vLLM's fused kernel: the first buffer holds gate and up, and later the result; the second their product.
    routed = stack.experts.active * (max(2 * part, stack.hidden) + part)
    shared = stack.mlp_matrices * stack.experts.shared_intermediate // tensor_parallel
    return max(routed + shared, dense if stack.experts.dense_layers else 0)


def _graphs(shape: Shape, serving: Serving) -> Part:
    if serving.eager or shape.kind is ShapeKind.ENCODER:
        return Part(name="cuda graphs", size_bytes=0, arithmetic="none: eager" if serving.eager else "none: pooling")
    sizes = captured_sizes(serving.max_num_seqs)
    layers = shape.text.layers
    arithmetic = f"{sizes} batch sizes x {layers} layers x {GRAPH_BYTES_PER_LAYER / MIB:.1f} MiB"
    return Part(name="cuda graphs", size_bytes=sizes * layers * GRAPH_BYTES_PER_LAYER, arithmetic=arithmetic)


def captured_sizes(max_num_seqs: int) -> int:
    """How many batch sizes vLLM captures: 1, 2, 4, then every 8th to 256, then every 16th."""
    largest = min(2 * max_num_seqs, GRAPH_BATCH_MAX)
    small = sum(1 for size in (1, 2, 4) if size <= largest)
    middle = min(largest, 248) // 8
    large = max(0, (largest - 256) // 16 + 1) if largest >= 256 else 0  # noqa: PLR2004  (vLLM's own list)
    return small + middle + large
