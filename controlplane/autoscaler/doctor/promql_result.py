"""A query's result: how many series it has, and what its number means."""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import promql_parser as pq

from controlplane.autoscaler.doctor import metrics
from controlplane.autoscaler.doctor.promql_syntax import selectors

_MANY_AGGREGATIONS: Final = frozenset({"topk", "bottomk", "count_values", "limitk", "limit_ratio"})
_TOTALS: Final = frozenset({"sum", "count"})
_SINGLE_CALLS: Final = frozenset({"scalar", "vector", "time", "absent", "absent_over_time", "pi"})
_QUANTILES: Final = frozenset({"histogram_quantile", "histogram_fraction", "histogram_avg"})
_KEEPING: Final = frozenset({"clamp_max", "clamp_min", "clamp", "round", "ceil", "floor", "abs", "sort", "sort_desc"})
"""Functions whose result means what their argument means."""
_COMPARISONS: Final = frozenset({"==", "!=", "<", ">", "<=", ">="})


class Gist(StrEnum):
    """What a query's one number stands for, which decides how a scaler may divide it."""

    TOTAL = "total"
    """Over all replicas: grows with their number."""
    PER_REPLICA = "per replica"
    """A mean, a maximum, a quantile or a ratio: does not."""
    UNKNOWN = "unknown"


def varying(expr: object) -> frozenset[str] | None:
    match expr:
        case pq.AggregateExpr():
            return _varying_aggregate(expr)
        case pq.BinaryExpr():
            return _varying_binary(expr)
        case pq.Call():
            return _varying_call(expr)
        case pq.ParenExpr() | pq.UnaryExpr() | pq.SubqueryExpr():
            return varying(expr.expr)
        case pq.NumberLiteral() | pq.StringLiteral():
            return frozenset()
        case _:
            return None


def _varying_aggregate(expr: pq.AggregateExpr) -> frozenset[str] | None:
    below = varying(expr.expr)
    if str(expr.op) in _MANY_AGGREGATIONS:
        return below
    if expr.modifier is None:
        return frozenset()
    labels = frozenset(expr.modifier.labels)
    if expr.modifier.type == pq.AggModifierType.Without:
        return None if below is None else below - labels
    found = tuple(selectors(expr.expr, ()))
    pinned = frozenset.intersection(*(one.pinned for one in found)) if found else frozenset()
    left = labels - pinned
    return left if below is None else left & below


def _varying_binary(expr: pq.BinaryExpr) -> frozenset[str] | None:
    left, right = varying(expr.lhs), varying(expr.rhs)
    op = str(expr.op)
    if op in {"and", "unless"}:
        return left
    if op == "or":
        return None if left is None or right is None else left | right
    # One number on either side leaves the other side's series; two vectors are matched one to one.
    if isinstance(expr.lhs, pq.NumberLiteral):
        return right
    if isinstance(expr.rhs, pq.NumberLiteral):
        return left
    if left is not None and not left:
        return right if _is_scalar(expr.lhs) else left
    if right is not None and not right:
        return left if _is_scalar(expr.rhs) else right
    return left if right is None else right if left is None else left | right


def _is_scalar(expr: object) -> bool:
    while isinstance(expr, pq.ParenExpr | pq.UnaryExpr):
        expr = expr.expr
    return isinstance(expr, pq.NumberLiteral) or (isinstance(expr, pq.Call) and expr.func.name in {"scalar", "time"})


def _varying_call(expr: pq.Call) -> frozenset[str] | None:
    name = expr.func.name
    if name in _SINGLE_CALLS:
        return frozenset()
    below = [varying(argument) for argument in expr.args if not isinstance(argument, pq.NumberLiteral)]
    if not below or None in below:
        return None
    labels = below[-1]
    return labels - {"le"} if labels is not None and name in _QUANTILES else labels


def gist(expr: object) -> Gist:
    match expr:
        case pq.AggregateExpr():
            return Gist.TOTAL if str(expr.op) in _TOTALS else Gist.PER_REPLICA
        case pq.Call() if expr.func.name in _QUANTILES:
            return Gist.PER_REPLICA
        case pq.Call() if expr.func.name in _KEEPING or expr.func.name.endswith("_over_time"):
            return gist(expr.args[0])
        case pq.BinaryExpr():
            return _gist_binary(expr)
        case pq.ParenExpr() | pq.UnaryExpr() | pq.SubqueryExpr():
            return gist(expr.expr)
        case _:
            return Gist.UNKNOWN


def _gist_binary(expr: pq.BinaryExpr) -> Gist:
    left, right, op = gist(expr.lhs), gist(expr.rhs), str(expr.op)
    if op in {"or", "and", "unless"} or op in _COMPARISONS:
        return left
    if isinstance(expr.rhs, pq.NumberLiteral):
        return left
    if isinstance(expr.lhs, pq.NumberLiteral):
        return right
    if op == "/" and left == right:
        return Gist.PER_REPLICA if left != Gist.UNKNOWN else Gist.UNKNOWN
    return left if left == right and op in {"+", "-"} else Gist.UNKNOWN


def bound(expr: object) -> float:
    match expr:
        case pq.VectorSelector():
            return _bound_of(expr.name or "")
        case pq.AggregateExpr():
            return bound(expr.expr) if str(expr.op) in {"sum", "avg", "max", "min", "quantile"} else math.inf
        case pq.Call() if expr.func.name == "clamp_max":
            limit = expr.args[1]
            return min(bound(expr.args[0]), limit.val if isinstance(limit, pq.NumberLiteral) else math.inf)
        case pq.Call() if expr.func.name in {"avg_over_time", "max_over_time", "min_over_time", "quantile_over_time"}:
            inner = expr.args[-1]
            return bound(inner.vector_selector if isinstance(inner, pq.MatrixSelector) else inner)
        case pq.BinaryExpr():
            return _scaled(expr, bound)
        case pq.ParenExpr() | pq.SubqueryExpr():
            return bound(expr.expr)
        case _:
            return math.inf


def _bound_of(name: str) -> float:
    if metrics.is_gpu_busy(name):
        return 100.0
    known = metrics.sample(name)
    gone = metrics.vanished(name)
    if known is None and gone is not None:
        known = metrics.sample(gone.successor)
    return math.inf if known is None or known.family.bound is None else known.family.bound


def _scaled(expr: pq.BinaryExpr, of: Callable[[object], float]) -> float:
    """A measure times, or divided by, a number that stands there; otherwise nothing is known."""
    op = str(expr.op)
    if op == "or" or op in _COMPARISONS:
        return of(expr.lhs)
    if op == "*" and isinstance(expr.rhs, pq.NumberLiteral):
        return of(expr.lhs) * expr.rhs.val
    if op == "*" and isinstance(expr.lhs, pq.NumberLiteral):
        return of(expr.rhs) * expr.lhs.val
    if op == "/" and isinstance(expr.rhs, pq.NumberLiteral) and expr.rhs.val:
        return of(expr.lhs) / expr.rhs.val
    return math.inf


def scale(expr: object) -> float:
    """Infinite where the query is more than one measure times a number."""
    match expr:
        case pq.BinaryExpr():
            return _scaled(expr, scale)
        case pq.ParenExpr():
            return scale(expr.expr)
        case pq.Call() if expr.func.name in _KEEPING:
            return scale(expr.args[0])
        case _:
            return 1.0
