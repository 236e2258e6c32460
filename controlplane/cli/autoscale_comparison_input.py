"""The words of `quarterdeck autoscale simulate`, checked: every problem is named under its option."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final

from controlplane.autoscaler.doctor.model import duration
from controlplane.catalog.files import load_catalog
from controlplane.catalog.model import Catalog
from controlplane.cli.autoscale_simulate import SimulateOptions
from controlplane.domain.deployment import TaskKind
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.simulation.fleet.comparison import POLICIES, Case
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.replicas import Sleep
from controlplane.simulation.fleet.subject import Subject, subject_of
from controlplane.simulation.trace_columns import Shape, series_in, shape_of

_ALL: Final = "all"
_AUTO: Final = "auto"
_KEPT: Final = 1.0
"""What a sleeper's GPUs count where nothing is said: the control plane keeps them for it."""
_OPTIONS: Final[Mapping[str, str]] = {
    "model": "--model",
    "pool": "--gpu",
    "tensor_parallel": "--tp",
    "precision": "--precision",
}
"""What a problem of a plan is about, in this command's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    case: Case
    precision: str
    """Of the weights, as chosen or found."""
    factor: float | None
    """None: to be chosen."""
    windowed: bool
    """A part of the trace was chosen."""
    policies: tuple[str, ...]
    tuned: bool
    seeds: int
    jobs: int | None
    drawn: bool
    notes: tuple[str, ...]
    """What was chosen where nothing was said."""


def asked_for(options: SimulateOptions) -> Asked:
    """InvalidError with all that is wrong."""
    check = _Check()
    policies = check.policies(options.policies)
    limits = Limits(
        ttft_s=check.seconds("--slo-ttft", options.slo_ttft, above_zero=True),
        itl_s=check.seconds("--slo-itl", options.slo_itl, above_zero=True),
        percentile=options.percentile,
    )
    if not 0.0 < options.percentile < 1.0:
        check.add("--percentile", f"{options.percentile:g}", "a share between 0 and 1, such as 0.99")
    if options.replicas_min > options.replicas_max:
        found = f"{options.replicas_min} with --replicas-max {options.replicas_max}"
        check.add("--replicas-min", found, "at most the maximum")
    cold_start_s = check.seconds("--cold-start", options.cold_start)
    sleep = check.sleep(options, cold_start_s)
    start_s = check.seconds("--start", options.start)
    end_s = math.inf if options.end is None else check.seconds("--end", options.end, above_zero=True)
    factor = check.factor(options.scale)
    subject, precision = check.subject(options)
    series = check.series(options)
    if subject is None or check.problems:
        raise InvalidError(check.problems)
    return Asked(
        case=Case(
            trace=options.trace,
            series=series,
            subject=subject,
            limits=limits,
            cold_start_s=cold_start_s,
            cold_start_cv=options.cold_start_cv,
            sleep=sleep,
            replicas_min=options.replicas_min,
            replicas_max=options.replicas_max,
            factor=1.0 if factor is None else factor,
            start_s=start_s,
            end_s=end_s,
        ),
        precision=precision,
        factor=factor,
        windowed=options.end is not None,
        policies=policies,
        tuned=options.tuned,
        seeds=options.seeds,
        jobs=options.jobs,
        drawn=options.plot is not None,
        notes=tuple(check.notes),
    )


class _Check:
    """Collects problems and notes."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def add(self, field: str, found: str, expected: str, hint: str = "") -> None:
        self.problems.append(Problem(field=field, found=found, expected=expected, hint=hint))

    def seconds(self, field: str, text: str, *, above_zero: bool = False) -> float:
        span = duration(text)
        if span is None or (above_zero and not span):
            expected = "seconds or a duration such as 0.05, 500ms, 30m, 12h or 7d"
            self.add(field, repr(text), f"{expected}, above 0" if above_zero else expected)
            return math.nan
        return span.total_seconds()

    def sleep(self, options: SimulateOptions, cold_start_s: float) -> Sleep | None:
        """Wake times spread as cold starts do."""
        share, most, known = options.asleep_share, options.sleepers_max, len(self.problems)
        if options.wake_time is None:
            for field, value in (("--asleep-share", share), ("--sleepers-max", most)):
                if value is not None:
                    self.add(field, f"{value:g} without --wake-time", "both, or neither: without it nothing sleeps")
            return None
        wake_s = self.seconds("--wake-time", options.wake_time)
        if wake_s > cold_start_s:
            found = f"{wake_s:g} s with --cold-start {options.cold_start}"
            self.add("--wake-time", found, "at most the cold start: nobody wakes what starts sooner")
        if share is not None and not 0.0 <= share <= 1.0:
            hint = "0: their GPUs serve something else meanwhile, 1: they are kept idle for them"
            self.add("--asleep-share", f"{share:g}", "a share from 0 to 1", hint)
        if most is not None and most < 1:
            self.add("--sleepers-max", str(most), "at least 1", "Without --wake-time nothing sleeps")
        if len(self.problems) > known:
            return None
        return Sleep(
            wake_s=wake_s,
            wake_cv=options.cold_start_cv,
            asleep_share=_KEPT if share is None else share,
            most=most,
        )

    def factor(self, text: str) -> float | None:
        if text == _AUTO:
            return None
        try:
            factor = float(text)
        except ValueError:
            factor = 0.0
        if not 0.0 < factor < math.inf:
            self.add("--scale", repr(text), "auto, or a number above 0", "1 keeps the rate as recorded")
        return factor

    def policies(self, text: str) -> tuple[str, ...]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if not names:
            self.add("--policies", repr(text), f"all, or some of {', '.join(POLICIES)}")
        for name in names:
            if name not in (_ALL, *POLICIES):
                near = get_close_matches(name, (_ALL, *POLICIES), n=1, cutoff=0.0)[0]
                self.add("--policies", repr(name), f"all, or some of {', '.join(POLICIES)}", f"Nearest: {near}")
        return POLICIES if _ALL in names else tuple(dict.fromkeys(names))

    def series(self, options: SimulateOptions) -> str | None:
        """Of rates in a file with several the first by name."""
        try:
            several = series_in(options.trace)
            if options.series is not None or len(several) < 2:  # noqa: PLR2004 - of one there is nothing to choose
                return options.series
            others = ", ".join(several)
            if shape_of(options.trace) is Shape.REQUESTS:
                self.notes.append(f"the requests of {others} are played as one load; --series chooses one of them")
                return None
            series = min(several)
            self.notes.append(f"{options.trace.name} has {others}: {series} is played; --series chooses another")
        except InvalidError as error:
            self.problems.extend(error.problems)
            return None
        return series

    def subject(self, options: SimulateOptions) -> tuple[Subject | None, str]:
        """And its precision: the first that fits, where none is chosen."""
        catalog = load_catalog()
        model = _model(options.model, catalog)
        gpu = options.gpu.strip().lower().replace(" ", "-").replace("_", "-")
        card = catalog.models.get(model)
        if card is not None and card.task is not TaskKind.GENERATE:
            generating = [one.id for one in catalog.models.values() if one.task is TaskKind.GENERATE]
            expected = f"a model that generates: {', '.join(generating)}"
            self.add("--model", f"{model}, which does not generate ({card.task.value})", expected)
            return None, ""
        offered = [offer.name for offer in card.precisions] if card is not None else []
        refused: list[Problem] = []
        for precision in [options.precision] if options.precision or not offered else offered:
            try:
                subject = subject_of(model, gpu, tensor_parallel=options.tp, precision=precision, catalog=catalog)
            except InvalidError as error:
                refused = refused or [_in_options(problem) for problem in error.problems]
                continue
            if refused:
                self.notes.append(
                    f"{offered[0]} does not fit ({refused[0].found}): {precision} is played (--precision)"
                )
            return subject, precision or ""
        self.problems.extend(refused)
        return None, ""


def _model(name: str, catalog: Catalog) -> str:
    """Also by its name where its weights are published."""
    by_repo: Sequence[str] = [card.id for card in catalog.models.values() if card.repo.lower() == name.lower()]
    return by_repo[0] if by_repo else name.lower()


def _in_options(problem: Problem) -> Problem:
    hint = problem.hint
    for field, option in _OPTIONS.items():
        hint = hint.replace(f"{field}: ", f"{option} ")
    return replace(problem, field=_OPTIONS.get(problem.field, problem.field), hint=hint)
