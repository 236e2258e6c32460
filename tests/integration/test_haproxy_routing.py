"""Which backend a request reaches, by the `model` in its body, on the real HAProxy and activator."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from controlplane.domain.site import GatewaySpec
from controlplane.gateway import replies
from controlplane.gateway.render import BUFFER_BYTES
from controlplane.kernel.units import KIB, MIB
from tests.integration.gateway_lab import Lab, open_lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY_BYTES_MAX = 8 * MIB

SIZES = (1 * KIB, 60 * KIB, BUFFER_BYTES - 4 * KIB, BUFFER_BYTES, BUFFER_BYTES + 4 * KIB, 1 * MIB, BODY_BYTES_MAX)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lab() -> AsyncIterator[Lab]:
    async with open_lab(GatewaySpec(body_bytes_max=BODY_BYTES_MAX)) as lab:
        await lab.serve("chat", await lab.replica("chat-1"))
        await lab.serve("embed", await lab.replica("embed-1"))
        yield lab


def body_of(size_bytes: int, *, model: str, last: bool) -> bytes:
    """A chat request of exactly that size."""
    filler = {"messages": [{"role": "user", "content": ""}]}
    document = {**filler, "model": model} if last else {"model": model, **filler}
    room = size_bytes - len(json.dumps(document))
    filler["messages"][0]["content"] = "x" * room
    document = {**filler, "model": model} if last else {"model": model, **filler}
    encoded = json.dumps(document).encode()
    assert len(encoded) == size_bytes
    return encoded


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("last", [False, True], ids=["model-first", "model-last"])
@pytest.mark.parametrize(("model", "replica"), [("chat", "chat-1"), ("embed", "embed-1")])
async def test_any_size_any_place(lab: Lab, *, size_bytes: int, last: bool, model: str, replica: str) -> None:
    answer = await lab.post(body_of(size_bytes, model=model, last=last))
    assert (answer.status, answer.json["replica"], answer.json["bytes"]) == (200, replica, size_bytes)


@pytest.mark.parametrize("size_bytes", [1 * KIB, 60 * KIB, BUFFER_BYTES, 2 * MIB])
@pytest.mark.parametrize("last", [False, True], ids=["model-first", "model-last"])
async def test_chunked_bodies(lab: Lab, *, size_bytes: int, last: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        body = body_of(size_bytes, model="embed", last=last)
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    answer = await lab.post(chunks())
    assert (answer.status, answer.json["replica"], answer.json["bytes"]) == (200, "embed-1", size_bytes)


async def test_an_image_before_the_model(lab: Lab) -> None:
    image = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 4000).decode()
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": 'say {"model":"embed"}'}]
    body = json.dumps({"messages": [{"role": "user", "content": content}], "model": "chat"})
    answer = await lab.post(body)
    assert (answer.status, answer.json["replica"], answer.json["bytes"]) == (200, "chat-1", len(body))


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"chat"}',
        ' { "x" : 1 , "model" : "chat" } ',
        '{"\\u006dodel":"chat"}',
        '{"model":"\\u0063hat"}',
        '{"model":"ch\\u0061t","messages":[{"model":"embed"}]}',
        '{"messages":[{"model":"embed","content":"}{"}],"model":"chat"}',
        '{"metadata":{"model":"embed"},"model":"chat"}',
        '{"a":' + "[" * 40 + "]" * 40 + ',"model":"chat"}',
    ],
)
async def test_spellings_of_the_same_model(lab: Lab, body: str) -> None:
    answer = await lab.post(body)
    assert (answer.status, answer.json["replica"]) == (200, "chat-1")


@pytest.mark.parametrize(("size_bytes", "replica"), [(0, "chat-1"), (2 * BUFFER_BYTES, "embed-1")])
async def test_equal_keys_reach_one_of_their_models(lab: Lab, size_bytes: int, replica: str) -> None:
    """HAProxy takes the first, the slow path the last, as engines do. An engine refuses a name that is not its own."""
    filler = "x" * size_bytes
    body = f'{{"x":"{filler}","model":"chat","model":"embed"}}'
    answer = await lab.post(body)
    assert (answer.status, answer.json["replica"]) == (200, replica)


@pytest.mark.parametrize(
    "body",
    ["", "hello", "[]", '["model","chat"]', "{}", '{"model":null}', '{"model":5}', '{"model":-1.5}', '{"model":true}',
     '{"model":{"name":"chat"}}', '{"model":["chat"]}', '{"messages":[{"model":"chat"}]}'],
)  # fmt: skip
async def test_no_model_is_the_callers_error(lab: Lab, body: str) -> None:
    answer = await lab.post(body)
    assert (answer.status, answer.error_code) == (400, "invalid_body")


@pytest.mark.parametrize("model", ["nope", "", "a b", "nöpe", "x\nSet-Cookie: a=b", 'quo"te', "100%", "7b", "模型"])
@pytest.mark.parametrize("size_bytes", [0, 2 * BUFFER_BYTES])
async def test_an_unknown_model_is_404_and_says_what_is_served(lab: Lab, model: str, size_bytes: int) -> None:
    answer = await lab.post(json.dumps({"messages": "x" * size_bytes, "model": model}))
    if not model and size_bytes:
        assert answer.status == 400
        return
    assert (answer.status, answer.error_code) == (404, "model_not_found")
    error = answer.json["error"]
    assert isinstance(error, dict)
    assert error["message"] == f"The model `{model}` does not exist. Served: chat, embed."
    assert "Set-Cookie" not in answer.headers


async def test_an_unknown_model_at_the_end_of_a_long_body_is_always_404(lab: Lab) -> None:
    """HAProxy answers the activator before it has read the body, and closes: the answer must not get lost."""
    body = json.dumps({"messages": "x" * 300_000, "model": "nope"})
    answers = [answer for _ in range(50) for answer in await asyncio.gather(*(lab.post(body) for _ in range(8)))]
    assert {(answer.status, answer.error_code) for answer in answers} == {(404, "model_not_found")}


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
@pytest.mark.parametrize("model_last", [True, False])
async def test_audio_forms(lab: Lab, *, path: str, model_last: bool) -> None:
    form = aiohttp.FormData()
    if not model_last:
        form.add_field("model", "chat")
    form.add_field("file", io.BytesIO(b"RIFF--\r\n\r\nmodel" * 200_000), filename="a.wav", content_type="audio/wav")
    form.add_field("response_format", "json")
    if model_last:
        form.add_field("model", "chat")
    answer = await lab.post(form, path=path)
    assert (answer.status, answer.json["replica"], answer.json["path"]) == (200, "chat-1", path)


async def test_a_form_without_model(lab: Lab) -> None:
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(b'name="model"'), filename="model", content_type="audio/wav")
    answer = await lab.post(form, path="/v1/audio/transcriptions")
    assert (answer.status, answer.error_code) == (400, "invalid_body")


@pytest.mark.parametrize("length_known", [True, False])
@pytest.mark.parametrize("excess_bytes", [1, 20 * MIB])
async def test_a_body_over_the_limit_is_413(lab: Lab, *, length_known: bool, excess_bytes: int) -> None:
    body = body_of(BODY_BYTES_MAX + excess_bytes, model="chat", last=False)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 * MIB):
            yield body[start : start + 1 * MIB]

    answer = await lab.post(body if length_known else chunks())
    assert (answer.status, answer.error_code) == (413, "request_too_large")


async def test_what_is_served(lab: Lab) -> None:
    listing = (await lab.get("/v1/models")).json
    data = listing["data"]
    assert isinstance(data, list)
    assert [entry["id"] for entry in data] == ["chat", "embed"]
    assert (await lab.get("/v1/models/chat")).json["id"] == "chat"
    missing = await lab.get("/v1/models/org%2Fnope%22")
    assert (missing.status, missing.error_code) == (404, "model_not_found")
    assert (await lab.get("/health")).json == {"status": "ok"}


@pytest.mark.parametrize(
    "path",
    ["/", "/sleep", "/wake_up", "/metrics", "/v1/load_lora_adapter", "/v1/chat/completions/../../sleep", "//sleep"],
)
async def test_an_engines_private_paths_are_not_reached(lab: Lab, path: str) -> None:
    answer = await lab.post('{"model":"chat"}', path=path)
    assert (answer.status, answer.error_code) == (404, "unknown_url")


async def test_get_on_an_inference_path(lab: Lab) -> None:
    answer = await lab.get("/v1/chat/completions")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_outside_headers_are_not_trusted(lab: Lab) -> None:
    forged = {
        "X-Quarterdeck-Model": "embed",
        "x-quarterdeck-resent": "1",
        "X-Quarterdeck-Tenant": "root",
        "X-Quarterdeck-Refuse": "413",
    }
    for size_bytes in (1 * KIB, 1 * MIB):
        answer = await lab.post(body_of(size_bytes, model="chat", last=True), headers=forged)
        assert (answer.status, answer.json["replica"]) == (200, "chat-1")
        headers = answer.json["headers"]
        assert isinstance(headers, dict)
        assert replies.TENANT_HEADER.lower() not in headers
        assert headers[replies.MODEL_HEADER.lower()] == "chat"


async def test_request_ids_are_made_kept_and_returned(lab: Lab) -> None:
    made = await lab.ask_model("chat")
    assert len(made.headers["X-Request-Id"]) == 36
    kept = await lab.post(body_of(1 * MIB, model="chat", last=True), headers={"X-Request-Id": "mine-1"})
    headers = kept.json["headers"]
    assert isinstance(headers, dict)
    assert (headers["x-request-id"], kept.headers["X-Request-Id"]) == ("mine-1", "mine-1")


async def test_huge_headers(lab: Lab) -> None:
    answer = await lab.get("/v1/models", headers={f"X-{number}": "y" * 4000 for number in range(10)})
    assert (answer.status, answer.error_code) == (431, "headers_too_large")


async def test_a_replicas_errors_pass_through(lab: Lab) -> None:
    before = (await lab.gateway.sample()).routes
    answer = await lab.ask_model("chat", query="?status=503")
    assert (answer.status, answer.json["replica"]) == (503, "chat-1")
    slow = await lab.post(body_of(1 * MIB, model="chat", last=True), path="/v1/chat/completions?status=500")
    assert slow.status == 500
    after = (await lab.gateway.sample()).routes
    name = next(iter(before))
    assert after[name].responses_5xx_total - before[name].responses_5xx_total == 2
    assert after[name].arrivals_total - before[name].arrivals_total == 2
    counted = await lab.gateway.arrivals()
    assert counted[name] == after[name].arrivals_total, "a glance tells what a sample tells"


async def test_a_silent_replica_outlasts_no_client_timeout_and_streams_unbuffered(lab: Lab) -> None:
    """Each event arrives when it is sent, on the fast path and on the slow one."""
    for size_bytes in (1 * KIB, 1 * MIB):
        loop = asyncio.get_running_loop()
        url = f"{lab.url}/v1/chat/completions?tokens=5&pause=0.1"
        headers = {"Content-Type": "application/json"}
        times: list[float] = []
        body = io.BytesIO(body_of(size_bytes, model="chat", last=True))
        async with lab.session.post(url, data=body, headers=headers) as response:
            times.extend([loop.time() async for _ in response.content.iter_any()])
        assert len(times) >= 5
        assert times[-1] - times[0] > 0.3


async def test_the_exporter_answers_on_loopback(lab: Lab) -> None:
    async with lab.session.get(lab.gateway.metrics_url) as response:
        text = await response.text()
    assert 'haproxy_server_http_responses_total{proxy="d_chat",server="s1",code="2xx"}' in text
    async with lab.session.get(lab.gateway.metrics_url.replace("/metrics", "/other")) as response:
        assert response.status == 404


async def test_only_the_owner_may_use_the_sockets(lab: Lab) -> None:
    sockets = list(lab.paths.run.glob("*.sock"))
    assert {socket.name for socket in sockets} == {
        "activator-control.sock", "activator.sock", "admin.sock", "internal.sock", "master.sock"
    }  # fmt: skip
    assert {socket.stat().st_mode & 0o777 for socket in sockets} == {0o600}


async def test_expect_100_continue_is_answered_before_the_body(lab: Lab) -> None:
    body = body_of(1 * MIB, model="chat", last=True)
    async with lab.session.post(
        f"{lab.url}/v1/chat/completions",
        data=io.BytesIO(body),
        expect100=True,
        headers={"Content-Type": "application/json"},
    ) as response:
        assert (await response.json())["bytes"] == len(body)
