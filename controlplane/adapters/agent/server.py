"""The node agent's HTTP interface: /metrics in DCGM's names, /healthz, /v1/gpus. Reads on request, keeps nothing."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Final

from aiohttp import web

from controlplane.adapters.agent import DEFAULT_PORT
from controlplane.adapters.gpu.check import gpu_problems
from controlplane.adapters.gpu.exposition import render
from controlplane.adapters.gpu.source import GpuReader
from controlplane.domain.telemetry import NodeSample
from controlplane.kernel.errors import QuarterdeckError

_REQUEST_BYTES_MAX: Final = 1024
"""No request to the agent has a body."""
_SHUTDOWN_S: Final = 2.0
"""A reading in flight may end; it is bounded by its own deadline of the same length."""
_UNAVAILABLE: Final = 503

METRICS_PATH: Final = "/metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What the agent says of itself."""

    node: str
    """Value of the label Hostname."""
    expected_gpus: int | None = None
    """/healthz fails when another number answers; None: any number but zero is right."""


class _Agent:
    def __init__(self, reader: GpuReader, options: AgentOptions) -> None:
        self._reader = reader
        self._options = options

    def app(self) -> web.Application:
        app = web.Application(client_max_size=_REQUEST_BYTES_MAX)
        app.router.add_get(METRICS_PATH, self._metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/v1/gpus", self._gpus)
        return app

    async def _metrics(self, _request: web.Request) -> web.Response:
        sample = await self._read()
        if isinstance(sample, str):
            return _sentence(sample)
        body = render(sample.gpus, hostname=self._options.node, cpu_utilization=sample.cpu_utilization)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _health(self, _request: web.Request) -> web.Response:
        sample = await self._read()
        if isinstance(sample, str):
            return _sentence(sample)
        problems = gpu_problems(sample.gpus, expected=self._options.expected_gpus)
        if problems:
            return _sentence("\n".join(problems))
        return web.Response(text=f"{self._options.node}: {len(sample.gpus)} GPUs are fit\n")

    async def _gpus(self, _request: web.Request) -> web.Response:
        sample = await self._read()
        if isinstance(sample, str):
            return web.json_response({"detail": sample}, status=_UNAVAILABLE)
        gpus = [asdict(gpu) for gpu in sample.gpus]
        return web.json_response({"node": self._options.node, "at": sample.at.isoformat(), "gpus": gpus}, dumps=_dumps)

    async def _read(self) -> NodeSample | str:
        """The reading, or why there is none."""
        try:
            return await self._reader.read()
        except QuarterdeckError as error:
            return str(error)


def _sentence(text: str) -> web.Response:
    return web.Response(text=f"{text}\n", status=_UNAVAILABLE)


def _dumps(value: object) -> str:
    return json.dumps(value, allow_nan=False)


@asynccontextmanager
async def serve_agent(
    reader: GpuReader, options: AgentOptions, *, host: str = "127.0.0.1", port: int = DEFAULT_PORT
) -> AsyncIterator[int]:
    """Serve until the context ends; yields the port (useful with port 0). OSError when it is taken."""
    runner = web.AppRunner(_Agent(reader, options).app(), access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound: int = runner.addresses[0][1]
        yield bound
    finally:
        await runner.cleanup()
