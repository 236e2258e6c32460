"""Runs what `quarterdeck autoscale dry-run` was asked for. Loads numba and numpy: import it when needed."""

import asyncio
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from controlplane.adapters.doctor.documents import read_documents
from controlplane.adapters.history.prometheus import TOKEN_VARIABLE, PrometheusHistory
from controlplane.adapters.system import SystemClock
from controlplane.autoscaler.doctor.diagnose import understand
from controlplane.autoscaler.doctor.model import duration
from controlplane.catalog.files import load_catalog
from controlplane.catalog.model import Catalog
from controlplane.cli.autoscale_dry_run import DryRunOptions
from controlplane.cli.dry_run_history import Gathered, Wanted, gather
from controlplane.cli.dry_run_view import Account, account_json, show
from controlplane.cli.view import make_console
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.simulation.dry_run.demand import Demand, demand_of
from controlplane.simulation.dry_run.guesses import guessed_gpu, guessed_model
from controlplane.simulation.dry_run.happened import Happened, happened
from controlplane.simulation.dry_run.history import mean_lengths, stretches
from controlplane.simulation.dry_run.questions import quoted
from controlplane.simulation.dry_run.recipe import Theirs, chosen_scaler, theirs_of
from controlplane.simulation.dry_run.runs import Job, Ran, Who, run_all, totals
from controlplane.simulation.dry_run.verdict import verdict_of
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.rates import OUTPUT_CV, PROMPT_CV
from controlplane.simulation.fleet.subject import Subject, subject_of

_STDOUT: Final = "-"
_CACHED_MAX: Final = 0.95
"""Of a prefill that the simulator leaves out: something of every prompt is new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    least: int
    most: int


def dry_ran(options: DryRunOptions) -> None:
    """Says on standard error what it does, prints the account, writes JSON where asked. InvalidError as it says."""
    limits = Limits(
        ttft_s=_seconds("--slo-ttft", options.slo_ttft),
        itl_s=_seconds("--slo-itl", options.slo_itl),
        percentile=options.percentile,
    )
    if not 0.0 < limits.percentile < 1.0:
        _refuse("--percentile", f"{limits.percentile:g}", "a share between 0 and 1")
    notes = Console(stderr=True, soft_wrap=True, highlight=False)
    # What is wrong with the manifests is said before a week is asked for.
    recipe = (
        understand([read.document for read in read_documents(options.recipe).documents]) if options.recipe else None
    )
    scaler = chosen_scaler(recipe, options.scaler) if recipe is not None else None
    wanted = _wanted(options, limits)
    prometheus = PrometheusHistory(options.prometheus, SystemClock(), token=os.environ.get(TOKEN_VARIABLE))
    with notes.status(f"asking Prometheus at {prometheus.shown}"):
        gathered = asyncio.run(gather(prometheus, wanted))
    theirs = None
    if recipe is not None and scaler is not None:
        theirs = theirs_of(scaler, recipe, scrape_s=gathered.scrape_s, present=gathered.names)
    assumed: list[str] = []
    subject = _subject(options, gathered, load_catalog(), assumed)
    cold_start_s = subject.prior.cold_start.total_seconds()
    if options.cold_start is None:
        assumed.append(f"a replica is ready {cold_start_s:.3g} s after its order, as the catalog says (--cold-start)")
    else:
        cold_start_s = _seconds("--cold-start", options.cold_start)
    was = happened(
        gathered.history,
        stretches(gathered.history),
        gpus_per_replica=subject.tensor_parallel,
        cold_start_s=cold_start_s,
        ttft_slo_s=limits.ttft_s,
        itl_slo_s=limits.itl_s,
    )
    if was.requests < 1.0:
        _refuse("--range", "no request", "a range in which the engines served something")
    bounds = _bounds(options, gathered, theirs, was, assumed)
    jobs = _jobs(gathered, subject, limits, cold_start_s, bounds, theirs, options.seeds)
    ran = _played(jobs, options.jobs or len(os.sched_getaffinity(0)), notes)
    found = totals(
        ran,
        ttft_edges_s=[one.edge_s for one in was.ttft_edges],
        per_token_edges_s=[one.edge_s for one in was.per_token_edges],
    )
    account = Account(
        source=prometheus.shown, gathered=gathered, subject=subject, limits=limits, cold_start_s=cold_start_s,
        replicas_min=bounds.least, replicas_max=bounds.most, happened=was, theirs=theirs, totals=tuple(found),
        verdict=verdict_of(found, was), assumed=tuple(assumed),
    )  # fmt: skip
    _write(account, options.json_out)
    show(notes if str(options.json_out) == _STDOUT else make_console(), account)


# -- what was asked ---------------------------------------------------------------------------------------------------


def _wanted(options: DryRunOptions, limits: Limits) -> Wanted:
    end_s = datetime.now(UTC).timestamp() if options.end is None else _moment("--end", options.end)
    start_s = end_s - _seconds("--range", options.range)
    if options.start is not None:
        start_s = _moment("--start", options.start)
    if start_s >= end_s:
        _refuse("--start", options.start or "", "a time before the end")
    selector = options.selector.strip().removeprefix("{").removesuffix("}").strip().rstrip(",")
    if options.model_name is not None:
        one = f'model_name="{quoted(options.model_name)}"'
        selector = f"{selector},{one}" if selector else one
    return Wanted(
        start_s=float(math.floor(start_s)),
        end_s=float(math.floor(end_s)),
        step_s=None if options.step is None else float(math.ceil(_seconds("--step", options.step))),
        selector=selector,
        deployment=options.deployment,
        ttft_slo_s=limits.ttft_s,
        itl_slo_s=limits.itl_s,
    )


def _seconds(option: str, text: str) -> float:
    span = duration(text)
    if span is None or span <= timedelta(0):
        _refuse(option, text, "a time above zero: 2, 500ms, 90s, 7d")
    return span.total_seconds()


def _moment(option: str, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        _refuse(option, text, "a time such as 2026-03-01T08:00 (UTC) or 2026-03-01T08:00+02:00")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# -- what it is about -------------------------------------------------------------------------------------------------


def _subject(options: DryRunOptions, gathered: Gathered, catalog: Catalog, assumed: list[str]) -> Subject:
    """A replica as the options, the labels and the engine itself describe it."""
    model, precision = options.model, options.precision
    if model is None:
        guess = guessed_model(gathered.model_name, catalog)
        if guess is None:
            known = ", ".join(sorted(catalog.models))
            _refuse("--model", f"nothing in the catalog near {gathered.model_name!r}", f"one of {known}")
        model, precision = guess.model, precision or guess.precision
        how = "is" if guess.exact else "is taken for"
        assumed.append(f"the model {gathered.model_name} {how} the catalog's {model} (--model)")
    gpu = options.gpu or guessed_gpu(gathered.gpu_labels, catalog)
    if gpu is None:
        told = f"GPUs {', '.join(gathered.gpu_labels)}" if gathered.gpu_labels else "no metric of a GPU in Prometheus"
        _refuse("--gpu", told, f"one of {', '.join(sorted(catalog.gpus))}")
    if options.gpu is None:
        assumed.append(f"the GPU is the catalog's {gpu}, by dcgm-exporter's {', '.join(gathered.gpu_labels)} (--gpu)")
    subject = subject_of(model, gpu, tensor_parallel=options.tp, precision=precision, catalog=catalog)
    if options.tp is None:
        assumed.append(f"a replica takes {subject.tensor_parallel} x {gpu}, the fewest that the model fits on (--tp)")
    prior = subject.prior
    if gathered.kv_tokens is not None:
        assumed.append(f"a KV cache of {gathered.kv_tokens:,} tokens, as the engine says itself")
        prior = replace(prior, kv_tokens=gathered.kv_tokens)
    cached = min(gathered.cached_share, _CACHED_MAX)
    if round(cached, 2):
        assumed.append(f"{cached:.0%} of a prefill is left out: so much of the prompts was in the prefix cache")
        prior = replace(
            prior,
            prefill_per_token_s=prior.prefill_per_token_s * (1.0 - cached),
            prefill_per_token2_s=prior.prefill_per_token2_s * (1.0 - cached),
        )
    return replace(subject, prior=prior)


def _bounds(
    options: DryRunOptions, gathered: Gathered, theirs: Theirs | None, was: Happened, assumed: list[str]
) -> _Bounds:
    """The option's, the recipe's, the HPA's that Kubernetes tells, the history's."""
    is_static = was.replicas_least == was.replicas_most
    least = _first(options.replicas_min, None if theirs is None else theirs.replicas_min, gathered.replicas_min)
    most = _first(options.replicas_max, None if theirs is None else theirs.replicas_max, gathered.replicas_max)
    if least is None:
        least = min(was.replicas_least, 1) if is_static else was.replicas_least
        assumed.append(f"no fewer than {least} replicas, {'for a start' if is_static else 'as there ever were'}"
                       " (--replicas-min)")  # fmt: skip
    if most is None:
        most = max(was.replicas_most, least, 1)
        assumed.append(f"no more than {most} replicas, as there ever were (--replicas-max)")
    if most < max(least, 1):
        _refuse("--replicas-max", str(most), f"at least the minimum of {max(least, 1)}")
    return _Bounds(least=least, most=most)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


# -- runs -------------------------------------------------------------------------------------------------------------


def _jobs(
    gathered: Gathered,
    subject: Subject,
    limits: Limits,
    cold_start_s: float,
    bounds: _Bounds,
    theirs: Theirs | None,
    seeds: int,
) -> Sequence[Job]:
    """The longest first: those of ours decide every second."""
    policy = theirs.policy if theirs is not None else None
    whos = (Who.OURS, Who.CLAIRVOYANT, *((Who.THEIRS,) if policy is not None else ()), Who.REPLAYED)
    least, most = bounds.least, bounds.most
    if theirs is not None:
        least, most = _first(theirs.replicas_min, least) or 0, _first(theirs.replicas_max, most) or most
    return [
        Job(
            who=who,
            demand=demand,
            seed=seed,
            subject=subject,
            limits=limits,
            cold_start_s=cold_start_s,
            replicas_min=least if who == Who.THEIRS else bounds.least,
            replicas_max=most if who == Who.THEIRS else bounds.most,
            theirs=policy if who == Who.THEIRS else None,
        )
        for who in whos
        for demand in _demands(gathered)
        for seed in range(seeds)
    ]


def _demands(gathered: Gathered) -> Sequence[Demand]:
    history = gathered.history
    lengths = mean_lengths(history)
    return [
        demand_of(
            gathered.model_name,
            history,
            stretch,
            lengths,
            prompt_cv=PROMPT_CV if math.isnan(gathered.prompt_cv) else gathered.prompt_cv,
            output_cv=OUTPUT_CV if math.isnan(gathered.output_cv) else gathered.output_cv,
        )
        for stretch in stretches(history)
    ]


def _played(jobs: Sequence[Job], processes: int, notes: Console) -> Sequence[Ran]:
    shown: Iterator[Ran | None] = iter(
        track(run_all(jobs, processes=processes), "simulating", total=len(jobs), console=notes, transient=True)
    )
    return [one for one in shown if one is not None]


def _write(account: Account, path: Path | None) -> None:
    if path is None:
        return
    text = json.dumps(account_json(account), indent=2, ensure_ascii=False)
    if str(path) == _STDOUT:
        typer.echo(text)
        return
    path.write_text(text + "\n", encoding="utf-8")
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"wrote {escape(str(path))}")


def _refuse(option: str, found: str, expected: str) -> NoReturn:
    raise InvalidError([Problem(field=option, found=found, expected=expected)])
