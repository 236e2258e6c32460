"""What is to be sent, and what became of one request. Moments are seconds from the load's start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

EMBED_TOKENS_MAX: Final = 512
"""Inputs of embedding models are passages; E5's limit is 512 tokens, so longer trace prompts are cut to it."""


class Task(StrEnum):
    GENERATE = "generate"
    EMBED = "embed"


class Failure(StrEnum):
    CONNECT = "connect"
    """No connection, or it was reset before an answer began."""
    HTTP = "http"
    """Another status than 200; the detail names it."""
    BROKEN = "broken"
    """A stream that ended without its end mark, or an answer that is none."""
    ABORTED = "aborted"
    """Status 200 with finish_reason abort or error: a replica was stopped under the request."""
    TIMEOUT = "timeout"


class Ending(StrEnum):
    """Why the load ended."""

    EXHAUSTED = "all arrivals sent"
    DURATION = "duration reached"
    REQUESTS = "number of requests reached"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace or of a generated day."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShare:
    """A model by its served name and its share of the requests."""

    name: str
    weight: float
    task: Task = Task.GENERATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Per-request limits; None: none stated."""

    ttft_s: float | None = None
    inter_token_s: float | None = None
    """On a request's mean time per output token after the first."""
    end_to_end_s: float | None = None

    @property
    def is_empty(self) -> bool:
        return self.ttft_s is None and self.inter_token_s is None and self.end_to_end_s is None


@dataclass(frozen=True, slots=True, kw_only=True)
class DayShape:
    """A generated day: two humps, bursts, Poisson arrivals. `peak_rps` is the season's; bursts go above it."""

    length_s: float = 600.0
    peak_rps: float = 10.0
    trough_rps: float = 1.0
    prompt_tokens_mean: int = 600
    output_tokens_mean: int = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """Everything `run_load` needs. All bounds are always there: a load that is forgotten ends by itself."""

    models: tuple[ModelShare, ...]
    gateway_url: str = "http://127.0.0.1:8000"
    control_plane_url: str | None = None
    trace: Path | None = None
    """None: the generated day."""
    day: DayShape = field(default_factory=DayShape)
    speed: float = 1.0
    """Arrival times are divided by it."""
    duration_s: float = 1800.0
    requests_max: int = 1_000_000
    concurrency_max: int = 1000
    """Requests open at once; beyond it the schedule waits, and `late` shows it."""
    context_tokens_max: int | None = None
    """Prompts are cut so that prompt and output fit; None: sent as they are."""
    request_timeout_s: float = 300.0
    api_key: str | None = field(default=None, repr=False)
    seed: int = 7
    objectives: Mapping[str, Objective] = field(default_factory=dict)
    """By served name; a model without an entry gets `objective`."""
    objective: Objective = field(default_factory=Objective)

    def objective_of(self, model: str) -> Objective:
        return self.objectives.get(model, self.objective)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to send."""

    model: ModelShare
    due_s: float
    prompt_tokens: int
    output_tokens: int
    text_offset: int
    """Where in the filler text its prompt begins, in tokens: different prompts share no prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A request that was answered in full."""

    ttft_s: float
    end_to_end_s: float
    prompt_tokens: int
    output_tokens: int

    @property
    def inter_token_s(self) -> float | None:
        """Mean time per output token after the first; None for answers of one token or none."""
        if self.output_tokens < 2:  # noqa: PLR2004  # a gap needs two tokens
            return None
        return (self.end_to_end_s - self.ttft_s) / (self.output_tokens - 1)

    def meets(self, objective: Objective) -> bool:
        gap_s = self.inter_token_s
        return (
            (objective.ttft_s is None or self.ttft_s <= objective.ttft_s)
            and (objective.inter_token_s is None or gap_s is None or gap_s <= objective.inter_token_s)
            and (objective.end_to_end_s is None or self.end_to_end_s <= objective.end_to_end_s)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    kind: Failure
    detail: str

    @property
    def label(self) -> str:
        """The kind, with the status where there is one: what the report counts by."""
        return f"{self.kind} {self.detail}" if self.kind is Failure.HTTP else str(self.kind)


type Outcome = Answer | Failed
