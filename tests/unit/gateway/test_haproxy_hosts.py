"""Nodes that the site names by host name."""

from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.adapters.haproxy.hosts import HostNames, names_by_address, told
from controlplane.adapters.haproxy.places import GatewayPaths
from controlplane.domain.site import GatewaySpec
from controlplane.gateway.model import RouteTable
from controlplane.gateway.table import build_route_table
from controlplane.kernel.ids import NodeName
from controlplane.testing.builders import make_deployment, make_replica
from controlplane.testing.effects import FakeClock


class Names:
    """A name server."""

    def __init__(self) -> None:
        self.addresses = {"gpu-1": "10.0.0.1", "gpu-2": "10.0.0.2"}
        self.asked: list[str] = []

    async def resolve(self, name: str) -> str:
        self.asked.append(name)
        try:
            return self.addresses[name]
        except KeyError as error:
            raise OSError(f"no such name: {name}") from error


def table_of(*addresses: str) -> RouteTable:
    nodes = {NodeName(f"n{number}"): address for number, address in enumerate(addresses)}
    replicas = [make_replica("chat", number, node=f"n{number}", port=8000 + number) for number in range(len(addresses))]
    return build_route_table([make_deployment()], replicas, GatewaySpec(), nodes)


def endpoints(table: RouteTable) -> list[str]:
    return [server.endpoint for server in table.routes[0].servers]


@pytest.fixture
def paths(tmp_path: Path) -> GatewayPaths:
    paths = GatewayPaths(logs=tmp_path, run=tmp_path)
    paths.create()
    return paths


async def test_addresses_are_left_as_they_are(paths: GatewayPaths) -> None:
    names = Names()
    table = table_of("10.0.0.9", "::1")
    assert await HostNames(paths, FakeClock(), names.resolve).resolved(table) == (table, True)
    assert names.asked == []
    assert not paths.hosts_file.exists()


async def test_names_are_resolved_in_and_told_out(paths: GatewayPaths) -> None:
    names = Names()
    hosts = HostNames(paths, FakeClock(), names.resolve)
    table, whole = await hosts.resolved(table_of("gpu-1", "10.0.0.9", "gpu-2"))
    assert whole
    assert endpoints(table) == ["10.0.0.1:8000", "10.0.0.9:8001", "10.0.0.2:8002"]
    seen = told({"10.0.0.1:8000": "a", "10.0.0.9:8001": "b", "10.0.0.3:1": "c"}, names_by_address(paths))
    assert seen == {"gpu-1:8000": "a", "10.0.0.9:8001": "b", "10.0.0.3:1": "c"}


async def test_asked_again_only_after_a_while(paths: GatewayPaths) -> None:
    names, clock = Names(), FakeClock()
    hosts = HostNames(paths, clock, names.resolve)
    for _ in range(3):
        await hosts.resolved(table_of("gpu-1"))
    assert names.asked == ["gpu-1"]
    clock.jump(timedelta(seconds=61))
    names.addresses["gpu-1"] = "10.0.0.7"
    table, _ = await hosts.resolved(table_of("gpu-1"))
    assert endpoints(table) == ["10.0.0.7:8000"]
    assert names_by_address(paths) == {"10.0.0.7": "gpu-1"}


async def test_without_an_answer_the_address_of_before_holds_after_a_restart_too(paths: GatewayPaths) -> None:
    names = Names()
    await HostNames(paths, FakeClock(), names.resolve).resolved(table_of("gpu-1"))
    names.addresses.clear()
    table, whole = await HostNames(paths, FakeClock(), names.resolve).resolved(table_of("gpu-1", "gpu-2"))
    assert endpoints(table) == ["10.0.0.1:8000"], "a name never resolved harms no other"
    assert not whole


async def test_names_that_are_gone_are_forgotten(paths: GatewayPaths) -> None:
    hosts = HostNames(paths, FakeClock(), Names().resolve)
    await hosts.resolved(table_of("gpu-1", "gpu-2"))
    table = table_of("10.0.0.1")
    assert await hosts.resolved(table) == (table, True)
    assert names_by_address(paths) == {}


async def test_localhost_by_the_systems_resolver(paths: GatewayPaths) -> None:
    table, whole = await HostNames(paths, FakeClock()).resolved(table_of("localhost"))
    assert whole
    assert endpoints(table)[0] in ("127.0.0.1:8000", "::1:8000")
