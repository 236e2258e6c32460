"""The doctor beside a running engine and a running Prometheus: what it says is what is there."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from controlplane.adapters.doctor.live import ask_prometheus
from controlplane.adapters.system import SystemClock
from controlplane.cli.main import app

INSTALL: Final = "no `prometheus` on PATH: install it with `apt-get install prometheus` (Debian) to run this"
UP_WITHIN_S: Final = 30.0
VISIBLE_WITHIN_S: Final = 40.0
"""Its discovery waits some 5 s after its start."""
QUEUE: Final = "vllm:num_requests_waiting"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(*argv: str) -> Iterator[None]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait(20)


def wait_for(url: str) -> None:
    end = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.05)
    pytest.fail(f"{url} did not answer within {UP_WITHIN_S} s")


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """Its URL; it serves the model `chat`."""
    port = free_port()
    module = ("-m", "controlplane.simulation.engine", "org/chat-8b", "--served-model-name", "chat")
    with running(sys.executable, *module, "--host", "127.0.0.1", "--port", str(port)):
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def prometheus(engine: str, tmp_path: Path) -> Iterator[str]:
    """Scrapes the engine under two names, as two pods would be."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip(INSTALL)
    config = tmp_path / "prometheus.yml"
    host = engine.removeprefix("http://")
    jobs = "".join(
        f"- {{job_name: {pod}, static_configs: [{{targets: ['{host}'], labels: {{pod: {pod}}}}}]}}\n"
        for pod in ("chat-0", "chat-1")
    )
    config.write_text(f"global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n{jobs}", encoding="utf-8")
    port = free_port()
    where = (f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}")
    with running(binary, *where, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"):
        wait_for(f"http://127.0.0.1:{port}/-/ready")
        yield f"http://127.0.0.1:{port}"


def recipe(folder: Path, *queries: str) -> Path:
    path = folder / "keda.yaml"
    triggers = "".join(
        f"    - type: prometheus\n      metadata: {{query: '{query}', threshold: '5', ignoreNullValues: 'false'}}\n"
        for query in queries
    )
    path.write_text(
        "apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: chat}\nspec:\n"
        "  scaleTargetRef: {name: chat}\n  minReplicaCount: 1\n  maxReplicaCount: 4\n  triggers:\n" + triggers,
        encoding="utf-8",
    )
    return path


def diagnosed(*arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    result = CliRunner().invoke(app, ["autoscale", "doctor", *(str(argument) for argument in arguments), "--json"])
    assert result.exit_code in {0, 1}, result.output
    found: list[dict[str, Any]] = json.loads(result.output)["findings"]
    return result.exit_code, found


def test_a_recipe_that_fits_the_engine_is_sound(engine: str, tmp_path: Path) -> None:
    fitting = recipe(
        tmp_path, f'sum({QUEUE}{{model_name="chat"}})', "sum(rate(vllm:generation_tokens_total[2m])) / 400"
    )
    assert diagnosed(fitting, "--metrics", engine) == (0, [])


def test_a_model_by_its_path_is_no_value_of_the_engine(engine: str, tmp_path: Path) -> None:
    code, found = diagnosed(recipe(tmp_path, f'sum({QUEUE}{{model_name="org/chat-8b"}})'), "--metrics", engine)
    assert code == 1
    assert [(one["id"], one["fix"]) for one in found] == [("live-value-absent", 'model_name="chat"')]


def test_a_metric_that_is_off_is_not_on_the_page(engine: str, tmp_path: Path) -> None:
    code, found = diagnosed(recipe(tmp_path, "sum(vllm:kv_block_lifetime_seconds_count)"), "--metrics", engine)
    assert code == 1
    assert "live-metric-absent" in {one["id"] for one in found}


def test_queries_are_tried_in_prometheus(prometheus: str, tmp_path: Path) -> None:
    one, none, many = f'sum({QUEUE}{{model_name="chat"}})', f'sum({QUEUE}{{pod="chat-7"}})', f"max by (job) ({QUEUE})"
    nothing = "sum(vllm:prompt_tokens_total * 0) / sum(vllm:prompt_tokens_total * 0)"

    async def visible() -> bool:
        _, answers = await ask_prometheus(prometheus, [many], SystemClock())
        return answers[many].series == 2

    end = time.monotonic() + VISIBLE_WITHIN_S
    while not asyncio.run(visible()) and time.monotonic() < end:
        time.sleep(0.25)
    code, found = diagnosed(recipe(tmp_path, one, none, many, nothing), "--prometheus", prometheus)
    assert code == 1
    live = {(row["field"].split(".metadata")[0], row["id"]) for row in found if row["id"].startswith("live-")}
    assert live == {
        ("spec.triggers[1]", "live-query-empty"),
        ("spec.triggers[2]", "live-query-many"),
        ("spec.triggers[3]", "live-query-not-a-number"),
    }


def test_what_prometheus_has_is_seen_whole(prometheus: str) -> None:
    async def look() -> tuple[Any, Any]:
        return await ask_prometheus(prometheus, ["rate(vllm:num_requests_running)", "time()"], SystemClock())

    end = time.monotonic() + VISIBLE_WITHIN_S
    showing, answers = asyncio.run(look())
    while not showing.labels and time.monotonic() < end:
        time.sleep(0.25)
        showing, answers = asyncio.run(look())
    assert {"model_name", "engine", "pod", "job", "instance"} <= showing.labels[QUEUE]
    assert showing.values["model_name"] == {"chat"}
    assert showing.edges["vllm:time_to_first_token_seconds"][-1] == 2560.0
    assert "expected type" in answers["rate(vllm:num_requests_running)"].refused
    assert (answers["time()"].series, answers["time()"].is_number) == (1, True)
