"""Recorded requests: a parquet file with `timestamp_s`, `prompt_tokens` and `output_tokens`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from controlplane.kernel.errors import InvalidError, Problem
from controlplane.simulation.load.model import Arrival

_COLUMNS: Final = ("timestamp_s", "prompt_tokens", "output_tokens")
_BATCH_ROWS: Final = 8192
_ROWS_MAX: Final = 50_000_000
"""1.2 GB of columns in memory; a longer trace is cut into files first."""


def read_trace(path: Path) -> Iterator[Arrival]:
    """The arrivals in order, `at_s` counted from the first one. InvalidError names every problem of the file."""
    table = _open(path)
    problems = [problem for name in _COLUMNS for problem in _check(path, table.column(name), name)]
    if problems:
        raise InvalidError(problems)
    return _arrivals(table)


def _arrivals(table: Any) -> Iterator[Arrival]:
    """A batch at a time: a row as Python objects takes ten times its place in the file."""
    first_s = float(table.column(_COLUMNS[0])[0].as_py())
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        columns = [batch.column(name).to_pylist() for name in _COLUMNS]
        for at_s, prompt, output in zip(*columns, strict=True):
            yield Arrival(at_s - first_s, max(prompt, 1), max(output, 1))


def _open(path: Path) -> Any:
    if not path.is_file():
        raise _invalid(path, "trace", "no such file", "a parquet file", "Check the path")
    try:
        schema = pq.read_schema(path)
        rows = pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise _invalid(path, "trace", f"not parquet ({error})", "a parquet file", "Convert it first") from error
    missing = [name for name in _COLUMNS if name not in schema.names]
    if missing:
        hint = "A file of rates (rate_rps) has no requests to replay" if "rate_rps" in schema.names else ""
        raise _invalid(path, "columns", f"{schema.names}", f"{list(_COLUMNS)}; {missing} are not there", hint)
    if not 0 < rows <= _ROWS_MAX:
        raise _invalid(path, "rows", str(rows), f"1 to {_ROWS_MAX}", "Cut a longer trace into files")
    return pq.read_table(path, columns=list(_COLUMNS))


def _check(path: Path, column: Any, name: str) -> Iterator[Problem]:
    is_time = name == _COLUMNS[0]
    field = f"{path.name} {name}"
    if not (pa.types.is_integer(column.type) or (is_time and pa.types.is_floating(column.type))):
        expected = "seconds as a number" if is_time else "whole numbers"
        yield Problem(field=field, found=f"type {column.type}", expected=expected)
    elif column.null_count:
        yield Problem(field=field, found=f"{column.null_count} empty rows", expected="a number in each")
    elif is_time:
        yield from _check_times(field, column)
    elif (least := pc.min(column).as_py()) < 0:
        yield Problem(field=field, found=str(least), expected="no negative number")


def _check_times(field: str, column: Any) -> Iterator[Problem]:
    if not pc.all(pc.is_finite(column)).as_py():
        yield Problem(field=field, found="inf or nan", expected="finite seconds")
        return
    row = pc.index(pc.less(column[1:], column[:-1]), True).as_py() + 1
    if row > 0:
        found = f"{column[row]} after {column[row - 1]} in row {row}"
        yield Problem(field=field, found=found, expected="times that do not go back", hint="Sort it")


def _invalid(path: Path, field: str, found: str, expected: str, hint: str) -> InvalidError:
    return InvalidError([Problem(field=f"{path.name} {field}", found=found, expected=expected, hint=hint)])
