"""The shape of a model: what its config.json says that memory depends on. Values only."""

from dataclasses import dataclass
from enum import StrEnum


class ShapeKind(StrEnum):
    DECODER = "decoder"
    """Generates; keeps a KV cache."""
    ENCODER = "encoder"
    """One pass, pooled (embeddings); keeps no KV cache."""
    ENCODER_DECODER = "encoder_decoder"
    """Generates from an encoded input; keeps a KV cache for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the dense MLP."""

    routed: int
    active: int
    """Routed experts that one token uses."""
    intermediate: int
    """Width of one routed expert."""
    shared_intermediate: int = 0
    """Width of what every token uses besides."""
    dense_layers: int = 0
    """The first so many layers keep the dense MLP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2): the KV cache holds a compressed vector and one rotary key."""

    kv_rank: int
    query_rank: int | None
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Equal transformer layers."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    mlp_matrices: int = 3
    """3: gate, up, down; 2: up, down."""
    query_value_bias: bool = False
    key_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norms_per_layer: int = 2
    norm_bias: bool = False
    query_key_norm: bool = False
    cross_attention: bool = False
    """A second attention over the encoder's output in each layer."""
    experts: Experts | None = None
    latent: LatentAttention | None = None
    sliding_window: int | None = None
    """Tokens that attention looks back, when every layer is limited so."""

    def __post_init__(self) -> None:
        assert self.layers > 0, "a stack has layers"
        assert self.heads % self.kv_heads == 0, "query heads share KV heads evenly"


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFront:
    """What feeds an audio encoder: two convolutions over a mel spectrogram."""

    stack: Stack
    mel_bins: int
    frames: int
    """Positions after the convolutions: what the decoder's cross attention sees for one input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionFront:
    """A vision transformer whose patches, merged, become tokens of the text model."""

    stack: Stack
    patch_values: int
    """Values of one patch: channels x frames x height x width."""
    merged_patches: int
    """Patches that become one token."""
    image_tokens_max: int
    """Tokens of the largest image that the processor passes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    architecture: str
    """As in config.json, e.g. `LlamaForCausalLM`."""
    kind: ShapeKind
    text: Stack
    vocab: int
    context_tokens: int
    """Longest sequence without changing the model."""
    tied_embeddings: bool = False
    learned_positions: int = 0
    """Rows of a learned position table; 0 with rotary positions."""
    token_types: int = 0
    embedding_norm: bool = False
    pooler: bool = False
    audio: AudioFront | None = None
    vision: VisionFront | None = None
    exact: bool = True
    """False: the architecture is not one that the catalog knows; it was read as a Llama-like decoder."""

    @property
    def keeps_kv(self) -> bool:
        return self.kind is not ShapeKind.ENCODER
