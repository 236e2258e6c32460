"""The applied site, and answers kept under idempotency keys."""

from datetime import datetime

from sqlalchemy import select

from controlplane.adapters.db.codecs import time_from_us, us_from_time
from controlplane.adapters.db.session import Session
from controlplane.adapters.db.tables import IDEMPOTENT_ANSWERS, SITE
from controlplane.domain.refusals import key_reused
from controlplane.domain.store import AppliedSite, IdempotentAnswer


class SiteRows:
    _session: Session

    async def site(self) -> AppliedSite | None:
        row = await self._session.row(select(SITE))
        if row is None:
            return None
        return AppliedSite(
            name=row.name,
            document=row.document,
            digest=row.digest,
            applied_at=time_from_us(row.applied_at_us),
            generation=row.generation,
        )

    async def put_site(self, *, name: str, document: str, digest: str, now: datetime) -> AppliedSite:
        values = {"name": name, "document": document, "digest": digest, "applied_at_us": us_from_time(now)}
        insert = self._session.insert(SITE).values(id=1, generation=1, **values)
        await self._session.run(
            insert.on_conflict_do_update(index_elements=["id"], set_={**values, "generation": SITE.c.generation + 1})
        )
        applied = await self.site()
        assert applied is not None, "it was just written"
        return applied

    async def idempotent_answer(self, key: str) -> IdempotentAnswer | None:
        row = await self._session.row(select(IDEMPOTENT_ANSWERS).where(IDEMPOTENT_ANSWERS.c.key == key))
        if row is None:
            return None
        return IdempotentAnswer(
            key=row.key,
            request_digest=row.request_digest,
            status=row.status,
            body_json=row.body,
            at=time_from_us(row.at_us),
        )

    async def put_idempotent_answer(self, answer: IdempotentAnswer) -> None:
        """The first answer stays; ConflictError when the key was used for another request."""
        insert = self._session.insert(IDEMPOTENT_ANSWERS).values(
            key=answer.key,
            request_digest=answer.request_digest,
            status=answer.status,
            body=answer.body_json,
            at_us=us_from_time(answer.at),
        )
        if await self._session.run(insert.on_conflict_do_nothing()):
            return
        kept = await self.idempotent_answer(answer.key)
        if kept is not None and kept.request_digest != answer.request_digest:
            raise key_reused(answer.key)
