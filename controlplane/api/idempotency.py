"""A change sent twice under one `Idempotency-Key` is made once; the second call gets the first one's answer."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from fastapi import Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from controlplane.api.context import ApiContext
from controlplane.domain.store import IdempotentAnswer, Transaction
from controlplane.kernel.errors import ConflictError

KEY_LENGTH_MAX: Final = 128
"""Characters; a UUID has 36."""

IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", max_length=KEY_LENGTH_MAX, description="Makes a repeated call a single change."),
]


async def once(
    context: ApiContext,
    request: Request,
    key: str | None,
    change: Callable[[Transaction], Awaitable[BaseModel]],
    *,
    status: int = 202,
) -> JSONResponse:
    """Run `change` in one transaction, which also keeps the answer under the key.

    ConflictError when the key was used before for another request.
    """
    digest = hashlib.sha256(
        b"\n".join((request.method.encode(), request.url.path.encode(), await request.body()))
    ).hexdigest()
    async with context.store.transaction() as tx:
        if key is not None:
            before = await tx.idempotent_answer(key)
            if before is not None:
                return _repeat(before, digest)
        answer = await change(tx)
        body = answer.model_dump(mode="json")
        if key is not None:
            await tx.put_idempotent_answer(
                IdempotentAnswer(
                    key=key, request_digest=digest, status=status, body_json=json.dumps(body), at=context.clock.now()
                )
            )
    return JSONResponse(body, status_code=status)


def _repeat(before: IdempotentAnswer, digest: str) -> JSONResponse:
    if before.request_digest != digest:
        raise ConflictError(
            f"Idempotency-Key {before.key!r} was used at {before.at:%Y-%m-%d %H:%M:%S} UTC for another request; "
            "send this one under a new key"
        )
    return JSONResponse(json.loads(before.body_json), status_code=before.status, headers={"Idempotent-Replay": "true"})
