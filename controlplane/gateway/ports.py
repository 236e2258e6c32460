"""What the gateway reconciler needs of the world."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from controlplane.domain.telemetry import GatewaySample
from controlplane.gateway.model import RouteTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What one convergence did: commands sent, reload, start; empty when all was as wanted."""

    actions: Sequence[str]
    reloaded: bool = False
    started: bool = False
    pending: bool = False
    """Something waits for a later pass, e.g. a drain until the replacement is up: look again soon."""

    @property
    def changed(self) -> bool:
        return bool(self.actions) or self.reloaded or self.started


class GatewayDriver(Protocol):
    """A gateway that can be converged onto a route table and asked what it sees. Idempotent; survives our restarts."""

    async def converge(self, table: RouteTable) -> Applied:
        """Make it so: start what is not running, reload where the structure changed, else commands only.

        RetryableError when the gateway cannot be reached or refuses; TerminalError when the rendered
        configuration is not valid (the running one is left alone).
        """
        ...

    async def sample(self) -> GatewaySample:
        """What it sees now, activator included. RetryableError when it cannot be asked."""
        ...

    async def stop(self) -> None:
        """Stop gateway and activator gracefully."""
        ...
