"""`quarterdeck autoscale simulate`: what it writes, chooses and refuses, on traces of a few minutes."""

import json
import math
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from controlplane.cli.autoscale_comparison_view import json_rows, summary_table, verdict_lines
from controlplane.cli.main import app
from controlplane.cli.view import print_table
from controlplane.simulation.fleet.comparison import POLICIES, Case, Comparison, Course, Entry, Steps
from controlplane.simulation.fleet.comparison import Result as Played
from controlplane.simulation.fleet.outcome import Outcome
from controlplane.simulation.fleet.plot import Line, drawing
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.sizing import REQUESTS_MAX, sized
from controlplane.simulation.fleet.subject import subject_of
from controlplane.simulation.fleet.trial import CLAIRVOYANT
from tests.conftest import GoldenText

PROMISED: Final = {
    "policy": str,
    "seed": int,
    "attainment": float,
    "gpu_hours": float,
    "gpu_hours_over_clairvoyant": float,
    "ttft_p99_s": float,
    "itl_p99_s": float,
    "scale_events": int,
    "direction_changes": int,
    "requests": int,
}


@pytest.fixture(scope="session")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five minutes, with twice as many requests in the middle."""
    rng = np.random.default_rng(3)
    at_s = np.sort(np.concatenate([rng.uniform(0.0, 300.0, 1500), rng.uniform(100.0, 200.0, 500)]))
    path = tmp_path_factory.mktemp("traces") / "minutes.parquet"
    columns = {
        "timestamp_s": at_s,
        "prompt_tokens": rng.integers(400, 1600, len(at_s)),
        "output_tokens": rng.integers(50, 350, len(at_s)),
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="session")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models over twelve minutes, in the shape of servegen_rates_10min."""
    path = tmp_path_factory.mktemp("traces") / "rates.parquet"
    bins = [(model, minute) for model in ("second", "first") for minute in range(12)]
    columns = {
        "model": [model for model, _ in bins],
        "timestamp_s": [60 * minute for _, minute in bins],
        "rate_rps": [(4.0 if model == "first" else 40.0) * (1 + minute % 6) for model, minute in bins],
        "rate_weighted_client_cv": [2.0] * len(bins),
        "mean_prompt_tokens_6h": [800.0] * len(bins),
        "mean_output_tokens_6h": [150.0] * len(bins),
    }
    pq.write_table(pa.table(columns), path)
    return path


def simulate(trace: Path, *options: str | Path) -> Result:
    """As a user types it, at a terminal of 80 columns without colours. An option given twice counts as given last."""
    fixed = ("--model", "llama-3.1-8b", "--gpu", "h100", "--tp", "1", "--cold-start", "20", "--slo-ttft", "2")
    words = ["autoscale", "simulate", "--trace", trace, *fixed, "--slo-itl", "0.05", "--seeds", "2", *options]
    environment = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [str(word) for word in words], env=environment)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def finite(constant: str) -> None:
    pytest.fail(f"{constant} is no JSON")


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"), parse_constant=finite)
    return rows


# -- what it writes ---------------------------------------------------------------------------------------------------


def test_all_policies_on_requests_with_nothing_but_the_promised_options(requests: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = simulate(requests, "--policies", "all", "--replicas-max", "8", "--seeds", "1", "--json", out)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert [row["policy"] for row in rows] == list(POLICIES)
    for row in rows:
        for name, kind in PROMISED.items():
            assert row[name] is None or type(row[name]) is kind, (name, row[name])
        assert row["seed"] == 0
        assert 0.0 <= row["attainment"] <= 1.0
        assert row["requests"] == rows[0]["requests"]
    best = next(row for row in rows if row["policy"] == CLAIRVOYANT)
    assert best["gpu_hours_over_clairvoyant"] == 1.0
    assert best["met"]
    for row in rows:
        assert row["gpu_hours_over_clairvoyant"] == pytest.approx(row["gpu_hours"] / best["gpu_hours"])
        assert row["policy"] in result.stdout
    assert next(row for row in rows if row["policy"] == "static")["scale_events"] == 0


def test_the_same_options_write_the_same_bytes_in_any_number_of_processes(requests: Path, tmp_path: Path) -> None:
    written = []
    for number, jobs in enumerate(("1", "2")):
        out, plot = tmp_path / f"{number}.json", tmp_path / f"{number}.svg"
        options = ("--policies", "quarterdeck,hpa", "--json", out, "--plot", plot, "--end", "60", "--jobs", jobs)
        result = simulate(requests, *options)
        assert result.exit_code == 0, result.output
        written.append((result.stdout, out.read_bytes(), plot.read_bytes()))
    assert written[0] == written[1]


def test_of_rates_in_several_series_the_first_by_name_is_played_and_seeds_draw_it(rates: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = simulate(rates, "--policies", "hpa,static", "--scale", "1", "--json", out, "--end", "3m")
    assert result.exit_code == 0, result.output
    assert "note: rates.parquet has second, first: first is played; --series chooses another" in result.stderr
    rows = rows_of(out)
    assert {row["series"] for row in rows} == {"first"}
    assert [(row["policy"], row["seed"]) for row in rows] == [("hpa", 0), ("hpa", 1), ("static", 0), ("static", 1)]
    assert rows[0]["requests"] != rows[1]["requests"]
    assert 4.0 * 180.0 < rows[0]["requests"] < 12.0 * 180.0
    assert simulate(rates, "--policies", "hpa", "--series", "third").exit_code == 2


def test_json_on_standard_output_stands_there_alone(requests: Path) -> None:
    result = simulate(requests, "--policies", "static", "--json", "-", "--end", "100")
    assert [row["policy"] for row in json.loads(result.stdout)] == ["static", "static"]
    assert "x clairvoyant" in result.stderr


def test_tuned_peers_come_with_the_knobs_that_the_search_found(requests: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = simulate(
        requests, "--policies", "quarterdeck,skyserve", "--tuned", "--json", out, "--end", "60", "--seeds", "1"
    )
    assert result.exit_code == 0, result.output
    assert [row["policy"] for row in rows_of(out)] == ["quarterdeck", "skyserve", "skyserve-tuned"]
    assert [row["knobs"] is None for row in rows_of(out)] == [True, True, False]
    assert set(rows_of(out)[-1]["knobs"]) == {"target_share", "up_delay_s", "down_delay_s"}
    assert "(24 tried with a seed of their own)" in result.stderr


def test_replicas_that_sleep_are_counted_and_nothing_is_said_of_sleep_without(requests: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out.json", ("--policies", "quarterdeck,hpa", "--seeds", "1", "--scale", "20")
    sleep = ("--wake-time", "3", "--asleep-share", "0.25", "--sleepers-max", "4", "--cold-start", "60")
    result = simulate(requests, *options, *sleep, "--json", out)
    assert result.exit_code == 0, result.output
    assert "sleep      at most 4 that are given back; awake in 3 s, their GPUs counted at 0.25" in result.stderr
    assert "wakes" in result.stdout
    for row in rows_of(out):
        assert (row["wake_time_s"], row["asleep_share"], row["sleepers_max"]) == (3.0, 0.25, 4)
        assert type(row["wakes"]) is int
        assert 0.0 <= row["asleep_mean"] <= 4.0
    assert any(row["asleep_mean"] > 0.0 for row in rows_of(out))
    assert simulate(requests, *options, "--end", "60", "--json", out).exit_code == 0
    assert not {"wakes", "asleep_mean", "wake_time_s"} & set(rows_of(out)[0])


# -- what it chooses --------------------------------------------------------------------------------------------------


def case_of(trace: Path, **others: Any) -> Case:
    limits = Limits(ttft_s=2.0, itl_s=0.05, percentile=0.99)
    subject = subject_of("llama-3.1-8b", "h100", tensor_parallel=1)
    fields: dict[str, Any] = {
        "trace": trace,
        "subject": subject,
        "limits": limits,
        "cold_start_s": 20.0,
        "replicas_max": 16,
    }
    return Case(**(fields | others))


def test_the_scale_gives_a_small_trace_something_to_decide(requests: Path) -> None:
    sizing = sized(case_of(requests))
    assert sizing.recorded_peak < 2.0
    assert sizing.case.factor > 1.0
    again = sized(case_of(requests), seed=1)
    assert again.case.factor == pytest.approx(sizing.case.factor, rel=0.3)


def test_the_recorded_rate_stays_where_it_needs_several_replicas_and_not_too_many(requests: Path) -> None:
    subject = subject_of("llama-3.1-70b", "h100", tensor_parallel=2)
    sizing = sized(case_of(requests, subject=subject))
    assert 2.0 <= sizing.recorded_peak <= 16
    assert sizing.case.factor == 1.0
    assert sized(case_of(requests, subject=subject, replicas_max=1)).case.factor < 1.0


def test_a_long_trace_of_rates_is_bounded_in_requests(tmp_path: Path) -> None:
    days = 10
    hours = np.arange(24 * days)
    columns = {
        "timestamp_s": 3600.0 * hours,
        "rate_rps": 900.0 - 600.0 * np.cos(hours / 24 * 2 * np.pi),
        "mean_prompt_tokens": np.full(len(hours), 200.0),
        "mean_output_tokens": np.full(len(hours), 50.0),
    }
    path = tmp_path / "days.parquet"
    pq.write_table(pa.table(columns), path)
    sizing = sized(case_of(path))
    mean_rps = 900.0 * sizing.case.factor
    assert sizing.shortened
    assert sizing.case.end_s >= 86_400.0
    assert mean_rps * sizing.case.end_s <= 2.1 * REQUESTS_MAX
    whole = sized(case_of(path, end_s=math.inf), may_shorten=False)
    assert whole.case.end_s == math.inf


def test_a_precision_that_fits_is_chosen_and_said(requests: Path) -> None:
    options = ("--model", "meta-llama/Llama-3.1-70B-Instruct", "--gpu", "H100", "--tp", "1")
    result = simulate(requests, *options, "--policies", "static", "--end", "30", "--seeds", "1")
    assert result.exit_code == 0, result.output
    assert "note: bf16 does not fit (weights and overheads of" in result.stderr
    assert "fp8 is played (--precision)" in result.stderr
    assert "llama-3.1-70b in fp8 on 1 x h100" in result.stderr


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--policies", "quarterdek"), ("--policies: found 'quarterdek'", "Nearest: quarterdeck")),
        (("--policies", ","), ("--policies: found ','",)),
        (("--model", "llama-8b"), ("--model: found llama-8b", "did you mean")),
        (("--model", "bge-m3"), ("--model: found bge-m3, which does not generate (embed)",)),
        (("--gpu", "h1000"), ("--gpu: found GPU h1000", "did you mean h100?")),
        (("--tp", "3"), ("--tp: found TP3", "--tp 1 fits")),
        (("--precision", "int3"), ("--precision: found int3", "expected one of bf16, fp8, awq")),
        (("--cold-start", "-1"), ("--cold-start: found '-1'",)),
        (("--wake-time", "soon"), ("--wake-time: found 'soon'",)),
        (("--wake-time", "30"), ("--wake-time: found 30 s with --cold-start 20, expected at most the cold start",)),
        (("--wake-time", "1", "--asleep-share", "1.5"), ("--asleep-share: found 1.5, expected a share from 0 to 1",)),
        (("--wake-time", "1", "--sleepers-max", "0"), ("--sleepers-max: found 0, expected at least 1",)),
        (("--asleep-share", "0"), ("--asleep-share: found 0 without --wake-time",)),
        (("--sleepers-max", "2"), ("--sleepers-max: found 2 without --wake-time",)),
        (("--slo-ttft", "0"), ("--slo-ttft: found '0'", "above 0")),
        (("--slo-ttft", "fast", "--slo-itl", "x"), ("2 problems", "--slo-ttft: found 'fast'", "--slo-itl: found 'x'")),
        (("--slo-ttft", "10ms"), ("--slo-ttft: found 0.01 s, expected at least 0.0", "alone on a replica")),
        (("--slo-itl", "1ms"), ("--slo-itl: found 0.001 s, expected at least 0.0", "alone on a replica")),
        (("--percentile", "99"), ("--percentile: found 99",)),
        (("--scale", "0"), ("--scale: found '0'",)),
        (("--replicas-min", "9", "--replicas-max", "4"), ("--replicas-min: found 9 with --replicas-max 4",)),
        (("--start", "2h"), ("minutes window: found 7200 s",)),
        (("--series", "chat"), ("minutes.parquet series: found 'chat'",)),
        (("--trace", "nowhere.parquet"), ("nowhere.parquet trace: found no such file",)),
        (("--json", "nowhere/out.json"), ("--json: found nowhere/out.json (No such file or directory)",)),
        (("--plot", "."), ("--plot: found . (Is a directory)",)),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_named_under_its_option(
    requests: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = simulate(requests, *options)
    assert result.exit_code == 2, result.output
    for part in words:
        assert part in result.stderr
    assert not result.stdout


def test_requests_that_no_cache_holds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    columns = {"timestamp_s": [0.0, 1.0], "prompt_tokens": [10, 2_000_000], "output_tokens": [5, 5]}
    pq.write_table(pa.table(columns), path)
    result = simulate(path, "--policies", "static")
    assert result.exit_code == 2
    assert "--trace: found 50.0% of the requests longer than the" in result.stderr


def test_nothing_is_left_behind_by_the_look_whether_a_file_can_be_written(requests: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert simulate(requests, "--json", out, "--start", "2h").exit_code == 2
    assert not out.exists()


# -- how it looks -----------------------------------------------------------------------------------------------------


def played(policy: str, seed: int, attainment: float, gpu_hours: float, **others: Any) -> Played:
    fields: dict[str, Any] = {
        "policy": policy,
        "seed": seed,
        "requests": 1000,
        "attainment": attainment,
        "ttft_attainment": attainment,
        "itl_attainment": 1.0,
        "gpu_hours": gpu_hours,
        "replicas_mean": gpu_hours,
        "ttft_p50_s": 0.1,
        "ttft_p99_s": 0.8,
        "itl_p50_s": 0.02,
        "itl_p99_s": 0.0312,
        "unanswered": 0,
        "preemptions": 0,
        "scale_events": 12,
        "direction_changes": 3,
    }
    return Played(entry=Entry(policy=policy), outcome=Outcome(**(fields | others)), course=None)


def comparison(*results: Played, best: float = 0.9925) -> Comparison:
    clairvoyants = tuple(played(CLAIRVOYANT, seed, best, 4.0 + seed) for seed in (0, 1))
    return Comparison(case=case_of(Path("trace.parquet"), replicas_max=8), results=results, clairvoyants=clairvoyants)


def mixed() -> Comparison:
    return comparison(
        played("hpa", 0, 0.98999, 4.4),
        played("hpa", 1, 0.995, 5.4, scale_events=13),
        played("knative", 0, 0.5, 3.0),
        played("knative", 1, 0.4, 3.5, ttft_p99_s=math.inf, itl_p99_s=math.inf),
        played("static", 0, 1.0, 8.0, scale_events=0, direction_changes=0),
        played("static", 1, 1.0, 8.0, scale_events=0, direction_changes=0),
        played("quarterdeck", 0, 0.996, 4.6),
        played("quarterdeck", 1, 0.993, 5.5),
    )


def said(shown: Comparison) -> str:
    text = StringIO()
    console = Console(file=text, width=80, soft_wrap=True, highlight=False, color_system=None)
    print_table(console, summary_table(shown))
    for line in verdict_lines(shown):
        console.print(line)
    return text.getvalue()


def test_the_table_is_as_wide_as_it_needs_and_what_failed_is_named(golden_text: GoldenText) -> None:
    none = comparison(played("hpa", 0, 0.98, 4.0), played("hpa", 1, 0.97, 4.0), best=0.98)
    golden_text("autoscale_simulate.txt", f"{said(mixed())}\n{said(none)}")


def test_what_never_came_is_null() -> None:
    rows: Any = json_rows(mixed())
    assert [row["ttft_p99_s"] for row in rows if row["policy"] == "knative"] == [0.8, None]
    assert json.dumps(rows, allow_nan=False)


def test_the_plot_has_its_panels_and_a_name_for_each_policy(requests: Path, tmp_path: Path) -> None:
    plot = tmp_path / "out.svg"
    result = simulate(requests, "--policies", "all", "--seeds", "1", "--end", "60", "--plot", plot)
    assert result.exit_code == 0, result.output
    root = ET.fromstring(plot.read_bytes())
    texts = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"demand", "replicas that hold GPUs", "SLO misses per minute", "GPU-hours so far"} <= texts
    assert {"quarterdeck", "clairvoyant", "others", "requests/s", "minutes from the start of the load"} <= texts
    assert any(text.startswith("minutes") and "llama-3.1-8b" in text for text in texts)


@pytest.mark.parametrize(("duration_s", "unit"), [(600.0, "minutes"), (86_400.0, "hours"), (604_800.0, "days")])
def test_the_time_axis_is_in_units_that_fit(duration_s: float, unit: str) -> None:
    steps = Steps(at_s=np.array([0.0, 300.0]), values=np.array([1, 2]))
    bins = np.array([5, 0])
    course = Course(
        bin_s=duration_s / 2, arrived=bins, missed=bins, billed=steps, duration_s=duration_s, gpus_per_replica=1
    )
    svg = drawing("title", Line(name=CLAIRVOYANT, course=course), [Line(name="quarterdeck", course=course)])
    assert f"{unit} from the start of the load" in svg.decode()


def test_the_command_line_starts_without_what_only_this_command_needs() -> None:
    heavy = ("numba", "numpy", "pyarrow", "matplotlib")
    program = f"import sys, controlplane.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.strip() == "[]"
