"""Traces: what is read, and what is refused with which words."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from controlplane.kernel.errors import InvalidError
from controlplane.simulation.load.model import Arrival
from controlplane.simulation.load.trace import read_trace


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "trace.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_rows_become_arrivals_counted_from_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, timestamp_s=[10.0, 10.5], prompt_tokens=[374, 0], output_tokens=[44, 9], other=["a", "b"])
    assert list(read_trace(path)) == [Arrival(0.0, 374, 44), Arrival(0.5, 1, 9)]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"timestamp_s": [0.0], "prompt_tokens": [1]}, "output_tokens"),
        ({"timestamp_s": [0.0], "rate_rps": [1.0]}, "a file of rates"),
        ({"timestamp_s": [0.0, -1.0], "prompt_tokens": [1, 1], "output_tokens": [1, 1]}, "-1.0 after 0.0 in row 1"),
        ({"timestamp_s": ["x"], "prompt_tokens": [1], "output_tokens": [1]}, "type string"),
        ({"timestamp_s": [0.0], "prompt_tokens": [1.5], "output_tokens": [1]}, "expected whole numbers"),
        ({"timestamp_s": [0.0], "prompt_tokens": [-3], "output_tokens": [1]}, "found -3"),
        ({"timestamp_s": [0.0, None], "prompt_tokens": [1, 1], "output_tokens": [1, 1]}, "1 empty rows"),
        ({"timestamp_s": [0.0, float("inf")], "prompt_tokens": [1, 1], "output_tokens": [1, 1]}, "inf or nan"),
    ],
)
def test_a_wrong_trace_is_refused_in_words(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        read_trace(write(tmp_path, **columns))
    assert words.lower() in str(caught.value).lower()
    assert "trace.parquet" in str(caught.value)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as caught:
        read_trace(write(tmp_path, timestamp_s=[1.0, 0.0], prompt_tokens=[-1, 1], output_tokens=[1, -1]))
    assert len(caught.value.problems) == 3


def test_a_missing_empty_or_other_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no such file"):
        read_trace(tmp_path / "none.parquet")
    text = tmp_path / "trace.csv"
    text.write_text("timestamp_s\n0\n")
    with pytest.raises(InvalidError, match="not parquet"):
        read_trace(text)
    none: list[float] = []
    with pytest.raises(InvalidError, match="rows"):
        read_trace(write(tmp_path, timestamp_s=none, prompt_tokens=none, output_tokens=none))
