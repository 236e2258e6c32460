"""Which servers a route has, how many slots, which names."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.site import GatewaySpec
from controlplane.gateway.model import ServerMode
from controlplane.gateway.table import build_route_table, concurrency_limit
from controlplane.kernel.ids import NodeName, ServedName
from controlplane.testing.builders import make_deployment, make_replica

SPEC = GatewaySpec()


@pytest.mark.parametrize(
    ("phase", "mode"),
    [
        (ReplicaPhase.PENDING, None),
        (ReplicaPhase.STARTING, None),
        (ReplicaPhase.READY, ServerMode.READY),
        (ReplicaPhase.DRAINING, ServerMode.DRAIN),
        (ReplicaPhase.SLEEPING, None),
        (ReplicaPhase.WAKING, None),
        (ReplicaPhase.STOPPING, None),
    ],
)
def test_phase_decides(phase: ReplicaPhase, mode: ServerMode | None) -> None:
    table = build_route_table([make_deployment()], [make_replica(phase=phase)], SPEC)
    assert [server.mode for server in table.routes[0].servers] == ([] if mode is None else [mode])


def test_order_does_not_depend_on_the_order_of_rows() -> None:
    deployments = [make_deployment(name) for name in ("b", "a", "c")]
    replicas = [make_replica(name, number, port=20000 + number) for name in "cab" for number in (2, 0, 1)]
    table = build_route_table(deployments, replicas, SPEC)
    assert table == build_route_table(deployments[::-1], replicas[::-1], SPEC)
    assert [route.deployment for route in table.routes] == ["a", "b", "c"]


def test_servers_are_reached_at_their_nodes_address() -> None:
    replicas = [make_replica("chat", 0, node="far", port=1), make_replica("chat", 1, node="unknown", port=2)]
    table = build_route_table([make_deployment()], replicas, SPEC, {NodeName("far"): "10.0.0.7"})
    assert [server.endpoint for server in table.routes[0].servers] == ["10.0.0.7:1", "127.0.0.1:2"]


def test_replicas_of_an_unknown_deployment_are_left_out() -> None:
    assert build_route_table([], [make_replica()], SPEC).routes == ()


def test_a_removed_deployment_drains_but_answers_to_no_name() -> None:
    removed = replace(make_deployment(), removed=True)
    (route,) = build_route_table([removed], [make_replica(phase=ReplicaPhase.DRAINING)], SPEC).routes
    assert route.served_names == ()
    assert [server.mode for server in route.servers] == [ServerMode.DRAIN]


def test_a_name_claimed_twice_belongs_to_the_first() -> None:
    def named(name: str, *names: str) -> object:
        deployment = make_deployment(name)
        spec = replace(deployment.spec, served_names=tuple(ServedName(each) for each in names))
        return replace(deployment, spec=spec)

    table = build_route_table([named("b", "x", "y"), named("a", "x", "x")], [], SPEC)  # type: ignore[list-item] # built above
    assert [(route.deployment, route.served_names) for route in table.routes] == [("a", ("x",)), ("b", ("y",))]


@pytest.mark.parametrize(
    ("replicas_max", "servers", "slots"), [(1, 0, 8), (4, 0, 8), (5, 0, 12), (16, 0, 24), (100, 0, 152), (1, 9, 12)]
)
def test_slots_are_more_than_replicas(replicas_max: int, servers: int, slots: int) -> None:
    replicas = [make_replica("chat", number, port=20000 + number) for number in range(servers)]
    deployment = make_deployment(replicas_max=replicas_max)
    assert build_route_table([deployment], replicas, SPEC).routes[0].slots == slots


def test_the_limit_follows_the_engines_batch() -> None:
    deployment = make_deployment()
    assert concurrency_limit(deployment) == 320, "256 of the plan and a quarter"
    narrow = replace(deployment, spec=replace(deployment.spec, max_num_seqs=1))
    assert concurrency_limit(narrow) == 2
    unlimited = replace(deployment, plan=replace(deployment.plan, prior=replace(deployment.plan.prior, max_num_seqs=0)))
    assert concurrency_limit(unlimited) == 0


def test_the_spec_is_part_of_the_table() -> None:
    one = build_route_table([], [], SPEC)
    assert one != build_route_table([], [], replace(SPEC, queue_timeout=timedelta(seconds=1)))
