"""Whether the GPUs that a site declares can hold what it declares to run. Pure.

An error is what can never be: a proof, not a guess. First-fit decreasing decides what is only probably impossible,
and that is a warning.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controlplane.domain.deployment import DeploymentSpec, ServingPlan
from controlplane.domain.node import NodeSpec
from controlplane.domain.site import Site
from controlplane.kernel.errors import Problem
from controlplane.kernel.ids import NodeName
from controlplane.sites.model import Plans, Severity, SiteFinding


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demand:
    """One deployment's wish for room, and the nodes that may give it."""

    spec: DeploymentSpec
    gpus_per_replica: int
    nodes: tuple[NodeSpec, ...]

    @property
    def places(self) -> int:
        """How many replicas fit if it had its nodes for itself."""
        return sum(node.gpus // self.gpus_per_replica for node in self.nodes)

    @property
    def minimum_gpus(self) -> int:
        return self.spec.replicas_min * self.gpus_per_replica


def eligible_nodes(spec: DeploymentSpec, plan: ServingPlan, nodes: Sequence[NodeSpec]) -> tuple[NodeSpec, ...]:
    """The nodes that the deployment's pool and plan allow and that are large enough for one replica."""
    return tuple(
        node
        for node in nodes
        if spec.pool in (None, node.pool) and node.gpu_model in plan.gpu_models and node.gpus >= plan.gpus_per_replica
    )


def check_capacity(site: Site, plans: Plans) -> tuple[SiteFinding, ...]:
    """Errors and warnings; a deployment without a plan is passed over."""
    demands = [
        _Demand(
            spec=spec,
            gpus_per_replica=plans[spec.name].gpus_per_replica,
            nodes=eligible_nodes(spec, plans[spec.name], site.nodes),
        )
        for spec in site.deployments
        if spec.name in plans
    ]
    alone = [finding for demand in demands for finding in _alone(demand, plans)]
    errors = [finding for finding in alone if finding.severity is Severity.ERROR]
    together = [] if errors else list(_minima_together(demands))
    maxima = [] if errors or together else list(_maxima_together(demands, site))
    return (*alone, *together, *maxima, *_ports(site))


def _alone(demand: _Demand, plans: Plans) -> Iterator[SiteFinding]:
    """What a deployment cannot have even with its nodes for itself."""
    spec, needed = demand.spec, demand.gpus_per_replica
    if not demand.nodes:
        kinds = " or ".join(plans[spec.name].gpu_models)
        where = "any pool" if spec.pool is None else f"pool {spec.pool}"
        yield _finding(
            Severity.ERROR, spec, "pool",
            found=f"no node with {needed} {kinds} in {where}",
            expected=f"a node with at least {needed} GPUs of that kind for one replica",
            hint="add such a node, or lower tensor_parallel",
        )  # fmt: skip
    elif demand.places < spec.replicas_min:
        yield _finding(
            Severity.ERROR, spec, "replicas.min",
            found=f"min {spec.replicas_min} (x {needed} GPU), room for {demand.places}",
            expected=f"at most {demand.places}, what its nodes hold with nothing else on them",
            hint="lower min, or add nodes",
        )  # fmt: skip
    elif demand.places < spec.replicas_max:
        yield _finding(
            Severity.WARNING, spec, "replicas.max",
            found=f"max {spec.replicas_max} (x {needed} GPU), room for {demand.places}",
            expected=f"at most {demand.places}, what its nodes hold with nothing else on them",
            hint="the rest can never start: lower max, or add nodes",
        )  # fmt: skip


def _minima_together(demands: Sequence[_Demand]) -> Iterator[SiteFinding]:
    """Deployments that may only use the same nodes must fit on them (Hall's condition on those sets)."""
    for nodes in _node_sets(demands):
        confined = [demand for demand in demands if demand.spec.replicas_min and _names(demand.nodes) <= nodes]
        gpus = sum({node.name: node.gpus for demand in confined for node in demand.nodes}.values())
        wanted = sum(demand.minimum_gpus for demand in confined)
        if wanted > gpus:
            minima = ", ".join(f"{demand.spec.name} {demand.minimum_gpus}" for demand in confined)
            last = max(confined, key=lambda demand: demand.minimum_gpus)
            yield _finding(
                Severity.ERROR, last.spec, "replicas.min",
                found=f"minima that need {wanted} GPUs together ({minima})",
                expected=f"at most the {gpus} GPUs of {_listed(nodes)}",
                hint="lower a replicas.min, or add nodes",
            )  # fmt: skip
            return
    unplaced = _unplaced(demands)
    if unplaced is not None:
        yield _finding(
            Severity.WARNING, unplaced.spec, "replicas.min",
            found="minima for which no arrangement on the nodes was found",
            expected="room for every minimum at the same time",
            hint="the GPUs suffice in number, yet not node by node: lower a replicas.min, or set pool",
        )  # fmt: skip


def _maxima_together(demands: Sequence[_Demand], site: Site) -> Iterator[SiteFinding]:
    wanted = sum(demand.spec.replicas_max * demand.gpus_per_replica for demand in demands)
    gpus = sum(node.gpus for node in site.nodes)
    if wanted > gpus:
        problem = Problem(
            field="deployments",
            found=f"maxima that need {wanted} GPUs together",
            expected=f"at most {gpus}, or deployments that peak at different times",
            hint="who asks first gets the GPUs; that is fine where it is meant",
        )
        yield SiteFinding(severity=Severity.WARNING, path=("deployments",), problem=problem)


def _ports(site: Site) -> Iterator[SiteFinding]:
    """A replica has at least one GPU and one port of its node's address."""
    gpus_at = Counter[str]()
    for node in site.nodes:
        gpus_at[node.address] += node.gpus
    first, last = site.replica_ports
    ports = last - first + 1
    for address, gpus in gpus_at.most_common(1):
        if gpus > ports:
            problem = Problem(
                field="replica_ports",
                found=f"{ports} ports",
                expected=f"at least {gpus}, one for each GPU at {address}",
                hint=f"set last to {first + gpus - 1} or more",
            )
            yield SiteFinding(severity=Severity.WARNING, path=("replica_ports",), problem=problem)


def _node_sets(demands: Sequence[_Demand]) -> list[frozenset[NodeName]]:
    """Each deployment's nodes, and all of them: small sets first."""
    sets = {_names(demand.nodes) for demand in demands}
    union = frozenset(name for nodes in sets for name in nodes)
    return sorted({*sets, union}, key=len)


def _unplaced(demands: Sequence[_Demand]) -> _Demand | None:
    """The first deployment that first-fit decreasing leaves without room: large replicas first, choosy ones first."""
    free: dict[NodeName, int] = defaultdict(int)
    for demand in demands:
        free.update({node.name: node.gpus for node in demand.nodes})
    for demand in sorted(demands, key=lambda demand: (-demand.gpus_per_replica, len(demand.nodes))):
        for _ in range(demand.spec.replicas_min):
            home = _home(demand, free)
            if home is None:
                return demand
            free[home] -= demand.gpus_per_replica
    return None


def _home(demand: _Demand, free: Mapping[NodeName, int]) -> NodeName | None:
    """The node with the least room that suffices: whole nodes stay free for whole-node replicas."""
    fitting = [node.name for node in demand.nodes if free[node.name] >= demand.gpus_per_replica]
    return min(fitting, key=lambda name: (free[name], name), default=None)


def _names(nodes: Sequence[NodeSpec]) -> frozenset[NodeName]:
    return frozenset(node.name for node in nodes)


def _listed(nodes: frozenset[NodeName]) -> str:
    few = 3
    ordered = sorted(nodes)
    return ", ".join(ordered) if len(ordered) <= few else f"{len(ordered)} nodes ({ordered[0]} ... {ordered[-1]})"


def _finding(
    severity: Severity, spec: DeploymentSpec, field: str, *, found: str, expected: str, hint: str
) -> SiteFinding:
    path = ("deployments", str(spec.name), *field.split("."))
    name = f"deployments[{spec.name}].{field}"
    problem = Problem(field=name, found=found, expected=expected, hint=hint)
    return SiteFinding(severity=severity, path=path, problem=problem)
