"""Claims: who may work on what, until when."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, delete, or_, select
from sqlalchemy.exc import DBAPIError

from controlplane.adapters.db.codecs import time_from_us, us_from_time
from controlplane.adapters.db.engine import is_contention
from controlplane.adapters.db.session import Insert, Session
from controlplane.adapters.db.tables import CLAIMS
from controlplane.domain.refusals import claim_lost
from controlplane.domain.store import Claim
from controlplane.kernel.ids import ClaimToken, InstanceId

_LOCKED_TOKEN: Final = select(CLAIMS.c.token).where(CLAIMS.c.resource == bindparam("resource")).with_for_update()
"""FOR UPDATE on PostgreSQL; nothing on SQLite, where the transaction has the whole database."""


class ClaimRows:
    _session: Session

    async def claim(
        self, resource: str, *, token: ClaimToken, holder: InstanceId, now: datetime, expires_at: datetime
    ) -> Claim | None:
        insert = self._session.insert(CLAIMS)
        values = {"token": token, "holder": holder, "expires_at_us": us_from_time(expires_at)}
        take = insert.values(resource=resource, **values).on_conflict_do_update(
            index_elements=["resource"],
            set_=values,
            where=or_(CLAIMS.c.holder == holder, CLAIMS.c.expires_at_us <= us_from_time(now)),
        )
        taken = await self._take(take)
        return Claim(resource=resource, token=token, holder=holder, expires_at=expires_at) if taken else None

    async def _take(self, take: Insert) -> int:
        """Rows taken: none when another transaction is at the same claim just now."""
        if not self._session.is_postgresql:
            return await self._session.run(take)
        try:
            async with self._session.savepoint():
                return await self._session.run(take)
        except DBAPIError as error:
            if is_contention(error):
                return 0
            raise

    async def require_claim(self, resource: str, token: ClaimToken) -> None:
        try:
            row = await self._session.row(_LOCKED_TOKEN, {"resource": resource})
        except DBAPIError as error:
            if is_contention(error):
                raise claim_lost(resource) from error
            raise
        if row is None or row.token != token:
            raise claim_lost(resource)

    async def release_claim(self, resource: str, token: ClaimToken) -> None:
        await self._session.run(delete(CLAIMS).where(CLAIMS.c.resource == resource, CLAIMS.c.token == token))

    async def claims(self) -> Sequence[Claim]:
        claims = [
            Claim(
                resource=row.resource,
                token=ClaimToken(row.token),
                holder=InstanceId(row.holder),
                expires_at=time_from_us(row.expires_at_us),
            )
            for row in await self._session.rows(select(CLAIMS))
        ]
        return sorted(claims, key=lambda claim: claim.resource)
