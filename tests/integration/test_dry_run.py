"""`autoscale dry-run` on a real Prometheus whose past was written from a simulated world: it finds what was there."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from controlplane.adapters.history.prometheus import TOKEN_VARIABLE, PrometheusHistory
from controlplane.adapters.system import SystemClock
from controlplane.cli.dry_run_history import Gathered, Wanted, gather
from controlplane.cli.exits import ExitCode
from controlplane.cli.main import app
from controlplane.simulation.dry_run.happened import happened
from controlplane.simulation.dry_run.history import mean_lengths, stretches
from tests.integration.history_lab import (
    COLD_START_S,
    INSTALL,
    MODEL,
    RECIPE,
    SCRAPE_S,
    Gap,
    Past,
    backfill,
    past,
    write_pages,
)
from tests.integration.test_doctor_live import free_port, running, wait_for

HOURS: Final = 3.0
TTFT_S: Final = 2.0
ITL_S: Final = 0.05
GAP: Final = Gap(start_s=4000.0, end_s=6000.0)
RESTART_S: Final = 1000.0
HERE: Final = ("--gpu", "h100", "--tp", "2", "--cold-start", str(COLD_START_S), "--slo-ttft", "2", "--slo-itl", "50ms")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "keda.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def story(recipe: Path) -> Past:
    for binary in ("prometheus", "promtool"):
        if shutil.which(binary) is None:
            pytest.skip(INSTALL.format(binary))
    return past(recipe, hours=HOURS)


@contextmanager
def prometheus(folder: Path) -> Iterator[str]:
    """Its URL; it has what is in folder/tsdb, and scrapes nothing."""
    config = folder / "prometheus.yml"
    config.write_text("{}\n", encoding="utf-8")
    binary, port = shutil.which("prometheus"), free_port()
    assert binary is not None, "the story asks for it"
    where = (f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}")
    with running(binary, *where, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"):
        wait_for(f"http://127.0.0.1:{port}/-/ready")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def whole(story: Past, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("whole")
    write_pages(story, folder / "pages.txt")
    backfill(folder / "pages.txt", folder / "tsdb")
    with prometheus(folder) as url:
        yield url


@pytest.fixture(scope="module")
def torn(story: Past, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With half an hour that nobody scraped, a restart, kube-state-metrics and dcgm-exporter."""
    folder = tmp_path_factory.mktemp("torn")
    write_pages(story, folder / "pages.txt", gap=GAP, restart_s=RESTART_S, cluster=True)
    backfill(folder / "pages.txt", folder / "tsdb")
    with prometheus(folder) as url:
        yield url


def gathered(url: str, story: Past, **more: Any) -> Gathered:
    wanted = {"step_s": None, "selector": f'model_name="{MODEL}"', "deployment": None, **more}
    return asyncio.run(
        gather(
            PrometheusHistory(url, SystemClock()),
            Wanted(start_s=story.begins_s, end_s=story.ends_s, ttft_slo_s=TTFT_S, itl_slo_s=ITL_S, **wanted),
        )
    )


def dry_run(url: str, *arguments: str | Path, story: Past | None = None) -> Result:
    span = [] if story is None else ["--start", _iso(story.begins_s), "--end", _iso(story.ends_s)]
    words = ["autoscale", "dry-run", "--prometheus", url, *HERE, *span, *(str(one) for one in arguments)]
    return CliRunner().invoke(app, words)


def _iso(at_s: float) -> str:
    return str(np.datetime64(int(at_s), "s"))


def test_the_demand_is_the_one_that_was(whole: str, story: Past) -> None:
    found = gathered(whole, story)
    history = found.history
    assert (found.scrape_s, history.grid.step_s, found.deployment) == (SCRAPE_S, 15.0, "qwen")
    assert found.kv_tokens is None
    real = np.histogram(story.scenario.arrival_s, np.arange(0.0, HOURS * 3600.0 + 1.0, 600.0))[0]
    rebuilt = history.arrived.reshape(-1, 40).sum(axis=1)
    # A scrape sees an arrival up to 15 s late, 2.5 % of ten minutes.
    assert rebuilt == pytest.approx(real, rel=0.06)
    assert rebuilt.sum() == pytest.approx(real.sum(), rel=0.01)
    prompt, output = mean_lengths(history)
    assert np.average(prompt, weights=history.arrived) == pytest.approx(story.scenario.prompt.mean(), rel=0.03)
    assert np.average(output, weights=history.arrived) == pytest.approx(story.scenario.output.mean(), rel=0.03)
    assert found.prompt_cv == pytest.approx(story.scenario.prompt.std() / story.scenario.prompt.mean(), rel=0.2)
    assert found.output_cv == pytest.approx(story.scenario.output.std() / story.scenario.output.mean(), rel=0.2)


def test_what_happened_is_what_did(whole: str, story: Past) -> None:
    found = gathered(whole, story)
    was = happened(
        found.history,
        stretches(found.history),
        gpus_per_replica=2,
        cold_start_s=COLD_START_S,
        ttft_slo_s=TTFT_S,
        itl_slo_s=ITL_S,
    )
    real = story.outcome(ttft_slo_s=TTFT_S, itl_slo_s=ITL_S)
    assert was.gpu_hours == pytest.approx(real.gpu_hours, rel=0.03)
    assert was.attainment is not None
    assert was.attainment.low - 0.002 <= real.attainment <= was.attainment.high + 0.002
    assert found.ttft_p99.low <= real.ttft_p99_s <= found.ttft_p99.high
    assert was.scale_events == pytest.approx(real.scale_events, abs=3)


def test_a_hole_a_restart_and_kubernetes(torn: str, story: Past) -> None:
    found = gathered(torn, story)
    history, parts = found.history, stretches(found.history)
    assert (found.replicas_min, found.replicas_max) == (2, 8)
    assert (found.kv_tokens, found.gpu_labels) == (320_000, ("NVIDIA H100 80GB HBM3",))
    assert history.restarts == 1
    assert len(parts) == 2
    left_out_s = history.grid.intervals * history.grid.step_s - sum(p.last - p.first for p in parts) * 15.0
    assert left_out_s == pytest.approx(GAP.end_s - GAP.start_s, abs=120.0)
    for part in parts:
        arrivals_s = story.scenario.arrival_s
        real = ((arrivals_s >= part.first * 15.0) & (arrivals_s < part.last * 15.0)).sum()
        assert history.arrived[part.first : part.last].sum() == pytest.approx(real, rel=0.03)
    assert history.held is not None
    wanted = story.run.timeline.billed[:: round(SCRAPE_S)]
    assert abs(history.held - wanted[: len(history.held)]).mean() < 0.05


@pytest.mark.slow
def test_the_whole_account(whole: str, story: Past, recipe: Path, tmp_path: Path) -> None:
    """Two policies and the clairvoyant play three hours: some twenty seconds on one core."""
    out = tmp_path / "account.json"
    result = dry_run(whole, "--recipe", recipe, "--seeds", "1", "--jobs", "1", "--json", out, story=story)
    assert result.exit_code == ExitCode.OK, result.output
    account = json.loads(out.read_text(encoding="utf-8"))
    runs = {run["policy"]: run for run in account["runs"]}
    real = story.outcome(ttft_slo_s=TTFT_S, itl_slo_s=ITL_S)
    for simulated in ("their replicas, simulated", "their autoscaler, simulated"):
        assert runs[simulated]["gpu_hours"] == pytest.approx(real.gpu_hours, rel=0.08)
        assert runs[simulated]["attainment"] == pytest.approx(real.attainment, abs=0.02)
    assert runs["clairvoyant"]["gpu_hours"] <= runs["quarterdeck"]["gpu_hours"]
    verdict = account["verdict"]
    assert verdict["saving_low"] <= verdict["saving"] <= verdict["saving_high"]
    assert verdict["saving"] == pytest.approx(
        1.0 - runs["quarterdeck"]["gpu_hours"] / account["happened"]["gpu_hours"], abs=1e-9
    )
    for row in ("what happened", *runs):
        assert row in result.output
    assert "quarterdeck would have taken" in result.output


def test_what_the_cluster_tells_need_not_be_said(torn: str, story: Past) -> None:
    """Without a recipe, and with the GPU from dcgm-exporter; an hour of it, a part of which nobody scraped."""
    span = ["--start", _iso(story.begins_s + 1800.0), "--end", _iso(story.begins_s + 7200.0)]
    objectives = ["--slo-ttft", "2", "--slo-itl", "0.05", "--tp", "2", "--seeds", "1", "--jobs", "1", "--json", "-"]
    result = CliRunner().invoke(app, ["autoscale", "dry-run", "--prometheus", torn, *span, *objectives])
    assert result.exit_code == ExitCode.OK, result.output
    account = json.loads(result.stdout)
    assert (account["subject"]["gpu"], account["subject"]["replicas_max"]) == ("h100", 8)
    assert account["happened"]["gpu_hours_told"]
    assert not account["verdict"]["is_judged"]
    for said in ("by dcgm-exporter's NVIDIA H100", "a KV cache of 320,000 tokens", "are left out, on all sides"):
        assert said in result.stderr


# -- what cannot be answered ------------------------------------------------------------------------------------------


def test_another_model_is_named(whole: str, story: Past) -> None:
    result = dry_run(whole, "--model-name", "other", story=story)
    assert result.exit_code == ExitCode.USAGE
    assert f"one of the models {MODEL}" in result.output


def test_a_range_without_engines(whole: str, story: Past) -> None:
    result = dry_run(whole, "--start", "2020-01-01", "--end", "2020-01-02")
    assert result.exit_code == ExitCode.USAGE
    assert "no metric of vLLM in this range" in result.output
    assert "quarterdeck autoscale doctor" in result.output


def test_a_gpu_that_nobody_tells(whole: str, story: Past) -> None:
    span = ["--start", _iso(story.begins_s), "--end", _iso(story.ends_s), "--slo-ttft", "2", "--slo-itl", "0.05"]
    result = CliRunner().invoke(app, ["autoscale", "dry-run", "--prometheus", whole, *span])
    assert result.exit_code == ExitCode.USAGE
    assert "--gpu: found no metric of a GPU in Prometheus" in result.output


def test_a_step_below_the_scrapes(whole: str, story: Past) -> None:
    result = dry_run(whole, "--step", "5s", story=story)
    assert result.exit_code == ExitCode.USAGE
    assert "no less than the 15 s between two scrapes" in result.output


def test_nobody_there() -> None:
    result = dry_run("http://user:secret@127.0.0.1:9", "--range", "1h")
    assert result.exit_code == ExitCode.FAILED
    assert "Prometheus at http://127.0.0.1:9 cannot be asked" in result.output
    assert "Connection refused" in result.output
    assert "secret" not in result.output


@contextmanager
def answering(answer: Callable[[str | None], tuple[int, bytes]]) -> Iterator[str]:
    """A server in front of a Prometheus; asked with the Authorization header."""

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_a_token_is_sent_and_never_shown() -> None:
    def guard(authorization: str | None) -> tuple[int, bytes]:
        if authorization == "Bearer hush":
            return 200, b'{"status": "success", "data": ["vllm_num_requests_running"]}'
        return 401, b"who are you"

    with answering(guard) as url:
        refused = dry_run(url, "--range", "1h")
        words = ["autoscale", "dry-run", "--prometheus", url, *HERE, "--range", "1h"]
        told = CliRunner().invoke(app, words, env={TOKEN_VARIABLE: "hush"})
    assert refused.exit_code == ExitCode.CONFLICT
    assert f"put a bearer token into {TOKEN_VARIABLE}" in refused.output
    assert told.exit_code == ExitCode.USAGE
    assert "only vllm_num_requests_running" in told.output
    assert "hush" not in told.output + refused.output


def test_what_is_no_prometheus() -> None:
    with answering(lambda _: (200, b"<html>")) as url:
        result = dry_run(url, "--range", "1h")
    assert result.exit_code == ExitCode.FAILED
    assert "cannot be asked" in result.output
    assert "--prometheus: found nowhere" in dry_run("nowhere").output
