"""Which request goes where, who may ask, what counts, and what a switched-on fault makes of it."""

import hmac
import logging
import os
import random
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

import orjson

from controlplane.kernel.errors import InvalidError
from controlplane.simulation.engine.core import EngineCore, Hold
from controlplane.simulation.engine.exposition import EngineGauges, Exposition
from controlplane.simulation.engine.faults import START_ONLY, Fault, parse_fault
from controlplane.simulation.engine.http_server import Exchange
from controlplane.simulation.engine.inference import Inference
from controlplane.simulation.engine.options import EngineOptions
from controlplane.simulation.engine.power import SleepLevel, SleepMode
from controlplane.simulation.engine.tally import HttpTally
from controlplane.simulation.engine.wire import Refusal, RefusedError, bad_request, internal_error, parse_object

VERSION: Final = "0.32.0+quarterdeck.sim"
"""The vLLM whose HTTP and metrics are spoken."""

_METRICS_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8"
_UNCOUNTED: Final = frozenset({"/metrics", "/health", "/load", "/ping", "/version"})
"""vLLM's instrumentator leaves these out."""
_LOG: Final = logging.getLogger("sim-engine")

type Route = Callable[[Exchange], None]


class Application:
    """Everything behind the HTTP server."""

    def __init__(self, options: EngineOptions, core: EngineCore, exposition: Exposition) -> None:
        self.core = core
        self.sleep_mode = SleepMode(core, options.wake_s)
        self.faults: dict[Fault, float] = {}
        self.draining = False
        self.before_exit: Callable[[], None] = lambda: None
        """Called before a crash: what the operating system would not clean up."""
        self._options = options
        self._exposition = exposition
        self._now = core.time.now
        self._http = HttpTally()
        self._rng = random.Random(options.own_seed)
        self._frozen_metrics: bytes | None = None
        self._requests_seen = 0
        self._inference = Inference(options, core)
        self._posts: Mapping[str, Route] = self._inference.routes()
        self._routes = self._all_routes()
        self._apply_pace()
        for fault, value in options.faults.items():
            self.set_fault(fault, value)

    # the server's side

    def handle(self, exchange: Exchange) -> None:
        route = self._routes.get(exchange.path)
        try:
            if route is None:
                exchange.respond(404, b'{"detail":"Not Found"}')
            elif exchange.method not in route:
                exchange.respond(405, b'{"detail":"Method Not Allowed"}')
            elif not self._allowed(exchange):
                exchange.respond(401, b'{"error":"Unauthorized"}')
            else:
                route[exchange.method](exchange)
        except RefusedError as error:
            _refuse(exchange, error.refusal)
        except Exception as error:  # noqa: BLE001  # the last line of defence: one sick request must not stop the engine
            _LOG.exception("request failed path=%s", exchange.path)
            _refuse(exchange, internal_error(str(error)))

    def completed(self, exchange: Exchange) -> None:
        if exchange.path in _UNCOUNTED:
            return
        length = exchange.headers.get(b"content-length", b"0")
        self._http.record(
            handler=exchange.path if exchange.path in self._routes else "none",
            method=exchange.method,
            status=exchange.status,
            seconds=self._now() - exchange.started_at,
            request_bytes=int(length),
            response_bytes=exchange.response_bytes,
        )

    def set_fault(self, fault: Fault, value: float) -> None:
        """Switch it on and let it act."""
        _LOG.warning("fault on name=%s value=%g", fault, value)
        if fault is Fault.HANG and fault not in self.faults:
            self._frozen_metrics = self._render()
            self.core.hold(Hold.HUNG)
        self.faults[fault] = value
        self._apply_pace()
        if fault is Fault.CRASH:
            self._requests_seen = 0
            if value == 0:
                self._crash()

    def clear_fault(self, fault: Fault) -> None:
        _LOG.warning("fault off name=%s", fault)
        self.faults.pop(fault, None)
        self._apply_pace()
        if fault is Fault.HANG:
            self._frozen_metrics = None
            self.core.release(Hold.HUNG)

    # routes

    def _all_routes(self) -> dict[str, dict[str, Route]]:
        routes: dict[str, dict[str, Route]] = {
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": lambda exchange: _json(exchange, {"version": VERSION})},
            "/load": {"GET": self._load},
            "/metrics": {"GET": self._metrics},
            "/v1/models": {"GET": self._inference.models},
            "/tokenize": {"POST": self._inference.tokenize},
        }
        routes |= {
            path: {"POST": lambda exchange, route=route: self._infer(exchange, route)}  # type: ignore[misc]
            for path, route in self._posts.items()
        }
        if self._options.sleep_mode:
            routes["/sleep"] = {"POST": self._sleep}
            routes["/wake_up"] = {"POST": lambda exchange: self.sleep_mode.wake(lambda: exchange.respond(200, b""))}
            routes["/is_sleeping"] = {
                "GET": lambda exchange: _json(exchange, {"is_sleeping": self.sleep_mode.level is not SleepLevel.AWAKE})
            }
        if self._options.fault_api:
            routes["/sim/faults"] = {"GET": self._show_faults, "POST": self._switch_fault}
        return routes

    def _infer(self, exchange: Exchange, route: Route) -> None:
        """An inference request, with the faults that meet one on its way in."""
        faults = self.faults
        if self.draining:
            raise RefusedError(internal_error("cannot schedule new futures after shutdown"))
        if faults:
            self._requests_seen += 1
            if Fault.CRASH in faults and self._requests_seen >= faults[Fault.CRASH]:
                self._crash()
            if self._rng.random() < faults.get(Fault.ERROR_RATE, 0.0):
                raise RefusedError(internal_error("simulated error (--sim-fault error-rate)"))
            if Fault.ADMISSION in faults:
                raise RefusedError(self._inference.overflow())
        route(exchange)

    def _health(self, exchange: Exchange) -> None:
        flaky = self.faults.get(Fault.FLAKY_HEALTH, 0.0)
        exchange.respond(503 if self._rng.random() < flaky else 200, b"", "text/plain")

    def _load(self, exchange: Exchange) -> None:
        _json(exchange, {"server_load": self.core.unfinished if self._options.load_tracking else 0})

    def _metrics(self, exchange: Exchange) -> None:
        exchange.respond(200, self._frozen_metrics or self._render(), _METRICS_TYPE)

    def _sleep(self, exchange: Exchange) -> None:
        level = exchange.query.get("level", "1")
        if level not in {"1", "2"}:
            raise RefusedError(bad_request(f"level must be 1 or 2, found {level!r}", "level"))
        self.sleep_mode.sleep(SleepLevel(int(level)))
        exchange.respond(200, b"", "text/plain")

    def _show_faults(self, exchange: Exchange) -> None:
        _json(exchange, {"faults": {fault.value: value for fault, value in self.faults.items()}})

    def _switch_fault(self, exchange: Exchange) -> None:
        fields = parse_object(exchange.body)
        name, on, value = fields.get("name"), fields.get("on"), fields.get("value")
        if not isinstance(on, bool) or not isinstance(value, int | float | None):
            raise RefusedError(bad_request('expected {"name": NAME, "on": true or false, "value": NUMBER}'))
        try:
            # Switching off needs no value, but the name must be one.
            fault, number = parse_fault(str(name), value if on or value is not None else 1.0)
        except InvalidError as error:
            raise RefusedError(bad_request(str(error), "name")) from None
        if fault in START_ONLY:
            raise RefusedError(bad_request(f"{fault} can only be set at start, with --sim-fault", "name"))
        if on:
            self.set_fault(fault, number)
        else:
            self.clear_fault(fault)
        self._show_faults(exchange)

    def _allowed(self, exchange: Exchange) -> bool:
        """As vLLM: the key guards /v1 only."""
        key = self._options.api_key
        if key is None or not exchange.path.startswith("/v1"):
            return True
        return hmac.compare_digest(exchange.headers.get(b"authorization", b""), b"Bearer " + key.encode())

    def _apply_pace(self) -> None:
        self.core.scheduler.time_scale = self.faults.get(Fault.SLOW, 1.0) / self._options.speed

    def _render(self) -> bytes:
        scheduler = self.core.scheduler
        asleep = self.sleep_mode.level is not SleepLevel.AWAKE
        gauges = EngineGauges(
            running=scheduler.running,
            waiting=scheduler.waiting,
            deferred=scheduler.waiting if asleep else 0,
            kv_usage=scheduler.kv_usage,
            sleep_level=self.sleep_mode.level,
        )
        return self._exposition.render(gauges, self.core.tally, self._http)

    def _crash(self) -> None:
        """As vLLM when its engine process dies: gone at once, and with rc 0."""
        self.before_exit()
        os._exit(0)


def _json(exchange: Exchange, value: object) -> None:
    exchange.respond(200, orjson.dumps(value))


def _refuse(exchange: Exchange, refusal: Refusal) -> None:
    exchange.respond(HTTPStatus(refusal.status), refusal.body())
