"""The public traces: what the list says of them is so, where they are at hand."""

import os
from pathlib import Path

import pytest

from benchmarks.traces import FOLDER, TRACES, PublicTrace, traces_folder
from controlplane.kernel.errors import NotFoundError
from controlplane.simulation.fleet.rates import OUTPUT_CV, PROMPT_CV
from controlplane.simulation.fleet.trace_files import rates_of, requests_of
from controlplane.simulation.trace_columns import Shape, series_in, shape_of


def at_hand() -> Path:
    try:
        return traces_folder(os.environ)
    except NotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: str(trace.file))
def test_each_file_is_as_it_is_listed(trace: PublicTrace) -> None:
    path = at_hand() / trace.file
    assert shape_of(path) is trace.shape
    assert series_in(path) == trace.series
    if trace.shape is Shape.REQUESTS:
        assert (requests_of(path).name,) == trace.names
    else:
        assert tuple(rates_of(path, series).name for series in trace.series) == trace.names


def test_the_spread_of_drawn_lengths_is_the_measured_one() -> None:
    load = requests_of(at_hand() / "azure_llm_2023_conv.parquet")
    assert load.requests == 19_366
    assert load.prompt.std() / load.prompt.mean() == pytest.approx(PROMPT_CV, abs=0.005)
    assert load.output.std() / load.output.mean() == pytest.approx(OUTPUT_CV, abs=0.005)


def test_an_absent_folder_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not set: name the folder with azure_llm_2023_conv"):
        traces_folder({})
    with pytest.raises(NotFoundError, match=r"lacks azure_llm_2023_conv\.parquet"):
        traces_folder({FOLDER: str(tmp_path)})
