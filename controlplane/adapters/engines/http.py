"""Engines over HTTP: vLLM's paths, which the simulated engine speaks too."""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import aiohttp

from controlplane.adapters.engines.probe import ProbeRequest, judge, probe_request
from controlplane.domain.deployment import LaunchTemplate
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.replica import Replica
from controlplane.kernel.ids import NodeName

_HEALTH_S: Final = 1.0
"""/health does no work: a slower answer is no answer."""
_REQUEST_S: Final = 4.0
"""One token of the smallest prompt, behind a batch that is running. With /health below the reconciler's 6 s."""
_SLEEP_S: Final = 7.0
"""Level 1 moves the weights to host memory: seconds for a large model. Below the reconciler's deadline of an act."""
_BODY_BYTES_MAX: Final = 256 * 1024
"""An embedding of 4,096 floats as text is some 90 KiB; audio of one word less."""
_OK: Final = 200
_NOT_FOUND: Final = 404
_LOADING: Final = 503


class HttpEngines:
    """Implements `controlplane.replicas.ports.Engines`. Use as an async context manager; it owns its connections."""

    def __init__(self, address_of: Callable[[NodeName], str] = lambda _: "127.0.0.1") -> None:
        """`address_of` tells where a node's replicas listen."""
        self._address_of = address_of
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # A connection kept open over a probe would keep a replica from ending gracefully: each call opens its own.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=64))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def probe(self, replica: Replica, template: LaunchTemplate) -> ProbeResult:
        """Refused connections and 503 of /health count as starting: only the process tells whether that is forever."""
        try:
            status, _ = await self._get(replica, template.health_path, _HEALTH_S)
            if status == _LOADING:
                return ProbeResult(verdict=ProbeVerdict.STARTING, detail=f"{template.health_path} answers {status}")
            if status != _OK:
                return ProbeResult(verdict=ProbeVerdict.FAILED, detail=f"{template.health_path} answers {status}")
            if await self._is_asleep(replica):
                return ProbeResult(verdict=ProbeVerdict.ASLEEP, detail="/is_sleeping says yes")
            status, body = await self._send(replica, probe_request(template))
        except aiohttp.ClientConnectorError as error:
            return ProbeResult(verdict=ProbeVerdict.STARTING, detail=f"no connection: {error.strerror or error}")
        except TimeoutError:
            return ProbeResult(verdict=ProbeVerdict.FAILED, detail=f"no answer within {_REQUEST_S:.0f}s")
        except aiohttp.ClientError as error:
            return ProbeResult(verdict=ProbeVerdict.FAILED, detail=f"broken answer: {error}")
        return judge(template.task, status, body)

    async def sleep(self, replica: Replica) -> bool:
        """Level 1: weights to host memory, KV cache dropped; the process and its GPUs stay."""
        try:
            status, _ = await self._post(replica, "/sleep?level=1", _SLEEP_S)
            return status == _OK and await self._is_asleep(replica)
        except (TimeoutError, aiohttp.ClientError):
            return False

    async def wake(self, replica: Replica) -> bool:
        try:
            status, _ = await self._post(replica, "/wake_up", _SLEEP_S)
        except (TimeoutError, aiohttp.ClientError):
            return False
        return status == _OK

    async def _is_asleep(self, replica: Replica) -> bool:
        """Engines without sleep mode answer 404."""
        status, body = await self._get(replica, "/is_sleeping", _HEALTH_S)
        return status != _NOT_FOUND and b"true" in body.lower()

    async def _get(self, replica: Replica, path: str, timeout_s: float) -> tuple[int, bytes]:
        async with self._open().get(self._url(replica, path), timeout=_timeout(timeout_s)) as response:
            return response.status, await response.content.read(_BODY_BYTES_MAX)

    async def _post(self, replica: Replica, path: str, timeout_s: float) -> tuple[int, bytes]:
        async with self._open().post(self._url(replica, path), timeout=_timeout(timeout_s)) as response:
            return response.status, await response.content.read(_BODY_BYTES_MAX)

    async def _send(self, replica: Replica, request: ProbeRequest) -> tuple[int, bytes]:
        url, timeout = self._url(replica, request.path), _timeout(_REQUEST_S)
        if request.json_body is not None:
            context = self._open().post(url, json=dict(request.json_body), timeout=timeout)
        else:
            context = self._open().post(url, data=_form(request), timeout=timeout)
        async with context as response:
            return response.status, await _read(response)

    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None, "HttpEngines is used inside `async with`"
        return self._session

    def _url(self, replica: Replica, path: str) -> str:
        return f"http://{self._address_of(replica.node)}:{replica.port}{path}"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body up to the bound; `content.read(n)` alone may return only the first packet."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= _BODY_BYTES_MAX:
            break
    return bytes(body)


def _form(request: ProbeRequest) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for name, value in (request.fields or {}).items():
        form.add_field(name, value)
    form.add_field("file", request.file, filename="silence.wav", content_type="audio/wav")
    return form


def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s)
