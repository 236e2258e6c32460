"""`quarterdeck up` as a new user meets it: the demo serves, explains itself, stops cleanly, and goes on where it was.

Slow: real processes; the demo's embedding model needs its thirty idle seconds before it sleeps.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest

from benchmarks.product import Product
from benchmarks.replay import Outcome, replay

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRACE_VARIABLE: Final = "QUARTERDECK_TRACE"
CHAT: Final = {"model": "chat-8b", "messages": [{"role": "user", "content": "Ahoy"}], "max_tokens": 12}
WAKE_S: Final = 20.0


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    product = Product(tmp_path_factory.mktemp("demo") / "state")
    product.start()
    try:
        product.until_ready()
        yield product
    finally:
        product.end()


@pytest.fixture(scope="module")
def outcome(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    trace = os.environ.get(TRACE_VARIABLE)
    folder = tmp_path_factory.mktemp("replay")
    return replay(product, folder, trace=Path(trace) if trace else None, speed=10.0, duration_s=90.0)


@pytest.mark.timeout(120)
def test_the_gateway_answers_openai_requests(product: Product) -> None:
    names = {model["id"] for model in product.get_models()}
    assert {"chat-8b", "chat-70b", "embed"} <= names
    for model in ("chat-8b", "chat-70b"):
        answer = product.ask("/v1/chat/completions", {**CHAT, "model": model})
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 12
    unknown = product.ask("/v1/chat/completions", {**CHAT, "model": "chat-9b"})
    assert unknown.status_code == 404
    assert "chat-9b" in unknown.text


@pytest.mark.timeout(120)
def test_at_zero_the_first_request_waits_for_a_replica_and_is_answered(product: Product) -> None:
    rows = product.get("/api/v1/deployments/embed").json()
    assert rows["replicas_by_phase"].get("ready", 0) == 0, "nobody asked for it yet"
    answer = product.ask("/v1/embeddings", {"model": "embed", "input": "a sail"}, timeout_s=WAKE_S)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"][0]["embedding"]) > 100


@pytest.mark.timeout(300)
def test_the_fleet_follows_a_day_and_loses_nothing(outcome: Outcome) -> None:
    """The whole five minutes: `python -m benchmarks.replay --trace FILE`."""
    print("\n".join(outcome.lines()))  # noqa: T201 - what the run is for
    assert outcome.requests > 1_000
    assert (outcome.failed, outcome.responses_5xx) == (0, 0)
    assert outcome.answered == outcome.requests
    assert outcome.scale_events >= 6
    assert outcome.attainment >= 0.6, "most of it: the first steep minutes come before any capacity is learned"
    assert 0.0 < outcome.gpu_hours < outcome.gpu_hours_static_peak


@pytest.mark.timeout(120)
def test_every_decision_says_why_and_is_replayed_to_the_same_answer(product: Product, outcome: Outcome) -> None:
    assert outcome.scale_events
    url = ("--control-plane", product.control_url)
    told = product.command("decisions", "--deployment", "chat-8b", "--json", *url)
    assert told.returncode == 0, told.stderr
    decisions = json.loads(told.stdout)
    moved = [row for row in decisions if row["wanted"] != row["wanted_before"]]
    assert moved, "it scaled"
    assert all(len(row["sentence"]) > 20 and row["reason"] for row in decisions)
    replayed = product.command("decisions", "--replay", *url)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


@pytest.mark.timeout(120)
def test_the_commands_that_the_banner_names(product: Product, outcome: Outcome) -> None:
    assert outcome.answered
    assert "curl" in product.log.read_text()
    url = ("--control-plane", product.control_url)
    status = product.command("status", *url)
    assert status.returncode == 0, status.stderr
    assert "chat-8b" in status.stdout
    watch = product.command("watch", "--once", *url)
    assert watch.returncode == 0, watch.stderr
    assert "Load and replicas" in watch.stdout


@pytest.mark.timeout(180)
def test_a_second_one_is_refused_and_ctrl_c_leaves_nothing(product: Product, outcome: Outcome) -> None:
    assert outcome.answered
    second = product.command("up", *product.arguments)
    assert second.returncode == 4, second.stdout + second.stderr
    assert str(product.state_dir) in second.stderr.replace("\n", "")
    last = cast("int", product.get("/api/v1/decisions?limit=1").json()[0]["sequence"])
    assert product.stop(signal.SIGINT) == 0
    assert product.processes() == []
    assert "Traceback" not in product.log.read_text()
    product.start()
    product.until_ready()
    assert product.get("/api/v1/decisions?limit=1").json()[0]["sequence"] >= last, "it picks up where it was"
    assert product.stop(signal.SIGTERM) == 0
    assert product.processes() == []


@pytest.mark.timeout(180)
def test_in_the_background(tmp_path: Path) -> None:
    product = Product(tmp_path / "state")
    try:
        up = product.command("up", "--detach", *product.arguments)
        assert up.returncode == 0, up.stdout + up.stderr
        assert product.is_up()
        assert product.ask("/v1/chat/completions", CHAT).status_code == 200
        kept = product.command("down", "--keep-serving", "--state-dir", str(product.state_dir))
        assert kept.returncode == 0, kept.stderr
        assert not product.is_up()
        assert product.ask("/v1/chat/completions", CHAT).status_code == 200, "gateway and replicas serve on"
        before = product.replica_processes()
        again = product.command("up", "--detach", *product.arguments)
        assert again.returncode == 0, again.stdout + again.stderr
        assert product.replica_processes() == before, "adopted, not started again"
        down = product.command("down", "--state-dir", str(product.state_dir))
        assert down.returncode == 0, down.stderr
        assert product.processes() == []
        nothing = product.command("down", "--state-dir", str(product.state_dir))
        assert "nothing runs" in nothing.stdout
    finally:
        product.command("down", "--state-dir", str(product.state_dir))
        product.end()
