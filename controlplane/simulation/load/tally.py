"""Outcomes counted as they come, per model, and the report made of them."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from controlplane.simulation.load.model import Answer, Ending, Failed, LoadConfig, Objective, Outcome
from controlplane.simulation.load.report import Attainment, Latency, LoadReport, ModelReport

_QUANTILES: Final = (0.5, 0.9, 0.95, 0.99)


@dataclass(slots=True)
class _ModelTally:
    objective: Objective
    sent: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    met: int = 0
    ttft_met: int = 0
    inter_token_met: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    good_tokens: int = 0
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    inter_token_s: array[float] = field(default_factory=lambda: array("d"))
    end_to_end_s: array[float] = field(default_factory=lambda: array("d"))

    @property
    def ok(self) -> int:
        return len(self.end_to_end_s)

    @property
    def failed(self) -> int:
        return self.failures.total()

    def add(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self.failures[outcome.label.split(":")[0]] += 1
            return
        self._add_answer(outcome)

    def _add_answer(self, answer: Answer) -> None:
        self.ttft_s.append(answer.ttft_s)
        self.end_to_end_s.append(answer.end_to_end_s)
        gap_s = answer.inter_token_s
        if gap_s is not None:
            self.inter_token_s.append(gap_s)
        limits = self.objective
        self.ttft_met += limits.ttft_s is None or answer.ttft_s <= limits.ttft_s
        self.inter_token_met += limits.inter_token_s is None or gap_s is None or gap_s <= limits.inter_token_s
        self.prompt_tokens += answer.prompt_tokens
        self.output_tokens += answer.output_tokens
        if answer.meets(limits):
            self.met += 1
            self.good_tokens += answer.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How it goes, for a person who watches."""

    at_s: float
    sent: int
    in_flight: int
    ok: int
    failed: int
    attainment: float | None
    late_s: float
    """Of the request last sent."""


class Tally:
    """Everything that was counted; `report` may be asked at any moment."""

    def __init__(self, config: LoadConfig) -> None:
        self._models = {share.name: _ModelTally(config.objective_of(share.name)) for share in config.models}
        self._late_s = array("d")
        self._example: dict[str, str] = {}

    @property
    def sent(self) -> int:
        return len(self._late_s)

    def sent_one(self, model: str, late_s: float) -> None:
        self._models[model].sent += 1
        self._late_s.append(max(late_s, 0.0))

    def ended_one(self, model: str, outcome: Outcome) -> None:
        self._models[model].add(outcome)
        if isinstance(outcome, Failed):
            self._example.setdefault(outcome.label.split(":")[0], f"{model}: {outcome.detail}")

    def progress(self, at_s: float) -> Progress:
        models = self._models.values()
        ok, failed = sum(model.ok for model in models), sum(model.failed for model in models)
        return Progress(
            at_s=at_s,
            sent=self.sent,
            in_flight=self.sent - ok - failed,
            ok=ok,
            failed=failed,
            attainment=_attainment(list(models)).all_met,
            late_s=self._late_s[-1] if self._late_s else 0.0,
        )

    def report(self, *, started_at: str, seconds: float, ending: Ending, config: LoadConfig) -> LoadReport:
        return LoadReport(
            started_at=started_at,
            seconds=seconds,
            ending=ending,
            speed=config.speed,
            total=_model_report(list(self._models.values()), seconds),
            models={name: _model_report([model], seconds) for name, model in self._models.items()},
            objectives={name: model.objective for name, model in self._models.items()},
            late_p50_s=_quantile(sorted(self._late_s), 0.5) or 0.0,
            late_p99_s=_quantile(sorted(self._late_s), 0.99) or 0.0,
            late_max_s=max(self._late_s, default=0.0),
            examples=dict(self._example),
            fleet=None,
        )


def _model_report(models: list[_ModelTally], seconds: float) -> ModelReport:
    failures: Counter[str] = Counter()
    for model in models:
        failures.update(model.failures)
    ok, sent = sum(model.ok for model in models), sum(model.sent for model in models)
    span_s = max(seconds, 1e-9)
    return ModelReport(
        sent=sent,
        ok=ok,
        failed=failures.total(),
        unfinished=sent - ok - failures.total(),
        failures=dict(sorted(failures.items())),
        attainment=_attainment(models),
        ttft_s=_latency(value for model in models for value in model.ttft_s),
        inter_token_s=_latency(value for model in models for value in model.inter_token_s),
        end_to_end_s=_latency(value for model in models for value in model.end_to_end_s),
        prompt_tokens=sum(model.prompt_tokens for model in models),
        output_tokens=sum(model.output_tokens for model in models),
        requests_per_s=ok / span_s,
        output_tokens_per_s=sum(model.output_tokens for model in models) / span_s,
        goodput_tokens_per_s=sum(model.good_tokens for model in models) / span_s,
    )


def _attainment(models: list[_ModelTally]) -> Attainment:
    """Over answered and failed requests of models with an objective; a failed request met none."""
    judged = [model for model in models if not model.objective.is_empty]
    total = sum(model.ok + model.failed for model in judged)
    if total == 0:
        return Attainment(all_met=None, ttft=None, inter_token=None)
    return Attainment(
        all_met=sum(model.met for model in judged) / total,
        ttft=sum(model.ttft_met for model in judged) / total,
        inter_token=sum(model.inter_token_met for model in judged) / total,
    )


def _latency(values: Iterable[float]) -> Latency | None:
    ordered = sorted(values)
    if not ordered:
        return None
    p50, p90, p95, p99 = (_quantile(ordered, share) or 0.0 for share in _QUANTILES)
    return Latency(mean=math.fsum(ordered) / len(ordered), p50=p50, p90=p90, p95=p95, p99=p99, max=ordered[-1])


def _quantile(ordered: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None
