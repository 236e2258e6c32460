"""What a PromQL query selects, how many series it gives, and what its number means. Parsed by promql-parser.

The parser is that of GreptimeDB for Prometheus' own grammar and types: what it refuses, Prometheus refuses.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import promql_parser as pq

from controlplane.autoscaler.doctor.model import Change, Repair
from controlplane.autoscaler.doctor.promql_result import Gist, bound, gist, scale, varying
from controlplane.autoscaler.doctor.promql_syntax import Selector, children, selectors

RATES: Final = frozenset({"rate", "irate", "increase", "resets"})
"""Functions for what only grows."""
DERIVATIVES: Final = frozenset({"delta", "idelta", "deriv", "predict_linear", "double_exponential_smoothing"})
"""Functions for what goes up and down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """One histogram_quantile()."""

    aggregation: str
    """The aggregation directly below, as it would be written, empty without one."""
    keeps_le: bool
    selectors: tuple[Selector, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A parsed query."""

    text: str
    selectors: tuple[Selector, ...]
    varying: frozenset[str] | None
    """Labels by which its series can differ: empty gives one series, None as many as there are."""
    gist: Gist
    bound: float
    """The largest value that one replica can contribute; inf where nothing is known."""
    scale: float
    """What the innermost measure is multiplied by on its way out: 1000 where seconds become milliseconds."""
    quantiles: tuple[Quantile, ...]
    grouping: frozenset[str]
    """Labels named in `by (...)`."""
    absent_is_zero: bool
    """It ends in `or vector(0)`."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(selector.name for selector in self.selectors if selector.name)


@dataclass(frozen=True, slots=True)
class Unparsed:
    """A query that Prometheus would refuse."""

    text: str
    problem: str


def parse(text: str) -> Query | Unparsed:
    """The query, or why it is none."""
    try:
        expr = pq.parse(text)
    except ValueError as error:
        return Unparsed(text, " ".join(str(error).split()))
    found = tuple(selectors(expr, ()))
    return Query(
        text=text,
        selectors=found,
        varying=varying(expr),
        gist=gist(expr),
        bound=bound(expr),
        scale=scale(expr),
        quantiles=tuple(_quantiles(expr)),
        grouping=frozenset(_grouping(expr)),
        absent_is_zero=_absent_is_zero(expr),
    )


def _quantiles(expr: object) -> Iterator[Quantile]:
    if isinstance(expr, pq.Call) and expr.func.name == "histogram_quantile":
        below: object = expr.args[1]
        while isinstance(below, pq.ParenExpr):
            below = below.expr
        found = tuple(selectors(below, ()))
        if isinstance(below, pq.AggregateExpr):
            yield Quantile(aggregation=_shown(below), keeps_le=_keeps_le(below), selectors=found)
        else:
            yield Quantile(aggregation="", keeps_le=True, selectors=found)
    for child in children(expr):
        yield from _quantiles(child)


def _shown(expr: pq.AggregateExpr) -> str:
    if expr.modifier is None:
        return str(expr.op)
    word = "by" if expr.modifier.type == pq.AggModifierType.By else "without"
    return f"{expr.op} {word} ({', '.join(expr.modifier.labels)})"


def _keeps_le(expr: pq.AggregateExpr) -> bool:
    if expr.modifier is None:
        return False
    is_by = bool(expr.modifier.type == pq.AggModifierType.By)
    return is_by == ("le" in expr.modifier.labels)


def _grouping(expr: object) -> Iterator[str]:
    if isinstance(expr, pq.AggregateExpr) and expr.modifier is not None:
        yield from expr.modifier.labels
    for child in children(expr):
        yield from _grouping(child)


def _absent_is_zero(expr: object) -> bool:
    match expr:
        case pq.ParenExpr():
            return _absent_is_zero(expr.expr)
        case pq.BinaryExpr() if str(expr.op) == "or":
            other: object = expr.rhs
            argument: object = None
            if isinstance(other, pq.Call) and other.func.name == "vector":
                argument = other.args[0]
            return isinstance(argument, pq.NumberLiteral) and argument.val == 0.0
        case pq.BinaryExpr():
            return _absent_is_zero(expr.lhs) or _absent_is_zero(expr.rhs)
        case pq.AggregateExpr():
            return _absent_is_zero(expr.expr)
        case _:
            return False


def repaired(repairs: Sequence[Repair]) -> str:
    """The query that they are all of, with every change made."""
    text = repairs[0].query
    for repair in sorted(repairs, key=lambda one: one.change):
        match repair.change:
            case Change.METRIC:
                text = _renamed(text, repair.old, repair.new)
            case Change.LABEL:
                text = _relabelled(text, repair.old, repair.new)
            case Change.SUM:
                text = f"sum({text})"
            case _:
                assert_never(repair.change)
    return text


def _renamed(text: str, name: str, to: str) -> str:
    return re.sub(rf"(?<![\w:]){re.escape(name)}(?![\w:])", lambda _: to, text)


def _relabelled(text: str, label: str, to: str) -> str:
    """In matchers and groupings; values that read the same stay."""
    return re.sub(rf"(?<![\w:]){re.escape(label)}(?=\s*(?:=|!=|!~|,|\)))", lambda _: to, text)
