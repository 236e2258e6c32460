"""A comparison of policies as a table, sentences and JSON."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.table import Table

from controlplane.cli.client import Json
from controlplane.cli.view import table_of
from controlplane.simulation.fleet.comparison import Case, Comparison, Entry, Result, Standing, Task, standings
from controlplane.simulation.fleet.outcome import Outcome
from controlplane.simulation.fleet.trial import CLAIRVOYANT

_NUMBERS: Final = frozenset(
    {"attainment", "worst", "GPU-hours", "x clairvoyant", "TTFT p99", "per token p99", "changes", "turns", "wakes"}
)


def summary_table(comparison: Comparison) -> Table:
    """A row per policy: medians over the seeds, and the worst attainment. Wakes where replicas sleep."""
    sleeps = comparison.case.sleep is not None
    table = table_of(
        "policy", "attainment", "worst", "GPU-hours", "x clairvoyant", "TTFT p99", "per token p99", "changes", "turns",
        *(["wakes"] if sleeps else []), "objective", right=_NUMBERS,
    )  # fmt: skip
    for row in standings(comparison):
        table.add_row(
            row.entry.name,
            _percent(row.attainment),
            _percent(row.attainment_worst),
            f"{row.gpu_hours:.2f}",
            _times(row.over_clairvoyant),
            f"{row.ttft_p99_s:.2f} s" if math.isfinite(row.ttft_p99_s) else "never",
            f"{row.itl_p99_s * 1e3:.1f} ms" if math.isfinite(row.itl_p99_s) else "never",
            f"{row.scale_events:g}",
            f"{row.direction_changes:g}",
            *([f"{row.wakes:g}"] if sleeps else []),
            _objective(row),
        )
    return table


def verdict_lines(comparison: Comparison) -> Iterator[str]:
    """Which policy is the cheapest that met the objective; the clairvoyant, which no one can run, is not in it."""
    limits, rows = comparison.case.limits, standings(comparison)
    share = f"{limits.percentile * 100:.4g}%"
    objective = f"{share} of the requests within TTFT {limits.ttft_s:g} s and {limits.itl_s:g} s per token"
    real = [row for row in rows if row.entry.policy != CLAIRVOYANT]
    met = [row for row in real if not row.missed]
    seeds = "with every seed" if rows[0].seeds > 1 else "with the one seed"
    if met:
        best, *others = met
        yield (
            f"Cheapest that met the objective ({objective}) {seeds}: [bold]{best.entry.name}[/bold], "
            f"{best.gpu_hours:.2f} GPU-hours, {_times(best.over_clairvoyant)} those of the clairvoyant"
            f"{_next(best, others)}."
        )
    elif real:
        nearest = max(real, key=lambda row: (row.attainment_worst, -row.gpu_hours))
        yield (
            f"None met the objective ({objective}) {seeds}; nearest: [bold]{nearest.entry.name}[/bold] with "
            f"{_percent(nearest.attainment_worst)} at worst for {nearest.gpu_hours:.2f} GPU-hours."
        )
    lowest = min(result.outcome.attainment for result in comparison.clairvoyants)
    if lowest < limits.percentile:
        yield (
            f"The clairvoyant schedule itself reaches {_percent(lowest)} with at most "
            f"{comparison.case.replicas_max} replicas: --replicas-max or a smaller --scale gives room."
        )


def knobs_line(entry: Entry, tried: Sequence[Task]) -> str:
    """`tuned      hpa: target_share 0.65 ... (24 tried)`."""
    count = sum(task.entry.policy == entry.policy for task in tried)
    knobs = ", ".join(f"{name} {value:g}" for name, value in entry.knobs or ())
    return f"tuned      {entry.policy}: {knobs} ({count} tried with a seed of their own)"


def json_rows(comparison: Comparison) -> list[Json]:
    """An object per policy and seed. What is infinite, because it never came, is null."""
    return [_json_of(comparison, result) for result in comparison.results]


def _json_of(comparison: Comparison, result: Result) -> Json:
    case, outcome = comparison.case, result.outcome
    best = next(one.outcome for one in comparison.clairvoyants if one.outcome.seed == outcome.seed)
    return {
        "policy": result.entry.name,
        "seed": outcome.seed,
        "attainment": outcome.attainment,
        "gpu_hours": outcome.gpu_hours,
        "gpu_hours_over_clairvoyant": _finite(comparison.over_clairvoyant(result)),
        "ttft_p99_s": _finite(outcome.ttft_p99_s),
        "itl_p99_s": _finite(outcome.itl_p99_s),
        "scale_events": outcome.scale_events,
        "direction_changes": outcome.direction_changes,
        "requests": outcome.requests,
        "met": outcome.attainment >= case.limits.percentile,
        "ttft_attainment": outcome.ttft_attainment,
        "itl_attainment": outcome.itl_attainment,
        "ttft_p50_s": _finite(outcome.ttft_p50_s),
        "itl_p50_s": _finite(outcome.itl_p50_s),
        "replicas_mean": outcome.replicas_mean,
        "unanswered": outcome.unanswered,
        "preemptions": outcome.preemptions,
        "clairvoyant_attainment": best.attainment,
        "clairvoyant_gpu_hours": best.gpu_hours,
        "knobs": None if result.entry.knobs is None else dict(result.entry.knobs),
        "trace": case.trace.name,
        "series": case.series,
        "scale": case.factor,
        "start_s": case.start_s,
        "end_s": _finite(case.end_s),
        "model": case.subject.model,
        "gpu": case.subject.gpu,
        "tensor_parallel": case.subject.tensor_parallel,
        "cold_start_s": case.cold_start_s,
        "slo_ttft_s": case.limits.ttft_s,
        "slo_itl_s": case.limits.itl_s,
        "percentile": case.limits.percentile,
        "replicas_min": case.replicas_min,
        "replicas_max": case.replicas_max,
        **_sleep_of(case, outcome),
    }


def _sleep_of(case: Case, outcome: Outcome) -> dict[str, Json]:
    """Only where replicas sleep."""
    sleep = case.sleep
    if sleep is None:
        return {}
    return {
        "wakes": outcome.wakes,
        "asleep_mean": outcome.asleep_mean,
        "wake_time_s": sleep.wake_s,
        "asleep_share": sleep.asleep_share,
        "sleepers_max": sleep.most,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(share: float) -> str:
    """Cut, not rounded: what is below an objective does not look as if it were not."""
    return f"{math.floor(share * 1e4 + 1e-6) / 100:.2f}%"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if math.isfinite(ratio) else "-"


def _next(best: Standing, others: Sequence[Standing]) -> str:
    if not others:
        return "; no other did"
    other = others[0]
    more = f", {other.gpu_hours / best.gpu_hours - 1.0:.0%} more" if best.gpu_hours else ""
    return f"; next: {other.entry.name}, {other.gpu_hours:.2f}{more}"


def _objective(row: Standing) -> str:
    if not row.missed:
        return "[green]met[/green]"
    if row.missed < row.seeds:
        return f"[yellow]missed {row.missed} of {row.seeds}[/yellow]"
    return "[red]missed[/red]"
