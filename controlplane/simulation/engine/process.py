"""The life of an engine process: start cold, serve, and end as vLLM ends, signals and exit codes included."""

import asyncio
import gc
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Final

from controlplane.kernel.errors import InvalidError
from controlplane.simulation.engine.application import Application
from controlplane.simulation.engine.core import EngineCore, Hold
from controlplane.simulation.engine.exposition import Exposition
from controlplane.simulation.engine.faults import Fault
from controlplane.simulation.engine.gpu_state import GpuFiles, GpuLoad
from controlplane.simulation.engine.http_server import HttpServer
from controlplane.simulation.engine.options import EngineOptions, parse_options
from controlplane.simulation.engine.power import SleepLevel
from controlplane.simulation.engine.scheduler import KV_UNBOUNDED_BLOCKS, Scheduler
from controlplane.simulation.engine.tally import EngineTally

_COLD_START_SPREAD: Final = 0.1
"""Real starts of one model on one machine differ by about so much (measured vLLM: 29 to 43 s, and 19 to 26 s)."""
_GPU_PERIOD_S: Final = 1.0
_FLUSH_S: Final = 1.0
"""For last answers to leave the process; clients that do not read by then lose them."""
_GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Requests make few cycles; collecting rarely keeps steps even."""
_LOG: Final = logging.getLogger("sim-engine")


def main(argv: Sequence[str]) -> int:
    """Run an engine to its end. Exit code: 0 stopped, 1 could not serve, 2 bad options, -15 stopped while starting."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(asctime)s %(message)s")
    try:
        options = parse_options(argv)
    except InvalidError as error:
        sys.stderr.write(f"sim-engine: {error}\n")
        return 2
    if options.ignored:
        _LOG.warning("options without effect in the simulation: %s", " ".join(options.ignored))
    gpu_files = _gpu_files(options)
    orphan_pid = _fork_orphan(gpu_files) if Fault.ORPHAN in options.faults else None
    try:
        return _run(EngineProcess(options, gpu_files, orphan_pid).serve())
    finally:
        _end_orphan(orphan_pid)


class LoopTime:
    """The running event loop's timers, and a clock finer than uvloop's, which counts milliseconds."""

    def now(self) -> float:
        return time.monotonic()

    def call_later(self, delay_s: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_s, action)


class EngineProcess:
    """One run of the engine."""

    def __init__(self, options: EngineOptions, gpu_files: GpuFiles | None, orphan_pid: int | None) -> None:
        self._options = options
        self._gpu_files = gpu_files
        self._orphan_pid = orphan_pid
        self._started_at = time.monotonic()
        self._start_s = _cold_start_s(options)
        self._stop = asyncio.Event()
        self._forced = asyncio.Event()
        """A second SIGINT, or everything in flight has ended."""
        self._signals = 0
        self._serving = False
        self._busy_before_s = 0.0
        self._gpu_trouble = False
        self._measured_at = self._started_at
        self._core = EngineCore(Scheduler(options.profile, options.limits), EngineTally(), LoopTime())
        exposition = Exposition(
            model=options.served_names[0], started_at_s=time.time(), cache_config=cache_config(options)
        )
        self._application = Application(options, self._core, exposition)
        self._application.before_exit = lambda: _end_orphan(orphan_pid)
        self._server = HttpServer(self._application, time.monotonic)

    async def serve(self) -> int:
        """The exit code."""
        try:
            listener = _bind(self._options)
        except OSError as error:
            _LOG.error("cannot listen host=%s port=%d: %s", self._options.host, self._options.port, error)
            return 1
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        self._report_gpus()
        try:
            return await self._live(listener)
        finally:
            self._remove_gpu_files()
            listener.close()

    async def _live(self, listener: socket.socket) -> int:
        try:
            async with asyncio.timeout(self._start_s):
                await self._stop.wait()
        except TimeoutError:
            pass
        else:
            self._die_starting()
        try:
            await self._server.listen(listener)
        except OSError as error:
            _LOG.error("cannot listen host=%s port=%d: %s", self._options.host, self._options.port, error)
            return 1
        self._serving = True
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        host, port = listener.getsockname()[:2]
        _LOG.info("serving model=%s host=%s port=%d", self._options.served_names[0], host, port)
        await self._stop.wait()
        await self._shut_down()
        return 0

    async def _shut_down(self) -> None:
        """In vLLM's order: refuse, let run until the deadline (0: not at all), end the rest, leave."""
        timeout_s = self._options.shutdown_timeout_s
        _LOG.info("stopping in_flight=%d timeout_s=%g", self._core.unfinished, timeout_s)
        if timeout_s > 0 and self._core.unfinished:
            self._application.draining = True
            await self._drained(timeout_s)
            self._core.fail_all("EngineCore encountered an issue: shutdown deadline passed")
        elif Fault.ABORT_HANG in self._application.faults and self._core.unfinished:
            self._core.hold(Hold.HUNG)
            self._server.stop_listening()
            await self._drained(None)
        self._core.abort_all()
        self._server.stop_listening()
        await self._server.wait_empty(_FLUSH_S)
        self._server.hang_up()

    async def _drained(self, timeout_s: float | None) -> None:
        """Until nothing is in flight, a person insists, or the deadline passes."""
        self._core.on_drained = self._forced.set
        try:
            async with asyncio.timeout(timeout_s):
                await self._forced.wait()
        except TimeoutError:
            _LOG.warning("shutdown deadline passed in_flight=%d", self._core.unfinished)

    def _signalled(self, number: int) -> None:
        self._signals += 1
        lost = not self._serving and self._signals == 1 and Fault.LOST_SIGTERM in self._options.faults
        if lost:
            _LOG.warning("signal lost signal=%d", number)
            return
        if self._stop.is_set() and number == signal.SIGINT:
            self._forced.set()
        self._stop.set()

    def _die_starting(self) -> None:
        """SIGTERM during start-up takes vLLM down with the signal's own code."""
        self._remove_gpu_files()
        _end_orphan(self._orphan_pid)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _report_gpus(self) -> None:
        """Once a second. A small file on a local disk: not worth a thread."""
        if self._gpu_files is None:
            return
        try:
            self._gpu_files.write(self._gpu_load(), pid=os.getpid())
        except OSError as error:
            if not self._gpu_trouble:
                _LOG.warning("GPU state not written directory=%s: %s", self._gpu_files.directory, error)
            self._gpu_trouble = True
        else:
            self._gpu_trouble = False
        asyncio.get_running_loop().call_later(_GPU_PERIOD_S, self._report_gpus)

    def _gpu_load(self) -> GpuLoad:
        now, busy_s = time.monotonic(), self._core.busy_s()
        elapsed_s = max(now - self._measured_at, 1e-3)
        utilization = min(1.0, max(0.0, (busy_s - self._busy_before_s) / elapsed_s))
        self._measured_at, self._busy_before_s = now, busy_s
        share = 1.0 if self._serving else min(1.0, (now - self._started_at) / max(self._start_s, 1e-3))
        if self._application.sleep_mode.level is not SleepLevel.AWAKE:
            share = 0.0
        return GpuLoad(utilization=utilization, memory_share=share)

    def _remove_gpu_files(self) -> None:
        if self._gpu_files is not None:
            self._gpu_files.remove()
            self._gpu_files = None


def _run(life: Coroutine[None, None, int]) -> int:
    """On uvloop where it is installed: half the cost of a write."""
    try:
        import uvloop  # noqa: PLC0415  # optional
    except ImportError:
        return asyncio.run(life)
    return uvloop.run(life)


def _cold_start_s(options: EngineOptions) -> float:
    rng = random.Random(options.own_seed)
    spread = rng.uniform(1.0 - _COLD_START_SPREAD, 1.0 + _COLD_START_SPREAD)
    return options.cold_start_s * spread * options.faults.get(Fault.SLOW_START, 1.0)


def _bind(options: EngineOptions) -> socket.socket:
    """Take the port at once, so that a taken one shows early, but listen only when ready: until then, refused."""
    family, kind, protocol, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _gpu_files(options: EngineOptions) -> GpuFiles | None:
    if options.gpu_state_dir is None or not options.gpus:
        return None
    return GpuFiles(
        directory=options.gpu_state_dir,
        node=options.node,
        gpus=options.gpus,
        replica=options.replica,
        memory_total_bytes=options.gpu_memory_bytes,
        memory_utilization=options.gpu_memory_utilization,
        power_full_w=options.gpu_power_w,
    )


def _fork_orphan(gpu_files: GpuFiles | None) -> int:
    """A child in the process group that outlives a killed leader and keeps the GPUs' memory, as EngineCore does."""
    leader = os.getpid()
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        time.sleep(_GPU_PERIOD_S)
        if os.getppid() != leader and gpu_files is not None:
            gpu_files.write(GpuLoad(utilization=0.0, memory_share=1.0), pid=os.getpid())


def _end_orphan(pid: int | None) -> None:
    if pid is None:
        return
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def cache_config(options: EngineOptions) -> dict[str, str]:
    """The labels of vllm:cache_config_info; those without a meaning here carry vLLM's defaults."""
    limits = options.limits
    blocks = 0 if limits.kv_blocks == KV_UNBOUNDED_BLOCKS else limits.kv_blocks
    tokens = blocks * limits.block_tokens
    return {
        "_block_size_resolved": "True",
        "block_size": str(limits.block_tokens),
        "cache_dtype": "auto",
        "cache_hit_alignment_tokens": "None",
        "effective_attention_block_size": str(limits.block_tokens),
        "enable_mamba_shared_prefix_checkpoint": "False",
        "enable_prefix_caching": str(limits.prefix_caching),
        "gpu_memory_utilization": str(options.gpu_memory_utilization),
        "hash_block_size": "None",
        "is_attention_free": "False",
        "kv_cache_dtype_skip_layers": "[]",
        "kv_cache_layout": "None",
        "kv_cache_max_concurrency": str(tokens / options.max_model_len),
        "kv_cache_memory_bytes": "None",
        "kv_cache_size_tokens": str(tokens),
        "kv_offloading_backend": "native",
        "kv_offloading_size": "None",
        "kv_sharing_fast_prefill": "False",
        "mamba_block_size": "None",
        "mamba_cache_dtype": "auto",
        "mamba_cache_mode": "none",
        "mamba_page_size_padded": "None",
        "mamba_ssm_cache_dtype": "auto",
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(blocks),
        "num_gpu_blocks_override": "None",
        "prefix_cache_retention_interval": "0",
        "prefix_caching_hash_algo": "sha256",
        "prefix_match_unit": "None",
        "replayssm_buffer_len": "16",
        "skip_page_size_padded": "None",
        "sliding_window": "None",
        "swa_bounded_replay": "True",
        "use_kda_recoverssm": "False",
        "use_replayssm": "False",
        "user_specified_block_size": "False",
    }
