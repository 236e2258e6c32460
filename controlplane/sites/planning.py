"""The plans of a site's deployments, and everything that speaks against the site as a whole. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from controlplane.domain.deployment import DeploymentSpec, ServingPlan
from controlplane.domain.site import EngineSpec, Site
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.ids import DeploymentName
from controlplane.sites.capacity import check_capacity
from controlplane.sites.model import Advisor, Planner, Severity, SiteFinding
from controlplane.sites.scaling import scaling_findings


def no_advice(_spec: DeploymentSpec, _engine: EngineSpec) -> Sequence[Problem]:
    """Warns of nothing."""
    return ()


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

    @property
    def notes(self) -> tuple[SiteFinding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.NOTE)


def plan_deployments(site: Site, planner: Planner, advisor: Advisor = no_advice) -> PlannedSite:
    """Every deployment is planned, whatever is wrong with others; capacity is checked for those that have a plan."""
    plans: dict[DeploymentName, ServingPlan] = {}
    findings: list[SiteFinding] = []
    engines = {engine.name: engine for engine in site.engines}
    for spec in site.deployments:
        try:
            plans[spec.name] = planner(spec, engines[spec.engine], site.nodes)
        except InvalidError as error:
            findings += _placed(spec, error.problems, Severity.ERROR)
        findings += _placed(spec, advisor(spec, engines[spec.engine]), Severity.WARNING)
        findings += scaling_findings(spec)
    # What is wrong with an engine is found once for each deployment that names it.
    return PlannedSite(plans=plans, findings=(*dict.fromkeys(findings), *check_capacity(site, plans)))


def _placed(spec: DeploymentSpec, problems: Sequence[Problem], severity: Severity) -> list[SiteFinding]:
    """The planner's fields are relative to the deployment, or to its engine (`engine.args...`)."""
    found = []
    for problem in problems:
        parts = tuple(part for part in problem.field.split(".") if part)
        if parts[:1] == ("engine",) and len(parts) > 1:
            path, name = ("engines", spec.engine, *parts[1:]), f"engines[{spec.engine}].{'.'.join(parts[1:])}"
        else:
            path, name = ("deployments", str(spec.name), *parts), ".".join((f"deployments[{spec.name}]", *parts))
        found.append(SiteFinding(severity=severity, path=path, problem=replace(problem, field=name)))
    return found
