"""The account of a dry run: as a table with sentences, and as JSON."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.markup import escape

from controlplane.cli.dry_run_history import Gathered
from controlplane.cli.view import print_table, table_of
from controlplane.kernel.units import format_duration
from controlplane.simulation.dry_run.happened import Bounds, Happened
from controlplane.simulation.dry_run.history import Stretch, stretches
from controlplane.simulation.dry_run.questions import PER_TOKEN
from controlplane.simulation.dry_run.recipe import Theirs
from controlplane.simulation.dry_run.runs import Total, Who
from controlplane.simulation.dry_run.verdict import Row, Spread, Verdict
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.subject import Subject

_COLUMNS: Final = ("GPU-hours", "met both", "TTFT p99 s", "changes", "turns")
_BURSTS_S: Final = 15.0
"""A step above this hides bursts that an autoscaler, or a queue, would have felt."""
_GAPS_SHOWN: Final = 5
_CLOSE: Final = 0.02
"""Of a share of requests: nearer than that a simulation is called right."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Account:
    """Everything that there is to tell."""

    source: str
    gathered: Gathered
    subject: Subject
    limits: Limits
    cold_start_s: float
    replicas_min: int
    replicas_max: int
    happened: Happened
    theirs: Theirs | None
    totals: tuple[Total, ...]
    verdict: Verdict
    assumed: tuple[str, ...]


def show(console: Console, account: Account) -> None:
    for line in _head(account):
        console.print(escape(line))
    table = table_of("", *_COLUMNS, right=_COLUMNS)
    table.add_row(*_happened_cells(account))
    for row in _in_order(account.verdict):
        table.add_row(*_cells(row))
    print_table(console, table)
    for line in (*_sentences(account), *(f"note: {one}" for one in caveats(account))):
        console.print(escape(line))


def _head(account: Account) -> Iterator[str]:
    history, was = account.gathered.history, account.happened
    start, end = (datetime.fromtimestamp(at_s, UTC) for at_s in (history.grid.start_s, history.grid.end_s))
    yield (
        f"history    {account.gathered.model_name} from {account.source}, {start:%Y-%m-%d %H:%M} to "
        f"{end:%Y-%m-%d %H:%M} UTC every {history.grid.step_s:g} s: {was.requests:,.0f} requests in {was.hours:.4g} h"
    )
    yield (
        f"replicas   {was.replicas_least} to {was.replicas_most}, {was.replicas_mean:.3g} on average; "
        f"{history.replicas} different ones, {history.restarts} restarts"
    )
    yield (
        f"simulated  {account.subject.model} on {account.subject.tensor_parallel} x {account.subject.gpu}, "
        f"{account.replicas_min} to {account.replicas_max} replicas, ready {account.cold_start_s:.3g} s after their "
        f"order; {account.limits.percentile:.4g} of requests within TTFT {account.limits.ttft_s:g} s and "
        f"{account.limits.itl_s:g} s per token"
    )


# -- table ------------------------------------------------------------------------------------------------------------


def _in_order(verdict: Verdict) -> Iterator[Row]:
    for who in Who:
        yield from (row for row in verdict.rows if row.who == who)


def _happened_cells(account: Account) -> tuple[str, ...]:
    was = account.happened
    return (
        "what happened",
        f"{was.gpu_hours:.1f}" if was.gpu_hours_told else f"~{was.gpu_hours:.1f}",
        "?" if was.attainment is None else _shares(was.attainment),
        _times(account.gathered.ttft_p99),
        str(was.scale_events),
        str(was.direction_changes),
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.who,
        _spread(row.gpu_hours, ".1f"),
        _spread(Spread(row.attainment.mean * 100.0, row.attainment.half * 100.0), ".2f", unit="%"),
        _spread(row.ttft_p99_s, ".2f"),
        _spread(row.scale_events, ".0f"),
        _spread(row.direction_changes, ".0f"),
    )


def _spread(value: Spread, form: str, *, unit: str = "") -> str:
    if math.isinf(value.mean):
        return "never"
    return f"{value.mean:{form}}{unit} ± {value.half:{form}}"


def _shares(bounds: Bounds) -> str:
    if bounds.width < 0.0005:  # noqa: PLR2004 - what two decimals do not show
        return f"{bounds.high:.2%}"
    return f"{bounds.low:.2%} .. {bounds.high:.2%}"


def _times(bounds: Bounds) -> str:
    """Between two edges of a histogram."""
    if math.isnan(bounds.high):
        return "?"
    return f"> {bounds.low:g}" if math.isinf(bounds.high) else f"{bounds.low:g} .. {bounds.high:g}"


# -- sentences --------------------------------------------------------------------------------------------------------


def _sentences(account: Account) -> Iterator[str]:
    verdict, was = account.verdict, account.happened
    ours = next(row for row in verdict.rows if row.who == Who.OURS)
    low, high = sorted((verdict.saving_low, verdict.saving_high))
    direction = "fewer" if verdict.saving >= 0.0 else "more"
    said = f"quarterdeck would have taken {ours.gpu_hours.mean:.1f} instead of {was.gpu_hours:.1f} GPU-hours"
    basis = (
        "seeds, and their autoscaler simulated instead of as it was"
        if verdict.is_judged
        else "seeds alone: --recipe adds what the simulator gets wrong"
    )
    yield f"{said}: {abs(verdict.saving):.0%} {direction} (between {low:+.0%} and {high:+.0%} saved; {basis})."
    if verdict.attainment is None:
        yield "Whether it would have met more or less cannot be said: the history tells no latencies."
    else:
        change = verdict.attainment
        yield (
            f"Requests within both objectives: between {change.low * 100:+.1f} and {change.high * 100:+.1f} points, "
            "by the edges of the history's histograms, the seeds, and the simulated engine's own error."
        )
    for error in verdict.errors:
        what = "With the replicas that there were" if error.who == Who.REPLAYED else "With their autoscaler"
        hours = f"GPU-hours are {error.gpu_hours:+.1%} off"
        if math.isnan(error.attainment):
            yield f"{what} the simulator's {hours}."
            continue
        close = "close" if abs(error.attainment) <= _CLOSE else "not close"
        yield (
            f"{what} the simulator's {hours}, and the share of requests up to an edge of a histogram by at most "
            f"{error.attainment * 100:+.1f} points: {close}."
        )


def caveats(account: Account) -> Iterator[str]:
    """What the numbers rest on, and what they do not know."""
    yield from account.assumed
    yield from _missing(account)
    yield from _counted(account)
    if account.theirs is not None:
        yield from (f"{account.theirs.title}: {one}" for one in account.theirs.left_out)
        if account.theirs.policy is None:
            yield f"{account.theirs.title} was not simulated: nothing of it could be"
    if not any(row.who == Who.CLAIRVOYANT for row in account.verdict.rows):
        yield "there is no clairvoyant: on this hardware not even single requests meet the objectives in the simulator"


def _missing(account: Account) -> Iterator[str]:
    history = account.gathered.history
    parts = stretches(history)
    known_s = sum(part.last - part.first for part in parts) * history.grid.step_s
    missing_s = history.grid.intervals * history.grid.step_s - known_s
    if missing_s <= 0.0:
        return
    spans = _gaps(parts, history.grid.intervals)
    shown = ", ".join(_span(account, first, last) for first, last in spans[:_GAPS_SHOWN])
    more = f" and {len(spans) - _GAPS_SHOWN} more" if len(spans) > _GAPS_SHOWN else ""
    yield (
        f"{format_duration(timedelta(seconds=missing_s))} are left out, on all sides, since nobody looked: {shown}"
        f"{more}; every policy starts anew after a gap"
    )


def _gaps(parts: tuple[Stretch, ...], intervals: int) -> list[tuple[int, int]]:
    ends = [0, *(part.last for part in parts)]
    begins = [*(part.first for part in parts), intervals]
    return [(end, begin) for end, begin in zip(ends, begins, strict=True) if begin > end]


def _span(account: Account, first: int, last: int) -> str:
    grid = account.gathered.history.grid
    start, end = (datetime.fromtimestamp(grid.start_s + place * grid.step_s, UTC) for place in (first, last))
    return f"{start:%m-%d %H:%M} to {end:%m-%d %H:%M}"


def _counted(account: Account) -> Iterator[str]:
    gathered, history = account.gathered, account.gathered.history
    if history.grid.step_s > _BURSTS_S:
        yield (
            f"bursts shorter than the step of {history.grid.step_s:g} s are evened out, which is kind to every policy "
            f"simulated here; engines are scraped every {gathered.scrape_s:g} s (--step)"
        )
    if not account.happened.gpu_hours_told:
        yield (
            f"GPU-hours of what happened: replicas that answered, and {account.cold_start_s:.3g} s for each that came; "
            "no kube_deployment_status_replicas tells how many pods there were"
        )
    yield from _lacking(account)
    if history.doubled:
        yield f"Prometheus has {len(history.doubled)} replicas twice; each was counted once"
    if history.late:
        yield f"{len(history.late)} replicas appeared with counts from before: these were left out"
    if gathered.engines > 1:
        yield f"{gathered.engines} data parallel engines in a replica are simulated as one engine"
    yield "requests that an engine never admitted (refused, or lost in front of it) are in no metric of vLLM's"


def _lacking(account: Account) -> Iterator[str]:
    """Histograms that are not there, or are of something else."""
    gathered, was = account.gathered, account.happened
    if was.ttft is None or was.per_token is None:
        lacking = "time to first token" if was.ttft is None else "time per output token"
        yield f"no histogram of the {lacking} in Prometheus: what was met is not known"
    elif gathered.per_token != PER_TOKEN[0]:
        yield f"{gathered.per_token} counts tokens, not requests: a slow request weighs as much as it has tokens"
    if math.isnan(gathered.prompt_cv) or math.isnan(gathered.output_cv):
        yield "no histogram of lengths: they spread as on a public trace of conversations"


# -- JSON -------------------------------------------------------------------------------------------------------------


def account_json(account: Account) -> dict[str, Any]:
    """Infinite and unknown numbers are null."""
    history, least = account.gathered.history, _clairvoyant_hours(account)
    grid = history.grid
    found = {
        "source": account.source,
        "model_name": account.gathered.model_name,
        "start": datetime.fromtimestamp(grid.start_s, UTC).isoformat(),
        "end": datetime.fromtimestamp(grid.end_s, UTC).isoformat(),
        "step_s": grid.step_s,
        "scrape_s": account.gathered.scrape_s,
        "known": float(np.mean(history.known)),
        "subject": {
            "model": account.subject.model,
            "gpu": account.subject.gpu,
            "tensor_parallel": account.subject.tensor_parallel,
            "cold_start_s": account.cold_start_s,
            "replicas_min": account.replicas_min,
            "replicas_max": account.replicas_max,
        },
        "objectives": asdict(account.limits),
        "happened": {**asdict(account.happened), "ttft_p99_s": asdict(account.gathered.ttft_p99)},
        "arrived": [round(float(count), 3) for count in history.arrived],
        "ready": [int(count) for count in history.ready],
        "runs": [_run_json(one, least.get(one.seed)) for one in account.totals],
        "verdict": asdict(account.verdict),
        "caveats": list(caveats(account)),
    }
    finite: dict[str, Any] = _finite(found)
    return finite


def _run_json(total: Total, least: float | None) -> dict[str, Any]:
    return {
        "policy": total.who.value,
        "seed": total.seed,
        "attainment": total.attainment,
        "gpu_hours": total.gpu_hours,
        "gpu_hours_over_clairvoyant": total.gpu_hours / least if least else None,
        "ttft_p99_s": total.ttft_p99_s,
        "itl_p99_s": total.itl_p99_s,
        "scale_events": total.scale_events,
        "direction_changes": total.direction_changes,
        "requests": total.requests,
    }


def _clairvoyant_hours(account: Account) -> dict[int, float]:
    return {one.seed: one.gpu_hours for one in account.totals if one.who == Who.CLAIRVOYANT}


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(one) for key, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case _:
            return value
