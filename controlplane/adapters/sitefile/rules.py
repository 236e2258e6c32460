"""Rules that span fields: bounds that depend on each other, fields that need or exclude each other.

They read the plain data, not the validated document, and pass over what the schema already refuses: so a broken rule
is reported together with a wrong type elsewhere, and nothing is reported twice.
"""

from collections.abc import Iterator
from typing import Final

from controlplane.adapters.sitefile.findings import Finding, Path, Plain, shown
from controlplane.adapters.sitefile.outline import Entry, duration, entries, integer, number, section, text
from controlplane.adapters.sitefile.recovery_rules import recovery_findings
from controlplane.adapters.sitefile.references import NODE_NAME_CHARACTERS_MAX, declared_nodes
from controlplane.adapters.sitefile.scaling_rules import autoscaling_findings
from controlplane.adapters.sitefile.schema import Gateway, ReplicaPorts, Telemetry

OWNED_ARGUMENTS: Final = {
    "model": "weights",
    "revision": "revision",
    "served-model-name": "served_names",
    "tensor-parallel-size": "tensor_parallel",
    "max-model-len": "context",
    "max-num-seqs": "max_num_seqs",
    "gpu-memory-utilization": "memory_utilization of the engine",
    "quantization": "precision",
    "enable-lora": "adapters",
    "lora-modules": "adapters",
    "enable-sleep-mode": "idle_mode: sleep",
    "host": "",
    "port": "",
    "uds": "",
    "root-path": "",
    "api-key": "",
    "ssl-keyfile": "",
    "ssl-certfile": "",
    "pipeline-parallel-size": "",
    "data-parallel-size": "",
}
"""Engine arguments that follow from the field named, or that only the control plane sets (empty)."""

_SIMULATED_ONLY: Final = ("speed", "cold_start", "wake")
_LOOPBACK: Final = "127.0.0.1"


def rule_findings(data: Plain) -> Iterator[Finding]:
    """Everything that the rules have against the file."""
    yield from _pools(data)
    yield from _engines(data)
    for path, deployment in entries(data, "deployments"):
        yield from _replicas(path, deployment)
        yield from _arguments((*path, "engine_args"), section(deployment, "engine_args"))
        yield from _weights(path, deployment)
        yield from _playable(path, deployment, data)
        yield from autoscaling_findings(path, deployment)
    yield from _ports(data)
    yield from _telemetry(section(data, "telemetry"))
    yield from _store(section(data, "store"))
    yield from _load(section(data, "load"))
    yield from recovery_findings(data)


def _pools(data: Plain) -> Iterator[Finding]:
    real_addresses: dict[str, str] = {}
    for path, pool in entries(data, "node_pools"):
        yield from _numa(path, pool)
        yield from _long_names(path, pool)
        if pool.get("simulated", False) is False:
            yield from _shared_addresses(path, pool, real_addresses)


def _numa(path: Path, pool: Entry) -> Iterator[Finding]:
    numa, gpus = pool.get("numa"), integer(pool, "gpus_per_node")
    if isinstance(numa, list) and gpus is not None and len(numa) != gpus:
        expected = f"one NUMA domain for each of {gpus} GPUs"
        yield Finding(path=(*path, "numa"), found=shown(numa), expected=expected, hint="see `nvidia-smi topo -m`")


def _long_names(path: Path, pool: Entry) -> Iterator[Finding]:
    if integer(pool, "nodes") is None:
        return
    longest = max((node.name for node in declared_nodes(path, pool)), key=len, default="")
    if len(longest) > NODE_NAME_CHARACTERS_MAX:
        found = f"a node called {longest}"
        expected = f"node names of at most {NODE_NAME_CHARACTERS_MAX} characters"
        yield Finding(path=(*path, "name"), found=found, expected=expected, hint="shorten the name of the pool")


def _shared_addresses(path: Path, pool: Entry, taken: dict[str, str]) -> Iterator[Finding]:
    """Two real machines cannot answer at one address. Reported once for a pool."""
    for node in declared_nodes(path, pool):
        address = node.address or _LOOPBACK
        first = taken.setdefault(address, node.name)
        if first != node.name:
            yield Finding(
                path=node.path,
                found=f"real nodes {first} and {node.name} both at {address}",
                expected="one address for each real node",
                hint=f"list them under nodes as {{name: {node.name}, address: HOST}}, or set simulated: true",
            )
            return


def _engines(data: Plain) -> Iterator[Finding]:
    for path, engine in entries(data, "engines"):
        yield from _arguments((*path, "args"), section(engine, "args"))
        for key in _SIMULATED_ONLY:
            if text(engine, "kind") == "vllm" and engine.get(key) is not None:
                hint = f"delete {key}, or set kind: simulated"
                yield _needless((*path, key), f"{key} with kind: vllm", "it only for a simulated engine", hint)


def _arguments(path: Path, arguments: Entry) -> Iterator[Finding]:
    for name in arguments:
        owner = OWNED_ARGUMENTS.get(name.replace("_", "-").lower().removeprefix("no-"))
        if owner is not None:
            hint = f"use {owner}" if owner else "delete it: the control plane sets it itself"
            yield _needless((*path, name), f"the engine argument {name}", "arguments that no field stands for", hint)


def _replicas(path: Path, deployment: Entry) -> Iterator[Finding]:
    replicas = section(deployment, "replicas")
    low, high = integer(replicas, "min"), integer(replicas, "max")
    if low is not None and high is not None and low > high >= 1:
        yield Finding(
            path=(*path, "replicas", "max"),
            found=f"max {high} below min {low}",
            expected="max at least as large as min",
            hint=f"raise max to {low}, or lower min",
        )
    if low == 0 and "idle_after" not in deployment:
        yield Finding(
            path=(*path, "replicas", "min"),
            found="min 0 without idle_after",
            expected="idle_after, which says when a deployment may go to zero",
            hint="add `idle_after: 5m`, or set min: 1",
        )
    if low is not None and low > 0:
        for key in ("idle_after", "idle_mode"):
            if deployment.get(key) is not None:
                hint = f"set replicas.min: 0, or delete {key}"
                yield _needless((*path, key), f"{key} with replicas.min {low}", "it only with replicas.min: 0", hint)


def _weights(path: Path, deployment: Entry) -> Iterator[Finding]:
    """A folder has no revisions."""
    weights = text(deployment, "weights")
    if weights is not None and weights.startswith("/") and deployment.get("revision") is not None:
        hint = "delete revision, or name a repository in weights"
        yield _needless((*path, "revision"), "revision with weights in a folder", "it only with a repository", hint)


def _playable(path: Path, deployment: Entry, data: Plain) -> Iterator[Finding]:
    """A real engine needs a real GPU."""
    pools = {text(pool, "name"): pool for _, pool in entries(data, "node_pools")}
    engines = {text(engine, "name"): engine for _, engine in entries(data, "engines")}
    engine_name = text(deployment, "engine") or (next(iter(engines)) if len(engines) == 1 else "default")
    wanted = text(deployment, "pool")
    candidates = list(pools.values()) if wanted is None else [pools[wanted]] if wanted in pools else []
    if text(engines.get(engine_name, {}), "kind") != "vllm" or not candidates:
        return
    if all(pool.get("simulated") is True for pool in candidates):
        yield Finding(
            path=(*path, "engine") if "engine" in deployment else path,
            found=f"engine {engine_name} (vllm) on simulated GPUs alone",
            expected="an engine of kind simulated, or a pool of real nodes",
            hint="name a simulated engine, or a pool without simulated: true",
        )


def _ports(data: Plain) -> Iterator[Finding]:
    defaults, ports = ReplicaPorts(), section(data, "replica_ports")
    first = defaults.first if "first" not in ports else integer(ports, "first")
    last = defaults.last if "last" not in ports else integer(ports, "last")
    gateway = section(data, "gateway")
    gateway_port = Gateway().port if "port" not in gateway else integer(gateway, "port")
    if first is None or last is None:
        return
    if first > last:
        hint = "swap them, or widen the range"
        found, expected = f"first {first} after last {last}", "first at most last"
        yield Finding(path=("replica_ports",), found=found, expected=expected, hint=hint)
    elif gateway_port is not None and first <= gateway_port <= last:
        found = f"the gateway's port {gateway_port} inside {first} to {last}"
        hint = "move gateway.port, or the range"
        place: Path = ("gateway", "port") if "port" in gateway else ("replica_ports",)
        yield Finding(path=place, found=found, expected="a port outside replica_ports", hint=hint)


def _telemetry(telemetry: Entry) -> Iterator[Finding]:
    defaults = Telemetry()
    yield from _needed_with(
        "telemetry", telemetry, kind_key="source", kind="prometheus", needed="prometheus_url",
        example="prometheus_url: http://127.0.0.1:9090",
    )  # fmt: skip
    interval = defaults.interval if "interval" not in telemetry else duration(telemetry, "interval")
    stale_after = defaults.stale_after if "stale_after" not in telemetry else duration(telemetry, "stale_after")
    if interval is not None and stale_after is not None and stale_after <= interval:
        key = "stale_after" if "stale_after" in telemetry else "interval"
        yield Finding(
            path=("telemetry", key),
            found=f"{key} {telemetry.get(key)}",
            expected="stale_after longer than interval",
            hint="set stale_after to some intervals: every measurement would be stale",
        )


def _store(store: Entry) -> Iterator[Finding]:
    yield from _needed_with(
        "store", store, kind_key="kind", kind="postgresql", needed="url", example="url: {env: QUARTERDECK_DATABASE_URL}"
    )


def _needed_with(name: str, entry: Entry, *, kind_key: str, kind: str, needed: str, example: str) -> Iterator[Finding]:
    """`needed` is there exactly when `kind_key` says `kind`."""
    chosen = text(entry, kind_key)
    if chosen == kind and entry.get(needed) is None:
        expected = f"{needed} with {kind_key}: {kind}"
        yield Finding(path=(name, needed), found="nothing", expected=expected, hint=f"add `{example}`")
    if chosen != kind and entry.get(needed) is not None and (chosen is not None or kind_key not in entry):
        found, hint = f"{needed} without {kind_key}: {kind}", f"add {kind_key}: {kind}, or delete {needed}"
        yield _needless((name, needed), found, f"it only with {kind_key}: {kind}", hint)


def _load(load: Entry) -> Iterator[Finding]:
    trough, peak = number(load, "trough_rps"), number(load, "peak_rps")
    if trough is not None and peak is not None and trough > peak:
        yield Finding(
            path=("load", "trough_rps"),
            found=f"{trough:g} above peak_rps {peak:g}",
            expected="at most peak_rps",
            hint="swap the two",
        )


def _needless(path: Path, found: str, expected: str, hint: str) -> Finding:
    return Finding(path=path, found=found, expected=expected, hint=hint, at_key=True)
