"""Many HTTP targets scraped in one round: bounded in number, time and bytes; a failure is a value per target."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import aiohttp

from controlplane.domain.telemetry import Missing
from controlplane.kernel.effects import Clock
from controlplane.kernel.units import MIB, format_bytes

_HTTP_OK: Final = 200
_CHUNK_BYTES: Final = 256 * 1024
"""Larger than an engine's body, so that it comes out of the socket's buffer in one piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeLimits:
    """What one round may cost."""

    target: timedelta = timedelta(seconds=2)
    """A vLLM under load answers /metrics in 9-18 ms; one that needs longer than this is not fit to be measured."""
    round: timedelta = timedelta(seconds=4)
    """Below the age at which samples go stale, so that one slow round does not blind the next decision."""
    concurrency: int = 64
    """Requests in flight: keeps 1,000 targets busy within a round without 1,000 sockets being read at once."""
    body_bytes: int = 4 * MIB
    """80 times a real engine's body; an endpoint that streams without end is cut off here."""


class Scraper:
    """An HTTP client with kept-alive connections. Close it when done."""

    def __init__(self, clock: Clock, limits: ScrapeLimits | None = None) -> None:
        self._clock = clock
        self._limits = limits or ScrapeLimits()
        self._session: aiohttp.ClientSession | None = None

    async def scrape[K, T](
        self, targets: Mapping[K, str], parse: Callable[[K, bytes, datetime], T | Missing]
    ) -> Mapping[K, T | Missing]:
        """GET every URL and parse its body as it arrives; an answer for every target, within the round's limit."""
        limit_s = self._limits.round.total_seconds()
        results: dict[K, T | Missing] = dict.fromkeys(
            targets, Missing(f"not reached within the round's {limit_s:.1f} s")
        )
        if not targets:
            return results
        session = self._open()
        queue = iter(targets.items())

        async def work() -> None:
            await self._work(session, queue, parse, results)

        workers = min(self._limits.concurrency, len(targets))
        try:
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
                for number in range(workers):
                    group.create_task(work(), name=f"scrape-{number}")
        except TimeoutError:
            # What was not reached already says so in its result.
            pass
        return results

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _work[K, T](
        self,
        session: aiohttp.ClientSession,
        queue: Iterator[tuple[K, str]],
        parse: Callable[[K, bytes, datetime], T | Missing],
        results: dict[K, T | Missing],
    ) -> None:
        for key, url in queue:
            body = await self._fetch(session, url)
            results[key] = body if isinstance(body, Missing) else parse(key, body, self._clock.now())

    async def _fetch(self, session: aiohttp.ClientSession, url: str) -> bytes | Missing:
        try:
            async with session.get(url, allow_redirects=False) as response:
                if response.status != _HTTP_OK:
                    return Missing(f"{url} answered {response.status}, expected {_HTTP_OK}")
                return await self._read(response, url)
        except TimeoutError:
            return Missing(f"{url} did not answer within {self._limits.target.total_seconds():.1f} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Missing(f"{url} cannot be read: {str(error) or type(error).__name__}")

    async def _read(self, response: aiohttp.ClientResponse, url: str) -> bytes | Missing:
        limit = self._limits.body_bytes
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > limit:
                return Missing(f"{url} sends more than {format_bytes(limit)}")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
                timeout=aiohttp.ClientTimeout(total=self._limits.target.total_seconds()),
                # Uncompressed: zipping 50 kB costs the engine's event loop more than the loopback or rack link does.
                headers={"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity"},
                read_bufsize=_CHUNK_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


@asynccontextmanager
async def open_scraper(clock: Clock, limits: ScrapeLimits | None = None) -> AsyncIterator[Scraper]:
    """A scraper that is closed at the end."""
    scraper = Scraper(clock, limits)
    try:
        yield scraper
    finally:
        await scraper.close()
