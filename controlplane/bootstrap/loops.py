"""The loops and their paces. Each figure has its reason beside it."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

from controlplane.domain.store import Claim, Store
from controlplane.kernel.effects import Clock
from controlplane.runtime.reconciler import Pace, TickReport

REPLICAS_PACE: Final = Pace(
    period=timedelta(seconds=1),  # a dead replica is out of the rows within a second; a scan of /proc costs some ms
    deadline=timedelta(seconds=30),  # a tick may probe engines (5 s each, at once) and launch
    floor=timedelta(milliseconds=200),  # hints come in bursts: one per decision, per intent, per neighbour
    claim_ttl=timedelta(seconds=45),
)
AUTOSCALER_PACE: Final = Pace(
    period=timedelta(seconds=1),  # the scrape interval: sooner there is nothing new to see
    deadline=timedelta(seconds=10),
    floor=timedelta(milliseconds=500),
)
GATEWAY_PACE: Final = Pace(
    period=timedelta(seconds=1),  # no change costs a millisecond; a gateway that died is back within two
    deadline=timedelta(seconds=20),  # a start waits for the first health checks
    floor=timedelta(milliseconds=100),  # a drain waits for the gateway: follow a hint soon
    claim_ttl=timedelta(seconds=30),
)
FLEET_PACE: Final = Pace(
    period=timedelta(seconds=2),  # as often as nodes are measured
    deadline=timedelta(seconds=10),
    floor=timedelta(milliseconds=500),
)
HOUSEKEEPING_PACE: Final = Pace(
    period=timedelta(minutes=10), deadline=timedelta(seconds=60), floor=timedelta(seconds=10),
    claim_ttl=timedelta(seconds=90),
)  # fmt: skip

EVENTS_KEPT: Final = timedelta(days=30)
"""A month, to answer questions after an incident; the audit ledger is another thing and keeps everything."""
DECISIONS_KEPT: Final = timedelta(days=14)
"""Two of the weeks that seasonality repeats over."""
TICKS_KEPT: Final = timedelta(days=2)
"""For finding out why a loop failed; the metrics keep the rates."""

_SITE: Final = "site"


class Housekeeping:
    """Deletes history that is older than anybody asks for."""

    name: Final = "housekeeping"

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def resources(self) -> Sequence[str]:
        return [_SITE]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        assert resource == _SITE, f"one history for the whole site, asked for {resource}"
        now = self._clock.now()
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            gone = await tx.prune(
                events_before=now - EVENTS_KEPT, decisions_before=now - DECISIONS_KEPT, ticks_before=now - TICKS_KEPT
            )
        return TickReport(sentence=f"rows of old history deleted: {gone}", changed=gone > 0)


class Beat:
    """A loop that every instance runs for itself, without claims: measuring, following the site. Runs as a service."""

    def __init__(self, *, body: Callable[[], Awaitable[object]], period: timedelta, clock: Clock) -> None:
        self._body = body
        self._period = period
        self._clock = clock
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True

    async def run(self) -> None:
        """The body handles its own failures; a period that the body overran is not made up for."""
        while not self._stopping:
            started_s = self._clock.monotonic()
            await self._body()
            spent = timedelta(seconds=self._clock.monotonic() - started_s)
            await self._clock.sleep(max(self._period - spent, timedelta(0)))
