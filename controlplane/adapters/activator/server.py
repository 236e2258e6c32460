"""The activator's process: two sockets, a poller, a graceful end."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from pydantic import ValidationError

from controlplane.adapters.activator.config import ActivatorConfig, ActivatorState, ControlRequest
from controlplane.adapters.activator.handler import Handler
from controlplane.adapters.activator.watch import release_when_up
from controlplane.kernel.units import KIB

_LOG: Final = logging.getLogger(__name__)

STOP_GRACE: Final = timedelta(seconds=10)
"""For answers that still stream when the activator is told to stop; what is held is sent away at once."""

BACKLOG: Final = 1024
"""Connections from HAProxy not yet accepted: a burst on a cold deployment."""

HEAD_BYTES_MAX: Final = 64 * KIB
"""Of one header field or the request line: above what HAProxy lets through in all, so HAProxy's limit is the one."""

CONTROL_LINE_BYTES_MAX: Final = 64 * KIB


async def serve(config: ActivatorConfig) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    started_at_s = time.time()
    async with AsyncExitStack() as stack:
        connector = aiohttp.UnixConnector(path=config.internal_socket, limit=0, force_close=True)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                base_url="http://gateway",
                connector=connector,
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            )
        )
        handler = Handler(config, session)
        await _listen(stack, handler)
        await _listen_control(stack, config, lambda request: _controlled(handler, request, started_at_s))
        watcher = asyncio.create_task(
            release_when_up(handler.holds, Path(config.admin_socket)), name="activator release when up"
        )
        _LOG.info("activator started", extra={"pid": os.getpid()})
        stopped = asyncio.create_task(stopping.wait(), name="activator wait for stop")
        await asyncio.wait((watcher, stopped), return_when=asyncio.FIRST_COMPLETED)
        handler.holds.close()
        for task in (watcher, stopped):
            task.cancel()
        if watcher.done() and not watcher.cancelled():
            watcher.result()
        with suppress(asyncio.CancelledError):
            await watcher
    _LOG.info("activator stopped", extra={"pid": os.getpid()})


async def _listen(stack: AsyncExitStack, handler: Handler) -> None:
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", handler.handle)
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,
        max_line_size=HEAD_BYTES_MAX,
        max_field_size=HEAD_BYTES_MAX,
        shutdown_timeout=STOP_GRACE.total_seconds(),
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await _bound(handler.config.listen_socket, lambda path: web.UnixSite(runner, path, backlog=BACKLOG).start())


async def _listen_control(
    stack: AsyncExitStack, config: ActivatorConfig, answer: Callable[[ControlRequest], ActivatorState]
) -> None:
    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = ControlRequest.model_validate_json(await reader.readline())
            writer.write(answer(request).model_dump_json().encode() + b"\n")
            await writer.drain()
        except (ValidationError, ValueError, OSError) as error:
            _LOG.warning("control request refused", extra={"error": str(error)})
        finally:
            writer.close()

    async def start(path: str) -> None:
        server = await asyncio.start_unix_server(on_connection, path, limit=CONTROL_LINE_BYTES_MAX)
        stack.callback(server.close)

    await _bound(config.control_socket, start)


async def _bound(path: str, start: Callable[[str], Awaitable[None]]) -> None:
    """Listen beside the path, then move there: whoever connects finds the old listener or this one, never none.

    Only this user may connect.
    """
    beside = f"{path}.new"
    _remove(beside)
    before = os.umask(0o177)
    try:
        await start(beside)
    finally:
        os.umask(before)
    os.replace(beside, path)  # noqa: PTH105 - one rename, at start


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _controlled(handler: Handler, request: ControlRequest, started_at_s: float) -> ActivatorState:
    if request.config is not None:
        handler.configure(request.config)
    return ActivatorState(
        pid=os.getpid(),
        started_at_s=started_at_s,
        config=handler.config,
        held={str(name): count for name, count in handler.holds.counts().items()},
        body_bytes=handler.budget.used_bytes,
        slow_total=handler.slow_total,
        held_total=handler.held_total,
        refused_total=handler.refused_total,
        late_5xx=dict(handler.late_5xx),
    )
