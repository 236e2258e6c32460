"""A comparison drawn: demand, replicas, misses and GPU-hours over one time axis, as SVG that is the same each time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from controlplane.simulation.fleet.comparison import Comparison, Course, standings
from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.ours import NAME
from controlplane.simulation.fleet.trial import CLAIRVOYANT

_PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito (2008): told apart with any colour vision. Black is the clairvoyant's, grey the rest's."""
_DASHES: Final = ("-", "--", "-.", ":")
"""Lines differ in this too, for print and for those who see no colour."""
NAMED_MAX: Final = len(_PALETTE)
"""Policies with a colour of their own; more cannot be told apart."""
_GREY: Final = "#9A9A9A"
_BLACK: Final = "#000000"
_INCHES: Final = (11.0, 11.0)
_UNITS: Final = ((3 * 3600.0, 60.0, "minutes"), (3 * 86_400.0, 3600.0, "hours"), (np.inf, 86_400.0, "days"))
"""Up to a length, seconds per unit, the unit."""
_SETTINGS: Final[Any] = {
    "svg.hashsalt": "quarterdeck",  # ids of shapes are the same each time
    "svg.fonttype": "none",  # text stays text
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One policy's run."""

    name: str
    course: Course
    named: bool = True
    """In a colour and with its name; else grey among the others."""


def plotted(comparison: Comparison) -> bytes:
    """The runs that brought their courses: ours first, then the best ones by name, the rest grey.

    Best are the cheapest that met the objective, then those that came nearest to it.
    """
    case = comparison.case
    drawn = {result.entry: result.course for result in comparison.results if result.course is not None}
    rows = [row for row in standings(comparison) if row.entry.policy != CLAIRVOYANT]
    rows.sort(key=lambda row: (row.entry.policy != NAME, row.missed > 0, -row.attainment if row.missed else 0.0))
    ranked = [row.entry for row in rows]
    lines = [Line(name=entry.name, course=drawn[entry], named=place < NAMED_MAX) for place, entry in enumerate(ranked)]
    best = next(result for result in comparison.clairvoyants if result.course is not None)
    assert best.course is not None, "chosen for it"
    scale = "" if case.factor == 1.0 else f" x{case.factor:g}"
    wake = "" if case.sleep is None else f", wake {case.sleep.wake_s:g} s"
    title = (
        f"{case.trace.stem}{'' if case.series is None else f'/{case.series}'}{scale} on {case.subject.model}, "
        f"{case.subject.tensor_parallel} x {case.subject.gpu}: cold start {case.cold_start_s:g} s{wake}, "
        f"TTFT {case.limits.ttft_s:g} s, {case.limits.itl_s:g} s per token, seed {best.outcome.seed}"
    )
    return drawing(title, Line(name=CLAIRVOYANT, course=best.course), lines)


def drawing(title: str, clairvoyant: Line, lines: Sequence[Line]) -> bytes:
    """SVG with four panels. The first of the `lines` stands out; those that are not `named` are grey.

    What the clairvoyant's schedule holds is drawn beside demand, and as a line like the others.
    """
    with rc_context(_SETTINGS):
        figure = Figure(figsize=_INCHES, layout="constrained")
        panels = figure.subplots(4, 1, sharex=True)
        per_unit_s, unit = _unit(clairvoyant.course.duration_s)
        _demand(panels[0], clairvoyant.course, per_unit_s)
        for axes, label in zip(
            panels[1:], ("replicas that hold GPUs", "SLO misses per minute", "GPU-hours so far"), strict=True
        ):
            axes.set_title(label, loc="left")
        for line, style in _styled([*lines, clairvoyant]):
            _draw(panels, line.course, per_unit_s, style)
        panels[1].yaxis.set_major_locator(MaxNLocator(integer=True))
        panels[2].set_yscale("symlog", linthresh=1.0)
        for axes in panels[1:]:
            axes.set_ylim(bottom=0.0)
        panels[3].set_xlabel(f"{unit} from the start of the load")
        panels[3].set_xlim(0.0, clairvoyant.course.duration_s / per_unit_s)
        figure.suptitle(title, x=0.01, ha="left")
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    text = BytesIO()
    FigureCanvasSVG(figure)
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "quarterdeck autoscale simulate"})
    return text.getvalue()


def _unit(duration_s: float) -> tuple[float, str]:
    return next((per_unit_s, unit) for up_to_s, per_unit_s, unit in _UNITS if duration_s <= up_to_s)


def _demand(axes: Any, course: Course, per_unit_s: float) -> None:
    at = _bins(course) / per_unit_s
    axes.set_title("demand", loc="left")
    axes.fill_between(at, course.arrived / course.bin_s, step="post", color=_PALETTE[0], alpha=0.25, linewidth=0.0)
    axes.step(at, course.arrived / course.bin_s, where="post", color=_PALETTE[0], linewidth=0.8)
    axes.set_ylabel("requests/s", color=_PALETTE[0])
    axes.set_ylim(bottom=0.0)
    held = axes.twinx()
    at_s, values = _steps(course)
    held.step(at_s / per_unit_s, values, where="post", color=_BLACK, linewidth=1.0)
    held.set_ylabel("replicas of the clairvoyant")
    held.set_ylim(bottom=0.0)
    held.yaxis.set_major_locator(MaxNLocator(integer=True))
    held.grid(visible=False)
    held.spines["right"].set_visible(True)


def _styled(lines: Sequence[Line]) -> Iterator[tuple[Line, dict[str, Any]]]:
    """The last line is the clairvoyant's. The grey ones lie under the others, and share one name."""
    *policies, clairvoyant = lines
    named = [line for line in policies if line.named]
    for number, (line, colour, dash) in enumerate(zip(named, cycle(_PALETTE), cycle(_DASHES), strict=False)):
        width = 1.2 if number else 1.8
        yield line, {"color": colour, "linestyle": dash, "linewidth": width, "label": line.name}
    yield clairvoyant, {"color": _BLACK, "linestyle": (0, (1, 1)), "linewidth": 1.2, "label": clairvoyant.name}
    for number, line in enumerate(line for line in policies if not line.named):
        label = "_nolegend_" if number else "others"
        yield line, {"color": _GREY, "linewidth": 0.6, "alpha": 0.7, "zorder": 1.5, "label": label}


def _draw(panels: Any, course: Course, per_unit_s: float, style: Mapping[str, Any]) -> None:
    at_s, values = _steps(course)
    panels[1].step(at_s / per_unit_s, values, where="post", **style)
    minutes = course.bin_s / 60.0
    panels[2].step(_bins(course) / per_unit_s, course.missed / minutes, where="post", **style)
    hours = np.concatenate([[0.0], np.cumsum(np.diff(at_s) * values[:-1])]) * course.gpus_per_replica / 3600.0
    panels[3].plot(at_s / per_unit_s, hours, **style)


def _bins(course: Course) -> Floats:
    return np.asarray(np.arange(len(course.arrived)) * course.bin_s)


def _steps(course: Course) -> tuple[Floats, Floats]:
    """With the last value held up to the end."""
    billed = course.billed
    at_s = np.append(billed.at_s, course.duration_s)
    return at_s, np.append(billed.values, billed.values[-1]).astype(np.float64)
