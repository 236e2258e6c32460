"""What a load found, as values, as JSON and as text."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from controlplane.simulation.load.model import Ending, Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attainment:
    """0..1 of the answered and failed requests; None without a stated objective."""

    all_met: float | None
    ttft: float | None
    inter_token: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    sent: int
    ok: int
    failed: int
    unfinished: int
    """Still open when the load was interrupted."""
    failures: Mapping[str, int]
    attainment: Attainment
    ttft_s: Latency | None
    inter_token_s: Latency | None
    end_to_end_s: Latency | None
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    goodput_tokens_per_s: float
    """Output tokens of requests that met every objective, per second of the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """What the control plane says of the same time."""

    gpu_hours: float
    gpu_hours_static_peak: float
    """Had the most GPUs held at once been held all the time."""
    scale_events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    started_at: str
    """UTC, ISO 8601."""
    seconds: float
    ending: Ending
    speed: float
    total: ModelReport
    models: Mapping[str, ModelReport]
    objectives: Mapping[str, Objective]
    late_p50_s: float
    late_p99_s: float
    """How late requests were sent: above a few milliseconds the client, not the gateway, was the limit."""
    late_max_s: float
    examples: Mapping[str, str]
    """The first failure of each kind, in words."""
    fleet: FleetReport | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; the shape is documented in docs/load.md."""
        return asdict(self)


def tables(report: LoadReport) -> Iterator[Table | str]:
    """For people: one row per model, then what concerns all."""
    yield _requests_table(report)
    yield _latency_table(report)
    for kind, example in report.examples.items():
        yield f"  first `{kind}`: {example}"
    late = f"sent late by p50 {_ms(report.late_p50_s)}, p99 {_ms(report.late_p99_s)}, at most {_ms(report.late_max_s)}"
    yield f"{report.ending} after {report.seconds:.0f}s; {late}"
    if report.fleet is not None:
        yield _fleet_line(report.fleet)


def _requests_table(report: LoadReport) -> Table:
    table = Table("model", title="Requests", title_justify="left", box=None, pad_edge=False)
    for name in ("sent", "ok", "failed", "open", "SLO met", "TTFT", "gap", "req/s", "tok/s", "good"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, model in _rows(report):
        met = model.attainment
        table.add_row(
            name,
            str(model.sent),
            str(model.ok),
            str(model.failed),
            str(model.unfinished),
            *(_share(value) for value in (met.all_met, met.ttft, met.inter_token)),
            f"{model.requests_per_s:.2f}",
            f"{model.output_tokens_per_s:.0f}",
            f"{model.goodput_tokens_per_s:.0f}",
        )
    return table


def _latency_table(report: LoadReport) -> Table:
    table = Table("model", "latency", title="Latency", title_justify="left", box=None, pad_edge=False)
    for name in ("limit", "p50", "p90", "p95", "p99", "max"):
        table.add_column(name, justify="right")
    for name, model in report.models.items():
        limits = report.objectives[name]
        for label, latency, limit_s in (
            ("TTFT", model.ttft_s, limits.ttft_s),
            ("per token", model.inter_token_s, limits.inter_token_s),
            ("end to end", model.end_to_end_s, limits.end_to_end_s),
        ):
            if latency is not None:
                values = (latency.p50, latency.p90, latency.p95, latency.p99, latency.max)
                table.add_row(name, label, "" if limit_s is None else _ms(limit_s), *(_ms(value) for value in values))
    return table


def _rows(report: LoadReport) -> Iterator[tuple[str, ModelReport]]:
    yield from report.models.items()
    if len(report.models) > 1:
        yield "all", report.total


def _fleet_line(fleet: FleetReport) -> str:
    saved = 1.0 - fleet.gpu_hours / fleet.gpu_hours_static_peak if fleet.gpu_hours_static_peak > 0.0 else 0.0
    return (
        f"{fleet.scale_events} scale events; {fleet.gpu_hours:.3f} GPU-hours, "
        f"a static peak would have held {fleet.gpu_hours_static_peak:.3f} ({saved:.0%} saved)"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}ms" if seconds < 1.0 else f"{seconds:.2f}s"
