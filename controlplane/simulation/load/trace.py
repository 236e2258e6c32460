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
_ROWS_MAX: Final = 50_000_000
"""1.2 GB of columns in memory; a longer trace is cut into files first."""


def read_trace(path: Path) -> Iterator[Arrival]:
    """The arrivals in order, `at_s` counted from the first one. InvalidError names every problem of the file."""
    table = _open(path)
    problems = [problem for name in _COLUMNS for problem in _check(path, table.column(name), name)]
    if problems:
        raise InvalidError(problems)
    stamps, prompts, outputs = (table.column(name).combine_chunks().to_numpy() for name in _COLUMNS)
    first_s = float(stamps[0])
    return (
        Arrival(float(at_s) - first_s, max(int(prompt), 1), max(int(output), 1))
        for at_s, prompt, output in zip(stamps, prompts, outputs, strict=True)
    )


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
        raise _invalid(path, "columns", f"{schema.names}", f"{list(_COLUMNS)}, without {missing} it cannot", hint)
    if not 0 < rows <= _ROWS_MAX:
        raise _invalid(path, "rows", str(rows), f"1 to {_ROWS_MAX}", "Cut a longer trace into files")
    return pq.read_table(path, columns=list(_COLUMNS))


def _check(path: Path, column: Any, name: str) -> Iterator[Problem]:
    kind = column.type
    is_time = name == "timestamp_s"
    fits = pa.types.is_integer(kind) or (is_time and pa.types.is_floating(kind))
    if not fits:
        expected = "seconds as a number" if is_time else "whole numbers"
        yield Problem(field=name, found=f"type {kind}", expected=expected, file=str(path))
        return
    if column.null_count:
        yield Problem(field=name, found=f"{column.null_count} empty rows", expected="a number in each", file=str(path))
        return
    values = column.combine_chunks().to_numpy()
    if is_time:
        backwards = (values[1:] < values[:-1]).nonzero()[0]
        if len(backwards):
            row = int(backwards[0]) + 1
            found = f"{values[row]} after {values[row - 1]} in row {row}"
            yield Problem(field=name, found=found, expected="times that do not go back", hint="Sort it", file=str(path))
        if not bool(pc.all(pc.is_finite(column)).as_py()):
            yield Problem(field=name, found="inf or nan", expected="finite seconds", file=str(path))
    elif int(values.min()) < 0:
        yield Problem(field=name, found=str(values.min()), expected="no negative number", file=str(path))


def _invalid(path: Path, field: str, found: str, expected: str, hint: str) -> InvalidError:
    return InvalidError([Problem(field=f"{path.name} {field}", found=found, expected=expected, hint=hint)])
