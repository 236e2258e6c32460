"""One request through the activator: body in, model known, held if need be, sent back into HAProxy, answer streamed.

Two kinds come in. From a deployment's backend, because no replica could take it: the deployment is known, it waits.
From the slow path, because HAProxy saw too little of the body: its model is looked for and it is sent back at once;
if HAProxy then has no replica for it either, the answer says so (HOLD_STATUS) and it waits like the others.
Nothing is sent twice that a replica may have begun: only HOLD_STATUS and connections never made lead to another try.
"""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.parse import quote

import aiohttp
from aiohttp import web

from controlplane.adapters.activator.bodies import Body, BodyTooLargeError, Budget, NoRoomError, read_away
from controlplane.adapters.activator.config import ActivatorConfig
from controlplane.adapters.activator.hold import ClosingError, HoldFullError, HoldQueue
from controlplane.adapters.activator.modelfield import NoModel, find_model
from controlplane.gateway import replies
from controlplane.kernel.ids import DeploymentName

_LOG: Final = logging.getLogger(__name__)

HOP_BY_HOP: Final = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
     "upgrade", "expect")
)  # fmt: skip
"""RFC 9110, 7.6.1; and Expect, which was answered when the body was read."""

DRAINS_MAX: Final = 64
"""Refused bodies read away at once; callers beyond get their answer at once and may see a broken pipe instead."""

UNREACHABLE_PATIENCE: Final = timedelta(seconds=5)
"""How long HAProxy's internal frontend is tried when it does not take connections: longer than its restart."""

CONNECT_TIMEOUT_S: Final = 2.0
"""To a socket on this machine; more means that HAProxy is stuck."""

_UNREACHABLE_PAUSE: Final = timedelta(milliseconds=200)

LOOK_TIMEOUT_S: Final = 2.0
"""HAProxy answers from a map, within a millisecond."""

_NOT_FOUND: Final = 404
_TOO_LARGE: Final = 413
_SERVER_ERROR: Final = 500


@dataclass(slots=True, kw_only=True)
class _Ticket:
    number: int
    """Place in the order of arrivals."""
    model: str
    deployment: DeploymentName | None
    """None: not known yet, HAProxy looks the model up."""
    counted_outside: bool
    """HAProxy counts this request's answer where it came in."""
    sent: bool = False


class _RefusedError(Exception):
    def __init__(self, status: int, text: str, *, retry: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retry = retry


class Handler:
    def __init__(self, config: ActivatorConfig, session: aiohttp.ClientSession) -> None:
        self.config = config
        self.holds = HoldQueue(config.hold_requests_max)
        self.budget = Budget(config.hold_bytes_max)
        self.slow_total = 0
        self.held_total = 0
        self.refused_total = 0
        self.late_5xx: Counter[str] = Counter()
        self._session = session
        self._tickets = itertools.count(1)
        self._drains = 0

    def configure(self, config: ActivatorConfig) -> None:
        """New limits, for those who come from now on."""
        self.config = config
        self.holds.requests_max = config.hold_requests_max
        self.budget.resize(config.hold_bytes_max)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if replies.RESENT_HEADER in request.headers:
            deployment = request.headers.get(replies.DEPLOYMENT_HEADER, "")
            # Answered before the body is read, HAProxy would close on the sender, who may not see the answer then.
            await read_away(request.content.iter_any())
            return web.Response(status=replies.HOLD_STATUS, headers={replies.DEPLOYMENT_HEADER: deployment})
        body = Body(self.budget)
        try:
            return await self._handle(request, body)
        except _RefusedError as refused:
            body.free()  # before a slow caller is read away and told
            return await self._refuse(request, refused)
        finally:
            body.free()

    async def _handle(self, request: web.Request, body: Body) -> web.StreamResponse:
        if replies.REFUSE_HEADER in request.headers:
            raise self._refusal_asked_for(request.headers[replies.REFUSE_HEADER])
        known = request.headers.get(replies.DEPLOYMENT_HEADER)
        if known is not None and self.holds.is_full(DeploymentName(known)):
            raise _hold_full(known)
        await self._read(request, body)
        ticket = self._ticket(request, body, known)
        upstream = await self._through(request, body, ticket)
        body.free()
        if upstream.status >= _SERVER_ERROR:
            self._count_late(ticket)
        return await _stream(request, upstream)

    def _refusal_asked_for(self, status: str) -> _RefusedError:
        match status:
            case "401":
                return _RefusedError(401, replies.key_refused())
            case "429":
                return _RefusedError(429, replies.rate_limited(), retry=True)
            case _:
                return _RefusedError(_TOO_LARGE, replies.body_too_large(self.config.body_bytes_max))

    async def _read(self, request: web.Request, body: Body) -> None:
        limit = self.config.body_bytes_max
        try:
            chunks = request.content.iter_any()
            await body.fill(chunks, expected_bytes=request.content_length, limit_bytes=limit)
        except BodyTooLargeError as error:
            raise _RefusedError(_TOO_LARGE, replies.body_too_large(limit)) from error
        except NoRoomError as error:
            raise _RefusedError(
                503, replies.overloaded("The gateway holds as many request bodies as it may."), retry=True
            ) from error
        except TimeoutError as error:
            text = replies.invalid_request("The request body did not arrive in time.", code="request_timeout")
            raise _RefusedError(408, text) from error

    def _ticket(self, request: web.Request, body: Body, known: str | None) -> _Ticket:
        number = next(self._tickets)
        if known is not None:
            model = request.headers.get(replies.MODEL_HEADER, "")
            return _Ticket(number=number, model=model, deployment=DeploymentName(known), counted_outside=True)
        self.slow_total += 1
        match find_model(request.headers.get("Content-Type", ""), body.data):
            case NoModel(why=why):
                raise _RefusedError(400, replies.invalid_request(why, code="invalid_body", param="model"))
            case str() as model:
                return _Ticket(number=number, model=quote(model, safe="-._~"), deployment=None, counted_outside=False)

    async def _through(self, request: web.Request, body: Body, ticket: _Ticket) -> aiohttp.ClientResponse:
        """The replica's answer, however long no replica is up."""
        deadline = asyncio.get_running_loop().time() + self.config.hold_timeout_s
        while True:
            if ticket.deployment is not None:
                await self._wait(ticket, ticket.deployment, deadline)
            upstream = await self._send(request, body, ticket)
            ticket.sent = True
            if upstream.status != replies.HOLD_STATUS or replies.DEPLOYMENT_HEADER not in upstream.headers:
                return upstream
            upstream.close()
            ticket.deployment = DeploymentName(upstream.headers[replies.DEPLOYMENT_HEADER])

    async def _wait(self, ticket: _Ticket, deployment: DeploymentName, deadline: float) -> None:
        self.held_total += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self.holds.wait(deployment, ticket.number)
        except HoldFullError as error:
            self._count_late(ticket)
            raise _hold_full(deployment) from error
        except TimeoutError as error:
            self._count_late(ticket)
            text = f"No replica of {deployment} came up within {self.config.hold_timeout_s:g} s."
            raise _RefusedError(503, replies.overloaded(text), retry=True) from error
        except ClosingError as error:
            self._count_late(ticket)
            raise _RefusedError(503, replies.overloaded("The gateway is stopping."), retry=True) from error

    def _count_late(self, ticket: _Ticket) -> None:
        """A 5xx that HAProxy counts neither where the request came in nor on its first way back in."""
        if not ticket.counted_outside and ticket.deployment is not None and ticket.sent:
            self.late_5xx[ticket.deployment] += 1

    async def _send(self, request: web.Request, body: Body, ticket: _Ticket) -> aiohttp.ClientResponse:
        headers = _passed_on(request.headers)
        headers += [(replies.MODEL_HEADER, ticket.model), (replies.RESENT_HEADER, "1")]
        headers.append(("Content-Length", str(len(body.data))))
        if not ticket.counted_outside and not ticket.sent:
            headers.append((replies.ARRIVAL_HEADER, "1"))
        patience_s = UNREACHABLE_PATIENCE.total_seconds()
        while True:
            try:
                return await self._session.request(
                    request.method,
                    request.rel_url,
                    headers=headers,
                    data=body.pieces() if body.data else None,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self.config.request_timeout_s
                    ),
                )
            except aiohttp.ClientConnectorError as error:
                if patience_s <= 0:
                    raise _RefusedError(503, replies.overloaded("The gateway restarts."), retry=True) from error
                patience_s -= _UNREACHABLE_PAUSE.total_seconds()
                await asyncio.sleep(_UNREACHABLE_PAUSE.total_seconds())
            except (aiohttp.ClientError, TimeoutError) as error:
                await self._refuse_unknown(ticket)
                text = "The replica broke off before it answered."
                raise _RefusedError(
                    502, replies.error_json(text, kind="server_error", code="replica_failed")
                ) from error

    async def _refuse_unknown(self, ticket: _Ticket) -> None:
        """_RefusedError when HAProxy does not know the model (any more).

        It says so before it has read the body, and closes: who still writes may lose the answer. So a sending that
        broke off is followed by a request without body that asks for nothing else, and reaches no replica.
        """
        headers = {replies.MODEL_HEADER: ticket.model, replies.LOOK_HEADER: "1"}
        timeout = aiohttp.ClientTimeout(total=LOOK_TIMEOUT_S)
        try:
            async with self._session.get("/", headers=headers, timeout=timeout) as answer:
                if answer.status == _NOT_FOUND:
                    raise _RefusedError(_NOT_FOUND, await answer.text())
        except (aiohttp.ClientError, TimeoutError) as error:
            _LOG.warning("look failed", extra={"error": str(error)})

    async def _refuse(self, request: web.Request, refused: _RefusedError) -> web.Response:
        self.refused_total += 1
        if self._drains < DRAINS_MAX and not request.content.at_eof():
            self._drains += 1
            try:
                await read_away(request.content.iter_any())
            finally:
                self._drains -= 1
        headers = {}
        if refused.retry:
            headers["Retry-After"] = request.headers.get(replies.RETRY_AFTER_HEADER, str(replies.RETRY_AFTER_S))
        if refused.status == 401:  # noqa: PLR2004 - HTTP's number
            headers["WWW-Authenticate"] = "Bearer"
        return web.Response(status=refused.status, text=refused.text, content_type="application/json", headers=headers)


def _hold_full(deployment: str) -> _RefusedError:
    text = f"As many requests wait for a replica of {deployment} as may."
    return _RefusedError(503, replies.overloaded(text), retry=True)


def _passed_on(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Without what belongs to one connection or to the gateway's inside, and without the length: the body has one."""
    dropped = HOP_BY_HOP | {"content-length", replies.MODEL_HEADER.lower(), replies.DEPLOYMENT_HEADER.lower()}
    return [(name, value) for name, value in headers.items() if name.lower() not in dropped]


async def _stream(request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    """Pass the answer on as it comes. If it breaks off, the caller's connection breaks too: no false end."""
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    for name, value in upstream.headers.items():
        if name.lower() not in HOP_BY_HOP:
            response.headers.add(name, value)
    try:
        await response.prepare(request)
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    except (aiohttp.ClientError, TimeoutError):
        _LOG.warning("answer broke off", extra={"path": request.path})
        if request.transport is not None:
            request.transport.abort()
    finally:
        upstream.close()
    return response
