"""Parameters of a shape by class of tensor, and their bytes on one GPU. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final, assert_never

from controlplane.catalog.shape import LatentAttention, Shape, ShapeKind, Stack

VOCAB_PADDING: Final = 64
"""vLLM pads the vocabulary to a multiple of this before it splits it (VocabParallelEmbedding)."""

KEPT_BITS: Final = Fraction(16)
"""What quantization leaves alone (embeddings, output head, norms, router, vision tower) stays in 16 bits."""

LINEAR_BITS: Final[dict[str, Fraction]] = {
    "bf16": Fraction(16),
    "fp16": Fraction(16),
    "fp8": Fraction(8),
    "int8": Fraction(8),
    # 4-bit weights with, per group of 128, a 16-bit scale and a 4-bit zero point.
    "awq": Fraction(4) + Fraction(16 + 4, 128),
    "gptq": Fraction(4) + Fraction(16 + 4, 128),
    # 4-bit floats with an 8-bit scale per 16.
    "nvfp4": Fraction(4) + Fraction(8, 16),
}
"""Bits of one weight of a linear layer. Per-channel scales of fp8 and int8 are below a thousandth and left out."""

GROUP_SIZE: Final[dict[str, int]] = {"awq": 128, "gptq": 128}
"""Rows that share a scale: a GPU's part of a row-parallel matrix must be whole groups."""

COMPUTE: Final[dict[str, str]] = {"fp8": "fp8", "int8": "fp8", "nvfp4": "fp4"}
"""Precision in which a linear layer computes; 4-bit integer weights are expanded and computed in bf16."""


class Split(StrEnum):
    """How tensor parallelism divides a class of tensors."""

    EVEN = "even"
    KV_HEADS = "kv_heads"
    """By KV heads: whole heads, repeated once there are more GPUs than heads."""
    VOCAB = "vocab"
    REPLICATED = "replicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """All tensors of one class."""

    name: str
    parameters: int
    split: Split
    quantized: bool
    """Precision applies to it; otherwise it stays in 16 bits."""
    active: Fraction = Fraction(1)
    """Share of it that one token uses."""
    kv_heads: int = 1


def tensors_of(shape: Shape) -> tuple[Tensors, ...]:
    """Every parameter of the model, once."""
    found = [*_embeddings(shape), *_stack(shape.text, "")]
    if shape.audio is not None:
        audio, hidden = shape.audio, shape.audio.stack.hidden
        convolutions = 3 * hidden * (audio.mel_bins + hidden) + 2 * hidden
        found.append(_replicated("audio convolutions", convolutions + audio.frames * hidden))
        found += _stack(audio.stack, "encoder ")
        found.append(_replicated("encoder final norm", _norm(audio.stack)))
    if shape.vision is not None:
        found += _vision(shape)
    return tuple(item for item in found if item.parameters)


def parameters_of(shape: Shape) -> int:
    return sum(item.parameters for item in tensors_of(shape))


def active_parameters_of(shape: Shape) -> int:
    """Parameters that one token passes through, embeddings included as is usual in published figures."""
    return int(sum(item.parameters * item.active for item in tensors_of(shape)))


def weight_bytes(shape: Shape, precision: str, tensor_parallel: int) -> int:
    """Bytes of weights on one GPU. KeyError for an unknown precision: names are checked before."""
    return sum(_bytes_on_gpu(item, shape, precision, tensor_parallel) for item in tensors_of(shape))


def total_weight_bytes(shape: Shape, precision: str) -> int:
    """Bytes of the whole model, once."""
    return sum(int(item.parameters * _bits(item, precision) / 8) for item in tensors_of(shape))


def padded_vocab(shape: Shape) -> int:
    return -(-shape.vocab // VOCAB_PADDING) * VOCAB_PADDING


def _bits(item: Tensors, precision: str) -> Fraction:
    return LINEAR_BITS[precision] if item.quantized else KEPT_BITS


def _bytes_on_gpu(item: Tensors, shape: Shape, precision: str, tensor_parallel: int) -> int:
    bits = _bits(item, precision)
    match item.split:
        case Split.EVEN:
            share = Fraction(1, tensor_parallel)
        case Split.KV_HEADS:
            share = Fraction(1, min(tensor_parallel, item.kv_heads))
        case Split.VOCAB:
            share = Fraction(padded_vocab(shape), shape.vocab * tensor_parallel)
        case Split.REPLICATED:
            share = Fraction(1)
        case _:
            assert_never(item.split)
    return int(item.parameters * share * bits / 8)


def _replicated(name: str, parameters: int) -> Tensors:
    return Tensors(name=name, parameters=parameters, split=Split.REPLICATED, quantized=False)


def _linear(name: str, parameters: int, *, split: Split = Split.EVEN, active: Fraction = Fraction(1)) -> Tensors:
    return Tensors(name=name, parameters=parameters, split=split, quantized=True, active=active)


def _norm(stack: Stack) -> int:
    return stack.hidden * (2 if stack.norm_bias else 1)


def _embeddings(shape: Shape) -> list[Tensors]:
    hidden, stack = shape.text.hidden, shape.text
    table = Tensors(name="embeddings", parameters=shape.vocab * hidden, split=Split.VOCAB, quantized=False)
    tables = (shape.learned_positions + shape.token_types) * hidden
    found = [table, _replicated("positions and types", tables)]
    if shape.kind is not ShapeKind.ENCODER and not shape.tied_embeddings:
        found.append(Tensors(name="output head", parameters=shape.vocab * hidden, split=Split.VOCAB, quantized=False))
    if shape.kind is not ShapeKind.ENCODER:
        found.append(_replicated("final norm", _norm(stack)))
    if shape.embedding_norm:
        found.append(_replicated("embedding norm", _norm(stack)))
    if shape.pooler:
        found.append(_replicated("pooler", hidden * hidden + hidden))
    return found


def _stack(stack: Stack, prefix: str) -> list[Tensors]:
    small = stack.norms_per_layer * _norm(stack) + (2 * stack.head_dim if stack.query_key_norm else 0)
    found = [_replicated(f"{prefix}norms", stack.layers * small)]
    attentions = 2 if stack.cross_attention else 1
    if stack.latent is not None:
        found += _latent(stack, stack.latent)
    else:
        found += _attention(stack, prefix, stack.layers * attentions)
    return found + _mlp(stack, prefix)


def _attention(stack: Stack, prefix: str, count: int) -> list[Tensors]:
    query = stack.heads * stack.head_dim
    key = stack.kv_heads * stack.head_dim
    biases = (query + key if stack.query_value_bias else 0) + (key if stack.key_bias else 0)
    keys_values = Tensors(
        name=f"{prefix}attention k, v",
        parameters=count * 2 * stack.hidden * key,
        split=Split.KV_HEADS,
        quantized=True,
        kv_heads=stack.kv_heads,
    )
    return [
        _linear(f"{prefix}attention q, o", count * 2 * stack.hidden * query),
        keys_values,
        _replicated(f"{prefix}attention biases", count * (biases + (stack.hidden if stack.output_bias else 0))),
    ]


def _latent(stack: Stack, latent: LatentAttention) -> list[Tensors]:
    head = latent.nope_dim + latent.rope_dim
    up_heads = stack.heads * (latent.nope_dim + latent.value_dim)
    query_in = latent.query_rank if latent.query_rank is not None else stack.hidden
    split = query_in * stack.heads * head + latent.kv_rank * up_heads + stack.heads * latent.value_dim * stack.hidden
    down = stack.hidden * ((latent.query_rank or 0) + latent.kv_rank + latent.rope_dim)
    return [
        _linear("latent attention up and out", stack.layers * split),
        _linear("latent attention down", stack.layers * down, split=Split.REPLICATED),
        _replicated("latent norms", stack.layers * ((latent.query_rank or 0) + latent.kv_rank)),
    ]


def _mlp(stack: Stack, prefix: str) -> list[Tensors]:
    experts = stack.experts
    dense_layers = stack.layers if experts is None else experts.dense_layers
    dense = dense_layers * stack.mlp_matrices * stack.hidden * stack.intermediate
    bias = dense_layers * (stack.intermediate * (stack.mlp_matrices - 1) + stack.hidden) if stack.mlp_bias else 0
    found = [_linear(f"{prefix}mlp", dense), _replicated(f"{prefix}mlp biases", bias)]
    if experts is None:
        return found
    sparse_layers = stack.layers - experts.dense_layers
    width = stack.mlp_matrices * stack.hidden
    routed = sparse_layers * experts.routed * width * experts.intermediate
    return [
        *found,
        _linear("experts", routed, active=Fraction(experts.active, experts.routed)),
        _linear("shared experts", sparse_layers * width * experts.shared_intermediate),
        _replicated("router", sparse_layers * stack.hidden * experts.routed),
    ]


def _vision(shape: Shape) -> list[Tensors]:
    assert shape.vision is not None, "asked for the vision tower of a model that has one"
    front, stack = shape.vision, shape.vision.stack
    merged = stack.hidden * front.merged_patches
    merger = merged * merged + merged + merged * shape.text.hidden + shape.text.hidden + _norm(stack)
    inside = sum(item.parameters for item in _stack(stack, "") if item.split is not Split.REPLICATED)
    around = sum(item.parameters for item in _stack(stack, "") if item.split is Split.REPLICATED)
    return [
        Tensors(name="vision tower", parameters=inside + merger, split=Split.EVEN, quantized=False),
        _replicated("vision patches, norms and biases", around + front.patch_values * stack.hidden),
    ]
