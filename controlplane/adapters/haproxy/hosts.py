"""Host names of nodes. HAProxy's runtime API takes IP addresses only; the rest of Quarterdeck uses what the site says.

So names are resolved on the way in, and what HAProxy says of an address is told under its name on the way out. The
pairs lie in a file beside the sockets, where whoever asks HAProxy finds them, after a restart too.
"""

import asyncio
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from controlplane.adapters.haproxy.places import GatewayPaths, write_atomically
from controlplane.gateway.model import Route, RouteTable
from controlplane.kernel.effects import Clock

RESOLVE_TIMEOUT: Final = timedelta(seconds=2)
"""For all names of a table together; the address of before is used where there is no answer."""

RESOLVED_FOR: Final = timedelta(seconds=60)
"""Machines rarely change their address; one that did is found again within a minute."""

type Resolve = Callable[[str], Awaitable[str]]
"""The IP address of a host name; OSError when there is none."""


@dataclass(frozen=True, slots=True)
class _Known:
    address: str
    at_s: float


class HostNames:
    def __init__(self, paths: GatewayPaths, clock: Clock, resolve: Resolve | None = None) -> None:
        self._paths = paths
        self._clock = clock
        self._resolve = resolve or _system_resolve
        self._known: dict[str, _Known] = {}
        self._written: Mapping[str, str] | None = None

    async def resolved(self, table: RouteTable) -> tuple[RouteTable, bool]:
        """The table with IP addresses only, and whether it is whole.

        A server whose name was never resolved is left out, which harms no other; it comes in once the name resolves.
        """
        names = {
            server.address for route in table.routes for server in route.servers if not _is_address(server.address)
        }
        if not names and not self._known:
            return table, True
        await self._look_up(names)
        self._write(names)
        routes = tuple(self._replaced(route) for route in table.routes) if names else table.routes
        return replace(table, routes=routes), names <= self._known.keys()

    async def _look_up(self, names: set[str]) -> None:
        now_s = self._clock.monotonic()
        if not self._known:
            self._known = {name: _Known(address, -1e9) for address, name in names_by_address(self._paths).items()}
        self._known = {name: known for name, known in self._known.items() if name in names}
        due = [
            name
            for name in sorted(names)
            if name not in self._known or now_s - self._known[name].at_s > RESOLVED_FOR.total_seconds()
        ]
        async with asyncio.TaskGroup() as group:
            for name in due:
                group.create_task(self._look_up_one(name, now_s), name=f"resolve {name}")

    async def _look_up_one(self, name: str, now_s: float) -> None:
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT.total_seconds()):
                self._known[name] = _Known(await self._resolve(name), now_s)
        except (OSError, TimeoutError, UnicodeError):
            return  # the address of before, if there is one, holds; the next pass asks again

    def _replaced(self, route: Route) -> Route:
        servers = []
        for server in route.servers:
            if _is_address(server.address):
                servers.append(server)
            elif server.address in self._known:
                servers.append(replace(server, address=self._known[server.address].address))
        return replace(route, servers=tuple(servers))

    def _write(self, names: set[str]) -> None:
        pairs = {self._known[name].address: name for name in sorted(names) if name in self._known}
        if pairs != self._written:
            write_atomically(self._paths.hosts_file, json.dumps(pairs))
            self._written = pairs


def names_by_address(paths: GatewayPaths) -> dict[str, str]:
    """Host name by IP address; empty where the site has addresses only."""
    try:
        pairs: dict[str, str] = json.loads(paths.hosts_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return pairs


def told[T](servers: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Values by `address:port` as the site says it, from values by what HAProxy says."""
    if not names:
        return dict(servers)
    renamed: dict[str, T] = {}
    for endpoint, value in servers.items():
        address, _, port = endpoint.rpartition(":")
        renamed[f"{names.get(address, address)}:{port}"] = value
    return renamed


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _system_resolve(name: str) -> str:
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return str(found[0][4][0])
