"""Kills a control plane between two effects: after the chosen one, nothing that it does reaches the world any more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from controlplane.domain.deployment import LaunchTemplate
from controlplane.domain.health import ProbeResult
from controlplane.domain.replica import Replica
from controlplane.domain.store import Store, Transaction
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.ports import Engines, Launcher, LaunchOutcome, LaunchSpec, Sighting


class ControlPlaneKilledError(BaseException):
    """Not an Exception: no handler of ours may survive it, as none survives SIGKILL."""


class KillSwitch:
    """Counts moments just before and just after each effect; trips at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.moments = 0
        self.tripped = False
        self._at = at

    def moment(self) -> None:
        if not self.tripped:
            self.moments += 1
            self.tripped = self.moments == self._at
        if self.tripped:
            raise ControlPlaneKilledError


class KillableStore:
    """Implements `controlplane.domain.store.Store`. A kill before the commit rolls back, as a lost connection does.

    Only commits that write are moments: dying before a read is dying after the effect before it.
    """

    def __init__(self, store: Store, switch: KillSwitch) -> None:
        self._store = store
        self._switch = switch

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._store.transaction() as tx:
            watched = _WatchedTransaction(tx)
            yield cast("Transaction", watched)
            if watched.wrote:
                self._switch.moment()
        if watched.wrote:
            self._switch.moment()

    async def close(self) -> None:
        await self._store.close()


class _WatchedTransaction:
    """Passes every call on and notes whether one of them writes."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self.wrote = False

    def __getattr__(self, name: str) -> Any:
        self.wrote = self.wrote or name.startswith(("put_", "delete_", "set_", "mark_", "append_"))
        return getattr(self._tx, name)


class KillableLauncher:
    """Implements `controlplane.replicas.ports.Launcher`."""

    def __init__(self, launcher: Launcher, switch: KillSwitch) -> None:
        self._launcher = launcher
        self._switch = switch

    async def observe(self) -> Sighting:
        return await self._launcher.observe()

    async def launch(self, spec: LaunchSpec) -> LaunchOutcome:
        self._switch.moment()
        outcome = await self._launcher.launch(spec)
        self._switch.moment()
        return outcome

    async def terminate(self, name: ReplicaName) -> None:
        self._switch.moment()
        await self._launcher.terminate(name)
        self._switch.moment()

    async def kill(self, name: ReplicaName) -> None:
        self._switch.moment()
        await self._launcher.kill(name)
        self._switch.moment()

    async def log_tail(self, name: ReplicaName, lines: int) -> list[str]:
        return await self._launcher.log_tail(name, lines)


class KillableEngines:
    """Implements `controlplane.replicas.ports.Engines`."""

    def __init__(self, engines: Engines, switch: KillSwitch) -> None:
        self._engines = engines
        self._switch = switch

    async def probe(self, replica: Replica, template: LaunchTemplate) -> ProbeResult:
        return await self._engines.probe(replica, template)

    async def sleep(self, replica: Replica) -> bool:
        self._switch.moment()
        asleep = await self._engines.sleep(replica)
        self._switch.moment()
        return asleep

    async def wake(self, replica: Replica) -> bool:
        self._switch.moment()
        accepted = await self._engines.wake(replica)
        self._switch.moment()
        return accepted
