"""The next value of an evenly spaced series, as Dynamo's `arima` predictor gives it: a simple stand-in.

Dynamo lets pmdarima choose an ARIMA order once, from the first five points, and then only updates it. Here, at every
step, six models compete by their corrected Akaike criterion, fitted by least squares on the same points: the value or
its change as a constant, on its last value, or on its last two. There are no moving-average terms and no seasons.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats

POINTS_MIN: Final = 5
"""Below it the last value is the forecast, as in Dynamo."""
_LAGS_MAX: Final = 2
_TINY: Final = 1e-12


def next_value(history: Sequence[float]) -> float:
    """Never below 0; 0 for an empty history."""
    if not history:
        return 0.0
    if len(history) < POINTS_MIN or min(history) == max(history):
        return history[-1]
    values = np.asarray(history, dtype=np.float64)
    rows = len(values) - 1 - _LAGS_MAX
    best, forecast = math.inf, float(values[-1])
    for differenced in (False, True):
        series = np.diff(values) if differenced else values
        for lags in range(_LAGS_MAX + 1):
            fitted = _fit(series, lags, rows)
            if fitted is not None and fitted[0] < best:
                best, forecast = fitted[0], fitted[1] + (float(values[-1]) if differenced else 0.0)
    return max(0.0, forecast)


def _fit(series: Floats, lags: int, rows: int) -> tuple[float, float] | None:
    """Criterion and forecast of an autoregression on the last `rows` points; None with too few of them."""
    parameters = lags + 2  # the constant and the variance
    if rows <= parameters + 1:
        return None
    targets = series[-rows:]
    columns = [np.ones(rows), *(series[-rows - lag : -lag] for lag in range(1, lags + 1))]
    design = np.column_stack(columns)
    weights = np.linalg.lstsq(design, targets, rcond=None)[0]
    variance = float(np.mean((targets - design @ weights) ** 2))
    criterion = rows * math.log(max(variance, _TINY)) + 2 * parameters * rows / (rows - parameters - 1)
    last = np.array([1.0, *series[: -lags - 1 : -1]])
    return criterion, float(last @ weights)
