"""Recorded requests: a parquet file with `timestamp_s`, `prompt_tokens` and `output_tokens`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from controlplane.simulation.load.model import Arrival
from controlplane.simulation.trace_columns import read_requests

_BATCH_ROWS: Final = 8192


def read_trace(path: Path) -> Iterator[Arrival]:
    """The arrivals in order, `at_s` counted from the first one. InvalidError names every problem of the file."""
    return _arrivals(read_requests(path))


def _arrivals(table: Any) -> Iterator[Arrival]:
    """A batch at a time: a row as Python objects takes ten times its place in the file."""
    first_s = table.column(0)[0].as_py()
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        for at_s, prompt, output in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield Arrival(at_s - first_s, max(prompt, 1), max(output, 1))
