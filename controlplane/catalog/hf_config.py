"""Reads a config.json (Hugging Face's names) into a Shape: for the catalog's files and for models it does not have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlplane.catalog.shape import AudioFront, Experts, LatentAttention, Shape, ShapeKind, Stack, VisionFront
from controlplane.kernel.errors import InvalidError, Problem

QWEN_IMAGE_TOKENS_MAX: Final = 16384
"""Qwen2.5-VL's processor: max_pixels 12845056 / (28 x 28)."""


class VisionConfig(BaseModel):
    """The part of a vision tower's configuration that memory depends on."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    depth: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    patch_size: int = 14
    temporal_patch_size: int = 2
    in_channels: int = Field(default=3, validation_alias="in_chans")
    spatial_merge_size: int = 2


class HfConfig(BaseModel):
    """The keys of a config.json that memory depends on; all others are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    architectures: list[str] = Field(default_factory=list)
    model_type: str = ""
    vocab_size: int = Field(gt=0)
    hidden_size: int | None = Field(default=None, gt=0)
    num_hidden_layers: int | None = Field(default=None, gt=0)
    num_attention_heads: int | None = Field(default=None, gt=0)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int | None = None
    model_max_length: int | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    type_vocab_size: int = 0
    num_local_experts: int | None = None
    num_experts_per_tok: int | None = None
    n_routed_experts: int | None = None
    n_shared_experts: int | None = None
    moe_intermediate_size: int | None = None
    first_k_dense_replace: int = 0
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    qk_nope_head_dim: int | None = None
    v_head_dim: int | None = None
    vision_config: VisionConfig | None = None
    d_model: int | None = None
    encoder_layers: int | None = None
    encoder_attention_heads: int | None = None
    encoder_ffn_dim: int | None = None
    decoder_layers: int | None = None
    decoder_attention_heads: int | None = None
    decoder_ffn_dim: int | None = None
    num_mel_bins: int | None = None
    max_source_positions: int | None = None
    max_target_positions: int | None = None


class CatalogConfig(HfConfig):
    """The same keys as they stand in a catalog file, where an unknown one is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def shape_from_config(config: Mapping[str, object]) -> Shape:
    """The shape that a parsed config.json describes.

    InvalidError names each key that is missing or wrong. An architecture that is not known is read as a Llama-like
    decoder and marked `exact=False`.
    """
    try:
        parsed = HfConfig.model_validate(_flattened(config))
    except ValidationError as error:
        raise InvalidError([_problem(item["loc"], item["msg"], item["input"]) for item in error.errors()]) from error
    return shape_from(parsed)


def shape_from(config: HfConfig) -> Shape:
    """As `shape_from_config`, for keys already parsed."""
    architecture = config.architectures[0] if config.architectures else config.model_type
    reader = _READERS.get(architecture)
    if reader is not None:
        return reader(config, architecture)
    return replace(_decoder(config, architecture), exact=False)


def _flattened(config: Mapping[str, object]) -> Mapping[str, object]:
    """Newer multimodal configs nest the text model's keys: lift them, the outer architecture stays."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return config
    kept = {key: config[key] for key in ("architectures", "model_type", "vision_config") if key in config}
    return {**config, **text, **kept}


def _problem(place: tuple[int | str, ...], message: str, found: object) -> Problem:
    return Problem(
        field=".".join(str(part) for part in place) or "config.json",
        found="nothing" if message == "Field required" else repr(found)[:60],
        expected=message,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """The keys that a plain transformer must have."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int


def _sizes(config: HfConfig) -> _Sizes:
    wanted = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
    }
    _require(wanted)
    hidden, layers, heads, intermediate, positions = (value or 0 for value in wanted.values())
    return _Sizes(hidden=hidden, layers=layers, heads=heads, intermediate=intermediate, positions=positions)


def _require(wanted: Mapping[str, int | None]) -> None:
    missing = [key for key, value in wanted.items() if not value or value < 0]
    if missing:
        raise InvalidError(
            [
                Problem(
                    field=key,
                    found="nothing",
                    expected="a positive number",
                    hint="is this a transformer's config.json?",
                )
                for key in missing
            ]
        )


def _decoder(config: HfConfig, architecture: str) -> Shape:
    sizes = _sizes(config)
    kv_heads = config.num_key_value_heads or sizes.heads
    if sizes.heads % kv_heads:
        raise InvalidError(
            [Problem(field="num_key_value_heads", found=str(kv_heads), expected=f"a divisor of {sizes.heads} heads")]
        )
    stack = Stack(
        layers=sizes.layers,
        hidden=sizes.hidden,
        heads=sizes.heads,
        kv_heads=kv_heads,
        head_dim=config.head_dim or sizes.hidden // sizes.heads,
        intermediate=sizes.intermediate,
        query_value_bias=config.attention_bias,
        key_bias=config.attention_bias,
        output_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        sliding_window=None if config.use_sliding_window is False else config.sliding_window,
    )
    return Shape(
        architecture=architecture,
        kind=ShapeKind.DECODER,
        text=stack,
        vocab=config.vocab_size,
        context_tokens=sizes.positions,
        tied_embeddings=bool(config.tie_word_embeddings),
    )


def _qwen2(config: HfConfig, architecture: str) -> Shape:
    shape = _decoder(config, architecture)
    window = shape.text.sliding_window if config.use_sliding_window else None
    return replace(shape, text=replace(shape.text, query_value_bias=True, key_bias=True, sliding_window=window))


def _qwen3(config: HfConfig, architecture: str) -> Shape:
    shape = _decoder(config, architecture)
    window = shape.text.sliding_window if config.use_sliding_window else None
    return replace(shape, text=replace(shape.text, query_key_norm=True, sliding_window=window))


def _qwen_vision(config: HfConfig, architecture: str) -> Shape:
    shape, vision = _qwen2(config, architecture), config.vision_config
    if vision is None:
        raise InvalidError([Problem(field="vision_config", found="nothing", expected="the vision tower's sizes")])
    tower = Stack(
        layers=vision.depth,
        hidden=vision.hidden_size,
        heads=vision.num_heads,
        kv_heads=vision.num_heads,
        head_dim=vision.hidden_size // vision.num_heads,
        intermediate=vision.intermediate_size,
        query_value_bias=True,
        key_bias=True,
        output_bias=True,
        mlp_bias=True,
    )
    front = VisionFront(
        stack=tower,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        merged_patches=vision.spatial_merge_size**2,
        image_tokens_max=QWEN_IMAGE_TOKENS_MAX,
    )
    return replace(shape, vision=front)


def _mixtral(config: HfConfig, architecture: str) -> Shape:
    shape = _decoder(config, architecture)
    _require({"num_local_experts": config.num_local_experts, "num_experts_per_tok": config.num_experts_per_tok})
    experts = Experts(
        routed=config.num_local_experts or 0,
        active=config.num_experts_per_tok or 0,
        intermediate=shape.text.intermediate,
    )
    return replace(shape, text=replace(shape.text, experts=experts))


def _deepseek_v2(config: HfConfig, architecture: str) -> Shape:
    shape = _decoder(config, architecture)
    _require(
        {
            "n_routed_experts": config.n_routed_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "moe_intermediate_size": config.moe_intermediate_size,
            "kv_lora_rank": config.kv_lora_rank,
            "qk_rope_head_dim": config.qk_rope_head_dim,
            "qk_nope_head_dim": config.qk_nope_head_dim,
            "v_head_dim": config.v_head_dim,
        }
    )
    width = config.moe_intermediate_size or 0
    experts = Experts(
        routed=config.n_routed_experts or 0,
        active=config.num_experts_per_tok or 0,
        intermediate=width,
        shared_intermediate=width * (config.n_shared_experts or 0),
        dense_layers=config.first_k_dense_replace,
    )
    latent = LatentAttention(
        kv_rank=config.kv_lora_rank or 0,
        query_rank=config.q_lora_rank,
        rope_dim=config.qk_rope_head_dim or 0,
        nope_dim=config.qk_nope_head_dim or 0,
        value_dim=config.v_head_dim or 0,
    )
    return replace(shape, text=replace(shape.text, experts=experts, latent=latent))


def _cohere(config: HfConfig, architecture: str) -> Shape:
    shape = _decoder(config, architecture)
    tied = config.tie_word_embeddings is not False  # the architecture's default is tied
    context = config.model_max_length or shape.context_tokens
    # Attention and MLP read the same normed input: one norm a layer.
    return replace(shape, text=replace(shape.text, norms_per_layer=1), tied_embeddings=tied, context_tokens=context)


def _bert(config: HfConfig, architecture: str) -> Shape:
    shape = _decoder(config, architecture)
    stack = replace(
        shape.text,
        mlp_matrices=2,
        query_value_bias=True,
        key_bias=True,
        output_bias=True,
        mlp_bias=True,
        norm_bias=True,
    )
    # RoBERTa starts its positions after the padding index: two rows of the table are no position.
    skipped = 2 if architecture.startswith(("XLMRoberta", "Roberta")) else 0
    return replace(
        shape,
        kind=ShapeKind.ENCODER,
        text=stack,
        learned_positions=shape.context_tokens,
        context_tokens=shape.context_tokens - skipped,
        token_types=config.type_vocab_size,
        embedding_norm=True,
        pooler=True,
    )


def _whisper(config: HfConfig, architecture: str) -> Shape:
    wanted = {
        "d_model": config.d_model,
        "decoder_layers": config.decoder_layers,
        "decoder_attention_heads": config.decoder_attention_heads,
        "decoder_ffn_dim": config.decoder_ffn_dim,
        "encoder_layers": config.encoder_layers,
        "encoder_attention_heads": config.encoder_attention_heads,
        "encoder_ffn_dim": config.encoder_ffn_dim,
        "num_mel_bins": config.num_mel_bins,
        "max_source_positions": config.max_source_positions,
        "max_target_positions": config.max_target_positions,
    }
    _require(wanted)
    hidden, *rest = (value or 0 for value in wanted.values())
    decoder_layers, decoder_heads, decoder_ffn, encoder_layers, encoder_heads, encoder_ffn, mels, frames, tokens = rest
    encoder = _whisper_stack(hidden, encoder_layers, encoder_heads, encoder_ffn)
    decoder = _whisper_stack(hidden, decoder_layers, decoder_heads, decoder_ffn)
    return Shape(
        architecture=architecture,
        kind=ShapeKind.ENCODER_DECODER,
        text=replace(decoder, cross_attention=True, norms_per_layer=3),
        vocab=config.vocab_size,
        context_tokens=tokens,
        tied_embeddings=True,
        learned_positions=tokens,
        audio=AudioFront(stack=encoder, mel_bins=mels, frames=frames),
    )


def _whisper_stack(hidden: int, layers: int, heads: int, intermediate: int) -> Stack:
    return Stack(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=intermediate,
        mlp_matrices=2,
        query_value_bias=True,
        output_bias=True,
        mlp_bias=True,
        norm_bias=True,
    )


_READERS: Final[Mapping[str, Callable[[HfConfig, str], Shape]]] = {
    "LlamaForCausalLM": _decoder,
    "MistralForCausalLM": _decoder,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen2_5_VLForConditionalGeneration": _qwen_vision,
    "MixtralForCausalLM": _mixtral,
    "DeepseekV2ForCausalLM": _deepseek_v2,
    "DeepseekV3ForCausalLM": _deepseek_v2,
    "CohereForCausalLM": _cohere,
    "BertModel": _bert,
    "XLMRobertaModel": _bert,
    "WhisperForConditionalGeneration": _whisper,
}
