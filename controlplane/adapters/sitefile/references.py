"""Names: each declared once, and everything referred to declared (or known to a catalog)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from controlplane.adapters.sitefile.convert_recovery import OWN_DATASET
from controlplane.adapters.sitefile.findings import Finding, Path, Plain, shown_text, suggestion
from controlplane.adapters.sitefile.outline import Entry, entries, integer, names, section, text, texts

NODE_NAME_CHARACTERS_MAX: Final = 40
"""As kernel.ids.NAME_PATTERN has it."""

_DEFAULT_ENGINE: Final = "default"

_DECLARED_IN: Final = {
    "engine": "engines",
    "pool": "node_pools",
    "deployment": "deployments",
    "model": "the model catalog",
    "gpu": "the hardware catalog",
    "bucket": "recovery.buckets",
    "dataset": "recovery.datasets",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the file may refer to outside itself; None: not checked."""

    models: frozenset[str] | None = None
    gpus: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredNode:
    """A node of a pool, as far as it can be read."""

    path: Path
    name: str
    address: str | None


def reference_findings(data: Plain, known: Known) -> Iterator[Finding]:
    yield from _unique_names(data)
    yield from _served_once(data)
    yield from _engines_and_pools(data)
    yield from _catalog(data, known)
    yield from _weights(data)
    yield from _recovery(data)


def declared_nodes(path: Path, pool: Entry) -> Iterator[DeclaredNode]:
    """The nodes of the pool at the path: listed ones, or `<pool>-1`, `<pool>-2`, ... for a number."""
    count, pool_name = integer(pool, "nodes"), text(pool, "name")
    if count is not None and pool_name is not None:
        for number in range(1, min(count, NODES_READ_MAX) + 1):
            yield DeclaredNode(path=(*path, "nodes"), name=f"{pool_name}-{number}", address=None)
    for index, name in texts(pool, "nodes") or ():
        yield DeclaredNode(path=(*path, "nodes", index), name=name, address=None)
    for place, node in entries(pool, "nodes"):
        if name_given := text(node, "name"):
            yield DeclaredNode(path=(*path, *place, "name"), name=name_given, address=text(node, "address"))


NODES_READ_MAX: Final = 4096
"""A count beyond what the schema allows is refused there; here it must not cost time."""


def _unique_names(data: Plain) -> Iterator[Finding]:
    lists = (
        (("node_pools",), "pool"),
        (("engines",), "engine"),
        (("deployments",), "deployment"),
        (("gateway", "tenants"), "tenant"),
        (("recovery", "buckets"), "bucket"),
        (("recovery", "datasets"), "dataset"),
        (("recovery", "drills"), "drill"),
    )
    for keys, what in lists:
        yield from _repeated(_named(entries(data, *keys)), what=what)
    nodes = [node for path, pool in entries(data, "node_pools") for node in declared_nodes(path, pool)]
    yield from _repeated(((node.path, node.name) for node in nodes), what="node")


def _served_once(data: Plain) -> Iterator[Finding]:
    served: list[tuple[Path, str]] = []
    for path, deployment in entries(data, "deployments"):
        listed = texts(deployment, "served_names")
        if listed is not None:
            served += [((*path, "served_names", index), name) for index, name in listed]
        elif name := text(deployment, "name"):
            served.append(((*path, "name"), name))
        served += [((*path, *place), name) for place, name in _named(entries(deployment, "adapters"))]
    declared_twice = {name for name, count in Counter(_deployment_names(data)).items() if count > 1}
    yield from _repeated(((path, name) for path, name in served if name not in declared_twice), what="served name")


def _deployment_names(data: Plain) -> Iterator[str]:
    """Two deployments of one name are reported as that, not also as a served name."""
    yield from (name for _, name in _named(entries(data, "deployments")))


def _named(found: Iterable[tuple[Path, Entry]]) -> Iterator[tuple[Path, str]]:
    for path, entry in found:
        if name := text(entry, "name"):
            yield (*path, "name"), name


def _repeated(named: Iterable[tuple[Path, str]], *, what: str) -> Iterator[Finding]:
    seen: set[str] = set()
    reported: set[str] = set()
    for path, name in named:
        if name in seen and name not in reported:
            reported.add(name)
            found = f"a second {what} {shown_text(name)}"
            yield Finding(path=path, found=found, expected=f"each {what} once", hint="rename one of them")
        seen.add(name)


def _engines_and_pools(data: Plain) -> Iterator[Finding]:
    engines, pools = names(data, "engines"), names(data, "node_pools")
    for path, deployment in entries(data, "deployments"):
        yield from _reference(path, deployment, "engine", engines)
        yield from _reference(path, deployment, "pool", pools)
        if "engine" not in deployment and len(engines) > 1 and _DEFAULT_ENGINE not in engines:
            hint = f"add engine ({', '.join(sorted(engines))}), or call one of them {_DEFAULT_ENGINE}"
            yield Finding(path=(*path, "engine"), found="nothing", expected="one of several engines", hint=hint)


def _catalog(data: Plain, known: Known) -> Iterator[Finding]:
    if known.models is not None:
        for path, deployment in entries(data, "deployments"):
            yield from _reference(path, deployment, "model", known.models)
    if known.gpus is not None:
        for path, pool in entries(data, "node_pools"):
            yield from _reference(path, pool, "gpu", known.gpus)


def _weights(data: Plain) -> Iterator[Finding]:
    deployments = names(data, "deployments")
    for name in section(data, "load", "deployments"):
        yield from _unknown(("load", "deployments", name), name, deployments, what="deployment", at_key=True)


def _recovery(data: Plain) -> Iterator[Finding]:
    buckets = names(data, "recovery", "buckets")
    datasets = names(data, "recovery", "datasets") | {OWN_DATASET}
    for path, dataset in entries(data, "recovery", "datasets"):
        for index, name in texts(dataset, "buckets") or ():
            yield from _unknown((*path, "buckets", index), name, buckets, what="bucket")
    for path, drill in entries(data, "recovery", "drills"):
        yield from _reference(path, drill, "dataset", datasets)
        yield from _reference(path, drill, "bucket", buckets)


def _reference(path: Path, entry: Entry, key: str, valid: frozenset[str]) -> Iterator[Finding]:
    if name := text(entry, key):
        yield from _unknown((*path, key), name, valid, what=key)


def _unknown(path: Path, name: str, valid: frozenset[str], *, what: str, at_key: bool = False) -> Iterator[Finding]:
    if name not in valid:
        yield Finding(
            path=path,
            found=f"an unknown {what} {shown_text(name)}",
            expected=f"a name of {_DECLARED_IN[what]}",
            hint=suggestion(name, valid, what=what),
            at_key=at_key,
        )
