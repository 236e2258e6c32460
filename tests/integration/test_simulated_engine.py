"""The simulated engine as a process: start, real sockets, bounds, signals, exit codes, failure behaviours."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import pytest

DEADLINE_S: Final = 20.0
SLOW: Final = ("--sim-profile", '{"step_base_s": 0.02}')
"""50 tokens a second: long enough for a signal to find requests in flight."""


@dataclass
class Engine:
    process: asyncio.subprocess.Process
    port: int
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.text()

    async def post(self, path: str, body: object) -> tuple[int, str]:
        async with self.session.post(self.url + path, json=body) as response:
            return response.status, await response.text()

    async def complete(self, *, max_tokens: int = 5, stream: bool = False) -> tuple[int, str]:
        asked = {"model": "m", "prompt": "x" * 40, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream}
        return await self.post("/v1/completions", asked)

    async def metric(self, name: str) -> float:
        _, text = await self.get("/metrics")
        match = re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert match is not None, name
        return float(match[1])

    async def running(self, count: int) -> None:
        async def there() -> bool:
            return (
                await self.metric("vllm:num_requests_running") + await self.metric("vllm:num_requests_waiting") >= count
            )

        await until(there)

    async def healthy(self) -> None:
        async def answers() -> bool:
            assert self.process.returncode is None, "it ended before it was healthy"
            with suppress(aiohttp.ClientConnectorError):
                return (await self.get("/health"))[0] == 200
            return False

        await until(answers)

    async def exit_code(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


def read(path: Path) -> dict[str, object]:
    state: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return state


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@asynccontextmanager
async def engine(
    *argv: str, wait: bool = True, port: int | None = None, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Engine]:
    port = port or free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "controlplane.simulation.engine", "m", "--host", "127.0.0.1", "--port", str(port)),
        *argv,
        env=dict(os.environ) | dict(environ or {}),
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S)) as session:
        started = Engine(process, port, session)
        try:
            if wait:
                await started.healthy()
            yield started
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def raw(port: int, request: bytes) -> bytes:
    """Everything the server says to these bytes until it closes or falls silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = b""
    try:
        writer.write(request)
        with suppress(TimeoutError, ConnectionResetError):
            while piece := await asyncio.wait_for(reader.read(65_536), timeout=1.0):
                said += piece
    finally:
        writer.close()
    return said


# serving


async def test_it_serves_over_http() -> None:
    async with engine("--served-model-name", "m", "other") as served:
        status, text = await served.complete(max_tokens=7)
        assert status == 200
        assert json.loads(text)["usage"]["completion_tokens"] == 7
        status, text = await served.complete(max_tokens=7, stream=True)
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]).count(" ") == 7
        models = json.loads((await served.get("/v1/models"))[1])
        assert [card["id"] for card in models["data"]] == ["m", "other"]
        assert await served.metric("vllm:generation_tokens_total") == 14
        start = await served.metric("process_start_time_seconds")
        assert abs(time.time() - start) < DEADLINE_S


async def test_many_streams_at_once_are_all_whole() -> None:
    async with engine() as served:
        answers = await asyncio.gather(*(served.complete(max_tokens=100, stream=True) for _ in range(60)))
        for status, text in answers:
            assert status == 200
            events = [json.loads(line[6:]) for line in text.split("\n\n")[:-2]]
            assert sum(len(event["choices"][0]["text"]) for event in events) == 400
        assert await served.metric("vllm:num_requests_running") == 0


async def test_a_client_that_leaves_frees_its_place() -> None:
    async with engine(*SLOW) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        body = b'{"prompt": "hello", "max_tokens": 10000, "ignore_eos": true, "stream": true}'
        writer.write(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await served.running(1)
        writer.close()

        async def free() -> bool:
            return await served.metric("vllm:num_requests_running") == 0

        await until(free)


async def test_the_servers_bounds() -> None:
    async with engine() as served:
        port = served.port
        assert (await raw(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        long_header = b"GET /health HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n"
        assert (await raw(port, long_header)).startswith(b"HTTP/1.1 431 ")
        endless = b"GET /health HTTP/1.1\r\nx: " + b"y" * 400_000
        assert (await raw(port, endless)).startswith(b"HTTP/1.1 431 ")
        many = b"GET /health HTTP/1.1\r\n" + b"".join(b"h%d: 1\r\n" % n for n in range(200)) + b"\r\n"
        assert (await raw(port, many)).startswith(b"HTTP/1.1 431 ")
        huge = b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n"
        assert (await raw(port, huge)).startswith(b"HTTP/1.1 413 ")
        assert (await served.get("/health"))[0] == 200


async def test_http_1_0_pipelining_chunked_bodies_and_expectations() -> None:
    async with engine() as served:
        port = served.port
        assert b"connection: close" in await raw(port, b"GET /ping HTTP/1.0\r\n\r\n")
        two = await raw(port, b"GET /version HTTP/1.1\r\n\r\nGET /nowhere HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+)", two) == [b"200", b"404"]
        body = b'{"prompt": "hi", "max_tokens": 2, "ignore_eos": true, "stream": true}'
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        head = b"POST /v1/completions HTTP/1.1\r\nconnection: close\r\n"
        chunked = await raw(port, head + b"transfer-encoding: chunked\r\n\r\n" + chunks)
        assert chunked.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        expecting = await raw(port, head + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        assert expecting.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
        old = await raw(port, b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        assert b"transfer-encoding" not in old
        assert old.endswith(b"data: [DONE]\n\n")


# start


async def test_the_port_refuses_until_start_up_is_over() -> None:
    async with engine("--sim-cold-start", "0.5", wait=False) as served:
        before = time.monotonic()
        refused = 0
        while time.monotonic() - before < 0.3:
            with suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", served.port)
                writer.close()
                pytest.fail("it listened during its cold start")
            refused += 1
            await asyncio.sleep(0.05)
        assert refused
        await served.healthy()


async def test_a_taken_port_ends_with_one() -> None:
    async with engine() as first, engine(port=first.port, wait=False) as second:
        assert await second.exit_code() == 1


async def test_bad_options_end_with_two() -> None:
    async with engine("--sim-fault", "nonsense", wait=False) as served:
        assert await served.exit_code() == 2


async def test_gpu_files_live_as_long_as_the_engine(tmp_path: Path) -> None:
    gpus = {"QUARTERDECK_NODE": "n1", "QUARTERDECK_GPUS": "2,3", "QUARTERDECK_REPLICA": "qd-m-0a1b2c3d-0"}
    async with engine("--sim-gpu-state-dir", str(tmp_path), "--sim-gpu-memory-bytes", "1000", environ=gpus) as served:
        paths = [tmp_path / "n1.2.json", tmp_path / "n1.3.json"]

        async def loaded() -> bool:
            return read(paths[0])["memory_used_bytes"] == 920

        await until(loaded)
        state = read(paths[1])
        assert (state["pid"], state["replica"]) == (served.process.pid, "qd-m-0a1b2c3d-0")
        served.process.terminate()
        assert await served.exit_code() == 0
        assert names(tmp_path) == []


# the end


async def test_sigterm_when_idle_ends_with_zero() -> None:
    async with engine() as served:
        served.process.terminate()
        assert await served.exit_code() == 0


async def test_sigterm_without_a_timeout_aborts_what_is_in_flight() -> None:
    async with engine(*SLOW) as served:
        asked = [asyncio.create_task(served.complete(max_tokens=5000, stream=stream)) for stream in (True, False)]
        await served.running(2)
        served.process.terminate()
        (_, streamed), (status, whole) = await asyncio.gather(*asked)
        assert '"finish_reason":"abort"' in streamed
        assert streamed.endswith("data: [DONE]\n\n")
        assert status == 200
        assert json.loads(whole)["choices"][0]["finish_reason"] == "abort"
        assert await served.exit_code() == 0


async def test_sigterm_with_a_timeout_finishes_running_and_queued_and_refuses_new() -> None:
    async with engine(*SLOW, "--shutdown-timeout", "30", "--max-num-seqs", "1") as served:
        asked = [asyncio.create_task(served.complete(max_tokens=150)) for _ in range(2)]
        await served.running(2)
        served.process.terminate()

        async def refused() -> bool:
            try:
                async with asyncio.timeout(0.2):  # one that came before the signal did would wait its turn
                    status, text = await served.complete()
            except TimeoutError:
                return False
            return status == 500 and "cannot schedule new futures after shutdown" in text

        await until(refused)
        assert (await served.get("/health"))[0] == 200
        assert await served.metric("vllm:num_requests_running") >= 0
        served.process.terminate()
        for status, text in await asyncio.gather(*asked):
            assert status == 200
            assert json.loads(text)["choices"][0]["finish_reason"] == "length"
        assert await served.exit_code() == 0


async def test_a_passed_shutdown_deadline_fails_what_is_left() -> None:
    async with engine(*SLOW, "--shutdown-timeout", "0.2") as served:
        asked = [asyncio.create_task(served.complete(max_tokens=5000, stream=stream)) for stream in (True, False)]
        await served.running(2)
        served.process.terminate()
        (_, streamed), (status, _) = await asyncio.gather(*asked)
        assert "[DONE]" not in streamed
        assert status == 500
        assert await served.exit_code() == 0


async def test_sigterm_during_start_up_ends_with_the_signals_code() -> None:
    async with engine("--sim-cold-start", "30", wait=False) as served:
        await started(served)
        served.process.terminate()
        assert await served.exit_code() == -signal.SIGTERM


async def test_a_lost_sigterm_needs_a_second_one() -> None:
    async with engine("--sim-cold-start", "1", "--sim-fault", "lost-sigterm", wait=False) as served:
        await started(served)
        served.process.terminate()
        await served.healthy()
        served.process.terminate()
        assert await served.exit_code() == 0


async def started(served: Engine) -> None:
    """Until SIGTERM is in the process's mask of caught signals."""
    status = Path(f"/proc/{served.process.pid}/status")

    async def caught() -> bool:
        match = re.search(r"^SigCgt:\s*([0-9a-f]+)", await asyncio.to_thread(status.read_text), re.MULTILINE)
        return match is not None and bool(int(match[1], 16) & (1 << (signal.SIGTERM - 1)))

    await until(caught)


# failure behaviours


async def test_abort_hang_stays_until_the_clients_give_up() -> None:
    async with engine(*SLOW, "--sim-fault", "abort-hang") as served:
        asked = asyncio.create_task(served.complete(max_tokens=5000))
        await served.running(1)
        served.process.terminate()
        done, _ = await asyncio.wait([asked], timeout=0.7)
        assert not done
        assert served.process.returncode is None
        asked.cancel()
        assert await served.exit_code() == 0


async def test_a_crash_ends_with_zero_in_the_middle_of_answers() -> None:
    async with engine(*SLOW, "--sim-fault", "crash=3") as served:
        asked = [asyncio.create_task(served.complete(max_tokens=5000)) for _ in range(2)]
        await served.running(2)
        with suppress(aiohttp.ClientError):
            await served.complete()
        assert await served.exit_code() == 0
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, aiohttp.ClientError)


async def test_a_crash_can_be_ordered() -> None:
    async with engine("--sim-fault-api") as served:
        with suppress(aiohttp.ClientError):
            await served.post("/sim/faults", {"name": "crash", "on": True})
        assert await served.exit_code() == 0


async def test_an_orphan_survives_its_leader_and_dies_with_the_group(tmp_path: Path) -> None:
    gpus = {"QUARTERDECK_NODE": "n1", "QUARTERDECK_GPUS": "0"}
    async with engine("--sim-fault", "orphan", "--sim-gpu-state-dir", str(tmp_path), environ=gpus) as served:
        leader = served.process.pid
        served.process.kill()
        await served.exit_code()
        with pytest.raises(aiohttp.ClientConnectorError):
            await served.get("/health")
        os.killpg(leader, 0)
        state = tmp_path / "n1.0.json"

        async def taken_over() -> bool:
            return read(state)["pid"] != leader

        await until(taken_over)
        os.killpg(leader, signal.SIGKILL)


async def test_an_orphan_goes_with_a_leader_that_ends_well() -> None:
    async with engine("--sim-fault", "orphan") as served:
        served.process.terminate()
        assert await served.exit_code() == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(served.process.pid, 0)
