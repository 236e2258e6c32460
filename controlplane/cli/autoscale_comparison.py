"""Runs what `quarterdeck autoscale simulate` was asked for. Loads numba, numpy and pyarrow: import it when needed."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from controlplane.cli.autoscale_comparison_input import Asked, asked_for
from controlplane.cli.autoscale_comparison_view import json_rows, knobs_line, summary_table, verdict_lines
from controlplane.cli.autoscale_simulate import SimulateOptions
from controlplane.cli.view import make_console, print_table
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.units import format_duration
from controlplane.simulation.fleet.comparison import (
    Case,
    Comparison,
    Entry,
    Result,
    compared,
    run_entry,
    run_tasks,
    static_replicas,
    tasks_of,
    trial_of,
)
from controlplane.simulation.fleet.sizing import Sizing, alone, sized
from controlplane.simulation.fleet.trial import CLAIRVOYANT, Trial
from controlplane.simulation.fleet.tuning import tunable, tuned, tuning_tasks
from controlplane.simulation.fleet.workload import window
from controlplane.simulation.peers.static import STATIC

_STDOUT: Final = "-"
_LONG_S: Final = 60.0
"""From here on it is worth the seconds that further processes take to start, and a word on how long it will be."""
_SHORT_S: Final = 7200.0
_FEW: Final = 100_000
"""Shorter traces with fewer requests are through before the question is answered."""
_PILOT_S: Final = 600.0
"""Of the trace, to tell how long the whole will take."""
_CLAIRVOYANT_RUNS: Final = 4
"""Schedules that the clairvoyant tries until one meets the objective, more or less."""
_BYTES_PER_REQUEST: Final = 400
_BYTES_PER_PROCESS: Final = 400 * 1024**2
"""Measured: 930 MB in all with 2.5 million requests, 270 MB with 0.1."""


def simulated(options: SimulateOptions) -> None:
    """Says on standard error what is played; prints the table; writes what was asked for. InvalidError as it says."""
    asked = asked_for(options)
    notes = Console(stderr=True, soft_wrap=True, highlight=False)
    for path, option in ((options.json_out, "--json"), (options.plot, "--plot")):
        _require_writable(path, option)
    for note in asked.notes:
        notes.print(f"[yellow]note:[/yellow] {escape(note)}")
    case = _sized(asked, notes)
    begin_s = time.perf_counter()
    trial = trial_of(case, 0)
    made_s = time.perf_counter() - begin_s
    for line in _told(case, trial, asked.precision):
        notes.print(escape(line))
    comparison = _played(case, asked, trial, made_s, notes)
    _write(comparison, options)
    console = make_console() if str(options.json_out) != _STDOUT else notes
    print_table(console, summary_table(comparison))
    for line in verdict_lines(comparison):
        console.print(line)


# -- what is played ---------------------------------------------------------------------------------------------------


def _sized(asked: Asked, notes: Console) -> Case:
    """With the scale that was asked for, or a chosen one."""
    if asked.factor is not None:
        return asked.case
    sizing = sized(asked.case, may_shorten=not asked.windowed)
    if sizing.profile.rate_rps > 0.0:
        notes.print(escape(_scale_line(sizing)))
    return sizing.case


def _scale_line(sizing: Sizing) -> str:
    case = sizing.case
    peak = f"the busiest ten seconds need {sizing.recorded_peak:.2g} replicas"
    if case.factor == 1.0:
        line = f"scale      1, as recorded: {peak}"
    else:
        line = f"scale      {case.factor:g}: as recorded, with {sizing.recorded_requests:,.0f} requests, {peak}"
    if sizing.shortened:
        kept = format_duration(timedelta(seconds=case.end_s - case.start_s))
        line += f"; only the first {kept} are played, which --end changes"
    return f"{line} (--scale X chooses)"


def _told(case: Case, trial: Trial, precision: str) -> Iterator[str]:
    """InvalidError when no number of replicas could meet the objectives."""
    workload, subject, limits = trial.workload, trial.subject, trial.limits
    yield (
        f"load       {workload.name}: {workload.requests:,} requests in "
        f"{format_duration(timedelta(seconds=workload.duration_s))}, on average {workload.mean_rps:.3g} per second of "
        f"{workload.prompt.mean():.0f} + {workload.output.mean():.0f} tokens"
    )
    if trial.profile.rate_rps <= 0.0:
        raise _unreachable(trial)
    yield (
        f"replica    {subject.model} in {precision} on {subject.tensor_parallel} x {subject.gpu}: "
        f"{trial.profile.rate_rps:.3g} such requests per second with {limits.percentile:.4g} of them within "
        f"TTFT {limits.ttft_s:g} s and {limits.itl_s:g} s per token; ready {case.cold_start_s:g} s after its order"
    )
    if case.sleep is not None:
        sleep, most = case.sleep, "all" if case.sleep.most is None else f"at most {case.sleep.most}"
        yield (
            f"sleep      {most} that are given back; awake in {sleep.wake_s:g} s, "
            f"their GPUs counted at {sleep.asleep_share:g}"
        )
    yield (
        f"replicas   {case.replicas_min} to {case.replicas_max}; at first {trial.replicas_first}, as the busiest ten "
        f"seconds of the first minute need; static {static_replicas(trial)}, as those of the whole need"
    )


def _unreachable(trial: Trial) -> InvalidError:
    """The objectives that single requests miss, with what these get."""
    limits, kv_tokens = trial.limits, trial.subject.timing.kv_tokens
    found = alone(trial.workload, trial.subject.timing, limits)
    problems = []
    if found.too_long > 1.0 - limits.percentile:
        problems.append(
            Problem(
                field="--trace",
                found=f"{found.too_long:.1%} of the requests longer than the {kv_tokens:,} tokens of a KV cache",
                expected=f"at most {1.0 - limits.percentile:.1%}",
                hint="More GPUs per replica (--tp), larger ones (--gpu) or a lighter --precision hold longer ones",
            )
        )
    share = f"{limits.percentile * 100:.4g} % of the requests"
    hint = f"{share} take up to that when they are alone on a replica: no number of replicas does better"
    for field, asked_s, best_s in (
        ("--slo-ttft", limits.ttft_s, found.ttft_s),
        ("--slo-itl", limits.itl_s, found.itl_s),
    ):
        if asked_s < best_s < math.inf:
            expected = f"at least {best_s:.3g} s"
            problems.append(Problem(field=field, found=f"{asked_s:g} s", expected=expected, hint=hint))
    if not problems:
        expected = f"objectives that {share} meet alone on a replica, where {found.within:.2%} do"
        asked = f"TTFT {limits.ttft_s:g} s and {limits.itl_s:g} s per token"
        problems.append(Problem(field="--slo-ttft and --slo-itl", found=asked, expected=expected))
    return InvalidError(problems)


# -- runs -------------------------------------------------------------------------------------------------------------


def _played(case: Case, asked: Asked, trial: Trial, made_s: float, notes: Console) -> Comparison:
    """`made_s` is what it took to make the trial: each process does so for each seed."""
    searching = tuning_tasks(case, asked.policies) if asked.tuned else []
    entries = [Entry(policy=policy) for policy in asked.policies]
    each = [CLAIRVOYANT, *(policy for policy in asked.policies if policy != CLAIRVOYANT)]
    each += tunable(asked.policies) if asked.tuned else ()
    seconds = _foreseen_s(trial, [*(task.entry.policy for task in searching), *each * asked.seeds])
    jobs = asked.jobs or (_processes(trial.workload.requests) if seconds > _LONG_S else 1)
    if seconds > _LONG_S:
        processes = "one process" if jobs == 1 else f"{jobs} processes"
        about = format_duration(timedelta(seconds=seconds / jobs + made_s * (asked.seeds + bool(searching))))
        notes.print(f"runs       about {about} in {processes} (--end, --scale, --seeds and --policies shorten it)")
    if searching:
        with _progress(notes, "tuning", len(searching)) as shown:
            found = list(tuned(list(shown(run_tasks(searching, jobs=jobs))), case.limits.percentile))
        for entry in found:
            notes.print(escape(knobs_line(entry, searching)))
        entries += found
    tasks = tasks_of(case, entries, range(asked.seeds), courses_of=0 if asked.drawn else None)
    with _progress(notes, "runs", len(tasks)) as shown:
        results = list(shown(run_tasks(tasks, jobs=jobs)))
    return compared(case, entries, results)


def _foreseen_s(trial: Trial, policies: Sequence[str]) -> float:
    """What one process will take for these runs, from a short part of the trace; 0 where the whole is short."""
    workload = trial.workload
    if workload.duration_s < _SHORT_S and workload.requests < _FEW:
        return 0.0
    middle_s = float(workload.arrival_s[workload.requests // 2])
    begin_s = max(min(middle_s, workload.duration_s - _PILOT_S), 0.0)
    pilot = replace(trial, workload=window(workload, begin_s, begin_s + _PILOT_S))
    times = workload.duration_s / pilot.workload.duration_s
    runs = Counter(STATIC.name if policy == CLAIRVOYANT else policy for policy in policies)
    runs[STATIC.name] += (_CLAIRVOYANT_RUNS - 1) * policies.count(CLAIRVOYANT)
    return times * sum(count * _timed_s(pilot, policy) for policy, count in runs.items())


def _timed_s(trial: Trial, policy: str) -> float:
    begin_s = time.perf_counter()
    run_entry(trial, Entry(policy=policy))
    return time.perf_counter() - begin_s


def _processes(requests: int) -> int:
    """One per core, as far as the memory goes."""
    fitting = psutil.virtual_memory().available // (_BYTES_PER_PROCESS + _BYTES_PER_REQUEST * requests)
    return max(min(len(os.sched_getaffinity(0)), int(fitting)), 1)


@contextmanager
def _progress(notes: Console, what: str, total: int) -> Iterator[Callable[[Iterable[Result]], Iterator[Result]]]:
    """A bar on a terminal; nothing in a file."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def shown(results: Iterable[Result]) -> Iterator[Result]:
            for result in results:
                last = f"{what}: {result.entry.name}, seed {result.outcome.seed}, done"
                progress.update(task, advance=1, description=last)
                yield result

        yield shown


# -- what is written --------------------------------------------------------------------------------------------------


def _require_writable(path: Path | None, option: str) -> None:
    """Before minutes of work, not after them."""
    if path is None or (option == "--json" and str(path) == _STDOUT):
        return
    there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        problem = Problem(field=option, found=f"{path} ({error.strerror})", expected="a file that can be written")
        raise InvalidError([problem]) from error
    if not there:
        path.unlink()


def _write(comparison: Comparison, options: SimulateOptions) -> None:
    if options.json_out is not None:
        text = json.dumps(json_rows(comparison), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        if str(options.json_out) == _STDOUT:
            typer.echo(text, nl=False)
        else:
            options.json_out.write_text(text, encoding="utf-8")
    if options.plot is not None:
        from controlplane.simulation.fleet.plot import plotted  # noqa: PLC0415  # matplotlib: a second

        options.plot.write_bytes(plotted(comparison))
