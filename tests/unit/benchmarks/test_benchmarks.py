"""Every benchmark runs at its smallest size, each in its own processes, and leaves what its page promises."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import tick
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.measuring import Stopwatch, exponent, measure_apart

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_runs_quickly_and_writes_its_result(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "recovery" and shutil.which("gpg") is None:
        pytest.skip("no gpg to compare with. To have it: apt-get install gnupg")
    assert main([name, "--quick", "--results", str(tmp_path)]) == 0
    result = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert result["benchmark"] == name
    assert result["machine"]["cores"] >= 1
    assert all(each.get("added_mib", 0.0) >= 0.0 for each in result.get("results", ()))
    assert capsys.readouterr().out.strip().endswith(result["verdict"])


def test_the_decision_tick_shows_every_stage_of_both_tables() -> None:
    found = tick.measure(nodes=80, rounds=1)
    assert (found["GPUs"], found["deployments"]) == (640, 8)
    assert found["replicas"] > 160, "the deployment that was told a higher number got its replicas"
    assert list(found["loops"]["stages"]) == ["fleet", "autoscaler", "replicas", "gateway"]
    assert min(found["tick"]["stages"].values()) > 0.0
    assert found["tick"]["p90_ms"] >= found["tick"]["median_ms"]


def test_json_is_one_line_and_equal_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "--quick", "--json", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "catalog.json").read_text(encoding="utf-8")


def test_the_list_names_all_and_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(BENCHMARKS)
    with pytest.raises(SystemExit) as ended:
        main(["tik"])
    assert ended.value.code == 2
    assert "'tik', expected one of tick" in capsys.readouterr().err


def test_the_page_tells_of_every_benchmark() -> None:
    told = re.findall(r"^## `(\w+)`", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(BENCHMARKS) <= set(told)


def test_a_failure_in_the_child_is_told_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match="unexpected keyword argument 'size'"):
        measure_apart("catalog", size=3)


@pytest.mark.parametrize(("power", "expected"), [(1.0, 1.0), (2.0, 2.0), (0.0, 0.0)])
def test_the_exponent_is_that_of_the_growth(power: float, expected: float) -> None:
    sizes = [10.0, 20.0, 40.0, 80.0]
    assert exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(expected)


def test_a_stage_that_comes_twice_in_a_round_is_added_up() -> None:
    watch = Stopwatch()
    with watch.round():
        for _ in range(2):
            with watch.stage("sum"):
                sum(range(50_000))
    with watch.round(), watch.stage("sum"):
        sum(range(1000))
    median, p90 = watch.totals()
    assert 0.0 < median < p90
    assert watch.stages()["sum"] == pytest.approx(median)
