"""A live metrics page, from a file or over HTTP, and a live Prometheus: what is there now."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urlsplit, urlunsplit

from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect

from controlplane.adapters.telemetry.blocking import OneAtATime
from controlplane.adapters.telemetry.exposition import MalformedExpositionError, Series, read_series
from controlplane.adapters.telemetry.scrape import ScrapeLimits, open_scraper
from controlplane.autoscaler.doctor.live import Answer, Showing
from controlplane.autoscaler.doctor.metrics import PREFIX
from controlplane.domain.telemetry import Missing
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import InvalidError, Problem, RetryableError
from controlplane.kernel.units import MIB, format_bytes

PAGE_BYTES_MAX: Final = 16 * MIB
"""A page that several engines wrote into; one engine's is 50 kB."""
PAGE_DEADLINE: Final = timedelta(seconds=10)
"""A person waits for it, over a link that may be slow."""
QUERY_DEADLINE: Final = timedelta(seconds=20)
"""Of one query: Prometheus itself gives up after two minutes, a person earlier."""
_NO_RETRIES: Final = 0
_EVERY_NAME: Final = f'topk by (__name__) (1, {{__name__=~"{PREFIX}.+"}})'
"""One series for each name: a fleet has tens of thousands, and their labels are alike."""
_EVERY_EDGE: Final = f'group by (__name__, le) ({{__name__=~"{PREFIX}.+_bucket"}})'
_MATCHED: Final = ("model_name", "namespace", "job", "service")
"""Labels whose values recipes write out."""
_EVERY_VALUE: Final = f"group by ({', '.join(_MATCHED)}) (vllm:num_requests_running)"


async def read_page(where: str, clock: Clock) -> Showing:
    """The page at the URL, or in the file. InvalidError: there is none."""
    if not where.startswith(("http://", "https://")):
        return page_showing(_file(Path(where)), source=where)
    url = where if urlsplit(where).path.strip("/") else f"{where.rstrip('/')}/metrics"
    limits = ScrapeLimits(target=PAGE_DEADLINE, round=PAGE_DEADLINE, body_bytes=PAGE_BYTES_MAX)

    def parsed(_: str, body: bytes, __: datetime) -> bytes | Missing:
        return body

    async with open_scraper(clock, limits) as scraper:
        bodies = await scraper.scrape({url: url}, parsed)
    body = bodies[url]
    if isinstance(body, Missing):
        _refuse("--metrics", body.why.replace(url, _shown(url)), "the URL of an engine's /metrics page")
    return page_showing(body, source=_shown(url))


def page_showing(body: bytes, *, source: str) -> Showing:
    """What a page in text exposition shows. InvalidError: it is none."""
    try:
        series = [line.series for line in read_series(body)]
    except MalformedExpositionError as error:
        _refuse("--metrics", f"{source}: {error}", "a page in Prometheus' text format")
    if not series:
        _refuse("--metrics", f"{source} without a sample", "an engine's /metrics page")
    return Showing(
        source=source,
        labels=_labels(series),
        values=_values(series),
        edges=_edges(series),
        has_scrape_labels=False,
    )


async def ask_prometheus(url: str, queries: Sequence[str], clock: Clock) -> tuple[Showing, Mapping[str, Answer]]:
    """What Prometheus has of vLLM, and its answer to each query. InvalidError: it cannot be asked."""
    if not url.startswith(("http://", "https://")):
        _refuse("--prometheus", url, "a URL, such as http://prometheus:9090")
    client = PrometheusConnect(url=url, retry=_NO_RETRIES, timeout=math.ceil(QUERY_DEADLINE.total_seconds()))
    shown = _shown(url)
    thread = OneAtATime(f"Prometheus at {shown}", clock)

    async def ask(query: str) -> list[Series] | str:
        """The result, or why it was refused."""
        try:
            return await thread.call(lambda: _result(client.custom_query(query)), deadline=QUERY_DEADLINE)
        except PrometheusApiClientException as error:
            return " ".join(str(error).split())
        except (OSError, RetryableError, ValueError, KeyError, TypeError) as error:
            _refuse("--prometheus", f"{shown}: {error}", "a Prometheus that answers")

    names, edges, values = [await ask(query) for query in (_EVERY_NAME, _EVERY_EDGE, _EVERY_VALUE)]
    for answer in (names, edges, values):
        if isinstance(answer, str):
            _refuse("--prometheus", f"{shown}: {answer}", "Prometheus' query API")
    assert not isinstance(names, str), "refused above"
    assert not isinstance(edges, str), "refused above"
    assert not isinstance(values, str), "refused above"
    showing = Showing(
        source=shown, labels=_labels(names), values=_values(values), edges=_edges(edges), has_scrape_labels=True
    )
    return showing, {query: _answer(await ask(query)) for query in queries}


def _result(result: object) -> list[Series]:
    """Instant vectors element by element; a scalar as one series without labels."""
    if isinstance(result, list) and result and not isinstance(result[0], Mapping):
        return [Series("", {}, float(str(result[1])))]
    found: list[Series] = []
    for element in result if isinstance(result, list) else ():
        labels = {str(key): str(value) for key, value in element["metric"].items()}
        # A range vector has `values`: the query has a window that no function takes.
        value = element["value"][1] if "value" in element else "NaN"
        found.append(Series(labels.pop("__name__", ""), labels, float(value)))
    return found


def _answer(result: list[Series] | str) -> Answer:
    if isinstance(result, str):
        return Answer(refused=result)
    return Answer(series=len(result), is_number=all(math.isfinite(series.value) for series in result))


def _labels(series: Iterable[Series]) -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for one in series:
        found[one.name].update(one.labels)
    return {name: frozenset(labels) for name, labels in found.items()}


def _values(series: Iterable[Series]) -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for one in series:
        if one.name.startswith(PREFIX) or not one.name:
            for label, value in one.labels.items():
                found[label].add(value)
    return {label: frozenset(values) for label, values in found.items()}


def _edges(series: Iterable[Series]) -> Mapping[str, tuple[float, ...]]:
    found: dict[str, set[float]] = defaultdict(set)
    for one in series:
        edge = one.labels.get("le", "")
        if one.name.endswith("_bucket") and edge.replace(".", "", 1).replace("e+", "", 1).isdigit():
            found[one.name.removesuffix("_bucket")].add(float(edge))
    return {name: tuple(sorted(edges)) for name, edges in found.items()}


def _shown(url: str) -> str:
    """Without a password that stands in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            content = opened.read(PAGE_BYTES_MAX + 1)
    except OSError as error:
        _refuse("--metrics", f"{path} ({error.strerror})", "a file with a metrics page, or its URL")
    if len(content) > PAGE_BYTES_MAX:
        _refuse("--metrics", f"{path} of more than {format_bytes(PAGE_BYTES_MAX)}", "the page of one engine")
    return content


def _refuse(option: str, found: str, expected: str) -> NoReturn:
    raise InvalidError([Problem(field=option, found=found, expected=expected)])
