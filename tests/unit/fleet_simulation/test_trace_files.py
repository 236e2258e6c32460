"""Trace files of both shapes: what is read, and what is refused with which words."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from controlplane.kernel.errors import InvalidError
from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.rates import Rates, sampled
from controlplane.simulation.fleet.trace_files import rates_of, read_workload, requests_of
from controlplane.simulation.trace_columns import Shape, series_in, shape_of

DAY_S = 86_400.0


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "trace.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def requests(**others: Any) -> dict[str, Any]:
    return {"timestamp_s": [5.0, 5.5, 9.0], "prompt_tokens": [3, 0, 7], "output_tokens": [1, 2, 3]} | others


def servegen(bins: int = 6, rate_rps: float = 20.0, cv: float = 3.0, **others: Any) -> dict[str, Any]:
    """As servegen_rates_10min: starts of bins, told apart by their spacing."""
    return {
        "model": ["m-mid"] * bins,
        "timestamp_s": [600 * number for number in range(bins)],
        "rate_rps": pa.array([rate_rps] * bins, pa.float32()),
        "rate_weighted_client_cv": [cv] * bins,
        "active_clients": [4.0] * bins,
        "mean_prompt_tokens_6h": [500.0] * bins,
        "mean_output_tokens_6h": [100.0] * bins,
    } | others


def azure(rates: list[float], **others: Any) -> dict[str, Any]:
    """As azure_llm_2024_conv_1week_rates: middles of bins with their length."""
    bins = len(rates)
    return {
        "service": ["conv"] * bins,
        "timestamp_s": [round(432.93 * (number + 0.5), 1) for number in range(bins)],
        "bin_s": [432.93] * bins,
        "rate_rps": rates,
        "rate_rps_low": [0.0] * bins,
        "mean_prompt_tokens": [1632.0] * bins,
        "mean_output_tokens": [106.0] * bins,
    } | others


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InvalidError) as caught:
        read_workload(path, **options)
    assert all(problem.field and problem.found and problem.expected for problem in caught.value.problems)
    return str(caught.value)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_requests_count_from_the_first_one_to_the_last(tmp_path: Path) -> None:
    load = requests_of(write(tmp_path, **requests(hash_ids=[[1], [2], []])))
    assert load.name == "trace"
    assert load.arrival_s.tolist() == [0.0, 0.5, 4.0]
    assert load.prompt.tolist() == [3, 1, 7]
    assert load.output.tolist() == [1, 2, 3]
    assert load.duration_s == 4.0
    assert [str(column.dtype) for column in (load.arrival_s, load.prompt, load.output)] == ["float64", "int64", "int64"]


def test_whole_numbers_may_come_as_floats(tmp_path: Path) -> None:
    assert requests_of(write(tmp_path, **requests(prompt_tokens=[3.0, 1.0, 7.0]))).prompt.tolist() == [3, 1, 7]


def test_requests_at_one_moment_are_a_load_with_a_length(tmp_path: Path) -> None:
    assert requests_of(write(tmp_path, **requests(timestamp_s=[9.0, 9.0, 9.0]))).duration_s == 1.0


def test_requests_of_several_models_are_one_load_or_one_of_them(tmp_path: Path) -> None:
    path = write(tmp_path, **requests(model=["a", "b", "a"]))
    assert series_in(path) == ("a", "b")
    assert requests_of(path).requests == 3
    one = read_workload(path, series="a")
    assert (one.name, one.prompt.tolist(), one.arrival_s.tolist()) == ("trace/a", [3, 7], [0.0, 4.0])


def test_a_part_of_the_requests_at_another_rate(tmp_path: Path) -> None:
    at_s = np.arange(1000.0)
    path = write(tmp_path, timestamp_s=at_s, prompt_tokens=[5] * 1000, output_tokens=[5] * 1000)
    load = read_workload(path, factor=3.0, start_s=100.0, end_s=600.0, seed=1)
    assert load.requests == 1500
    assert load.duration_s == 500.0


# -- rates -------------------------------------------------------------------------------------------------------------


def test_starts_of_bins_are_as_long_as_their_spacing(tmp_path: Path) -> None:
    path = write(tmp_path, **servegen(3))
    rates = rates_of(path)
    assert shape_of(path) is Shape.RATES
    assert rates.middle_s.tolist() == [300.0, 900.0, 1500.0]
    assert rates.duration_s == 1800.0
    assert rates.client_cv.tolist() == [3.0] * 3
    assert rates.prompt_mean.tolist() == [500.0] * 3


def test_middles_of_bins_come_with_their_length(tmp_path: Path) -> None:
    rates = rates_of(write(tmp_path, **azure([10.0, 20.0])))
    assert rates.middle_s == pytest.approx([432.93 / 2, 432.93 * 1.5], abs=0.1)
    assert rates.duration_s == pytest.approx(865.86, abs=0.1)
    assert rates.client_cv.tolist() == [1.0, 1.0]


def test_one_bin_is_enough_where_its_length_is_told(tmp_path: Path) -> None:
    assert rates_of(write(tmp_path, **azure([10.0]))).duration_s == pytest.approx(432.93)
    assert "one row and no column bin_s" in refusal(write(tmp_path, **servegen(1)))


def test_a_missing_bin_is_crossed_in_a_straight_line(tmp_path: Path) -> None:
    path = write(tmp_path, **servegen(4, timestamp_s=[0, 600, 1200, 2400]))
    rates = rates_of(path)
    assert rates.duration_s == 3000.0
    assert sampled(rates, 1).mean_rps == pytest.approx(20.0, rel=0.05)


def test_what_is_unknown_where_nothing_comes_does_not_matter(tmp_path: Path) -> None:
    unknown = {
        "rate_rps": [0.0, 5.0, 0.0, 5.0],
        "rate_weighted_client_cv": [None, 2.0, float("nan"), 2.0],
        "mean_prompt_tokens_6h": [None, 400.0, None, 600.0],
    }
    path = write(tmp_path, **servegen(4) | unknown)
    rates = rates_of(path)
    assert rates.client_cv.tolist() == [1.0, 2.0, 1.0, 2.0]
    assert rates.prompt_mean.tolist() == [400.0, 400.0, 400.0, 600.0]


def test_rates_of_several_models_want_one_named(tmp_path: Path) -> None:
    columns = servegen(4, model=["m-mid", "m-mid", "mm-image", "mm-image"], timestamp_s=[0, 600, 0, 600])
    path = write(tmp_path, **columns)
    assert "one of m-mid, mm-image" in refusal(path)
    words = refusal(path, series="m-small")
    assert "no 'm-small'" in words
    assert "one of m-mid, mm-image" in words
    assert rates_of(path, "mm-image").name == "trace/mm-image"


# -- sampling ----------------------------------------------------------------------------------------------------------


def flat(rate_rps: float, cv: float, hours: float = 24.0) -> Rates:
    bins = int(hours * 6)
    middle_s: Floats = 300.0 + 600.0 * np.arange(bins, dtype=np.float64)
    return Rates(
        name="flat",
        middle_s=middle_s,
        rate_rps=np.full(bins, rate_rps),
        client_cv=np.full(bins, cv),
        prompt_mean=np.full(bins, 1155.0),
        output_mean=np.full(bins, 211.0),
        duration_s=600.0 * bins,
    )


def index_of_dispersion(arrival_s: Floats, window_s: float, end_s: float) -> float:
    counts = np.histogram(arrival_s, np.arange(0.0, end_s + window_s / 2.0, window_s))[0]
    return float(counts.var() / counts.mean())


def test_the_same_seed_draws_the_same_requests() -> None:
    one, same, other = sampled(flat(5.0, 2.0), 7), sampled(flat(5.0, 2.0), 7), sampled(flat(5.0, 2.0), 8)
    assert one.arrival_s.tobytes() == same.arrival_s.tobytes()
    assert one.prompt.tobytes() == same.prompt.tobytes()
    assert one.output.tobytes() == same.output.tobytes()
    assert one.arrival_s.tobytes() != other.arrival_s.tobytes()


def test_means_and_spread_of_lengths() -> None:
    """As azure_llm_2023_conv has them; a lognormal cut at twelve means has a bit less of both."""
    load = sampled(flat(10.0, 1.0), 3)
    assert load.mean_rps == pytest.approx(10.0, rel=0.01)
    assert load.prompt.mean() == pytest.approx(1155.0, rel=0.01)
    assert load.output.mean() == pytest.approx(211.0, rel=0.01)
    assert load.prompt.std() / load.prompt.mean() == pytest.approx(0.96, abs=0.03)
    assert load.output.std() / load.output.mean() == pytest.approx(0.77, abs=0.03)
    assert load.prompt.max() <= 12 * 1155


@pytest.mark.parametrize(("cv", "expected"), [(0.5, 1.0), (1.0, 1.0), (2.0, 4.0), (4.0, 16.0)])
@pytest.mark.parametrize("window_s", [10.0, 60.0])
def test_counts_have_the_dispersion_of_renewal_processes_with_that_cv(
    cv: float, expected: float, window_s: float
) -> None:
    load = sampled(flat(20.0, cv), 11)
    assert index_of_dispersion(load.arrival_s, window_s, DAY_S) == pytest.approx(expected, rel=0.1)
    assert load.mean_rps == pytest.approx(20.0, rel=0.02)


def test_a_cv_from_a_handful_of_requests_does_not_put_a_bin_into_one_block() -> None:
    load = sampled(flat(1.0, 800.0), 5)
    assert load.mean_rps == pytest.approx(1.0, rel=0.1)
    assert np.histogram(load.arrival_s, np.arange(0.0, DAY_S + 1, 10.0))[0].max() < 600


def test_the_rate_runs_straight_between_the_middles_of_bins(tmp_path: Path) -> None:
    load = read_workload(write(tmp_path, **azure([0.0, 200.0])), seed=2)
    counts = np.histogram(load.arrival_s, np.array([0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]) * 432.93)[0]
    expected = np.array([0.0, 0.25 * 25, 0.25 * 75, 0.25 * 125, 0.25 * 175, 0.5 * 200]) * 432.93
    assert counts == pytest.approx(expected, rel=0.05)


def test_a_part_of_the_rates_at_another_rate(tmp_path: Path) -> None:
    path = write(tmp_path, **azure([10.0, 10.0, 40.0, 40.0]))
    load = read_workload(path, factor=0.5, start_s=432.93, end_s=1298.79, seed=4)
    assert load.name == "trace x0.5"
    assert load.duration_s == pytest.approx(865.86, abs=0.1)
    # 10 rps, halfway up to 40 over the second half of the one bin and the first half of the other, then 40.
    assert load.requests == pytest.approx(0.5 * 25.0 * 865.86, rel=0.04)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (requests() | {"prompt_tokens": None, "prompt_token": [1, 2, 3]}, "Nearest is 'prompt_token'"),
        ({"timestamp_s": [0.0], "prompt_tokens": [1]}, "output_tokens"),
        ({"at": [0.0]}, "timestamp_s"),
        (requests(timestamp_s=[0.0, 2.0, 1.0]), "1.0 after 2.0 in row 2"),
        (requests(timestamp_s=["a", "b", "c"]), "type string, expected seconds as a number"),
        (requests(timestamp_s=[0.0, float("nan"), 1.0]), "inf or nan"),
        (requests(prompt_tokens=[1, -4, 1]), "found -4, expected no negative number"),
        (requests(prompt_tokens=[1.0, 1.5, 1.0]), "1.5 in row 1, expected whole numbers"),
        (requests(output_tokens=[1, None, None]), "2 empty rows"),
        (servegen(rate_rps=-1.0), "found -1.0"),
        (servegen(rate_rps=float("nan")), "rate_rps: found inf or nan"),
        (servegen(2, timestamp_s=[600, 600]), "600 after 600 in row 1, expected times that rise"),
        (servegen(cv=-2.0), "rate_weighted_client_cv: found -2.0"),
        (servegen(mean_prompt_tokens_6h=[None] * 6), "a mean length wherever the rate is above 0"),
        (servegen() | {"rate_rps": None, "rates_rps": [1.0] * 6}, "Nearest is 'rates_rps'"),
        (servegen() | {"mean_output_tokens_6h": None}, "mean_output_tokens or mean_output_tokens_6h"),
        (azure([1.0, 2.0], bin_s=[0.0, 0.0]), "found 0 s, expected bins that last"),
        (servegen(rate_rps=0.0), "found none, expected at least one"),
        (servegen(rate_rps=1e6), "requests, expected at most 20,000,000"),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    path = write(tmp_path, **{name: column for name, column in columns.items() if column is not None})
    message = refusal(path)
    assert words in message
    assert "trace" in message


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as caught:
        requests_of(write(tmp_path, timestamp_s=[1.0, 0.0], prompt_tokens=[-1, 1], output_tokens=["a", "b"]))
    assert len(caught.value.problems) == 3


def test_a_missing_empty_or_other_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.parquet")
    text = tmp_path / "trace.csv"
    text.write_text("timestamp_s\n0\n")
    assert "not parquet" in refusal(text)
    nothing: list[float] = []
    assert "rows: found 0" in refusal(
        write(tmp_path, **requests(timestamp_s=nothing, prompt_tokens=nothing, output_tokens=nothing))
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 0.0}, "expected a factor above 0"),
        ({"factor": -1.0}, "expected a factor above 0"),
        ({"factor": float("nan")}, "expected a factor above 0"),
        ({"factor": 1e9}, "expected at most 20,000,000"),
        ({"start_s": 5.0}, "expected a part of 0 s to 4 s"),
        ({"start_s": 1.0, "end_s": 1.0}, "1 s to 1 s"),
        ({"start_s": 1.0, "end_s": 2.0}, "expected at least one"),
        ({"series": "a"}, "no column model or service"),
    ],
)
def test_a_wrong_wish_is_refused_in_words(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in refusal(write(tmp_path, **requests()), **options)


def test_rates_have_no_requests_to_replay(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no requests to replay"):
        requests_of(write(tmp_path, **servegen()))
