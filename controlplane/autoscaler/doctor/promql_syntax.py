"""The parts of a parsed query: its selectors, with what stands around each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import promql_parser as pq

_PLAIN_ALTERNATIVES: Final = re.compile(r"[\w:./ -]+(?:\|[\w:./ -]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One label matcher."""

    label: str
    op: str
    """`=`, `!=`, `=~` or `!~`."""
    value: str

    @property
    def values(self) -> tuple[str, ...]:
        """The values that it admits, where it spells them out."""
        if self.op == "=":
            return (self.value,)
        if self.op == "=~" and _PLAIN_ALTERNATIVES.fullmatch(self.value):
            return tuple(self.value.split("|"))
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """One series selector with what surrounds it."""

    name: str
    """Empty where the name is matched by an expression."""
    matches: tuple[Match, ...]
    window: timedelta | None
    within: tuple[str, ...]
    """Functions and aggregations around it, the innermost first."""

    @property
    def pinned(self) -> frozenset[str]:
        return frozenset(match.label for match in self.matches if match.op == "=")


def children(expr: object) -> Iterator[pq.Expr]:
    match expr:
        case pq.AggregateExpr():
            yield expr.expr
        case pq.BinaryExpr():
            yield expr.lhs
            yield expr.rhs
        case pq.Call():
            yield from expr.args
        case pq.ParenExpr() | pq.UnaryExpr() | pq.SubqueryExpr():
            yield expr.expr
        case _:
            return


def selectors(expr: object, within: tuple[str, ...]) -> Iterator[Selector]:
    match expr:
        case pq.VectorSelector():
            yield _selector(expr, None, within)
        case pq.MatrixSelector():
            yield _selector(expr.vector_selector, expr.range, within)
        case pq.Call():
            for child in children(expr):
                yield from selectors(child, (expr.func.name, *within))
        case pq.AggregateExpr():
            yield from selectors(expr.expr, (str(expr.op), *within))
        case _:
            for child in children(expr):
                yield from selectors(child, within)


def _selector(vector: pq.VectorSelector, window: timedelta | None, within: tuple[str, ...]) -> Selector:
    matches = [Match(label=match.name, op=_op(match.op), value=match.value) for match in vector.matchers.matchers]
    name = vector.name or next((one.value for one in matches if one.label == "__name__" and one.op == "="), "")
    labels = tuple(match for match in matches if match.label != "__name__")
    return Selector(name=name, matches=labels, window=window, within=within)


def _op(op: pq.MatchOp) -> str:
    if op == pq.MatchOp.Equal:
        return "="
    if op == pq.MatchOp.NotEqual:
        return "!="
    return "=~" if op == pq.MatchOp.Re else "!~"
