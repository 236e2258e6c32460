"""Errors are proofs: whatever can be arranged is never refused."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.deployment import EngineKind, ServingPlan
from controlplane.domain.node import NodeSpec
from controlplane.domain.site import EngineSpec, Site
from controlplane.kernel.ids import DeploymentName, PoolName
from controlplane.sites.capacity import check_capacity
from controlplane.sites.model import Severity
from controlplane.testing.builders import make_node_spec, make_plan, make_spec

Demand = tuple[str, int, int, int]
"""Name, GPUs per replica, least and most replicas."""


def make_site(
    nodes: tuple[NodeSpec, ...],
    *demands: Demand,
    pools: Mapping[str, str] | None = None,
    ports: tuple[int, int] = (20000, 20999),
) -> tuple[Site, dict[DeploymentName, ServingPlan]]:
    specs = tuple(
        replace(spec, pool=None if pools is None or name not in pools else PoolName(pools[name]))
        for name, _, low, high in demands
        for spec in [make_spec(name, replicas_min=low, replicas_max=high)]
    )
    plans = {DeploymentName(name): make_plan(name, gpus=gpus) for name, gpus, _, _ in demands}
    engine = EngineSpec(name="default", kind=EngineKind.SIMULATED)
    return Site(name="lab", nodes=nodes, engines=(engine,), deployments=specs, replica_ports=ports), plans


def found(site: Site, plans: Mapping[DeploymentName, ServingPlan]) -> list[tuple[Severity, str]]:
    return [(finding.severity, finding.problem.field) for finding in check_capacity(site, plans)]


TWO = (make_node_spec("n1"), make_node_spec("n2"))


def test_what_fits_is_silent() -> None:
    assert found(*make_site(TWO, ("a", 1, 1, 8), ("b", 4, 1, 2))) == []


def test_a_replica_larger_than_any_node() -> None:
    assert found(*make_site(TWO, ("a", 16, 1, 1))) == [(Severity.ERROR, "deployments[a].pool")]


def test_a_gpu_that_no_node_has() -> None:
    nodes = (make_node_spec("n1", gpu_model="h100"),)
    assert found(*make_site(nodes, ("a", 1, 1, 1))) == [(Severity.ERROR, "deployments[a].pool")]


def test_a_minimum_beyond_the_nodes() -> None:
    assert found(*make_site(TWO, ("a", 4, 5, 5))) == [(Severity.ERROR, "deployments[a].replicas.min")]


def test_room_is_counted_node_by_node() -> None:
    """Two replicas of 3 GPUs in a node of 8, so 4 in all: not 16 // 3 = 5."""
    assert found(*make_site(TWO, ("a", 3, 4, 4))) == []
    assert found(*make_site(TWO, ("a", 3, 5, 5))) == [(Severity.ERROR, "deployments[a].replicas.min")]


def test_a_maximum_that_can_never_be_reached_is_a_warning() -> None:
    assert found(*make_site(TWO, ("a", 8, 1, 3))) == [
        (Severity.WARNING, "deployments[a].replicas.max"),
        (Severity.WARNING, "deployments"),
    ]


def test_minima_that_do_not_fit_together() -> None:
    site, plans = make_site(TWO, ("a", 4, 3, 3), ("b", 1, 5, 5))
    (finding,) = check_capacity(site, plans)
    assert finding.severity is Severity.ERROR
    assert finding.problem.found == "minima that need 17 GPUs together (a 12, b 5)"
    assert finding.problem.expected == "at most the 16 GPUs of n1, n2"


def test_minima_in_one_pool_do_not_use_the_other() -> None:
    nodes = (make_node_spec("n1"), replace(make_node_spec("n2"), pool=PoolName("other")))
    site, plans = make_site(nodes, ("a", 4, 1, 1), ("b", 1, 5, 5), pools={"a": "b200", "b": "b200"})
    (finding,) = check_capacity(site, plans)
    assert finding.problem.expected == "at most the 8 GPUs of n1"


def test_enough_gpus_in_number_but_not_node_by_node_is_a_warning() -> None:
    nodes = (make_node_spec("n1", gpus=6), make_node_spec("n2", gpus=6))
    assert found(*make_site(nodes, ("a", 4, 2, 2), ("b", 3, 1, 1))) == [
        (Severity.WARNING, "deployments[b].replicas.min")
    ]


def test_maxima_together_are_a_warning_only() -> None:
    assert found(*make_site(TWO, ("a", 1, 1, 12), ("b", 1, 1, 12))) == [(Severity.WARNING, "deployments")]


def test_fewer_ports_than_gpus_at_an_address() -> None:
    assert found(*make_site(TWO, ("a", 1, 1, 1), ports=(20000, 20014))) == [(Severity.WARNING, "replica_ports")]
    assert found(*make_site(TWO, ("a", 1, 1, 1), ports=(20000, 20015))) == []


def test_a_deployment_without_a_plan_is_passed_over() -> None:
    site, _ = make_site(TWO, ("a", 99, 1, 1))
    assert check_capacity(site, {}) == ()


def fits(site: Site, plans: Mapping[DeploymentName, ServingPlan]) -> bool:
    """By trying every way to place the minima: the truth for small sites."""
    replicas = [plans[spec.name].gpus_per_replica for spec in site.deployments for _ in range(spec.replicas_min)]
    for homes in product(range(len(site.nodes)), repeat=len(replicas)):
        free = [node.gpus for node in site.nodes]
        for home, gpus in zip(homes, replicas, strict=True):
            free[home] -= gpus
        if min(free) >= 0:
            return True
    return False


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    wishes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2)), min_size=1, max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_an_error_is_never_wrong_and_silence_is_a_proof(sizes: list[int], wishes: list[tuple[int, int]]) -> None:
    nodes = tuple(make_node_spec(f"n{index}", gpus=gpus) for index, gpus in enumerate(sizes))
    demands: list[Demand] = [(f"d{index}", gpus, least, least) for index, (gpus, least) in enumerate(wishes)]
    site, plans = make_site(nodes, *demands)
    minima = [severity for severity, field in found(site, plans) if field != "deployments"]
    if Severity.ERROR in minima:
        assert not fits(site, plans)
    if not minima:
        assert fits(site, plans)
