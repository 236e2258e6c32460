"""Which catalog entries a deployment's own labels mean."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from controlplane.catalog.model import Catalog

_LIKENESS: Final = 0.6
"""difflib's own default: below it a guess is noise."""
_KV_SPREAD: Final = 0.05
"""Replicas of one kind differ by a few blocks, by what else the driver held when they started."""


@dataclass(frozen=True, slots=True)
class GuessedModel:
    model: str
    precision: str | None
    """Of the repository that the label names; None: the catalog's default."""
    exact: bool


def guessed_model(label: str, catalog: Catalog) -> GuessedModel | None:
    """By the label `model_name`, which is a repository, a path, or a name that somebody chose."""
    wanted = label.lower().rstrip("/")
    names: dict[str, GuessedModel] = {}
    for card in catalog.models.values():
        for offer in reversed(card.precisions):
            precision = None if offer == card.precisions[0] else offer.name
            for name in (offer.repo, offer.repo.rpartition("/")[2]):
                names[name.lower()] = GuessedModel(card.id, precision, exact=True)
        for name in (card.id, card.repo.lower(), card.repo.lower().rpartition("/")[2]):
            names[name] = GuessedModel(card.id, None, exact=True)
    last = wanted.rpartition("/")[2]
    if wanted in names or last in names:
        return names.get(wanted) or names[last]
    close = get_close_matches(last, list(names), n=1, cutoff=_LIKENESS)
    return GuessedModel(names[close[0]].model, names[close[0]].precision, exact=False) if close else None


def guessed_gpu(labels: Sequence[str], catalog: Catalog) -> str | None:
    """By dcgm-exporter's `modelName`, such as `NVIDIA H100 80GB HBM3`; None unless all mean one GPU of the catalog."""
    found = set()
    for label in labels:
        fitting = [name for name in catalog.gpus if all(part in label.lower() for part in re.split("-", name))]
        found.add(max(fitting, key=len, default=None))
    return found.pop() if len(found) == 1 else None


def kv_tokens_of(blocks: Sequence[str], sizes: Sequence[str]) -> int | None:
    """Of one replica, from the labels `num_gpu_blocks` and `block_size`; None where they are missing or differ."""
    if not blocks or len(sizes) != 1 or not all(one.isdigit() for one in (*blocks, *sizes)):
        return None
    counts = [int(one) for one in blocks]
    if min(counts) <= 0 or max(counts) - min(counts) > _KV_SPREAD * max(counts):
        return None
    return min(counts) * int(sizes[0])
