"""Columns of a trace file, checked: parquet with a row per request, or with a rate per bin of time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from controlplane.kernel.errors import InvalidError, Problem

ROWS_MAX: Final = 50_000_000
"""1.2 GB of columns in memory; a longer trace is cut into files first."""
LABELS: Final = ("model", "service")
"""Columns that tell several series of one file apart; the first that is there does."""


class Shape(StrEnum):
    REQUESTS = "requests"
    RATES = "rates"


class Kind(Enum):
    ASCENDING = auto()
    """Seconds that never go back."""
    RISING = auto()
    """Seconds, each after the one before."""
    WHOLE = auto()
    """Whole numbers, none negative."""
    NUMBER = auto()
    """Finite numbers, none negative."""
    SPARSE = auto()
    """As NUMBER, and empty where it is not known."""


@dataclass(frozen=True, slots=True)
class Column:
    names: tuple[str, ...]
    """Of which the first that is there is read, under the name of the first of all."""
    kind: Kind
    optional: bool = False

    @property
    def name(self) -> str:
        return self.names[0]

    def spelled(self, there: Sequence[str]) -> str:
        """Empty when none of its names is there."""
        return next((name for name in self.names if name in there), "")


TIME: Final = "timestamp_s"
REQUEST_COLUMNS: Final = (
    Column((TIME,), Kind.ASCENDING),
    Column(("prompt_tokens",), Kind.WHOLE),
    Column(("output_tokens",), Kind.WHOLE),
)
RATE_COLUMNS: Final = (
    Column((TIME,), Kind.RISING),
    Column(("rate_rps",), Kind.NUMBER),
    Column(("mean_prompt_tokens", "mean_prompt_tokens_6h"), Kind.SPARSE),
    Column(("mean_output_tokens", "mean_output_tokens_6h"), Kind.SPARSE),
    Column(("bin_s",), Kind.NUMBER, optional=True),
    Column(("rate_weighted_client_cv",), Kind.SPARSE, optional=True),
)


def shape_of(path: Path) -> Shape:
    """What the file holds, by its columns. InvalidError when it is no parquet file with rows."""
    return _shape(_schema(path).names)


def series_in(path: Path) -> tuple[str, ...]:
    """The models or services that the file tells apart, in its order; none where it does not."""
    label = _label(_schema(path).names)
    return _names(pq.read_table(path, columns=[label]).column(label)) if label else ()


def read_requests(path: Path, series: str | None = None) -> Any:
    """A pyarrow table of timestamp_s (float64), prompt_tokens and output_tokens (int64), in order of time.

    With a series, only the rows of that model or service. InvalidError names every problem of the file.
    """
    names = _schema(path).names
    if _shape(names) is Shape.RATES:
        hint = "A file of rates (rate_rps) has no requests to replay"
        raise _invalid(path, "columns", f"{names}", f"{[column.name for column in REQUEST_COLUMNS]}", hint)
    return _read(path, REQUEST_COLUMNS, series)


def read_rates(path: Path, series: str | None = None) -> Any:
    """A pyarrow table (float64) of the RATE_COLUMNS that the file has, under their first names, in order of time.

    A file of several series wants one of them named. InvalidError names every problem of the file.
    """
    several = series_in(path)
    if series is None and len(several) > 1:
        raise _invalid(path, "series", "none chosen", f"one of {', '.join(several)}", "Choose one with --series")
    return _read(path, RATE_COLUMNS, series)


def _read(path: Path, columns: Sequence[Column], series: str | None) -> Any:
    there = _schema(path).names
    label = _label(there)
    if series is not None and not label:
        raise _invalid(path, "series", f"{series!r}, and no column {' or '.join(LABELS)}", "no series chosen")
    missing = [_missing(path, column, there) for column in columns if not (column.optional or column.spelled(there))]
    if missing:
        raise InvalidError(missing)
    spelled = {column.spelled(there): column for column in columns if column.spelled(there)}
    table = pq.read_table(path, columns=[*spelled, *([label] if series is not None else [])])
    if series is not None:
        table = _only(path, table, label, series)
    problems = [problem for name, column in spelled.items() for problem in _check(path, table.column(name), column)]
    if problems:
        raise InvalidError(problems)
    return pa.table(
        {
            column.name: table.column(name).cast(_TYPES.get(column.kind, pa.float64()), safe=False)
            for name, column in spelled.items()
        }
    )


_TYPES: Final = {Kind.WHOLE: pa.int64()}


def _schema(path: Path) -> Any:
    if not path.is_file():
        raise _invalid(path, "trace", "no such file", "a parquet file", "Check the path")
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowInvalid, OSError) as error:
        raise _invalid(path, "trace", f"not parquet ({error})", "a parquet file", "Convert it first") from error
    if not 0 < metadata.num_rows <= ROWS_MAX:
        raise _invalid(path, "rows", str(metadata.num_rows), f"1 to {ROWS_MAX}", "Cut a longer trace into files")
    return schema


def _shape(names: Sequence[str]) -> Shape:
    """A misspelt column does not make a file of the other shape, so the one that more columns speak for."""
    votes = {
        shape: sum(bool(column.spelled(names)) for column in columns if column.name != TIME)
        for shape, columns in ((Shape.REQUESTS, REQUEST_COLUMNS), (Shape.RATES, RATE_COLUMNS))
    }
    return max(votes, key=lambda shape: votes[shape])


def _label(names: Sequence[str]) -> str:
    return next((name for name in LABELS if name in names), "")


def _names(column: Any) -> tuple[str, ...]:
    return tuple(name for name in pc.unique(column.cast(pa.large_string())).to_pylist() if name is not None)


def _only(path: Path, table: Any, label: str, series: str) -> Any:
    column = table.column(label).cast(pa.large_string())
    if series not in (names := _names(column)):
        near = get_close_matches(series, names, n=1)
        hint = f"Nearest is {near[0]!r}" if near else ""
        raise _invalid(path, label, f"no {series!r}", f"one of {', '.join(names)}", hint)
    return table.filter(pc.equal(column, series))


def _missing(path: Path, column: Column, there: Sequence[str]) -> Problem:
    near = get_close_matches(column.name, there, n=1)
    return Problem(
        field=f"{path.name} {column.name}",
        found=f"no such column among {', '.join(there)}",
        expected=f"a column {' or '.join(column.names)}",
        hint=f"Nearest is {near[0]!r}: rename it if that is it" if near else "docs/traces.md has both shapes",
    )


def _check(path: Path, values: Any, column: Column) -> Iterator[Problem]:
    field = f"{path.name} {column.name}"
    is_time = column.kind in {Kind.ASCENDING, Kind.RISING}
    is_float = pa.types.is_floating(values.type)
    if column.kind is Kind.SPARSE and pa.types.is_null(values.type):
        return
    if not (is_float or pa.types.is_integer(values.type)):
        expected = {Kind.WHOLE: "whole numbers"}.get(column.kind, "seconds as a number" if is_time else "numbers")
        yield Problem(field=field, found=f"type {values.type}", expected=expected, hint="Convert the column")
        return
    if column.kind is Kind.SPARSE:
        values = values.drop_null()
        values = values.filter(pc.invert(pc.is_nan(values))) if is_float else values
    if values.null_count:
        yield Problem(field=field, found=f"{values.null_count} empty rows", expected="a number in each")
    elif is_float and not pc.all(pc.is_finite(values)).as_py():
        yield Problem(field=field, found="inf or nan", expected="finite numbers", hint="Drop or fill those rows")
    elif is_time:
        yield from _check_times(field, values, column.kind)
    else:
        yield from _check_amounts(field, values, column.kind)


def _check_times(field: str, values: Any, kind: Kind) -> Iterator[Problem]:
    """Not sorted here: times that go back may be two days in one file, which sorting would lay upon each other."""
    goes_back = pc.less_equal if kind is Kind.RISING else pc.less
    row = pc.index(goes_back(values[1:], values[:-1]), True).as_py() + 1
    if row > 0:
        found = f"{values[row]} after {values[row - 1]} in row {row}"
        expected = "times that rise" if kind is Kind.RISING else "times that do not go back"
        yield Problem(field=field, found=found, expected=expected, hint="Sort the file by time, one series at a time")


def _check_amounts(field: str, values: Any, kind: Kind) -> Iterator[Problem]:
    least = pc.min(values).as_py()
    if least is not None and least < 0:
        yield Problem(field=field, found=str(least), expected="no negative number", hint="Drop or mend those rows")
    elif kind is Kind.WHOLE and pa.types.is_floating(values.type):
        row = pc.index(pc.equal(values, pc.floor(values)), False).as_py()
        if row >= 0:
            yield Problem(field=field, found=f"{values[row]} in row {row}", expected="whole numbers")


def _invalid(path: Path, field: str, found: str, expected: str, hint: str = "") -> InvalidError:
    return InvalidError([Problem(field=f"{path.name} {field}", found=found, expected=expected, hint=hint)])
