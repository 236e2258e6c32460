"""The application: routes, limits, problem+json."""

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from controlplane.api import (
    routes_deployments,
    routes_history,
    routes_nodes,
    routes_recovery,
    routes_removal,
    routes_replicas,
    routes_site,
    routes_status,
)
from controlplane.api.context import ApiContext, Context
from controlplane.api.docs_page import DOCS_POLICY, docs_page
from controlplane.api.problems import install_problem_handlers, problem_response
from controlplane.api.wire import Health
from controlplane.domain.telemetry import Missing
from controlplane.kernel.errors import RetryableError

BODY_BYTES_MAX: Final = 2 * 1024 * 1024
"""A site document of a thousand nodes has some hundred kilobytes."""

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]", "testserver")
"""Other Host headers are refused, so that a web page cannot reach a loopback API by rebinding its name."""

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OPENAPI_PATH: Final = "/api/v1/openapi.json"
_OWN_FETCHES: Final = frozenset({"", "same-origin", "none"})
"""Of Sec-Fetch-Site: no browser, a page of ours, or typed by the user. `same-site` is another port of this host."""


def create_app(context: ApiContext, *, allowed_hosts: tuple[str, ...] = LOOPBACK_HOSTS) -> FastAPI:
    app = FastAPI(
        title="Quarterdeck",
        version=context.version,
        summary="One control plane for a GPU fleet that a team owns.",
        openapi_url=_OPENAPI_PATH,
        docs_url=None,  # the framework's own page loads its script from the internet
        redoc_url=None,
    )
    app.state.context = context
    install_problem_handlers(app)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))
    app.middleware("http")(_bounded)
    v1 = APIRouter(prefix="/api/v1")
    for module in (
        routes_site, routes_nodes, routes_deployments, routes_replicas, routes_history, routes_status,
        routes_recovery, routes_removal,
    ):  # fmt: skip
        v1.include_router(module.router)
    app.include_router(v1)
    app.include_router(_probes)
    app.include_router(_pages)
    return app


_pages = APIRouter(include_in_schema=False)


@_pages.get("/")
def root() -> RedirectResponse:
    return RedirectResponse("/docs")


@_pages.get("/docs")
def docs(request: Request) -> HTMLResponse:
    app: FastAPI = request.app
    return HTMLResponse(
        docs_page(app.openapi(), openapi_path=_OPENAPI_PATH), headers={"Content-Security-Policy": DOCS_POLICY}
    )


@_pages.get("/openapi.json")
def openapi(request: Request) -> JSONResponse:
    """Where generators look first."""
    app: FastAPI = request.app
    return JSONResponse(app.openapi())


_probes = APIRouter(tags=["probes"])


@_probes.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health(status="ok", detail="the control plane answers")


@_probes.get("/readyz")
async def readyz(context: Context) -> Health:
    """The store answers, a site is applied, every loop ticks and the gateway is there."""
    async with context.store.transaction() as tx:
        site = await tx.site()
    if site is None:
        raise RetryableError("no site is applied yet")
    stalled = [f"{loop.loop}/{loop.resource} ({loop.sentence})" for loop in context.loops() if loop.overdue]
    if stalled:
        raise RetryableError(f"{len(stalled)} loops do not tick: {'; '.join(stalled[:5])}")
    gateway = context.telemetry.snapshot().gateway
    if isinstance(gateway, Missing):
        failing = [loop.sentence for loop in context.loops() if loop.loop == "gateway" and loop.failures_in_a_row]
        raise RetryableError(f"the gateway is not up: {failing[0] if failing else gateway.why}")
    return Health(status="ok", detail=f"site {site.name}, generation {site.generation}")


@_probes.get("/metrics", response_class=PlainTextResponse)
def metrics(context: Context) -> PlainTextResponse:
    return PlainTextResponse(context.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _bounded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Bodies within the limit, changes only from here and as JSON, no caching, no framing."""
    refusal = _refusal(request)
    if refusal is not None:
        return refusal
    response = await call_next(request)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    return response


def _refusal(request: Request) -> Response | None:
    """A request without Content-Length and Transfer-Encoding has no body (RFC 9112, 6.3)."""
    length = request.headers.get("content-length")
    if length is not None and (not length.isdigit() or int(length) > BODY_BYTES_MAX):
        return problem_response(413, "too-large", f"the body has {length} bytes, the limit is {BODY_BYTES_MAX}")
    if request.method in _SAFE_METHODS:
        return None
    if (foreign := _foreign(request)) is not None:
        return problem_response(403, "cross-site", f"a web page of another site asked for this change ({foreign})")
    if length is None and "transfer-encoding" in request.headers:
        return problem_response(411, "length-required", "send the body with a Content-Length header")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if int(length or 0) > 0 and media_type != "application/json":
        return problem_response(415, "not-json", f"found Content-Type {media_type!r}, expected application/json")
    return None


def _foreign(request: Request) -> str | None:
    """What a browser says of the page behind a request, where that is not one of ours; a form needs no body to act."""
    fetched_from = request.headers.get("sec-fetch-site", "")
    if fetched_from not in _OWN_FETCHES:
        return f"Sec-Fetch-Site: {fetched_from}"
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return f"Origin: {origin}"
    return None
