"""The plans of a site's deployments, and everything that speaks against the site as a whole. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.domain.deployment import DeploymentSpec, ServingPlan
from controlplane.domain.site import Site
from controlplane.kernel.errors import InvalidError
from controlplane.kernel.ids import DeploymentName
from controlplane.sites.capacity import check_capacity
from controlplane.sites.model import Planner, Severity, SiteFinding


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSite:
    """A plan for each deployment for which there is one, and what was found."""

    plans: Mapping[DeploymentName, ServingPlan]
    findings: tuple[SiteFinding, ...]

    @property
    def errors(self) -> tuple[SiteFinding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[SiteFinding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNING)


def plan_deployments(site: Site, planner: Planner) -> PlannedSite:
    """Every deployment is planned, whatever is wrong with others; capacity is checked for those that have a plan."""
    plans: dict[DeploymentName, ServingPlan] = {}
    findings: list[SiteFinding] = []
    engines = {engine.name: engine for engine in site.engines}
    for spec in site.deployments:
        try:
            plans[spec.name] = planner(spec, engines[spec.engine], site.nodes)
        except InvalidError as error:
            findings += _of_planner(spec, error)
    return PlannedSite(plans=plans, findings=(*findings, *check_capacity(site, plans)))


def _of_planner(spec: DeploymentSpec, error: InvalidError) -> list[SiteFinding]:
    """The planner's fields are relative to the deployment, or to its engine (`engine.args...`)."""
    found = []
    for problem in error.problems:
        parts = tuple(part for part in problem.field.split(".") if part)
        if parts[:1] == ("engine",) and len(parts) > 1:
            path, name = ("engines", spec.engine, *parts[1:]), f"engines[{spec.engine}].{'.'.join(parts[1:])}"
        else:
            path, name = ("deployments", str(spec.name), *parts), ".".join((f"deployments[{spec.name}]", *parts))
        placed = replace(problem, field=name)
        found.append(SiteFinding(severity=Severity.ERROR, path=path, problem=placed))
    return found
