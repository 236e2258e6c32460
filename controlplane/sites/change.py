"""What applying a site would change: a pure comparison of rows, or of two sites."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Final, assert_never

from controlplane.domain.dataset import (
    BucketSpec,
    DatasetSpec,
    DrillSpec,
    KeysSpec,
)
from controlplane.domain.deployment import Deployment, DeploymentSpec, ServingPlan
from controlplane.domain.node import Node, NodeSpec
from controlplane.domain.scaling import AutoscalingSpec
from controlplane.domain.site import EngineSpec, GatewaySpec, LoadSpec, Site, StoreSpec, TelemetrySpec, TenantSpec
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.kernel.ids import DeploymentName, NodeName
from controlplane.kernel.units import format_bytes, format_duration
from controlplane.sites.model import (
    DeploymentAddition,
    DeploymentChange,
    FieldChange,
    NodeChange,
    NodeRemoval,
    Plans,
    SectionChange,
    SiteChange,
)

type NamedRecord = EngineSpec | BucketSpec | DatasetSpec | DrillSpec
type Record = (
    NamedRecord
    | AutoscalingSpec
    | DeploymentSpec
    | GatewaySpec
    | KeysSpec
    | LoadSpec
    | NodeSpec
    | Slo
    | StoreSpec
    | TelemetrySpec
)

_UNSET: Final = "not set"

_NAMED: Final[Mapping[str, Callable[[Site], Sequence[NamedRecord]]]] = {
    "engine": lambda site: site.engines,
    "bucket": lambda site: site.recovery.buckets,
    "dataset": lambda site: site.recovery.datasets,
    "drill": lambda site: site.recovery.drills,
}
"""Lists whose entries go by their names."""

_SECTIONS: Final[Mapping[str, Callable[[Site], Record | None]]] = {
    "gateway": lambda site: site.gateway,
    "telemetry": lambda site: site.telemetry,
    "store": lambda site: site.store,
    "load": lambda site: site.load,
    "recovery.keys": lambda site: site.recovery.keys,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """What there is, whether it comes from rows or from another site."""

    nodes: Mapping[NodeName, NodeSpec]
    nodes_leaving: Collection[NodeName]
    nodes_occupied: Collection[NodeName] | None
    """None: not known."""
    deployments: Mapping[DeploymentName, tuple[DeploymentSpec, ServingPlan]]
    deployments_leaving: Collection[DeploymentName]


def plan_site_change(
    current_nodes: Sequence[Node],
    current_deployments: Sequence[Deployment],
    site: Site,
    plans: Plans,
    *,
    occupied: Collection[NodeName] = (),
    previous: Site | None = None,
) -> SiteChange:
    """The difference between the rows and the site.

    `occupied`: nodes on which replicas are placed; they are drained before they go. `previous`: the site applied
    last, where it is known: sections that have no rows are compared with it.
    """
    before = _Before(
        nodes={node.name: node.spec for node in current_nodes},
        nodes_leaving={node.name for node in current_nodes if node.removed_from_site},
        nodes_occupied=occupied,
        deployments={row.name: (row.spec, row.plan) for row in current_deployments},
        deployments_leaving={row.name for row in current_deployments if row.removed},
    )
    return _change(before, site, plans, previous)


def compare_sites(before: Site, before_plans: Plans, after: Site, after_plans: Plans) -> SiteChange:
    """The difference between two sites, as if the first had been applied; what runs on its nodes is not known."""
    state = _Before(
        nodes={spec.name: spec for spec in before.nodes},
        nodes_leaving=(),
        nodes_occupied=None,
        deployments={spec.name: (spec, before_plans[spec.name]) for spec in before.deployments},
        deployments_leaving=(),
    )
    return _change(state, after, after_plans, before)


def _change(before: _Before, site: Site, plans: Plans, previous: Site | None) -> SiteChange:
    nodes = {spec.name: spec for spec in site.nodes}
    deployments = {spec.name: spec for spec in site.deployments}
    occupied = before.nodes_occupied
    gone_nodes = sorted(before.nodes.keys() - nodes.keys() - set(before.nodes_leaving))
    gone_deployments = before.deployments.keys() - deployments.keys() - set(before.deployments_leaving)
    return SiteChange(
        nodes_added=tuple(nodes[name] for name in sorted(nodes.keys() - before.nodes.keys())),
        nodes_changed=tuple(_changed_nodes(before, nodes)),
        nodes_removed=tuple(
            NodeRemoval(name=name, drains=None if occupied is None else name in occupied) for name in gone_nodes
        ),
        deployments_added=tuple(
            DeploymentAddition(spec=deployments[name], plan=plans[name])
            for name in sorted(deployments.keys() - before.deployments.keys())
        ),
        deployments_changed=tuple(_changed_deployments(before, deployments, plans)),
        deployments_removed=tuple(sorted(gone_deployments)),
        sections_changed=() if previous is None else tuple(_changed_sections(previous, site)),
    )


def _changed_nodes(before: _Before, nodes: Mapping[NodeName, NodeSpec]) -> Iterator[NodeChange]:
    for name in sorted(nodes.keys() & before.nodes.keys()):
        changes = tuple(changed_fields(before.nodes[name], nodes[name]))
        returns = name in before.nodes_leaving
        if changes or returns:
            yield NodeChange(spec=nodes[name], fields=changes, returns=returns)


def _changed_deployments(
    before: _Before, deployments: Mapping[DeploymentName, DeploymentSpec], plans: Plans
) -> Iterator[DeploymentChange]:
    for name in sorted(deployments.keys() & before.deployments.keys()):
        old_spec, old_plan = before.deployments[name]
        plan = plans[name]
        restarts = plan.revision != old_plan.revision
        changes = list(changed_fields(old_spec, deployments[name]))
        if plan != old_plan and not changes:
            old, new = f"revision {old_plan.revision}", f"revision {plan.revision}"
            if not restarts:
                old, new = "as planned before", "with new figures from the catalog or the engine, nothing restarts"
            changes.append(FieldChange(field="plan", before=old, after=new))
        returns = name in before.deployments_leaving
        if changes or returns or plan != old_plan:
            yield DeploymentChange(
                spec=deployments[name], plan=plan, fields=tuple(changes), restarts=restarts, returns=returns
            )


def _changed_sections(before: Site, after: Site) -> Iterator[FieldChange | SectionChange]:
    if before.name != after.name:
        yield FieldChange(field="site.name", before=before.name, after=after.name)
    for what, of_named in _NAMED.items():
        yield from _changed_named(
            what, {one.name: one for one in of_named(before)}, {one.name: one for one in of_named(after)}
        )
    for section, of in _SECTIONS.items():
        old, new = of(before), of(after)
        if old is not None and new is not None:
            for change in changed_fields(old, new):
                yield FieldChange(field=f"{section}.{change.field}", before=change.before, after=change.after)
        elif old != new:
            yield SectionChange(field=section, added=old is None)
    if before.replica_ports != after.replica_ports:
        yield FieldChange(field="replica_ports", before=_ports(before.replica_ports), after=_ports(after.replica_ports))


def _changed_named(
    what: str, old: Mapping[str, NamedRecord], new: Mapping[str, NamedRecord]
) -> Iterator[FieldChange | SectionChange]:
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield SectionChange(field=f"{what} {name}", added=True, what=_in_short(new[name]))
            continue
        if name not in new:
            yield SectionChange(field=f"{what} {name}", added=False)
            continue
        for change in changed_fields(old[name], new[name]):
            yield FieldChange(field=f"{what} {name}.{change.field}", before=change.before, after=change.after)


def _in_short(record: NamedRecord) -> str:
    match record:
        case EngineSpec(kind=kind):
            return kind
        case DatasetSpec(kind=kind, rpo=rpo, rto=rto):
            return f"{kind}, RPO {format_duration(rpo)}, RTO {format_duration(rto)}"
        case BucketSpec(bucket=bucket):
            return bucket
        case DrillSpec(dataset=dataset, cadence=cadence):
            return f"of {dataset}, {cadence}"
        case _:
            assert_never(record)


def changed_fields(before: Record, after: Record) -> Iterator[FieldChange]:
    """The fields that differ, in the order of their declaration; those of a section by themselves (`slo.ttft`)."""
    for field in fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        if isinstance(old, Slo | AutoscalingSpec) and isinstance(new, Slo | AutoscalingSpec):
            for change in changed_fields(old, new):
                yield FieldChange(field=f"{field.name}.{change.field}", before=change.before, after=change.after)
        else:
            yield FieldChange(field=field.name, before=_written(field.name, old), after=_written(field.name, new))


def _written(name: str, value: object) -> str:
    """A value as people write it in the file."""
    match value:
        case None:
            return _UNSET
        case bool():
            return "true" if value else "false"
        case timedelta():
            return format_duration(value)
        case LatencyTarget():
            return f"p{value.percentile * 100:g} {format_duration(value.limit)}"
        case TenantSpec():
            limit = "" if value.requests_per_minute is None else f", {value.requests_per_minute} a minute"
            return f"{value.name} (keys {', '.join(str(key) for key in value.keys)}{limit})"
        case int() if "bytes" in name:
            return format_bytes(value)
        case tuple():
            return ", ".join(_written_item(item) for item in value) or "none"
        case _:
            return str(value)


def _written_item(item: object) -> str:
    match item:
        case (str(key), other):
            return f"{key}={other}"
        case _:
            return _written("", item)


def _ports(ports: tuple[int, int]) -> str:
    return f"{ports[0]} to {ports[1]}"
