"""The scraper against real sockets: failures are values per target, and every limit holds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from aiohttp import web

from controlplane.adapters.telemetry.scrape import ScrapeLimits, open_scraper
from controlplane.domain.telemetry import Missing
from controlplane.testing.effects import START, FakeClock

QUICK = ScrapeLimits(target=timedelta(milliseconds=300), round=timedelta(milliseconds=600), body_bytes=50_000)


def take(_key: str, body: bytes, at: datetime) -> bytes | Missing:
    assert at == START
    return body


class Server:
    """What a hostile or broken target does, by path."""

    def __init__(self) -> None:
        self.hang = asyncio.Event()
        self.connections: set[object] = set()
        self.at_once = 0
        self.at_once_max = 0

    def app(self) -> web.Application:
        app = web.Application()
        routes: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
            "/good": self.good,
            "/hangs": self.hangs,
            "/stops": self.stops,
            "/endless": self.endless,
            "/busy": self.busy,
            "/moved": self.moved,
            "/short": self.short,
        }
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        return app

    async def good(self, request: web.Request) -> web.Response:
        self.connections.add(request.transport)
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        self.at_once -= 1
        return web.Response(body=b"x" * 40_000)

    async def hangs(self, _request: web.Request) -> web.Response:
        await self.hang.wait()
        return web.Response()

    async def stops(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half a line")
        await self.hang.wait()
        return response

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not self.hang.is_set():
            await response.write(b"x" * 10_000)
        return response

    async def busy(self, _request: web.Request) -> web.Response:
        return web.Response(status=503)

    async def moved(self, _request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})

    async def short(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"less than promised")
        assert request.transport is not None
        request.transport.close()
        return response


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        server.hang.set()
        await runner.cleanup()


async def test_each_target_fails_for_itself() -> None:
    async with running() as (_, url), open_scraper(FakeClock(), QUICK) as scraper:
        paths = ("good", "hangs", "stops", "endless", "busy", "moved", "short")
        targets = {path: f"{url}/{path}" for path in paths} | {"dead": "http://127.0.0.1:1/", "wrong": "no url"}
        results = await scraper.scrape(targets, take)
    why = {key: result.why.replace(url, "") for key, result in results.items() if isinstance(result, Missing)}
    assert results["good"] == b"x" * 40_000
    assert why["hangs"] == "/hangs did not answer within 0.3 s"
    assert why["stops"] == "/stops did not answer within 0.3 s"
    assert why["endless"] == "/endless sends more than 48.8 KiB"
    assert why["busy"] == "/busy answered 503, expected 200"
    assert why["moved"] == "/moved answered 302, expected 200"
    assert why["short"].startswith("/short cannot be read: ")
    assert why["dead"].startswith("http://127.0.0.1:1/ cannot be read: ")
    assert why["wrong"].startswith("no url cannot be read: ")


async def test_a_round_ends_with_what_it_has() -> None:
    limits = ScrapeLimits(target=timedelta(seconds=5), round=timedelta(milliseconds=300), concurrency=2)
    async with running() as (_, url), open_scraper(FakeClock(), limits) as scraper:
        targets = {"good": f"{url}/good", **{f"hangs-{number}": f"{url}/hangs" for number in range(3)}}
        results = dict(await scraper.scrape(targets, take))
    assert results.pop("good") == b"x" * 40_000
    assert set(results.values()) == {Missing("not reached within the round's 0.3 s")}


async def test_connections_are_kept_and_bounded() -> None:
    limits = ScrapeLimits(concurrency=4)
    async with running() as (server, url), open_scraper(FakeClock(), limits) as scraper:
        for _ in range(3):
            results = await scraper.scrape({str(number): f"{url}/good" for number in range(20)}, take)
            assert all(isinstance(result, bytes) for result in results.values())
        assert server.at_once_max <= 4
        assert len(server.connections) <= 4
