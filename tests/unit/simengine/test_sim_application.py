"""The engine behind its HTTP server, in memory and under virtual time: answers, streams, refusals, faults, sleep."""

import heapq
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from controlplane.simulation.engine.application import Application
from controlplane.simulation.engine.core import EngineCore
from controlplane.simulation.engine.exposition import Exposition
from controlplane.simulation.engine.families import FinishReason
from controlplane.simulation.engine.faults import Fault
from controlplane.simulation.engine.http_server import Exchange
from controlplane.simulation.engine.options import parse_options
from controlplane.simulation.engine.scheduler import Scheduler
from controlplane.simulation.engine.tally import EngineTally


@dataclass(order=True)
class Alarm:
    due: float
    order: int
    action: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualTime:
    """A Timekeeper that moves when told."""

    def __init__(self) -> None:
        self.time = 100.0
        self.wakes = 0
        self._alarms: list[Alarm] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self.time

    def call_later(self, delay_s: float, action: Callable[[], None]) -> Alarm:
        alarm = Alarm(self.time + delay_s, next(self._order), action)
        heapq.heappush(self._alarms, alarm)
        return alarm

    def run(self, seconds: float = 1e6, *, late_by: float = 0.0) -> None:
        """Fire what is due within so many seconds; every alarm `late_by` seconds too late."""
        end = self.time + seconds
        while self._alarms and self._alarms[0].due + late_by <= end:
            alarm = heapq.heappop(self._alarms)
            if not alarm.cancelled:
                self.time = max(self.time, alarm.due + late_by)
                self.wakes += 1
                alarm.action()
        if seconds < 1e6:
            self.time = end

    @property
    def idle(self) -> bool:
        return all(alarm.cancelled for alarm in self._alarms)


class Client:
    """The far end of one exchange."""

    def __init__(self, completed: Callable[[Exchange], None]) -> None:
        self.write_paused = False
        self._completed = completed
        self.received = b""
        self.writes = 0
        self.complete = False

    def write(self, data: bytes) -> None:
        self.received += data
        self.writes += 1

    def finished(self, exchange: Exchange) -> None:
        self.complete = True
        self._completed(exchange)

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1])

    @property
    def body(self) -> bytes:
        head, _, rest = self.received.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" not in head:
            return rest
        whole = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            whole += rest[:length]
            rest = rest[length + 2 :]
        return whole

    def json(self) -> Any:
        return orjson.loads(self.body)

    def events(self) -> list[Any]:
        """The data of each server-sent event; the end mark as text."""
        lines = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line]
        return ["[DONE]" if line == b"[DONE]" else orjson.loads(line) for line in lines]

    def text(self) -> str:
        choices = [event["choices"][0] for event in self.events() if event != "[DONE]" and event["choices"]]
        return "".join(c["text"] if "text" in c else c["delta"]["content"] for c in choices)


class World:
    def __init__(self, *argv: str) -> None:
        options = parse_options(["llama", "--served-model-name", "chat", "--sim-seed", "7", *argv], {})
        self.time = VirtualTime()
        self.scheduler = Scheduler(options.profile, options.limits)
        self.tally = EngineTally()
        self.core = EngineCore(self.scheduler, self.tally, self.time)
        exposition = Exposition(model="chat", started_at_s=1.7e9, cache_config={})
        self.application = Application(options, self.core, exposition)
        self.exchanges: list[Exchange] = []

    def send(self, method: str, path: str, body: object = None, **headers: str) -> Client:
        client = Client(self.application.completed)
        exchange = Exchange(client)
        exchange.method = method
        exchange.path, _, query = path.partition("?")
        exchange.query = dict(part.split("=") for part in query.split("&") if part)
        exchange.headers = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
        exchange.body = body if isinstance(body, bytes) else orjson.dumps(body)
        exchange.started_at = self.time.now()
        self.exchanges.append(exchange)
        self.application.handle(exchange)
        return client

    def complete(self, **fields: object) -> Client:
        asked = {"model": "chat", "prompt": "x" * 40, "max_tokens": 10, "ignore_eos": True} | fields
        return self.send("POST", "/v1/completions", asked)

    def chat(self, **fields: object) -> Client:
        message = {"role": "user", "content": "hello there"}
        asked = {"model": "chat", "messages": [message], "max_tokens": 10, "ignore_eos": True} | fields
        return self.send("POST", "/v1/chat/completions", asked)

    def metrics(self) -> dict[str, float]:
        text = self.send("GET", "/metrics").body.decode()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


# answers


def test_a_completion_has_the_tokens_that_were_asked_for() -> None:
    world = World()
    client = world.complete(max_tokens=25)
    assert not client.complete
    world.time.run()
    answer = client.json()
    assert client.status == 200
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 25,
        "total_tokens": 35,
        "prompt_tokens_details": None,
    }
    assert len(answer["choices"][0]["text"]) == 100, "four characters a token"
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", answer["id"])


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("interval", ["1", "4"])
def test_a_stream_says_what_the_whole_answer_says(*, chat: bool, interval: str) -> None:
    world = World("--stream-interval", interval)
    ask = world.chat if chat else world.complete
    streamed = ask(stream=True, max_tokens=23)
    world.time.run()
    whole = ask(max_tokens=23)
    world.time.run()
    choice = whole.json()["choices"][0]
    assert streamed.text() == (choice["message"]["content"] if chat else choice["text"])
    events = streamed.events()
    assert events[-1] == "[DONE]"
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 2) + ["length"]
    assert len(events) == (1 if chat else 0) + (23 if interval == "1" else 1 + 5 + 1) + 1
    assert (events[0]["choices"][0].get("delta", {}).get("role") == "assistant") is chat
    assert streamed.complete


def test_usage_comes_last_when_asked_for() -> None:
    world = World()
    client = world.chat(stream=True, stream_options={"include_usage": True}, max_completion_tokens=5)
    world.time.run()
    usage = client.events()[-2]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5


def test_one_wake_per_step_and_none_when_idle() -> None:
    world = World()
    clients = [world.complete(stream=True, max_tokens=50, prompt="a" * 40) for _ in range(8)]
    world.time.run()
    assert all(client.complete for client in clients)
    assert world.scheduler.steps <= 52
    assert world.time.wakes <= world.scheduler.steps + 5
    assert world.time.idle, "no timer is left when nothing runs"
    assert clients[0].writes == 1 + 50 + 1, "the head, one write per token, the end mark"


def test_a_late_loop_catches_up_without_drift() -> None:
    punctual, late = World(), World()
    asked = {"stream": True, "max_tokens": 200}
    one, other = punctual.complete(**asked), late.complete(**asked)
    punctual.time.run()
    late.time.run(late_by=0.05)
    assert other.text() == one.text()
    assert other.writes < one.writes / 5, "several steps at once make one larger piece"
    took = [world.tally.histograms["vllm:e2e_request_latency_seconds"].sum for world in (punctual, late)]
    assert took[1] == pytest.approx(took[0])
    assert late.time.now() - punctual.time.now() < 0.06


def test_a_slow_reader_gets_larger_pieces() -> None:
    world = World()
    client = world.complete(stream=True, max_tokens=100)
    world.time.run(0.02)
    writes = client.writes
    client.write_paused = True
    world.time.run(0.1)
    assert client.writes == writes, "nothing is piled up for a client that does not read"
    client.write_paused = False
    world.time.run()
    assert len(client.text()) == 400


def test_without_ignore_eos_the_length_is_the_prompts_own() -> None:
    world = World()
    clients = [world.complete(prompt=f"question {n}", max_tokens=2000, ignore_eos=False) for n in (1, 2, 1)]
    world.time.run()
    answers = [client.json() for client in clients]
    lengths = [answer["usage"]["completion_tokens"] for answer in answers]
    assert lengths[0] == lengths[2] != lengths[1]
    assert answers[0]["choices"][0]["text"] == answers[2]["choices"][0]["text"]
    assert answers[0]["choices"][0]["finish_reason"] == "stop"
    capped = world.complete(prompt="question 1", max_tokens=lengths[0] - 1, ignore_eos=False)
    world.time.run()
    assert capped.json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_itself(*, stream: bool) -> None:
    world = World()
    whole = world.complete(max_tokens=60)
    world.time.run()
    text = whole.json()["choices"][0]["text"]
    stop = text[101:109]
    client = world.complete(max_tokens=60, stop=[stop, "never there"], stream=stream)
    world.time.run()
    shown = client.text() if stream else client.json()["choices"][0]["text"]
    assert shown == text[: text.index(stop)]
    choice = client.events()[-2]["choices"][0] if stream else client.json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_a_prompt_may_be_token_ids() -> None:
    world = World()
    client = world.complete(prompt=[1, 2, 3, 4, 5])
    world.time.run()
    assert client.json()["usage"]["prompt_tokens"] == 5


def test_the_second_turn_of_a_conversation_hits_the_first_ones_prefix() -> None:
    world = World()
    first = [{"role": "user", "content": "word " * 200}]
    world.chat(messages=first)
    world.time.run()
    world.chat(messages=[*first, {"role": "assistant", "content": " yes"}, {"role": "user", "content": "and then?"}])
    world.time.run()
    assert world.tally.prefix_hits >= 240
    assert world.tally.prompt_tokens_cached == world.tally.prefix_hits


def test_adapters_are_served_and_share_no_prefix_with_the_model() -> None:
    world = World("--lora-modules", "tuned=/adapters/tuned")
    names = [card["id"] for card in world.send("GET", "/v1/models").json()["data"]]
    assert names == ["chat", "tuned"]
    for model in ("chat", "tuned"):
        assert world.complete(model=model, prompt="y" * 4000).received == b""
        world.time.run()
    assert world.tally.prefix_hits == 0


# other tasks


def test_embeddings_are_unit_vectors_and_the_same_for_the_same_text() -> None:
    profile = '{"kv_tokens": 0, "max_num_seqs": 4}'
    world = World("--sim-task", "embed", "--sim-embedding-dimensions", "64", "--sim-profile", profile)
    client = world.send("POST", "/v1/embeddings", {"model": "chat", "input": ["one", "two", "one", *"abcdef"]})
    world.time.run()
    vectors = [entry["embedding"] for entry in client.json()["data"]]
    assert len(vectors) == 9
    assert sum(value * value for value in vectors[0]) == pytest.approx(1.0, abs=1e-4)
    assert vectors[0] == vectors[2] != vectors[1]
    assert client.json()["usage"]["completion_tokens"] == 0
    assert world.tally.histograms["vllm:e2e_request_latency_seconds"].sum > 0
    packed = world.send("POST", "/v1/embeddings", {"input": "one", "encoding_format": "base64"})
    world.time.run()
    assert len(packed.json()["data"][0]["embedding"]) == 344
    assert world.complete().status == 404, "a model has the endpoints of its task only"


def test_transcription_takes_a_form_and_knows_the_length_of_a_wav() -> None:
    world = World("--sim-task", "transcribe")
    rate = 32_000
    wav = b"RIFF\0\0\0\0WAVEfmt " + b"\0" * 12 + rate.to_bytes(4, "little") + b"\0" * 12 + b"\0" * (rate * 10)
    form = (
        b'--edge\r\nContent-Disposition: form-data; name="model"\r\n\r\nchat\r\n'
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + wav + b"\r\n--edge--\r\n"
    )
    client = world.send("POST", "/v1/audio/transcriptions", form, content_type="multipart/form-data; boundary=edge")
    world.time.run()
    assert client.json()["usage"] == {"type": "duration", "seconds": 11}
    assert client.json()["text"]
    assert world.send("POST", "/v1/audio/transcriptions", b"{}").status == 400


def test_speech_lasts_as_long_as_its_text() -> None:
    world = World("--sim-task", "speak")
    client = world.send("POST", "/v1/audio/speech", {"model": "chat", "input": "x" * 150, "voice": "v"})
    world.time.run()
    assert client.body[:4] == b"RIFF"
    assert len(client.body) == 44 + 10 * 24_000 * 2
    assert world.send("POST", "/v1/audio/speech", {"input": "x", "response_format": "mp3"}).status == 400


def test_tokenize_counts_as_the_engine_does() -> None:
    world = World()
    counted = world.send("POST", "/tokenize", {"model": "chat", "prompt": "x" * 41}).json()
    assert (counted["count"], len(counted["tokens"]), counted["max_model_len"]) == (11, 11, 32_768)


# refusals


@pytest.mark.parametrize(
    ("fields", "status", "kind", "words"),
    [
        ({"model": "other"}, 404, "NotFoundError", "The model `other` does not exist."),
        ({"n": 2}, 400, "BadRequestError", "n must be 1"),
        ({"prompt": ""}, 400, "BadRequestError", "prompt must be"),
        ({"prompt": ["a", "b"]}, 400, "BadRequestError", "one prompt"),
        ({"prompt": [1, -1]}, 400, "BadRequestError", "prompt must be"),
        ({"max_tokens": 0}, 400, "BadRequestError", "at least 1, got 0"),
        ({"max_tokens": "5"}, 400, "BadRequestError", "whole number"),
        ({"max_tokens": 40_000}, 400, "BadRequestError", "(40000 > 32768 - 10)"),
        ({"prompt": "x" * 200_000}, 400, "BadRequestError", "maximum context length is 32768"),
        ({"stream_options": {}}, 400, "BadRequestError", "Stream options"),
        ({"stream": "yes"}, 400, "BadRequestError", "true or false"),
        ({"stop": [1]}, 400, "BadRequestError", "stop must be"),
    ],
)
def test_bad_requests_get_vllms_error_shape(fields: dict[str, object], status: int, kind: str, words: str) -> None:
    client = World().complete(**fields)
    error = client.json()["error"]
    assert (client.status, error["code"], error["type"]) == (status, status, kind)
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe"])
def test_malformed_bodies_are_the_clients_fault(body: bytes) -> None:
    client = World().send("POST", "/v1/chat/completions", body)
    assert client.status == 400
    assert b"Traceback" not in client.received


def test_unknown_paths_methods_and_keys() -> None:
    world = World("--api-key", "secret")
    assert world.send("GET", "/nowhere").status == 404
    assert world.send("GET", "/v1/completions").status == 405
    assert world.send("GET", "/v1/models").status == 401
    assert world.send("GET", "/v1/models", authorization="Bearer secret").status == 200
    assert world.send("GET", "/health").status == 200
    assert world.send("POST", "/sleep").status == 404, "sleep mode was not enabled"
    assert world.send("POST", "/sim/faults").status == 404, "the fault interface was not enabled"
    assert world.metrics()['http_requests_total{handler="none",method="GET",status="4xx"}'] == 1


def test_a_full_queue_refuses_without_a_hint_when_to_come_back() -> None:
    world = World("--max-num-queued-reqs", "4")
    clients = [world.complete() for _ in range(8)]
    assert [client.received.split(b" ")[1] for client in clients[4:]] == [b"503"] * 4
    assert b"retry-after" not in clients[-1].received.lower()
    world.time.run()
    assert all(client.status == 200 for client in clients[:4])
    assert world.metrics()['vllm:admission_rejections_total{model_name="chat",reason="max_num_queued_reqs"}'] == 4


def test_too_many_queued_prompt_tokens_refuse() -> None:
    world = World("--max-num-queued-tokens", "15")
    statuses = [world.complete().received[9:12] for _ in range(4)]
    assert statuses[2:] == [b"", b"503"], "10 tokens are in prefill, 20 reach the limit"


# the client goes away


def test_a_gone_client_frees_its_place() -> None:
    world = World()
    world.complete(stream=True, max_tokens=1000)
    world.time.run(0.05)
    world.exchanges[0].disconnected()
    assert world.core.unfinished == 0
    world.time.run()
    assert world.scheduler.kv_blocks_used == 0
    assert world.tally.finished[FinishReason.ABORT] == 1
    assert world.tally.generation_tokens < 50


# sleep


def test_sleep_ends_what_runs_and_holds_what_comes() -> None:
    world = World("--enable-sleep-mode", "--sim-wake", "3")
    running = world.complete(max_tokens=1000)
    world.time.run(0.1)
    assert world.send("POST", "/sleep?level=1").status == 200
    assert running.json()["choices"][0]["finish_reason"] == "abort"
    assert world.send("GET", "/is_sleeping").json() == {"is_sleeping": True}
    held = world.complete()
    world.time.run(10.0)
    assert held.received == b""
    assert world.metrics()['vllm:engine_sleep_state{engine="0",model_name="chat",sleep_state="weights_offloaded"}'] == 1
    assert world.metrics()['vllm:num_requests_waiting_by_reason{engine="0",model_name="chat",reason="deferred"}'] == 1
    waking, second = world.send("POST", "/wake_up"), world.send("POST", "/wake_up")
    world.time.run(2.9)
    assert not waking.complete
    world.time.run(0.2)
    assert waking.status == second.status == 200
    world.time.run()
    assert held.status == 200
    assert world.send("GET", "/is_sleeping").json() == {"is_sleeping": False}


def test_sleep_levels_are_one_and_two() -> None:
    world = World("--enable-sleep-mode")
    assert world.send("POST", "/sleep?level=3").status == 400


# faults


def faulty(world: World, name: str, *, on: bool = True, **more: float) -> Client:
    return world.send("POST", "/sim/faults", {"name": name, "on": on, **more})


def of_the_engine(world: World) -> dict[str, float]:
    """Without what the process itself uses: its CPU and memory go on under a hang, as a real one's do."""
    return {name: value for name, value in world.metrics().items() if not name.startswith(("process_", "python_"))}


def test_hang_keeps_health_and_freezes_the_rest() -> None:
    world = World("--sim-fault-api")
    client = world.complete(stream=True, max_tokens=100)
    world.time.run(0.1)
    before = of_the_engine(world)
    received = client.received
    assert faulty(world, "hang").json() == {"faults": {"hang": 1.0}}
    world.complete()
    world.time.run(60.0)
    assert world.send("GET", "/health").status == 200
    assert client.received == received
    assert of_the_engine(world) == before
    assert faulty(world, "hang", on=False).status == 200
    world.time.run()
    assert len(client.text()) == 400
    slowest = world.tally.histograms["vllm:inter_token_latency_seconds"]
    assert sum(slowest.buckets[10:]) <= 99, "the time of the hang is not decoding time"


def test_slow_stretches_every_step() -> None:
    took = []
    for argv in ((), ("--sim-fault", "slow=10")):
        world = World(*argv)
        world.complete(max_tokens=50)
        world.time.run()
        took.append(world.tally.histograms["vllm:e2e_request_latency_seconds"].sum)
    assert took[1] == pytest.approx(took[0] * 10)


def test_speed_divides_the_time_of_steps() -> None:
    world = World("--sim-speed", "10")
    world.complete(max_tokens=50)
    world.time.run()
    took = world.tally.histograms["vllm:e2e_request_latency_seconds"].sum
    assert took == pytest.approx((2.98e-3 + 8.48e-6 * 10 + 49 * 3.394e-3) / 10, rel=0.01)


def test_error_rate_flaky_health_and_admission() -> None:
    world = World("--sim-fault", "error-rate=0.3", "--sim-fault", "flaky-health", "--sim-fault-api")
    statuses = [world.complete().received[9:12] for _ in range(200)]
    assert 30 < statuses.count(b"500") < 90
    health = [world.send("GET", "/health").status for _ in range(200)]
    assert 60 < health.count(503) < 140
    faulty(world, "error-rate", on=False)
    faulty(world, "admission")
    assert world.complete().status == 503


def test_the_fault_interface_names_what_is_wrong() -> None:
    world = World("--sim-fault-api")
    assert "Did you mean hang?" in faulty(world, "hnag").json()["error"]["message"]
    assert faulty(world, "error-rate", value=2.0).status == 400
    assert faulty(world, "slow").status == 400, "slow needs a value"
    assert "only be set at start" in faulty(world, "orphan").json()["error"]["message"]
    assert world.send("POST", "/sim/faults", {"name": "hang"}).status == 400
    assert world.send("GET", "/sim/faults").json() == {"faults": {}}
    assert Fault.HANG not in world.application.faults


# the end


def test_abort_ends_streams_and_whole_answers_as_vllm_does() -> None:
    world = World()
    streamed, whole = world.chat(stream=True, max_tokens=500), world.complete(max_tokens=500)
    world.time.run(0.1)
    world.core.abort_all()
    assert streamed.events()[-1] == "[DONE]"
    assert streamed.events()[-2]["choices"][0]["finish_reason"] == "abort"
    assert whole.json()["choices"][0]["finish_reason"] == "abort"
    tokens = whole.json()["usage"]["completion_tokens"]
    assert 0 < tokens < 500
    assert len(whole.json()["choices"][0]["text"]) == 4 * tokens
    assert len(streamed.text()) == 4 * (tokens + 1), "it came one step earlier"
    assert world.time.idle
    assert world.complete().received == b"", "it can go on"
    world.time.run()


def test_draining_refuses_what_is_new_and_finishes_the_rest() -> None:
    world = World()
    running = world.complete()
    world.application.draining = True
    refused = world.complete()
    assert (refused.status, refused.json()["error"]["message"]) == (500, "cannot schedule new futures after shutdown")
    assert world.send("GET", "/health").status == 200
    world.time.run()
    assert running.status == 200


def test_a_passed_deadline_fails_what_is_left() -> None:
    world = World()
    streamed, whole = world.complete(stream=True, max_tokens=500), world.complete(max_tokens=500)
    world.time.run(0.1)
    world.core.fail_all("deadline")
    assert whole.status == 500
    assert streamed.complete
    assert b"[DONE]" not in streamed.body


def test_load_and_version() -> None:
    world = World("--enable-server-load-tracking")
    world.complete()
    assert world.send("GET", "/load").json() == {"server_load": 1}
    assert world.send("GET", "/version").json()["version"].startswith("0.32.0")
    assert World().send("GET", "/load").json() == {"server_load": 0}
