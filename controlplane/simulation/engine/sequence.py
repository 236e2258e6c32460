"""A request inside the scheduler, and what one step did to all of them."""

from dataclasses import dataclass, field
from enum import StrEnum


class SequencePhase(StrEnum):
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One request inside the scheduler. The first four fields are the caller's, the rest is the scheduler's."""

    prompt_tokens: int
    output_tokens: int
    """Exactly so many will be generated; 0 for pooling (embeddings), which ends with its prefill."""
    arrived_at: float
    prefix_keys: tuple[int, ...] = ()
    """One key per full block of the prompt, equal for equal prefixes; empty: shares nothing."""

    phase: SequencePhase = SequencePhase.WAITING
    prefill_target: int = 0
    computed: int = 0
    """Tokens prefilled so far, cached ones included. Meaningful in PREFILL."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at the first admission."""
    generated_base: int = 0
    decoding_since: int = 0
    """Step count at which `generated_base` tokens had been generated; each step since added one."""
    grow_at: int = -1
    finish_at: int = -1
    nameless_blocks: int = 0
    shared: list[int] = field(default_factory=list)
    published: int = 0
    """Prompt blocks already offered to the prefix cache."""
    admitted_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float = 0.0
    finished_at: float = 0.0
    preemptions: int = 0


@dataclass(slots=True, kw_only=True)
class Step:
    """What happened between two moments. Not frozen: thousands are made a second, and freezing costs microseconds."""

    started_at: float
    ends_at: float
    count: int
    """Engine steps merged here: more than one only when nothing but decoding happened."""
    decoded: int
    """Sequences that got one token in each of the `count` steps, `(ends_at - started_at) / count` after the last."""
    prefill_tokens: int
    admitted: list[Sequence]
    first_tokens: list[Sequence]
    """Finished their prefill and got their first token at `ends_at`."""
    resumed: list[tuple[Sequence, float]]
    """Got a token at `ends_at` after a preemption, so many seconds after the one before."""
    finished: list[Sequence]
    preempted: list[Sequence]
