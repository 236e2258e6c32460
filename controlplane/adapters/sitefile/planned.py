"""A site file together with the plans of its deployments: what `check`, `diff`, `apply` and the API work with.

What the planner and the capacity check find is placed in the file like everything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.adapters.sitefile.findings import Path
from controlplane.adapters.sitefile.parse import SiteFile
from controlplane.adapters.sitefile.positions import Entries, Items, Leaf, Tree
from controlplane.domain.deployment import ServingPlan
from controlplane.domain.site import Site
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.ids import DeploymentName
from controlplane.sites.model import Planner, SiteFinding
from controlplane.sites.planning import plan_deployments


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """A site that can run as declared."""

    site: Site
    document: str
    plans: Mapping[DeploymentName, ServingPlan]
    warnings: tuple[Problem, ...]


def plan_site_file(read: SiteFile, planner: Planner) -> PlannedFile:
    """Plans for every deployment of the file. InvalidError with all problems, warnings left out."""
    planned = plan_deployments(read.site, planner)
    if planned.errors:
        problems = (_placed(read, finding) for finding in planned.errors)
        raise InvalidError(sorted(problems, key=lambda problem: (problem.line, problem.column)))
    return PlannedFile(
        site=read.site,
        document=read.text,
        plans=planned.plans,
        warnings=tuple(_placed(read, finding) for finding in planned.warnings),
    )


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
