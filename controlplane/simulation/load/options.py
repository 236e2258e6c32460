"""Options as typed, checked into a `LoadConfig`: every problem is named, with what was expected."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.kernel.errors import InvalidError, Problem
from controlplane.simulation.load.model import DayShape, LoadConfig, ModelShare, Objective, Task

_DURATION: Final = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h)?$")
_UNIT_S: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The command line's words."""

    models: Sequence[str]
    embed_models: Sequence[str] = ()
    gateway: str
    control_plane: str | None = None
    trace: Path | None = None
    speed: float
    day: str
    peak_rps: float
    trough_rps: float
    prompt_tokens_mean: int
    output_tokens_mean: int
    duration: str
    requests_max: int
    concurrency_max: int
    context_max: int | None = None
    request_timeout: str
    slo_ttft: str | None = None
    slo_itl: str | None = None
    slo_e2e: str | None = None
    api_key_env: str | None = None
    seed: int


def config_of(options: LoadOptions, environment: Mapping[str, str]) -> LoadConfig:
    """InvalidError with all that is wrong."""
    check = _Check()
    models = [check.share("--model", text, Task.GENERATE) for text in options.models]
    models += [check.share("--embed", text, Task.EMBED) for text in options.embed_models]
    named = tuple(share for share in models if share is not None)
    if not models:
        check.add("--model", "none", "NAME or NAME=WEIGHT, at least once", "For an embedding model: --embed NAME")
    if len({share.name for share in named}) < len(named):
        check.add("--model", ", ".join(share.name for share in named), "each model once", "")
    for name, value in (("--speed", options.speed), ("--peak-rps", options.peak_rps)):
        check.positive(name, value)
    for name, value in (
        ("--max-requests", options.requests_max),
        ("--concurrency-max", options.concurrency_max),
        ("--prompt-tokens", options.prompt_tokens_mean),
        ("--output-tokens", options.output_tokens_mean),
    ):
        check.positive(name, value)
    if options.trough_rps < 0.0:
        check.add("--trough-rps", str(options.trough_rps), "0 or more", "")
    config = LoadConfig(
        models=named,
        gateway_url=check.url("--gateway", options.gateway) or "",
        control_plane_url=check.url("--control-plane", options.control_plane),
        trace=options.trace,
        day=DayShape(
            length_s=check.duration("--day", options.day) or 1.0,
            peak_rps=options.peak_rps,
            trough_rps=options.trough_rps,
            prompt_tokens_mean=options.prompt_tokens_mean,
            output_tokens_mean=options.output_tokens_mean,
        ),
        speed=options.speed,
        duration_s=check.duration("--duration", options.duration) or 1.0,
        requests_max=options.requests_max,
        concurrency_max=options.concurrency_max,
        context_tokens_max=options.context_max,
        request_timeout_s=check.duration("--request-timeout", options.request_timeout) or 1.0,
        api_key=check.key(options.api_key_env, environment),
        seed=options.seed,
        objective=Objective(
            ttft_s=check.duration("--slo-ttft", options.slo_ttft),
            inter_token_s=check.duration("--slo-itl", options.slo_itl),
            end_to_end_s=check.duration("--slo-e2e", options.slo_e2e),
        ),
    )
    check.done()
    return config


class _Check:
    """Collects problems, so that a user sees all of them at once."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def add(self, field: str, found: str, expected: str, hint: str) -> None:
        self._problems.append(Problem(field=field, found=found, expected=expected, hint=hint))

    def done(self) -> None:
        if self._problems:
            raise InvalidError(self._problems)

    def share(self, field: str, text: str, task: Task) -> ModelShare | None:
        name, _, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            value = float(weight)
        except ValueError:
            value = 0.0
        if not name or not 0.0 < value < float("inf"):
            self.add(field, text, "NAME or NAME=WEIGHT with a positive weight", "For example chat-8b=3")
            return None
        return ModelShare(name=name, weight=value, task=task)

    def positive(self, field: str, value: float) -> None:
        if not value > 0:
            self.add(field, str(value), "more than 0", "")

    def duration(self, field: str, text: str | None) -> float | None:
        """Seconds."""
        if text is None:
            return None
        match = _DURATION.match(text)
        seconds = float(match[1]) * _UNIT_S[match[2]] if match else 0.0
        if seconds <= 0.0:
            self.add(field, text, "a duration such as 90, 500ms, 10m or 1h", "")
            return None
        return seconds

    def url(self, field: str, text: str | None) -> str | None:
        if text is not None and not text.startswith(("http://", "https://")):
            self.add(field, text, "an http:// or https:// URL", f"Perhaps http://{text}")
        return text

    def key(self, name: str | None, environment: Mapping[str, str]) -> str | None:
        if name is None:
            return None
        value = environment.get(name)
        if not value:
            self.add("--api-key-env", f"{name} is not set", "an environment variable that holds the key", "")
        return value
