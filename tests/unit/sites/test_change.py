"""Two sites compared, without a store."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from controlplane.domain.deployment import EngineKind, ServingPlan
from controlplane.domain.secret import SecretRef
from controlplane.domain.site import EngineSpec, GatewaySpec, LoadSpec, Site, StoreKind, StoreSpec, TenantSpec
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.kernel.ids import DeploymentName, RevisionId, TenantName
from controlplane.sites.change import compare_sites
from controlplane.testing.builders import make_node_spec, make_plan, make_spec

SITE = Site(
    name="lab",
    nodes=(make_node_spec("n1"),),
    engines=(EngineSpec(name="default", kind=EngineKind.SIMULATED),),
    deployments=(make_spec("chat"),),
)
PLANS = {DeploymentName("chat"): make_plan("chat")}


def sentences(after: Site, plans: Mapping[DeploymentName, ServingPlan] | None = None) -> list[str]:
    return list(compare_sites(SITE, PLANS, after, PLANS if plans is None else plans).sentences())


def test_the_same_site_is_no_change() -> None:
    change = compare_sites(SITE, PLANS, SITE, PLANS)
    assert change.is_empty
    assert sentences(SITE) == []


def test_objectives_are_named_one_by_one() -> None:
    slo = Slo(
        ttft=LatencyTarget(percentile=0.999, limit=timedelta(milliseconds=500)),
        inter_token=make_spec().slo.inter_token,
        end_to_end=LatencyTarget(percentile=0.5, limit=timedelta(seconds=3)),
    )
    after = replace(SITE, deployments=(replace(SITE.deployments[0], slo=slo),))
    assert sentences(after) == [
        "deployment chat changes slo.ttft: p95 1.0s -> p99.9 500ms",
        "deployment chat changes slo.end_to_end: not set -> p50 3.0s",
    ]


def test_values_read_as_in_the_file() -> None:
    spec = replace(
        SITE.deployments[0],
        engine_args=(("block-size", "32"),),
        accept_license=True,
        idle_after=timedelta(minutes=5),
        replicas_min=0,
    )
    assert sentences(replace(SITE, deployments=(spec,))) == [
        "deployment chat changes replicas_min: 1 -> 0",
        "deployment chat changes engine_args: none -> block-size=32",
        "deployment chat changes idle_after: not set -> 5m00s",
        "deployment chat changes accept_license: false -> true",
    ]


def test_other_weights_are_a_new_revision() -> None:
    spec = replace(SITE.deployments[0], weights="/models/mine")
    plans = {DeploymentName("chat"): make_plan("chat", revision=RevisionId("ffffffff"))}
    assert sentences(replace(SITE, deployments=(spec,)), plans) == [
        "deployment chat changes weights: not set -> /models/mine",
        "deployment chat has a new revision: every replica is replaced, new ones ready before old ones leave",
    ]


def test_an_engine_that_changes_restarts_who_is_on_it() -> None:
    engine = replace(SITE.engines[0], speed=2.0)
    plans = {DeploymentName("chat"): make_plan("chat", revision=RevisionId("ffffffff"))}
    assert sentences(replace(SITE, engines=(engine,)), plans) == [
        "deployment chat changes plan: revision 0a1b2c3d -> revision ffffffff",
        "deployment chat has a new revision: every replica is replaced, new ones ready before old ones leave",
        "engine default.speed: 1.0 -> 2.0",
    ]


def test_sections() -> None:
    tenant = TenantSpec(name=TenantName("ops"), keys=(SecretRef("env", "OPS_KEY"),))
    after = replace(
        SITE,
        name="lab-2",
        engines=(*SITE.engines, EngineSpec(name="vllm", kind=EngineKind.VLLM)),
        gateway=GatewaySpec(hold_bytes_max=2**20, tenants=(tenant,)),
        store=StoreSpec(kind=StoreKind.POSTGRESQL, url=SecretRef("env", "DB")),
        load=LoadSpec(deployment_weights=(("chat", 1.0),), peak_rps=2, trough_rps=1),
        replica_ports=(30000, 30100),
    )
    assert sentences(after) == [
        "site.name: lab -> lab-2",
        "engine vllm is added: vllm",
        "gateway.hold_bytes_max: 64.0 MiB -> 1.0 MiB",
        "gateway.tenants: none -> ops (keys env:OPS_KEY)",
        "store.kind: sqlite -> postgresql",
        "store.url: not set -> env:DB",
        "load is added",
        "replica_ports: 20000 to 20999 -> 30000 to 30100",
    ]


def test_what_is_left_out_is_removed() -> None:
    both = replace(SITE, load=LoadSpec(deployment_weights=(("chat", 1.0),), peak_rps=2, trough_rps=1))
    assert list(compare_sites(both, PLANS, replace(SITE, engines=()), PLANS).sentences()) == [
        *(f"engine {engine.name} is removed" for engine in SITE.engines),
        "load is removed",
    ]


def test_two_files_do_not_tell_what_runs_on_a_node() -> None:
    assert sentences(replace(SITE, nodes=())) == ["node n1 is removed: drained first where replicas run on it"]


def test_a_new_key_of_a_tenant_is_a_change_although_it_reads_alike() -> None:
    before = TenantSpec(name=TenantName("ops"), keys=(SecretRef("env", "OLD"),))
    after = replace(before, keys=(SecretRef("env", "NEW"),))
    change = compare_sites(
        replace(SITE, gateway=GatewaySpec(tenants=(before,))), PLANS,
        replace(SITE, gateway=GatewaySpec(tenants=(after,))), PLANS,
    )  # fmt: skip
    assert [str(section) for section in change.sections_changed] == [
        "gateway.tenants: ops (keys env:OLD) -> ops (keys env:NEW)"
    ]
