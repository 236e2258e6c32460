"""Range queries to a Prometheus: in pieces that it answers, with a deadline each, and a token where it wants one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect

from controlplane.adapters.telemetry.blocking import OneAtATime
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import DeniedError, InvalidError, Problem, RetryableError

TOKEN_VARIABLE: Final = "QUARTERDECK_PROMETHEUS_TOKEN"  # noqa: S105  # the variable's name
QUERY_DEADLINE: Final = timedelta(seconds=120)
"""Of one piece: Prometheus gives up on a query after two minutes by itself."""
PIECE_S: Final = 86_400.0
"""A day at a time: a week of hundreds of replicas in one answer is hundreds of megabytes."""
POINTS_MAX: Final = 11_000
"""Of one series in one answer; Prometheus refuses more."""
_NO_RETRIES: Final = 0
_REFUSED: Final = ("401", "403")
_SHOWN: Final = 300
"""Characters of an error page that a person reads."""


@dataclass(frozen=True, slots=True, eq=False)
class RangedSeries:
    """One series: labels without the name, and its samples."""

    labels: Mapping[str, str]
    at_s: npt.NDArray[np.float64]
    """Unix seconds, rising."""
    values: npt.NDArray[np.float64]


class PrometheusHistory:
    """One Prometheus. InvalidError: the URL is none, or a query was refused; RetryableError: it cannot be reached."""

    def __init__(self, url: str, clock: Clock, *, token: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            self._refuse("--prometheus", url, "a URL, such as http://prometheus:9090")
        self.shown = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        """Without a password that stands in it."""
        self._client = PrometheusConnect(
            url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            retry=_NO_RETRIES,
            timeout=math.ceil(QUERY_DEADLINE.total_seconds()),
        )
        self._thread = OneAtATime(f"Prometheus at {self.shown}", clock)

    async def names(self, prefix: str, start_s: float, end_s: float) -> tuple[str, ...]:
        """Metric names that begin so and had samples in the range."""
        return await self.label_values("__name__", f'{{__name__=~"{prefix}.+"}}', start_s, end_s)

    async def label_values(self, label: str, selector: str, start_s: float, end_s: float) -> tuple[str, ...]:
        """Of the series that the selector chooses, in the range, sorted."""
        params = {"match[]": selector, "start": f"{start_s:.3f}", "end": f"{end_s:.3f}"}
        found: Sequence[str] = await self._ask(lambda: self._client.get_label_values(label, params=params), selector)
        return tuple(sorted(found))

    async def ranges(self, query: str, start_s: float, end_s: float, step_s: float) -> tuple[RangedSeries, ...]:
        """The query at start_s and every step after it up to end_s."""
        moments = math.floor((end_s - start_s) / step_s + 1e-9) + 1
        piece = max(min(math.floor(PIECE_S / step_s), POINTS_MAX), 1)
        found: dict[tuple[tuple[str, str], ...], list[npt.NDArray[np.float64]]] = {}
        for first in range(0, moments, piece):
            last = min(first + piece, moments) - 1
            answer = await self._range(query, start_s + first * step_s, start_s + last * step_s, step_s)
            for series in answer:
                labels = tuple(sorted((key, str(value)) for key, value in series["metric"].items()))
                found.setdefault(labels, []).append(np.array(series["values"], dtype=np.float64))
        return tuple(_series(dict(labels), np.concatenate(pieces)) for labels, pieces in found.items())

    async def _range(self, query: str, start_s: float, end_s: float, step_s: float) -> Sequence[Any]:
        start, end = (datetime.fromtimestamp(at_s, UTC) for at_s in (start_s, end_s))
        found: Sequence[Any] = await self._ask(
            lambda: self._client.custom_query_range(query, start, end, f"{step_s:g}"), query
        )
        return found

    async def _ask(self, work: Callable[[], Any], query: str) -> Any:
        try:
            return await self._thread.call(work, deadline=QUERY_DEADLINE)
        except PrometheusApiClientException as error:
            self._answered(" ".join(str(error).split()), query)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RetryableError(f"Prometheus at {self.shown} cannot be asked: {_short(error)}") from None

    def _answered(self, said: str, query: str) -> NoReturn:
        if any(f"HTTP Status Code {code}" in said for code in _REFUSED):
            raise DeniedError(
                f"Prometheus at {self.shown} wants to know who asks ({said[:_SHOWN]}): "
                f"put a bearer token into {TOKEN_VARIABLE}"
            )
        self._refuse("--prometheus", f"{self.shown} refused `{query}`: {said[:_SHOWN]}", "Prometheus' HTTP API")

    @staticmethod
    def _refuse(option: str, found: str, expected: str) -> NoReturn:
        raise InvalidError([Problem(field=option, found=found, expected=expected)])


def _series(labels: dict[str, str], samples: npt.NDArray[np.float64]) -> RangedSeries:
    labels.pop("__name__", None)
    return RangedSeries(labels, samples[:, 0], samples[:, 1])


def _short(error: Exception) -> str:
    """The innermost cause: the library wraps a refused connection into four sentences."""
    inner: BaseException = error
    while inner.__cause__ is not None or inner.__context__ is not None:
        inner = inner.__cause__ or inner.__context__ or inner
    return " ".join(str(inner).split())[:_SHOWN]
