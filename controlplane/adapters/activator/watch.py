"""Lets held requests go when a replica of theirs is up. Asks HAProxy only while something is held."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Final

from controlplane.adapters.activator.hold import HoldQueue
from controlplane.adapters.haproxy.answers import HOLD_SERVER, parse_stat
from controlplane.adapters.haproxy.runtime import ask
from controlplane.gateway.changes import backend_name, deployment_of
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import DeploymentName

POLL_INTERVAL: Final = timedelta(milliseconds=100)
"""The most that a release waits after HAProxy saw the replica up; small beside any wake. One poll costs HAProxy less
than a millisecond and stops with the last held request."""

_GONE: Final = "No such proxy"


async def release_when_up(holds: HoldQueue, admin_socket: Path) -> None:
    """Never returns."""
    while True:
        await holds.somebody()
        ready = await _ready(admin_socket, tuple(holds.counts()))
        await asyncio.gather(*(holds.release(deployment) for deployment in ready))
        await asyncio.sleep(POLL_INTERVAL.total_seconds())


async def _ready(admin_socket: Path, deployments: Iterable[DeploymentName]) -> set[DeploymentName]:
    """Those with a server up, and those that are gone: their requests are sent back to be told so."""
    ready: set[DeploymentName] = set()
    for deployment in deployments:
        try:
            answer = await ask(admin_socket, f"show stat {backend_name(deployment)} 4 -1 up")
        except RetryableError:
            return ready  # HAProxy is away or being reloaded: what is held goes on being held
        if _GONE in answer:
            ready.add(deployment)
        for row in parse_stat(answer):
            if row.server != HOLD_SERVER and row.status.startswith("UP"):
                found = deployment_of(row.backend)
                assert found is not None, f"asked for {deployment}, got {row.backend}"
                ready.add(found)
    return ready
