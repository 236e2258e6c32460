"""What a live metrics page or Prometheus showed, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.autoscaler.doctor.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Prometheus said to one query."""

    series: int = 0
    refused: str = ""
    """Why it was refused, where it was."""
    is_number: bool = True
    """False: its one value is NaN or infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """The samples that are there now."""

    source: str
    """File or URL, as messages name it."""
    labels: Mapping[str, frozenset[str]]
    """Of every sample's name, the labels that its series have."""
    values: Mapping[str, frozenset[str]]
    """Of labels that queries match, the values that engines' series have."""
    edges: Mapping[str, tuple[float, ...]]
    """Of every histogram's family, its bounds without +Inf."""
    has_scrape_labels: bool
    """Prometheus adds labels of the target; a page has the engine's own alone."""

    @property
    def is_engine(self) -> bool:
        return any(name.startswith("vllm:") for name in self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that the rules look at."""

    recipe: Recipe
    showings: Sequence[Showing] = ()
    answers: Mapping[str, Answer] = field(default_factory=dict)
    """By query text."""

    def shows(self, name: str) -> bool:
        return any(name in showing.labels for showing in self.showings)

    def edges(self, family: str, known: tuple[float, ...]) -> tuple[float, ...]:
        """A histogram's bounds: those of the live engine where it is seen."""
        return next((showing.edges[family] for showing in self.showings if family in showing.edges), known)
