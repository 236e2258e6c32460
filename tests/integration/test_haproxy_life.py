"""The real HAProxy through its life: drains, kills, reloads, restarts, with requests open all the while."""

import asyncio
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import psutil
import pytest

from controlplane.adapters.haproxy.processes import leaders
from controlplane.adapters.haproxy.runtime import ask
from controlplane.gateway.ports import Applied
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.replicas.ports import TrafficSeen
from tests.integration.gateway_lab import Answer, Lab, eventually, free_port, open_lab

STREAM = "?tokens=8&pause=0.05"


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with open_lab() as lab:
        yield lab


class Load:
    """Callers that ask again and again, each over a connection that it keeps, until told to stop."""

    def __init__(self, lab: Lab, *, callers: int, model: str = "chat", query: str = STREAM) -> None:
        self.answers: list[Answer] = []
        self.broken: list[str] = []
        self._lab = lab
        self._model = model
        self._query = query
        self._stopping = False
        self._tasks = [asyncio.create_task(self._call_on()) for _ in range(callers)]

    async def _call_on(self) -> None:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
            body = json.dumps({"model": self._model})
            while not self._stopping:
                try:
                    path = f"/v1/chat/completions{self._query}"
                    self.answers.append(await self._lab.post(body, path=path, session=session))
                except aiohttp.ClientError as error:
                    self.broken.append(repr(error))

    async def more(self, answers: int) -> None:
        wanted = len(self.answers) + answers
        await eventually(lambda: len(self.answers) >= wanted)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    @property
    def failed(self) -> list[str]:
        return self.broken + [f"{a.status} {a.body[-60:]!r}" for a in self.answers if not a.whole_stream]

    @property
    def by_replica(self) -> Counter[str]:
        return Counter(answer.headers["X-Replica"] for answer in self.answers)


async def test_a_drain_under_load_fails_nothing(lab: Lab) -> None:
    first, second, third = [await lab.replica(f"r{number}") for number in range(3)]
    await lab.serve("chat", first, second)
    load = Load(lab, callers=30)
    await load.more(60)
    lab.ready, lab.draining = {"chat": [second.port]}, {"chat": [first.port]}
    await lab.settle()

    async def drained() -> bool:
        seen = await lab.traffic.servers()
        assert isinstance(seen, TrafficSeen)
        server = seen.servers[f"127.0.0.1:{first.port}"]
        return server.state == "DRAIN" and server.in_flight == 0

    await eventually(drained)
    assert first.open == 0
    await first.stop()
    lab.draining = {}
    await lab.serve("chat", second, third)
    await load.more(60)
    await load.stop()
    assert load.failed == []
    assert set(load.by_replica) == {"r0", "r1", "r2"}


async def test_a_killed_replica_breaks_only_its_own_streams(lab: Lab) -> None:
    survivor, victim = await lab.replica("survivor"), await lab.process_replica("victim")
    await lab.serve("chat", survivor, victim)
    load = Load(lab, callers=20)
    await load.more(40)
    victim.kill()
    await load.more(100)
    await load.stop()
    assert len(load.failed) <= 20 // 2 + 1, "at most those open on the victim"
    statuses = {answer.status for answer in load.answers}
    assert statuses <= {200, 502}, f"502: the victim had the request and had not begun to answer; found {statuses}"


async def test_the_only_replica_killed_new_requests_wait_for_the_next(lab: Lab) -> None:
    victim = await lab.process_replica("victim")
    await lab.serve("chat", victim)
    victim.kill()
    waiting = [asyncio.create_task(lab.ask_model("chat", query=STREAM)) for _ in range(10)]
    heir = await lab.replica("heir")
    await lab.serve("chat", heir)
    answers = await asyncio.gather(*waiting)
    assert all(answer.whole_stream for answer in answers)
    assert {answer.headers["X-Replica"] for answer in answers} == {"heir"}


async def test_a_reload_with_open_streams_breaks_none(lab: Lab) -> None:
    await lab.serve("chat", await lab.replica("r0"), await lab.replica("r1"))
    load = Load(lab, callers=30)
    for number in range(3):
        await load.more(60)
        lab.deployments = (*lab.deployments, f"added-{number}")
        assert (await lab.converge()).reloaded
    await load.more(60)
    await load.stop()
    assert load.failed == []
    assert set(load.by_replica) == {"r0", "r1"}


async def test_a_stream_older_than_the_reload_still_counts_as_in_flight(lab: Lab) -> None:
    replica = await lab.replica("r0")
    await lab.serve("chat", replica)
    stream = asyncio.create_task(lab.ask_model("chat", query="?tokens=30&pause=0.05"))
    await eventually(lambda: replica.open == 1)
    lab.deployments = ("chat",)
    assert (await lab.converge()).reloaded
    lab.ready, lab.draining = {}, {"chat": [replica.port]}
    await lab.converge()
    seen = await lab.traffic.servers()
    assert isinstance(seen, TrafficSeen)
    server = seen.servers[f"127.0.0.1:{replica.port}"]
    assert (server.state, server.in_flight) == ("DRAIN", 1)
    assert (await stream).whole_stream


async def test_haproxy_killed_comes_back_with_the_servers_of_now(lab: Lab) -> None:
    first, second = await lab.replica("r0"), await lab.replica("r1")
    await lab.serve("chat", first)
    await lab.serve("chat", first, second)
    lab.ready = {"chat": [second.port]}
    await lab.settle()
    assert f"127.0.0.1:{second.port} " in lab.paths.config.read_text()
    assert f"127.0.0.1:{first.port} " not in lab.paths.config.read_text(), "the file follows without a reload"
    master = lab.pid_of("gateway")
    workers = psutil.Process(master).children()
    os.kill(master, signal.SIGKILL)
    await eventually(lambda: not any(_lives(worker) for worker in workers))
    assert (await lab.converge()).started
    await lab.settle()
    assert (await lab.ask_model("chat")).json["replica"] == "r1"


async def test_a_killed_worker_takes_the_master_along(lab: Lab) -> None:
    await lab.serve("chat", await lab.replica("r0"))
    (worker,) = psutil.Process(lab.pid_of("gateway")).children()
    worker.kill()
    await eventually(lambda: not leaders(f"test:{lab.state_dir}", "gateway"))
    assert (await lab.converge()).started
    assert (await lab.ask_model("chat")).json["replica"] == "r0"


async def test_a_killed_control_plane_finds_its_gateway_again(lab: Lab) -> None:
    await lab.serve("chat", await lab.replica("r0"))
    before = (lab.pid_of("gateway"), lab.pid_of("activator"))
    load = Load(lab, callers=5)
    await load.more(10)
    lab.restart_control_plane()
    applied = await lab.converge()
    await load.more(10)
    await load.stop()
    assert applied == Applied(actions=())
    assert (lab.pid_of("gateway"), lab.pid_of("activator")) == before
    assert load.failed == []


async def test_lost_sockets_are_not_two_gateways(lab: Lab) -> None:
    await lab.serve("chat", await lab.replica("r0"))
    for file in lab.paths.run.glob("*.sock"):
        file.unlink()
    assert (await lab.converge()).started
    await lab.settle()
    await eventually(lambda: len(leaders(f"test:{lab.state_dir}", "gateway")) == 1)
    assert lab.pid_of("activator")
    assert (await lab.ask_model("chat")).json["replica"] == "r0"


async def test_a_taken_port_is_said_and_not_shared(lab: Lab) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", lab.spec.port))
        other.listen()
        with pytest.raises(RetryableError, match=f"did not start on 127.0.0.1:{lab.spec.port}.*in use"):
            await lab.converge()
    assert (await lab.converge()).started


async def test_a_second_gateway_cannot_take_the_port(lab: Lab) -> None:
    await lab.converge()
    async with open_lab() as second:
        second.spec = replace(second.spec, port=lab.spec.port)
        second.restart_control_plane()
        with pytest.raises(RetryableError, match="in use"):
            await second.converge()


async def test_another_port_is_a_reload(lab: Lab) -> None:
    await lab.serve("chat", await lab.replica("r0"))
    lab.spec = replace(lab.spec, port=free_port())
    assert (await lab.converge()).reloaded
    assert (await lab.ask_model("chat")).json["replica"] == "r0"


async def test_a_refused_reload_leaves_the_running_one_alone(lab: Lab) -> None:
    await lab.serve("chat", await lab.replica("r0"))
    good, config = lab.spec, lab.paths.config.read_text()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        lab.spec = replace(good, port=other.getsockname()[1])
        with pytest.raises(RetryableError, match="goes on as it was"):
            await lab.converge()
    lab.spec = good
    assert lab.paths.config.read_text() == config
    assert (await lab.ask_model("chat")).json["replica"] == "r0"
    await lab.settle()


async def test_a_wrong_configuration_is_not_put_in_place(lab: Lab) -> None:
    await lab.serve("chat", await lab.replica("r0"))
    config = lab.paths.config.read_text()
    lab.spec = replace(lab.spec, host="not an address")
    with pytest.raises(TerminalError, match="is not valid"):
        await lab.converge()
    lab.spec = replace(lab.spec, host="127.0.0.1")
    assert lab.paths.config.read_text() == config
    assert (await lab.ask_model("chat")).json["replica"] == "r0"


async def test_stale_files_go_with_a_reload(lab: Lab) -> None:
    await lab.converge()
    before = {file.name for file in lab.paths.run.glob("models-*")}
    lab.deployments = ("chat", "embed", "third")
    await lab.converge()
    after = {file.name for file in lab.paths.run.glob("models-*")}
    assert not before & after
    assert len(after) == 2


async def test_requests_queue_in_the_gateway_within_the_replicas_limit(lab: Lab) -> None:
    replica = await lab.replica("r0")
    await lab.serve("chat", replica)
    table = lab.table()
    narrow = tuple(
        replace(route, servers=tuple(replace(server, maxconn=3) for server in route.servers)) for route in table.routes
    )
    await lab.gateway.converge(replace(table, routes=narrow))
    asking = [asyncio.create_task(lab.ask_model("chat", query="?tokens=4&pause=0.05")) for _ in range(12)]

    async def queueing() -> bool:
        route = next(iter((await lab.gateway.sample()).routes.values()))
        return route.queued > 0 and route.in_flight == 3

    await eventually(queueing)
    answers = await asyncio.gather(*asking)
    assert all(answer.whole_stream for answer in answers)
    assert replica.open_max == 3


async def test_the_queue_has_a_deadline(lab: Lab) -> None:
    lab.spec = replace(lab.spec, queue_timeout=lab.spec.queue_timeout / 200)
    replica = await lab.replica("r0")
    await lab.serve("chat", replica)
    table = lab.table()
    one = tuple(
        replace(route, servers=tuple(replace(server, maxconn=1) for server in route.servers)) for route in table.routes
    )
    await lab.gateway.converge(replace(table, routes=one))
    first = asyncio.create_task(lab.ask_model("chat", query="?tokens=30&pause=0.05"))
    await eventually(lambda: replica.open == 1)
    late = await lab.ask_model("chat")
    assert (late.status, late.error_code, late.headers["Retry-After"]) == (503, "service_unavailable", "5")
    assert (await first).whole_stream


async def test_a_caller_who_hangs_up_ends_the_generation(lab: Lab) -> None:
    replica = await lab.replica("r0")
    await lab.serve("chat", replica)
    asking = asyncio.create_task(lab.ask_model("chat", query="?tokens=1000&pause=0.05"))
    await eventually(lambda: replica.open == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: replica.open == 0)


async def test_a_post_is_not_repeated_when_the_replica_breaks_off(lab: Lab) -> None:
    breaking = await lab.replica("breaking")
    await lab.serve("chat", breaking)
    received = 0

    async def read_and_drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        head = await reader.read(65536)
        if head.startswith(b"POST"):
            received += 1
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(read_and_drop, "127.0.0.1", 0)
    async with server:
        lab.ready = {"chat": [server.sockets[0].getsockname()[1]]}
        await lab.settle()
        answer = await lab.ask_model("chat")
    assert (answer.status, answer.error_code) == (502, "replica_failed")
    assert received == 1


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_silence_before_the_first_token_is_not_the_callers(lab: Lab) -> None:
    """`timeout client` does not run while the caller waits, or a long prefill would be cut off."""
    await lab.serve("chat", await lab.replica("r0"))
    await _reload_with(lab, "timeout client 60000ms", "timeout client 300ms")
    assert (await lab.ask_model("chat", query="?pause=1")).status == 200


async def test_a_body_that_does_not_come_is_408(lab: Lab) -> None:
    await lab.serve("chat", await lab.replica("r0"))
    await _reload_with(lab, "wait-for-body time 30000ms", "wait-for-body time 300ms")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    answer = await _raw(lab, head)
    assert answer.startswith("HTTP/1.1 408")
    assert '"code": "request_timeout"' in answer


@pytest.mark.parametrize(
    "head",
    [
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\nContent-Length: 2\r\n\r\n{}",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{}",
        "POST /v1/chat completions HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_ambiguous_requests_are_refused(lab: Lab, head: str) -> None:
    replica = await lab.replica("r0")
    await lab.serve("chat", replica)
    assert (await _raw(lab, head)).startswith("HTTP/1.1 400")
    assert replica.requests == []


async def _reload_with(lab: Lab, before: str, after: str) -> None:
    config = lab.paths.config.read_text()
    assert before in config
    lab.paths.config.write_text(config.replace(before, after))
    assert (await ask(lab.paths.master_socket, "reload")).startswith("Success=1")


async def _raw(lab: Lab, text: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.spec.port)
    writer.write(text.encode())
    await writer.drain()
    answer = (await asyncio.wait_for(reader.read(65536), 10)).decode()
    writer.close()
    return answer
