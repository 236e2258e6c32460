"""The claims that a loop of this instance holds: taken, kept alive, given back."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.store import Claim, Store, Transaction
from controlplane.kernel.effects import Clock, IdSource
from controlplane.kernel.ids import ClaimToken, InstanceId
from controlplane.runtime.reconciler import Pace
from controlplane.runtime.sharing import claim_name, fair_share, presence

_RENEW_BELOW: Final = 0.5
"""Share of `claim_ttl`: below it a claim is renewed. Half leaves time for several surveys that fail."""
SURVEYS_PER_TTL: Final = 4
"""A loop with a long period still looks this often at its claims, so that they do not lapse between ticks."""


class ClaimKeeper:
    """For one loop. A claim's token lives until the claim is lost or a tick on it did not end well."""

    def __init__(
        self, *, store: Store, clock: Clock, ids: IdSource, instance: InstanceId, loop: str, pace: Pace
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._instance = instance
        self._loop = loop
        self._pace = pace
        self._held: dict[str, Claim] = {}

    async def survey(self, resources: Sequence[str], busy: Collection[str]) -> frozenset[str]:
        """The resources to work on now: shows presence, gives up what is too much, renews what may lapse."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            shown = await self._renewed(tx, presence(self._loop, self._instance), now)
            share = fair_share(
                loop=self._loop,
                resources=resources,
                busy=busy,
                claims=await tx.claims(),
                instance=self._instance,
                now=now,
            )
            for claim in share.give_up:
                await tx.release_claim(claim.resource, claim.token)
            kept = {shown.resource: shown} if shown else {}
            for resource in share.work | share.finishing:
                name = claim_name(self._loop, resource)
                held = self._held.get(name)
                if held is None:
                    continue
                # A busy one was good for the whole tick when the tick began; renewing it now would only get in the
                # way of the transaction that applies its result.
                claim_now = held if resource in busy else await self._renewed(tx, name, now)
                if claim_now is not None:
                    kept[name] = claim_now
        self._held = kept
        return share.work

    async def hold(self, resource: str) -> Claim | None:
        """A claim good for a whole tick; None when another instance has it."""
        name = claim_name(self._loop, resource)
        now = self._clock.now()
        held = self._held.get(name)
        if held is not None and held.expires_at - now >= self._pace.deadline:
            return held
        async with self._store.transaction() as tx:
            claim = await self._taken(tx, name, now)
        if claim is None:
            self._held.pop(name, None)
        else:
            self._held[name] = claim
        return claim

    def forget(self, resource: str) -> None:
        """Draw a new token at the next tick: whatever the last one left running cannot apply anything any more."""
        self._held.pop(claim_name(self._loop, resource), None)

    async def release_all(self) -> None:
        async with self._store.transaction() as tx:
            for claim in self._held.values():
                await tx.release_claim(claim.resource, claim.token)
        self._held.clear()

    async def _renewed(self, tx: Transaction, name: str, now: datetime) -> Claim | None:
        held = self._held.get(name)
        if held is not None and held.expires_at - now >= self._pace.claim_ttl * _RENEW_BELOW:
            return held
        return await self._taken(tx, name, now)

    async def _taken(self, tx: Transaction, name: str, now: datetime) -> Claim | None:
        held = self._held.get(name)
        token = ClaimToken(self._ids.new_id()) if held is None else held.token
        return await tx.claim(name, token=token, holder=self._instance, now=now, expires_at=now + self._pace.claim_ttl)


def survey_period(pace: Pace) -> timedelta:
    return min(pace.period, pace.claim_ttl / SURVEYS_PER_TTL)
