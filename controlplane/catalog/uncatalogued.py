"""A card for a model that the catalog does not have, made of its config.json. Pure."""

from collections.abc import Mapping
from typing import Final

from controlplane.catalog.hf_config import shape_from_config
from controlplane.catalog.model import Commercial, Licence, ModelCard, PrecisionOffer
from controlplane.catalog.shape import ShapeKind
from controlplane.catalog.weights import LINEAR_BITS
from controlplane.domain.deployment import EngineKind, TaskKind
from controlplane.kernel.ids import ModelId

_TASK_OF: Final[Mapping[ShapeKind, TaskKind]] = {
    ShapeKind.DECODER: TaskKind.GENERATE,
    ShapeKind.ENCODER: TaskKind.EMBED,
    ShapeKind.ENCODER_DECODER: TaskKind.TRANSCRIBE,
}


def card_from_config(config: Mapping[str, object], *, name: str) -> ModelCard:
    """The model in every precision that is known; its licence is not known, which its condition says.

    InvalidError names each key that is missing or wrong.
    """
    shape = shape_from_config(config)
    unknown = () if shape.exact else (f"architecture {shape.architecture!r}, read as a Llama-like decoder",)
    return ModelCard(
        id=ModelId(name),
        title=name,
        repo=name,
        family=shape.architecture,
        task=_TASK_OF[shape.kind],
        licence=Licence(
            name="not known", commercial=Commercial.CONDITIONAL, condition="read the model's own licence before use"
        ),
        shape=shape,
        precisions=tuple(PrecisionOffer(name=precision, repo=name) for precision in LINEAR_BITS),
        engines=frozenset({EngineKind.VLLM, EngineKind.SIMULATED}),
        context_tokens=shape.context_tokens,
        source="its config.json",
        unconfirmed=unknown,
    )
