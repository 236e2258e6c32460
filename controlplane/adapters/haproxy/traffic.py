"""What the gateway sees, read back: HAProxy's worker, old workers that still finish requests, and the activator."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from controlplane.adapters.activator.config import ActivatorConfig, ActivatorState, ControlRequest
from controlplane.adapters.haproxy.answers import (
    HOLD_SERVER,
    Counted,
    StatRow,
    parse_counted,
    parse_drained,
    parse_info,
    parse_processes,
    parse_stat,
)
from controlplane.adapters.haproxy.hosts import names_by_address, told
from controlplane.adapters.haproxy.places import GatewayPaths
from controlplane.adapters.haproxy.runtime import ask
from controlplane.domain.telemetry import GatewaySample, RouteTraffic, ServerTraffic
from controlplane.gateway.changes import deployment_of
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import DeploymentName
from controlplane.replicas.ports import TrafficSeen, TrafficSighting, TrafficUnseen

BACKEND_ROW: Final = "BACKEND"
_UP: Final = "UP"
_DRAIN: Final = "DRAIN"
"""Also how a server is shown that only an old worker still has requests on."""


class HaproxyTraffic:
    """The replica reconciler's view of the gateway, asked live; needs nothing but the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._paths = GatewayPaths.under(state_dir)

    async def servers(self) -> TrafficSighting:
        try:
            text = await ask(self._paths.admin_socket, "show stat -1 4 -1 no-maint; show servers state")
            servers = servers_of(parse_stat(text), await old_rows(self._paths), parse_drained(text))
            return TrafficSeen(told(servers, names_by_address(self._paths)))
        except RetryableError as error:
            return TrafficUnseen(str(error))


async def read_sample(paths: GatewayPaths, now: datetime) -> GatewaySample:
    """RetryableError when HAProxy or the activator cannot be asked: half a sample would look like no load."""
    text = await ask(
        paths.admin_socket, "show info; show stat -1 6 -1 no-maint; show table arrivals; show servers state"
    )
    info = parse_info(text)
    if info is None:
        raise RetryableError(f"{paths.admin_socket} answered, but not as HAProxy of this gateway")
    old = await old_rows(paths)
    state = await activator_state(paths)
    rows = tuple(parse_stat(text))
    return GatewaySample(
        at=now,
        epoch=f"{info.epoch}/{state.epoch}",
        routes=routes_of(rows, old, parse_counted(text), state),
        servers=told(servers_of(rows, old, parse_drained(text)), names_by_address(paths)),
    )


async def count_arrivals(paths: GatewayPaths) -> dict[DeploymentName, float]:
    """What `read_sample` has as `arrivals_total`. RetryableError when HAProxy cannot be asked."""
    counted = parse_counted(await ask(paths.admin_socket, "show table arrivals"))
    return {name: each.arrivals for name, each in counted.items()}


async def old_rows(paths: GatewayPaths) -> tuple[StatRow, ...]:
    """Servers with requests on workers that a reload left behind. Usually none, at the price of one short question."""
    processes = parse_processes(await ask(paths.master_socket, "show proc"))
    rows: list[StatRow] = []
    for pid in processes.old_workers:
        rows += parse_stat(await ask(paths.master_socket, f"@!{pid} show stat -1 4 -1 no-maint"))
    return tuple(row for row in rows if row.in_flight > 0)


async def activator_state(paths: GatewayPaths, config: ActivatorConfig | None = None) -> ActivatorState:
    """Its state, after it took new limits if there are any. RetryableError when it does not answer."""
    answer = await ask(paths.activator_control, ControlRequest(config=config).model_dump_json())
    try:
        return ActivatorState.model_validate_json(answer)
    except ValidationError as error:
        raise RetryableError(f"the activator's answer cannot be read: {answer[:200]!r}") from error


def servers_of(
    rows: Iterable[StatRow], old: Iterable[StatRow], drained: AbstractSet[tuple[str, str]]
) -> dict[str, ServerTraffic]:
    """By endpoint. Requests on old workers count as in flight: their replica must not be stopped yet."""
    servers: dict[str, ServerTraffic] = {}
    for row in rows:
        if deployment_of(row.backend) is None or row.server in (HOLD_SERVER, BACKEND_ROW):
            continue
        servers[row.endpoint] = ServerTraffic(
            state=_DRAIN if (row.backend, row.server) in drained else row.status,
            in_flight=row.in_flight,
            queued=row.queued,
            requests_total=row.total,
            failures_total=row.errors,
            abandoned_total=row.abandoned,
        )
    for row in old:
        if deployment_of(row.backend) is None or row.server == HOLD_SERVER:
            continue
        known = servers.get(row.endpoint)
        servers[row.endpoint] = ServerTraffic(
            state=known.state if known else _DRAIN,
            in_flight=row.in_flight + (known.in_flight if known else 0),
            queued=row.queued + (known.queued if known else 0),
            requests_total=known.requests_total if known else 0,
            failures_total=known.failures_total if known else 0,
            abandoned_total=known.abandoned_total if known else 0,
        )
    return servers


def routes_of(
    rows: Iterable[StatRow], old: Iterable[StatRow], counted: Mapping[DeploymentName, Counted], state: ActivatorState
) -> dict[DeploymentName, RouteTraffic]:
    """Every deployment that HAProxy has a backend for."""
    in_flight: dict[DeploymentName, int] = defaultdict(int)
    queued: dict[DeploymentName, int] = defaultdict(int)
    up: dict[DeploymentName, int] = defaultdict(int)
    names: list[DeploymentName] = []
    for row in rows:
        deployment = deployment_of(row.backend)
        if deployment is None or row.server == HOLD_SERVER:
            continue
        queued[deployment] += row.queued
        if row.server == BACKEND_ROW:
            names.append(deployment)
        else:
            in_flight[deployment] += row.in_flight
            up[deployment] += row.status.startswith(_UP)
    for row in old:
        deployment = deployment_of(row.backend)
        if deployment is not None and row.server != HOLD_SERVER:
            in_flight[deployment] += row.in_flight
    none = Counted(arrivals=0, responses_5xx=0)
    return {
        name: RouteTraffic(
            arrivals_total=counted.get(name, none).arrivals,
            in_flight=in_flight[name],
            queued=queued[name],
            held=state.held.get(name, 0),
            responses_5xx_total=counted.get(name, none).responses_5xx + state.late_5xx.get(name, 0),
            servers_up=up[name],
        )
        for name in names
    }
