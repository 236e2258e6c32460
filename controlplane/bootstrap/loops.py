"""The loops and their paces. Each figure has its reason beside it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
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
    period=timedelta(seconds=2),  # each round of the gateway's telemetry hints; this is for rounds that do not come
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

ROUNDS_MISSED: Final = 2
"""The autoscaler ticks without a hint after so many scrape intervals: a period as long as the interval would end just
before the next hint, and every round would cost two ticks."""
GATEWAY_AFTER_MAX: Final = timedelta(milliseconds=250)
"""How long after the engines the gateway is asked. By then the pages of some hundred engines are read, so the tick that
follows sees fresh ones and does not wait for the event loop."""

EVENTS_KEPT: Final = timedelta(days=30)
"""A month, to answer questions after an incident; the audit ledger is another thing and keeps everything."""
DECISIONS_KEPT: Final = timedelta(days=14)
"""Two of the weeks that seasonality repeats over."""
TICKS_KEPT: Final = timedelta(days=2)
"""For finding out why a loop failed; the metrics keep the rates."""

_SITE: Final = "site"


def autoscaler_pace(interval: timedelta) -> Pace:
    """For a site that is measured so often."""
    return replace(AUTOSCALER_PACE, period=max(AUTOSCALER_PACE.period, ROUNDS_MISSED * interval))


def gateway_after(interval: timedelta) -> timedelta:
    """A quarter of the interval at most: the engines' next round is then three quarters away."""
    return min(interval / 4, GATEWAY_AFTER_MAX)


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

    def __init__(
        self,
        *,
        body: Callable[[], Awaitable[object]],
        period: timedelta,
        clock: Clock,
        after: timedelta = timedelta(0),
    ) -> None:
        """`after`: how long the first one waits. Beats of one period keep such a distance unless one overruns."""
        self._body = body
        self._period = period
        self._clock = clock
        self._after = after
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True

    async def run(self) -> None:
        """The body handles its own failures; a period that the body overran is not made up for."""
        due_s = self._clock.monotonic() + self._after.total_seconds()
        if self._after:
            await self._clock.sleep(self._after)
        while not self._stopping:
            await self._body()
            now_s = self._clock.monotonic()
            due_s = max(due_s + self._period.total_seconds(), now_s)
            await self._clock.sleep(timedelta(seconds=due_s - now_s))
