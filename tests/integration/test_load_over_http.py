"""The load against a real HTTP server: streams, embeddings, and each way in which an answer can fail."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from controlplane.simulation.load.model import Ending, LoadConfig, ModelShare, Objective, Task
from controlplane.simulation.load.runner import run_load


def chunk(text: str, reason: str | None = None) -> bytes:
    event = {"choices": [{"index": 0, "text": text, "finish_reason": reason}], "usage": None}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def usage(prompt: int, output: int) -> bytes:
    counted = {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}}
    return b"data: " + json.dumps(counted).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def completions(request: web.Request) -> web.StreamResponse:
    """The model's name says how it behaves."""
    body = await request.json()
    request.app["seen"].append(body)
    model, tokens = body["model"], body["max_tokens"]
    if model == "refused":
        return web.json_response({"error": {"message": "no replica is ready"}}, status=503)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if model == "hangs":
        await asyncio.sleep(30.0)
    for _ in range(tokens - 1):
        await response.write(chunk("abc "))
    if model == "reset":
        assert request.transport is not None
        request.transport.abort()
        return response
    if model != "cut":
        await response.write(chunk("end ", "abort" if model == "aborts" else "length"))
        await response.write(usage(len(body["prompt"]) // 4, tokens))
        # The end mark in two pieces: a client must not depend on where the network cuts.
        await response.write(DONE[:7])
        await response.write(DONE[7:])
    return response


async def embeddings(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    request.app["seen"].append(body)
    answer = {
        "data": [{"index": 0, "embedding": [0.1] * 64}],
        "usage": {"prompt_tokens": len(body["input"]) // 4, "total_tokens": 1},
    }
    return web.json_response(answer)


async def deployments(request: web.Request) -> web.Response:
    slo = {"ttft": {"percentile": 0.95, "limit_s": 5.0}, "inter_token": None, "end_to_end": None}
    return web.json_response({"items": [{"name": "chat", "served_names": ["chat"], "slo": slo}]})


async def fleet_usage(request: web.Request) -> web.Response:
    assert {"since", "until"} <= request.query.keys()
    return web.json_response({"gpu_hours": 1.5, "gpu_hours_static_peak": 3.0, "scale_events": 12})


class Server:
    def __init__(self, url: str, app: web.Application) -> None:
        self.url = url
        self.seen = app["seen"]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    app = web.Application(client_max_size=1 << 24)
    app["seen"] = []
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_get("/api/v1/deployments", deployments)
    app.router.add_get("/api/v1/usage", fleet_usage)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
    await runner.cleanup()


def config(server: Server, model: str = "chat", *, task: Task = Task.GENERATE) -> LoadConfig:
    return LoadConfig(
        models=(ModelShare(name=model, weight=1.0, task=task),),
        gateway_url=server.url,
        speed=1000.0,
        requests_max=20,
        request_timeout_s=20.0,
        objective=Objective(ttft_s=5.0, inter_token_s=1.0),
    )


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_streams_are_read_to_their_end(server: Server) -> None:
    report = await run_load(config(server))
    total = report.total
    assert (total.sent, total.ok, total.failed, report.ending) == (20, 20, 0, Ending.REQUESTS)
    assert total.output_tokens == sum(body["max_tokens"] for body in server.seen)
    assert total.prompt_tokens == sum(len(body["prompt"]) // 4 for body in server.seen)
    assert total.attainment.all_met == 1.0
    assert total.ttft_s is not None
    assert 0.0 < total.ttft_s.p50 <= total.ttft_s.p99 <= total.ttft_s.max
    assert all(body["ignore_eos"] and body["stream_options"]["include_usage"] for body in server.seen)
    prompts = [body["prompt"][:64] for body in server.seen]
    assert len(set(prompts)) == len(prompts)
    json.dumps(report.to_json())


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("refused", "http 503"),
        ("cut", "broken"),
        ("reset", "broken"),
        ("aborts", "aborted"),
        ("hangs", "timeout"),
    ],
)
@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_each_failure_has_its_kind(server: Server, model: str, label: str) -> None:
    made = replace(config(server, model), requests_max=3, request_timeout_s=1.0 if model == "hangs" else 20.0)
    report = await run_load(made)
    assert dict(report.total.failures) == {label: 3}
    assert report.total.attainment.all_met == 0.0


async def test_nobody_listens(unused_tcp_port_factory: Callable[[], int]) -> None:
    made = LoadConfig(
        models=(ModelShare(name="chat", weight=1.0),),
        gateway_url=f"http://127.0.0.1:{unused_tcp_port_factory()}",
        control_plane_url=f"http://127.0.0.1:{unused_tcp_port_factory()}",
        speed=1000.0,
        requests_max=2,
    )
    report = await run_load(made)
    assert dict(report.total.failures) == {"connect": 2}
    assert report.fleet is None


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_embedding_models_are_asked_for_embeddings(server: Server) -> None:
    report = await run_load(config(server, "bge", task=Task.EMBED))
    assert (report.total.ok, report.total.output_tokens) == (20, 0)
    assert report.total.inter_token_s is None
    assert max(len(body["input"]) // 4 for body in server.seen) <= 512


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_the_control_plane_states_the_slo_and_the_bill(server: Server) -> None:
    made = replace(config(server), control_plane_url=server.url, objective=Objective())
    report = await run_load(made)
    assert report.objectives["chat"] == Objective(ttft_s=5.0)
    assert report.fleet is not None
    assert (report.fleet.scale_events, report.fleet.gpu_hours_static_peak) == (12, 3.0)


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_the_module_runs_as_a_process_of_its_own(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    arguments = ["--gateway", server.url, "--model", "chat", "--speed", "100", "--max-requests", "10"]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "controlplane.simulation.load", *arguments, "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["total"]["ok"] == 10
    assert "chat" in done.stderr


async def test_bad_options_end_with_two_and_a_sentence() -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "controlplane.simulation.load", "--model", "chat", "--trace", "no-such.parquet"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr
