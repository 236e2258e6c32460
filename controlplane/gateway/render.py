"""Route table -> haproxy.cfg. Pure; tests/golden/haproxy.cfg shows the result.

The servers of the moment stand in the file, so that an HAProxy started from it anew has the truth at once. All else
is the structure: its digest is in the configuration (`description`) and comes back in `show info`, so that whoever
finds a running HAProxy knows what it runs.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from controlplane.gateway import replies
from controlplane.gateway.beside import BesideFiles, KeyDigest, overloaded_format, render_files
from controlplane.gateway.changes import Assignment, backend_name, slot_name
from controlplane.gateway.model import Route, RouteTable, Server
from controlplane.gateway.sections import ACCESS, BEHIND, DEPLOYMENT, GLOBAL, PUBLIC
from controlplane.kernel.units import KIB

BUFFER_BYTES: Final = 128 * KIB
"""HAProxy's tune.bufsize: what it sees of a body when it looks for `model`, so prompts of up to some 30,000 tokens are
routed without leaving HAProxy; longer ones with `model` behind them take the slow path. A stream that moves data holds
up to two such buffers, an idle one or one that waits for tokens none: 1,000 uploads at once cost at most 250 MiB."""

BUFFER_SURE_BYTES: Final = BUFFER_BYTES * 3 // 4
"""A chunked body with less than this in the buffer has ended (HAProxy waits until it ended or the buffer is full, less
headers and its own marks); with more, nobody knows, and the slow path counts it against the limit."""

HEADERS_BYTES_MAX: Final = 24 * KIB
"""Above any honest client's, and below what would take the body's room in the buffer."""

REQUEST_TIMEOUT: Final = timedelta(seconds=30)
"""Headers and the buffered part of the body must arrive within: against clients that send a byte now and then."""

CLIENT_TIMEOUT: Final = timedelta(seconds=60)
"""Longest silence of a client that should send or read. Does not run while it waits for the first token (tested)."""

KEEP_ALIVE_TIMEOUT: Final = timedelta(seconds=20)
"""Idle client connections; above the 5 to 15 s after which the common HTTP clients drop theirs, so that the client
closes first and no request meets a closing connection. After a reload the old worker lives at least this long."""

CONNECT_TIMEOUT: Final = timedelta(seconds=1)
"""To a replica, within a data centre; what fails goes to another replica."""

CHECK_TIMEOUT: Final = timedelta(seconds=2)
"""A busy engine answers /health late; one that needs longer is as good as down."""

HARD_STOP_AFTER: Final = timedelta(hours=1)
"""An old worker that still streams this long after a reload is ended: bounds memory under many reloads."""

CHECK_INTERVAL: Final = timedelta(milliseconds=500)
"""Between health checks of a replica: the most that a new one waits before its first request. 2,000 replicas make
4,000 checks a second."""
CHECK_FAST: Final = timedelta(milliseconds=250)
"""While a replica is down, or changing."""

RETRIES: Final = 5
"""Of connections that were never made, so nothing was sent. One second apart where there is no other server, so they
outlast the three failures after which a server counts as down; then the request goes to the activator."""

UNUSED_SLOT: Final = "127.0.0.1:1 check disabled"
"""Port 1 is nobody's, and a disabled server is neither used nor checked."""

COUNTED_MAX: Final = 10_000
"""Deployments or tenants counted at once: far above a site's, some 100 bytes each."""

STRUCTURE_MARK: Final = "quarterdeck "
"""What `description` in `show info` begins with; the digest follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlace:
    """Where on its machine the gateway keeps and offers things. Paths are absolute, without spaces."""

    files: str
    """Directory of the maps and replies."""
    admin_socket: str
    internal_socket: str
    """Requests from the activator come in here."""
    activator_socket: str
    """Requests to the activator go out here."""
    metrics_port: int
    """HAProxy's Prometheus exporter, on loopback."""
    connections_max: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Everything that needs a reload to change."""

    digest: str
    beside: BesideFiles
    table: RouteTable
    place: GatewayPlace


def render_structure(table: RouteTable, place: GatewayPlace, keys: Sequence[KeyDigest] = ()) -> Structure:
    """Everything but the servers. Some milliseconds for 100 deployments: keep it while `structure_key` stays equal."""
    bare = Structure(digest="", beside=render_files(table, keys), table=table, place=place)
    return replace(bare, digest=hashlib.sha256(render_config(bare, {}).encode()).hexdigest()[:16])


def structure_key(table: RouteTable) -> tuple[object, ...]:
    """Equal keys give equal structures; cheap to compare."""
    return (table.spec, *((r.deployment, r.served_names, r.slots, r.health_path) for r in table.routes))


def render_config(structure: Structure, slots: Assignment) -> str:
    """haproxy.cfg with these servers in these slots."""
    table = structure.table
    values = _values(structure)
    values["access"] = ACCESS.substitute(values) if table.spec.tenants else ""
    parts = [section.substitute(values) for section in (GLOBAL, PUBLIC, BEHIND)]
    for route in table.routes:
        own = {"backend": backend_name(route.deployment), "deployment": route.deployment}
        parts.append(DEPLOYMENT.substitute(values, health_path=route.health_path, **own))
        parts += _servers(route, slots.get(route.deployment, ()))
    return "".join(parts)


def _values(structure: Structure) -> dict[str, str]:
    """Every placeholder's value; a file's is its path, under its plain name with `_` for what is no letter."""
    spec, place = structure.table.spec, structure.place
    files = {
        plain.replace("-", "_").replace(".", "_"): f"{place.files}/{name}"
        for plain, name in structure.beside.names.items()
    }
    return files | {
        "access": "",
        "activator_socket": place.activator_socket,
        "admin_socket": place.admin_socket,
        "arrival_header": replies.ARRIVAL_HEADER,
        "bind": f"{_host(spec.host)}:{spec.port}",
        "body_bytes_max": str(spec.body_bytes_max),
        "buffer_bytes": str(BUFFER_BYTES),
        "buffer_sure_bytes": str(BUFFER_SURE_BYTES),
        "check_fast": _ms(CHECK_FAST),
        "check_interval": _ms(CHECK_INTERVAL),
        "check_timeout": _ms(CHECK_TIMEOUT),
        "client_timeout": _ms(CLIENT_TIMEOUT),
        "connect_timeout": _ms(CONNECT_TIMEOUT),
        "connections_max": str(place.connections_max),
        "counted_max": str(COUNTED_MAX),
        "deployment_header": replies.DEPLOYMENT_HEADER,
        "description": f"{STRUCTURE_MARK}{structure.digest}",
        "hard_stop_after": _ms(HARD_STOP_AFTER),
        "header_prefix": replies.HEADER_PREFIX,
        "headers_bytes_max": str(HEADERS_BYTES_MAX),
        "inference_paths": " ".join(replies.INFERENCE_PATHS),
        "internal_socket": place.internal_socket,
        "keep_alive_timeout": _ms(KEEP_ALIVE_TIMEOUT),
        "look_header": replies.LOOK_HEADER,
        "metrics_port": str(place.metrics_port),
        "model_header": replies.MODEL_HEADER,
        "overloaded_format": overloaded_format(files["more_map"]),
        "queue_timeout": _ms(spec.queue_timeout),
        "refuse_header": replies.REFUSE_HEADER,
        "request_timeout": _ms(REQUEST_TIMEOUT),
        "retries": str(RETRIES),
        "retry_after_header": replies.RETRY_AFTER_HEADER,
        "retry_after_s": str(replies.RETRY_AFTER_S),
        "server_timeout": _ms(spec.request_timeout + spec.hold_timeout),
        "tenant_header": replies.TENANT_HEADER,
        "threads": str(place.threads),
    }


def _servers(route: Route, slots: Sequence[Server | None]) -> Iterator[str]:
    for index in range(route.slots):
        server = slots[index] if index < len(slots) else None
        yield f"  server {slot_name(index)} {UNUSED_SLOT if server is None else _server(server)}\n"


def _server(server: Server) -> str:
    limit = f" maxconn {server.maxconn}" if server.maxconn else ""
    return f"{_host(server.address)}:{server.port} check weight {server.weight}{limit}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _ms(duration: timedelta) -> str:
    return f"{math.ceil(duration.total_seconds() * 1000)}ms"
