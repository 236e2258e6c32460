"""Shapes read from config.json: the parts of real ones that memory depends on, and their parameter counts."""

from typing import Final

import pytest

from controlplane.catalog.files import load_catalog
from controlplane.catalog.hf_config import shape_from_config
from controlplane.catalog.memory import kv_bytes_per_token
from controlplane.catalog.shape import ShapeKind
from controlplane.catalog.weights import active_parameters_of, parameters_of, tensors_of
from controlplane.kernel.errors import InvalidError
from controlplane.kernel.units import KIB

type Config = dict[str, object]

LLAMA: Final[Config] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "hidden_act": "silu",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "rope_scaling": {"factor": 8.0, "rope_type": "llama3"},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MISTRAL: Final[Config] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
MIXTRAL: Final[Config] = {
    **MISTRAL,
    "architectures": ["MixtralForCausalLM"],
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "sliding_window": None,
}
QWEN2: Final[Config] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_VL: Final[Config] = {
    **QWEN2,
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "max_position_embeddings": 128000,
    "vision_config": {
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_size": 1280,
        "in_chans": 3,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
    },
}
DEEPSEEK_V2: Final[Config] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "num_attention_heads": 128,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 102400,
}
COHERE: Final[Config] = {
    "architectures": ["CohereForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "max_position_embeddings": 8192,
    "model_max_length": 131072,
    "num_attention_heads": 64,
    "num_hidden_layers": 40,
    "use_qk_norm": False,
    "vocab_size": 256000,
}
WHISPER: Final[Config] = {
    "architectures": ["WhisperForConditionalGeneration"],
    "d_model": 1280,
    "decoder_attention_heads": 20,
    "decoder_ffn_dim": 5120,
    "decoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "num_mel_bins": 128,
    "vocab_size": 51866,
}
XLM_ROBERTA: Final[Config] = {
    "architectures": ["XLMRobertaModel"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "max_position_embeddings": 8194,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "type_vocab_size": 1,
    "vocab_size": 250002,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA, 70_553_706_496),
        (MISTRAL, 7_241_732_096),
        (MIXTRAL, 46_702_792_704),
        (QWEN2, 7_615_616_512),
        (QWEN_VL, 8_292_166_656),
        (DEEPSEEK_V2, 235_741_434_880),
        (COHERE, 34_980_831_232),
        (WHISPER, 1_543_490_560),
        (XLM_ROBERTA, 567_754_752),
    ],
    ids=["llama", "mistral", "mixtral", "qwen2", "qwen2.5-vl", "deepseek-v2", "cohere", "whisper", "xlm-roberta"],
)
def test_parameters_are_counted_exactly(config: Config, parameters: int) -> None:
    """To the last one; that they round to the published figures is tested with the known figures."""
    shape = shape_from_config(config)

    assert shape.exact
    assert parameters_of(shape) == parameters


def test_a_token_uses_only_its_experts() -> None:
    assert active_parameters_of(shape_from_config(MIXTRAL)) == 12_879_925_248
    assert active_parameters_of(shape_from_config(DEEPSEEK_V2)) == pytest.approx(21.4e9, rel=0.01)


def test_cohere_has_a_kv_head_for_each_head_and_takes_the_longer_limit() -> None:
    shape = shape_from_config(COHERE)

    assert shape.text.kv_heads == 64
    assert shape.context_tokens == 131072
    assert shape.tied_embeddings


def test_a_window_that_is_switched_off_does_not_count() -> None:
    assert shape_from_config(MISTRAL).text.sliding_window == 4096
    assert shape_from_config(QWEN2).text.sliding_window is None


def test_roberta_loses_two_positions_to_padding() -> None:
    shape = shape_from_config(XLM_ROBERTA)

    assert shape.kind is ShapeKind.ENCODER
    assert shape.context_tokens == 8192
    assert kv_bytes_per_token(shape, "auto", 1) == 0


def test_latent_attention_is_cached_compressed_and_whole() -> None:
    shape = shape_from_config(DEEPSEEK_V2)

    assert kv_bytes_per_token(shape, "auto", 1) == 67.5 * KIB
    assert kv_bytes_per_token(shape, "auto", 8) == 67.5 * KIB


def test_a_nested_text_config_is_read() -> None:
    outer = {"architectures", "vision_config"}
    nested: Config = {key: QWEN_VL[key] for key in outer}
    nested["text_config"] = {key: value for key, value in QWEN_VL.items() if key not in outer}

    assert shape_from_config(nested) == shape_from_config(QWEN_VL)


def test_an_unknown_architecture_is_read_as_llama_like_and_says_so() -> None:
    shape = shape_from_config({**LLAMA, "architectures": ["SomethingNewForCausalLM"]})

    assert not shape.exact
    assert parameters_of(shape) == parameters_of(shape_from_config(LLAMA))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_key_is_named(key: str) -> None:
    config = {name: value for name, value in LLAMA.items() if name != key}

    with pytest.raises(InvalidError) as caught:
        shape_from_config(config)

    assert [problem.field for problem in caught.value.problems] == [key]


def test_kv_heads_that_do_not_divide_heads_are_refused() -> None:
    with pytest.raises(InvalidError, match="num_key_value_heads"):
        shape_from_config({**LLAMA, "num_key_value_heads": 7})


def test_every_catalogued_model_has_the_stated_total() -> None:
    for card in load_catalog().models.values():
        if card.shape is None:
            continue
        assert card.shape.exact, card.id
        assert parameters_of(card.shape) == card.parameters, card.id
        assert card.parameters_active in (None, active_parameters_of(card.shape)), card.id
        assert all(item.parameters > 0 for item in tensors_of(card.shape)), card.id
