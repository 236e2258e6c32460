"""A gateway of one's own and tiny replicas, for tests on the real HAProxy."""

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from controlplane.adapters.haproxy.driver import HaproxyGateway, KeySource
from controlplane.adapters.haproxy.places import GatewayPaths
from controlplane.adapters.haproxy.runtime import ask
from controlplane.adapters.haproxy.traffic import HaproxyTraffic
from controlplane.adapters.system import SystemClock
from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.secret import SecretRef
from controlplane.domain.site import GatewaySpec
from controlplane.gateway.model import RouteTable
from controlplane.gateway.ports import Applied
from controlplane.gateway.table import build_route_table
from controlplane.kernel.errors import TerminalError
from controlplane.testing.builders import make_deployment, make_replica

DEADLINE_S: Final = 15.0
"""For anything here that should happen within a second, on a busy machine."""

type Json = dict[str, object]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Replica:
    """Answers any POST: with JSON about the request, or with `?tokens=N&pause=S` as a stream of N events."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.requests: list[Json] = []
        self.open = 0
        self.open_max = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def hold_open(self) -> None:
        """Before a stream's end; for replicas that decide when."""

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        try:
            body = await request.read()
            headers = {name.lower(): value for name, value in request.headers.items()}
            seen: Json = {"replica": self.name, "bytes": len(body), "path": request.path, "headers": headers}
            self.requests.append({**seen, "body": body})
            tokens = int(request.query.get("tokens", 0))
            pause_s = float(request.query.get("pause", 0))
            if not tokens:
                await asyncio.sleep(pause_s)
                return web.json_response(seen, status=int(request.query.get("status", 200)))
            return await self._stream(request, tokens, pause_s)
        finally:
            self.open -= 1

    async def _stream(self, request: web.Request, tokens: int, pause_s: float) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Replica": self.name})
        await response.prepare(request)
        for number in range(tokens):
            await response.write(f"data: {number}\n\n".encode())
            await asyncio.sleep(pause_s)
        await self.hold_open()
        await response.write(b"data: [DONE]\n\n")
        return response


class ProcessReplica:
    """A replica in a process of its own, which can be killed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        root = str(Path(__file__).parent.parent.parent)
        self._process = subprocess.Popen(  # noqa: ASYNC220 - a fork; nothing else runs in this loop that minds
            [sys.executable, __file__, self.name, str(self.port)], env={**os.environ, "PYTHONPATH": root}
        )
        await eventually(lambda: _listens(self.port))

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def stop(self) -> None:
        self.kill()


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        decoded: Json = json.loads(self.body)
        return decoded

    @property
    def error_code(self) -> object:
        error = self.json["error"]
        assert isinstance(error, dict)
        return error["code"]

    @property
    def whole_stream(self) -> bool:
        return self.status == 200 and self.body.endswith(b"data: [DONE]\n\n")


@dataclass(slots=True, kw_only=True)
class Lab:
    """A gateway on a free port, and what it should look like: `ready` and `draining` replicas by deployment."""

    state_dir: Path
    spec: GatewaySpec
    session: aiohttp.ClientSession
    key_source: KeySource
    deployments: tuple[str, ...] = ("chat", "embed")
    ready: dict[str, list[int]] = field(default_factory=dict)
    draining: dict[str, list[int]] = field(default_factory=dict)
    replicas: list[Replica | ProcessReplica] = field(default_factory=list)
    gateway: HaproxyGateway = field(init=False)

    def __post_init__(self) -> None:
        self.restart_control_plane()

    @property
    def url(self) -> str:
        return f"http://{self.spec.host}:{self.spec.port}"

    @property
    def paths(self) -> GatewayPaths:
        return GatewayPaths.under(self.state_dir)

    @property
    def traffic(self) -> HaproxyTraffic:
        return HaproxyTraffic(self.state_dir)

    def restart_control_plane(self) -> None:
        """Forget all that the driver remembers."""
        self.gateway = HaproxyGateway(
            state_dir=self.state_dir,
            site_mark=f"test:{self.state_dir}",
            clock=SystemClock(),
            key_source=self.key_source,
            stop_grace=timedelta(seconds=3),
        )

    def table(self) -> RouteTable:
        deployments = [make_deployment(name, replicas_min=0) for name in self.deployments]
        rows = []
        for phase, ports in ((ReplicaPhase.READY, self.ready), (ReplicaPhase.DRAINING, self.draining)):
            for name, each in ports.items():
                rows += [make_replica(name, port, port=port, phase=phase) for port in each]
        return build_route_table(deployments, rows, self.spec)

    async def replica(self, name: str) -> Replica:
        replica = Replica(name)
        await replica.start()
        self.replicas.append(replica)
        return replica

    async def process_replica(self, name: str) -> ProcessReplica:
        replica = ProcessReplica(name)
        await replica.start()
        self.replicas.append(replica)
        return replica

    async def converge(self) -> Applied:
        return await self.gateway.converge(self.table())

    async def settle(self) -> None:
        """Converge until nothing is left to do and every ready server is up."""

        async def settled() -> bool:
            applied = await self.converge()
            servers = (await self.gateway.sample()).servers
            ports = [port for each in self.ready.values() for port in each]
            up = all(
                (server := servers.get(f"127.0.0.1:{port}")) is not None and server.state.startswith("UP")
                for port in ports
            )
            return up and not applied.changed and not applied.pending

        await eventually(settled)

    async def serve(self, deployment: str, *replicas: Replica | ProcessReplica) -> None:
        self.ready[deployment] = [replica.port for replica in replicas]
        await self.settle()

    async def post(
        self,
        body: bytes | str | io.BytesIO | aiohttp.FormData | AsyncIterator[bytes],
        *,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> Answer:
        if not isinstance(body, aiohttp.FormData):
            headers = {"Content-Type": "application/json", **(headers or {})}
        if isinstance(body, bytes | str):
            body = io.BytesIO(body if isinstance(body, bytes) else body.encode())
        async with (session or self.session).post(f"{self.url}{path}", data=body, headers=headers) as response:
            return Answer(response.status, response.headers, await response.read())

    async def ask_model(self, model: str, *, query: str = "") -> Answer:
        return await self.post(json.dumps({"model": model}), path=f"/v1/chat/completions{query}")

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        async with self.session.get(f"{self.url}{path}", headers=headers) as response:
            return Answer(response.status, response.headers, await response.read())

    async def command(self, line: str) -> str:
        return await ask(self.paths.admin_socket, line)

    def pid_of(self, role: str) -> int:
        """The leader's."""
        from controlplane.adapters.haproxy.processes import leaders  # noqa: PLC0415 - only some tests kill

        (process,) = leaders(f"test:{self.state_dir}", role)
        return int(process.pid)


@contextlib.asynccontextmanager
async def open_lab(spec: GatewaySpec | None = None, keys: Mapping[str, str] | None = None) -> AsyncIterator[Lab]:
    """In a state directory with a short path, since sockets lie in it; all of it gone at the end."""

    def key_source(reference: SecretRef) -> str:
        try:
            return (keys or {})[reference.name]
        except KeyError as error:
            raise TerminalError(f"there is no {reference}") from error

    state_dir = Path(tempfile.mkdtemp(prefix="qd-gateway-"))
    spec = replace(spec or GatewaySpec(), port=free_port())
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        lab = Lab(state_dir=state_dir, spec=spec, session=session, key_source=key_source)
        try:
            yield lab
        finally:
            await lab.gateway.stop()
            for replica in lab.replicas:
                await replica.stop()
            shutil.rmtree(state_dir, ignore_errors=True)


async def eventually(condition: object, *, within_s: float = DEADLINE_S) -> None:
    """Until `condition()`, plain or awaitable, is true."""
    assert callable(condition)
    end = time.monotonic() + within_s
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert time.monotonic() < end, f"not within {within_s:g} s"
        await asyncio.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def _main(arguments: Sequence[str]) -> None:
    replica = Replica(arguments[0])
    replica.port = int(arguments[1])
    await replica.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
