"""Run a control plane until it is told to stop, then end everything in order: load, loops, replicas, gateway."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import uvicorn

from controlplane.adapters.db.engine import sqlite_url
from controlplane.adapters.db.store import SqlStore, open_store
from controlplane.adapters.instance import InstanceLock, InstanceNote, site_mark
from controlplane.adapters.sitefile.secrets import resolve_secret
from controlplane.adapters.system import SystemClock
from controlplane.api.app import create_app
from controlplane.api.assemble import event_out
from controlplane.api.routes_status import status_of
from controlplane.api.wire import EventOut
from controlplane.bootstrap.compose import Parts, put_together
from controlplane.bootstrap.logs import write_logs_to
from controlplane.bootstrap.options import READY_PATIENCE, Running, ServeOptions, Told, log_file, not_ready
from controlplane.bootstrap.preflight import check_port, check_ports_apart, check_state_dir
from controlplane.bootstrap.shutdown import end_replicas
from controlplane.bootstrap.site_load import SiteLoad
from controlplane.bootstrap.site_work import Begun, SiteWork
from controlplane.domain.deployment import TaskKind
from controlplane.domain.site import GatewaySpec, LoadSpec, Site
from controlplane.domain.store import Store
from controlplane.kernel.errors import ConflictError
from controlplane.kernel.ids import InstanceId
from controlplane.runtime.supervisor import Service, Supervisor

_LOG = logging.getLogger(__name__)

CONTROL_HOST: Final = "127.0.0.1"
"""Until callers are told apart (roles and tokens), the API listens for this machine's users only."""
_READY_POLL: Final = timedelta(milliseconds=200)
_EVENTS_POLL: Final = timedelta(milliseconds=500)
_PRIVATE: Final = 0o077
_FOLDER_DIGITS: Final = 8
"""Of the folder's mark, in an instance's name: who shares a store shares a folder."""


async def serve(options: ServeOptions, told: Told) -> None:
    """Until SIGINT or SIGTERM (everything ends in order) or SIGHUP (only the control plane ends; serving goes on).

    InvalidError for a bad site file or a folder that cannot be written, ConflictError when folder or port is taken.
    """
    os.umask(_PRIVATE)
    check_state_dir(options.state_dir)
    async with AsyncExitStack() as stack:
        lock = stack.enter_context(InstanceLock(options.state_dir, options.instance))
        write_logs_to(log_file(options), options.log_level)
        check_port(CONTROL_HOST, options.control_port, what="control plane", option="--control-port")
        folder = site_mark(options.state_dir)[:_FOLDER_DIGITS]
        store, site_work, begun = await _begin(options, lock, folder, stack)
        site = begun.site
        control_url = f"http://{CONTROL_HOST}:{options.control_port}"
        instance = InstanceId(f"{options.instance or socket.gethostname()}-{folder}")
        parts = put_together(
            store=store,
            site_work=site_work,
            site=site,
            state_dir=options.state_dir,
            control_url=control_url,
            instance=instance,
            break_glass=options.break_glass,
            break_glass_passphrase=options.break_glass_passphrase,
        )
        stack.push_async_callback(parts.telemetry.close)
        await stack.enter_async_context(parts.engines)
        gateway_url = parts.context.gateway_url
        note = InstanceNote(pid=os.getpid(), control_url=control_url, gateway_url=gateway_url, refused=begun.refused)
        lock.write_note(note)
        told.on_starting(begun.refused)
        await _run(options, lock, note, parts, site, told)


async def _begin(
    options: ServeOptions, lock: InstanceLock, folder: str, stack: AsyncExitStack
) -> tuple[SqlStore, SiteWork, Begun]:
    """The store: SQLite in the folder, or the PostgreSQL that the site file names; and the site in it."""
    url = sqlite_url(options.state_dir / "store.sqlite3")
    store = await open_store(url)
    stack.push_async_callback(store.close)
    site_work = SiteWork(store=store, clock=SystemClock(), gateway_port=options.gateway_port)
    planned = await site_work.look(options.site_file)
    await _check_gateway(options, planned.gateway)
    if planned.store.url is None:
        if lock.others():
            raise ConflictError(
                f"another control plane works in {options.state_dir}, and the site's store is embedded, for one "
                "only; name a PostgreSQL with `store: {kind: postgresql, url: {env: NAME}}` to run several"
            )
        return store, site_work, await _begin_site(options, site_work)
    remote = resolve_secret(planned.store.url, os.environ, lambda path: Path(path).read_text(encoding="utf-8"))
    shared = await open_store(remote)
    stack.push_async_callback(shared.close)
    await _check_folder(shared, folder)
    site_work = SiteWork(store=shared, clock=SystemClock(), gateway_port=options.gateway_port)
    begun = await _begin_site(options, site_work)
    await _remember(shared, store)
    return shared, site_work, begun


async def _begin_site(options: ServeOptions, site_work: SiteWork) -> Begun:
    begun = await site_work.begin(options.site_file, strict=options.strict)
    if begun.refused:
        _LOG.warning("the site file is not applied", extra={"sentence": begun.refused})
        await _check_gateway(options, begun.site.gateway)
    return begun


async def _check_gateway(options: ServeOptions, gateway: GatewaySpec) -> None:
    port = options.gateway_port or gateway.port
    check_ports_apart(gateway.host, port, options.control_port)
    mark = site_mark(options.state_dir)
    await asyncio.to_thread(check_port, gateway.host, port, what="gateway", option="--port", mark=mark)


async def _check_folder(store: Store, folder: str) -> None:
    """Whoever works on a store starts its replicas as processes of one machine, and finds them by their folder."""
    async with store.transaction() as tx:
        claims = await tx.claims()
    now = SystemClock().now()
    for claim in claims:
        if claim.expires_at > now and not claim.holder.endswith(f"-{folder}"):
            raise ConflictError(
                f"control plane {claim.holder} works on this store with another state folder; replicas are processes "
                "of one machine, found by the folder: share that folder (--state-dir, each with its --instance), stop "
                "the other one, or use another database. One that was killed counts for "
                f"{(claim.expires_at - now).total_seconds():.0f} s more"
            )


async def _remember(shared: Store, local: Store) -> None:
    """The folder's own store keeps the document, so that a start without --site finds the shared store again."""
    async with shared.transaction() as tx:
        applied = await tx.site()
    assert applied is not None, "the site has just been applied"
    async with local.transaction() as tx:
        await tx.put_site(name=applied.name, document=applied.document, digest=applied.digest, now=applied.applied_at)


async def _run(
    options: ServeOptions, lock: InstanceLock, note: InstanceNote, parts: Parts, site: Site, told: Told
) -> None:
    load = SiteLoad(state_dir=options.state_dir, mark=site_mark(options.state_dir))
    http = _Http(parts, options.control_port)
    reporter = _Reporter(parts, told.on_event, after=await _newest_event(parts))
    services = [*parts.services, Service(name="api", run=http.run, stop=http.stop)]
    services.append(Service(name="reporter", run=reporter.run, stop=reporter.stop))
    if site.load is not None:
        parts.recovery.embedded.writes_per_s = site.load.writes_per_s
    supervisor = Supervisor(services, clock=parts.clock)
    ending = _Ending(supervisor)
    ending.listen()

    def on_ready(running: Running) -> None:
        lock.write_note(replace(note, load=running.load))
        told.on_ready(running)

    async with asyncio.TaskGroup() as group:
        started = group.create_task(_start_up(options, parts, site, note.control_url, load, on_ready), name="start-up")
        await supervisor.run()
        started.cancel()
    if ending.keep_serving:
        await asyncio.to_thread(parts.recovery.workshop.end)
        _LOG.info("the control plane ends; gateway and replicas go on serving")
        return
    if others := lock.others():
        await asyncio.to_thread(parts.recovery.workshop.end)
        _LOG.info("this control plane ends; others go on", extra={"instances": others})
        return
    await asyncio.to_thread(load.stop)
    await end_replicas(parts)
    await asyncio.to_thread(parts.recovery.end)
    await parts.gateway.stop()


async def _start_up(
    options: ServeOptions,
    parts: Parts,
    site: Site,
    control_url: str,
    load: SiteLoad,
    on_ready: Callable[[Running], None],
) -> None:
    """Wait for the first replicas, say where to look, send the load."""
    try:
        async with asyncio.timeout(READY_PATIENCE.total_seconds()):
            while not await _is_ready(parts):
                await parts.clock.sleep(_READY_POLL)
    except TimeoutError:
        _LOG.warning("some deployments have no ready replica yet")
    if options.load and site.load is not None:
        embedding = await _embedding(parts)
        await asyncio.to_thread(
            load.start, site.load, parts.context.gateway_url, control_url=control_url, embedding=embedding
        )
    described = describe_load(site.load, asked_for=options.load)
    status = await status_of(parts.context)
    on_ready(Running(status=status, control_url=control_url, state_dir=options.state_dir, load=described))


async def _is_ready(parts: Parts) -> bool:
    status = await status_of(parts.context)
    return not not_ready(status.deployments) and status.gateway == "fresh"


async def _embedding(parts: Parts) -> frozenset[str]:
    async with parts.store.transaction() as tx:
        deployments = await tx.deployments()
    return frozenset(row.name for row in deployments if row.plan.launch.task is TaskKind.EMBED)


def describe_load(spec: LoadSpec | None, *, asked_for: bool) -> str:
    """What a person is told of the site's load; `asked_for`: not switched off with --no-load."""
    if not asked_for:
        return "none (--no-load)"
    if spec is None:
        return "none in the site file"
    day_min, duration_min = spec.day.total_seconds() / 60, spec.duration.total_seconds() / 60
    return (
        f"a day in {day_min:g} minutes, {spec.trough_rps:g} to {spec.peak_rps:g} requests/s, "
        f"ends by itself after {duration_min:g} minutes"
    )


class _Ending:
    """Signals into an orderly end."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.keep_serving = False

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._supervisor.stop)
        loop.add_signal_handler(signal.SIGHUP, self._leave)

    def _leave(self) -> None:
        self.keep_serving = True
        self._supervisor.stop()


class _QuietServer(uvicorn.Server):
    """Leaves signals to `_Ending`: one place decides in which order things end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Http:
    """The API as a service."""

    def __init__(self, parts: Parts, port: int) -> None:
        config = uvicorn.Config(
            create_app(parts.context),
            host=CONTROL_HOST,
            port=port,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=3,
            server_header=False,
        )
        self._server = _QuietServer(config)

    async def run(self) -> None:
        await self._server.serve()

    def stop(self) -> None:
        self._server.should_exit = True


async def _newest_event(parts: Parts) -> int:
    async with parts.store.transaction() as tx:
        newest = await tx.events(limit=1, newest_first=True)
    return newest[0].sequence if newest else 0


class _Reporter:
    """Tells the terminal of events as they happen."""

    def __init__(self, parts: Parts, on_event: Callable[[EventOut], None], *, after: int) -> None:
        self._parts = parts
        self._on_event = on_event
        self._after = after
        """The newest event that was told, or that is of before this start."""
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True

    async def run(self) -> None:
        while not self._stopping:
            async with self._parts.store.transaction() as tx:
                events = await tx.events(after=self._after)
            for event in events:
                self._after = event.sequence
                self._on_event(event_out(event))
            await self._parts.clock.sleep(_EVENTS_POLL)
