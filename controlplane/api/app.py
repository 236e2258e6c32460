"""The application: routes, limits, problem+json."""

from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from controlplane.api import (
    routes_deployments,
    routes_history,
    routes_nodes,
    routes_replicas,
    routes_site,
    routes_status,
)
from controlplane.api.context import ApiContext, Context
from controlplane.api.problems import install_problem_handlers, problem_response
from controlplane.api.wire import Health
from controlplane.kernel.errors import RetryableError

BODY_BYTES_MAX: Final = 2 * 1024 * 1024
"""A site document of a thousand nodes has some hundred kilobytes."""

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]", "testserver")
"""Other Host headers are refused, so that a web page cannot reach a loopback API by rebinding its name."""

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def create_app(context: ApiContext, *, allowed_hosts: tuple[str, ...] = LOOPBACK_HOSTS) -> FastAPI:
    app = FastAPI(
        title="Quarterdeck",
        version=context.version,
        summary="One control plane for a GPU fleet that a team owns.",
        openapi_url="/api/v1/openapi.json",
        docs_url="/docs",
        redoc_url=None,
    )
    app.state.context = context
    install_problem_handlers(app)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))
    app.middleware("http")(_bounded)
    v1 = APIRouter(prefix="/api/v1")
    for module in (
        routes_site, routes_nodes, routes_deployments, routes_replicas, routes_history, routes_status,
    ):  # fmt: skip
        v1.include_router(module.router)
    app.include_router(v1)
    app.include_router(_probes)
    return app


_probes = APIRouter(tags=["probes"])


@_probes.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health(status="ok", detail="the control plane answers")


@_probes.get("/readyz")
async def readyz(context: Context) -> Health:
    """The store answers, a site is applied and every loop ticks."""
    async with context.store.transaction() as tx:
        site = await tx.site()
    if site is None:
        raise RetryableError("no site is applied yet")
    stalled = [f"{loop.loop}/{loop.resource} ({loop.sentence})" for loop in context.loops() if loop.overdue]
    if stalled:
        raise RetryableError(f"{len(stalled)} loops do not tick: {'; '.join(stalled[:5])}")
    return Health(status="ok", detail=f"site {site.name}, generation {site.generation}")


@_probes.get("/metrics", response_class=PlainTextResponse)
def metrics(context: Context) -> PlainTextResponse:
    return PlainTextResponse(context.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _bounded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Bodies within the limit, changes only as JSON (a form post from a web page is none), no caching, no framing."""
    length = request.headers.get("content-length")
    if length is not None and (not length.isdigit() or int(length) > BODY_BYTES_MAX):
        return problem_response(413, "too-large", f"the body has {length} bytes, the limit is {BODY_BYTES_MAX}")
    if request.method not in _SAFE_METHODS:
        if length is None:
            return problem_response(411, "length-required", "send a Content-Length header")
        media_type = request.headers.get("content-type", "").partition(";")[0].strip()
        if media_type != "application/json":
            return problem_response(415, "not-json", f"found Content-Type {media_type!r}, expected application/json")
    response = await call_next(request)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    return response
