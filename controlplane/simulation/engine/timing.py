"""How long an engine step takes: the calibration formulas of a capacity prior, per step instead of per request."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Self

from controlplane.kernel.errors import InvalidError, Problem

if TYPE_CHECKING:
    from controlplane.domain.deployment import CapacityPrior


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """The fields of a CapacityPrior that time and bound an engine. Times in seconds.

    The defaults are Llama-3 8B, bf16, one B200 (NVIDIA aiconfigurator 0.12.0, vLLM tables).
    """

    step_base_s: float = 3.39e-3
    step_per_seq_s: float = 4.0e-6
    step_per_context_token_s: float = 1.81e-8
    prefill_base_s: float = 2.98e-3
    prefill_per_token_s: float = 8.48e-6
    prefill_per_token2_s: float = 3.30e-10
    kv_tokens: int = 1_189_000
    """0: the model keeps no KV cache (embeddings), so nothing limits it but max_num_seqs."""
    max_num_seqs: int = 256

    @classmethod
    def from_prior(cls, prior: "CapacityPrior") -> Self:
        return cls(**{field.name: getattr(prior, field.name) for field in fields(cls)})

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object]) -> Self:
        """Fields that are absent keep their defaults. InvalidError names every unknown or ill-typed one."""
        known = {field.name: field.type for field in fields(cls)}
        problems = [
            problem
            for name, value in mapping.items()
            if (problem := _problem(name, value, whole=known.get(name) is int, known=tuple(known))) is not None
        ]
        if problems:
            raise InvalidError(problems)
        return cls(**mapping)  # type: ignore[arg-type]  # every value was checked above

    def prefill_work_s(self, done: int, tokens: int) -> float:
        """Seconds to prefill `tokens` more after `done`, without the fixed part: the chunks of a prompt sum to it."""
        after = done + tokens
        return self.prefill_per_token_s * tokens + self.prefill_per_token2_s * (after * after - done * done)

    def step_s(self, *, decoding: int, context_tokens: int, prefill_work_s: float, prefilling: bool) -> float:
        """Seconds of one step with `decoding` sequences whose contexts sum to `context_tokens`.

        The fixed part is one pass over the weights. A step that decodes and prefills makes that pass once, so it
        pays the larger of the two fixed parts, not both.
        """
        fixed = self.step_base_s if decoding else 0.0
        if prefilling and self.prefill_base_s > fixed:
            fixed = self.prefill_base_s
        return fixed + self.step_per_seq_s * decoding + self.step_per_context_token_s * context_tokens + prefill_work_s


def _problem(name: str, value: object, *, whole: bool, known: tuple[str, ...]) -> Problem | None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        return Problem(
            field=name,
            found="an unknown field",
            expected=f"one of {', '.join(known)}",
            hint=f"Nearest: {near[0]}" if near else "",
        )
    fits = isinstance(value, int) if whole else isinstance(value, int | float)
    if isinstance(value, bool) or not fits or not isinstance(value, int | float) or value < 0:
        return Problem(field=name, found=repr(value), expected="a whole number >= 0" if whole else "a number >= 0")
    if name == "max_num_seqs" and value < 1:
        return Problem(field=name, found=repr(value), expected="a whole number >= 1")
    return None
