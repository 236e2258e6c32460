"""A site file together with the plans of its deployments: what `check`, `diff`, `apply` and the API work with.

What the planner and the capacity check find is placed in the file like everything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from controlplane.adapters.sitefile.findings import Path
from controlplane.adapters.sitefile.parse import Reading, SiteFile
from controlplane.adapters.sitefile.positions import Entries, Items, Leaf, Tree
from controlplane.adapters.sitefile.secrets import mask
from controlplane.domain.deployment import ServingPlan
from controlplane.domain.site import Site
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.ids import DeploymentName
from controlplane.sites.model import Advisor, Planner, SiteFinding
from controlplane.sites.planning import PlannedSite, no_advice, plan_deployments


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """A site that can run as declared."""

    site: Site
    document: str
    plans: Mapping[DeploymentName, ServingPlan]
    warnings: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()
    """How something is read that is right as it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFile:
    """A file that can run as declared, or everything that speaks against it."""

    planned: PlannedFile | None
    problems: tuple[Problem, ...] = ()
    note: str = ""
    """Whose fit could not be checked because of the problems; empty when it was for all."""


def check_site_file(reading: Reading, planner: Planner, advisor: Advisor = no_advice) -> CheckedFile:
    """Plans the file, or what of it is sound: a mistake in one deployment does not hide that another does not fit."""
    if reading.sound is not None:
        try:
            return CheckedFile(planned=plan_site_file(reading.sound, planner, advisor))
        except InvalidError as error:
            return CheckedFile(planned=None, problems=tuple(error.problems))
    if reading.rest is None:
        return CheckedFile(planned=None, problems=reading.problems, note="the fit was not checked: fix these first")
    found = _problems(reading.rest, plan_deployments(reading.rest.site, planner))
    masked = [
        replace(problem, found=mask(problem.found), expected=mask(problem.expected), hint=mask(problem.hint))
        for problem in found
    ]
    left_out = ", ".join(mask(name) for name in reading.left_out)
    return CheckedFile(
        planned=None,
        problems=tuple(_sorted([*reading.problems, *masked])),
        note=f"the fit of {left_out} was not checked: fix these first" if left_out else "",
    )


def plan_reading(reading: Reading, planner: Planner, advisor: Advisor = no_advice) -> PlannedFile:
    """As `check_site_file`. InvalidError with all problems, warnings left out."""
    checked = check_site_file(reading, planner, advisor)
    if checked.planned is None:
        raise InvalidError(checked.problems)
    return checked.planned


def plan_site_file(read: SiteFile, planner: Planner, advisor: Advisor = no_advice) -> PlannedFile:
    """Plans for every deployment of the file. InvalidError with all problems, warnings left out."""
    planned = plan_deployments(read.site, planner, advisor)
    if planned.errors:
        raise InvalidError(_problems(read, planned))
    return PlannedFile(
        site=read.site,
        document=read.text,
        plans=planned.plans,
        warnings=tuple(_placed(read, finding) for finding in planned.warnings),
        notes=tuple(_placed(read, finding) for finding in planned.notes),
    )


def _problems(read: SiteFile, planned: PlannedSite) -> list[Problem]:
    return _sorted([_placed(read, finding) for finding in planned.errors])


def _sorted(problems: Sequence[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def _placed(read: SiteFile, finding: SiteFinding) -> Problem:
    return read.problem_at(_indexed(finding.path, read.tree), finding.problem)


def _indexed(path: tuple[str, ...], tree: Tree) -> Path:
    """The path with the names of list entries replaced by their indices, as far as the file has it."""
    indexed: list[str | int] = []
    for part in path:
        match tree:
            case Entries(items=entries) if part in entries:
                tree = entries[part][1]
                indexed.append(part)
            case Items(items=items) if (index := _named(items, part)) is not None:
                tree = items[index]
                indexed.append(index)
            case _:
                break
    return tuple(indexed)


def _named(items: Sequence[Tree], name: str) -> int | None:
    for index, item in enumerate(items):
        if isinstance(item, Entries) and "name" in item.items:
            _, value = item.items["name"]
            if isinstance(value, Leaf) and value.value == name:
                return index
    return None
