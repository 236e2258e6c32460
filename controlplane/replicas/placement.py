"""Where a new replica goes. Deterministic: the same fleet gives the same answer.

Order of wishes: all GPUs of the replica in one NUMA domain; a node without a replica of the same deployment (so that
one node's failure costs the least); a node without a failed start lately; the tightest fit (so that large gaps stay
for large replicas). Inside a domain: an aligned block whose buddy is already broken, for the same reason.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from controlplane.domain.deployment import Deployment
from controlplane.kernel.ids import NodeName
from controlplane.replicas.ledger import GpuLedger, NodeGpus, Shelf, gpus_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """One replica's needs."""

    gpus: int
    shelves: tuple[Shelf, ...]
    """Where it may go, best GPU first."""
    neighbours: Mapping[NodeName, int]
    """Replicas of the same deployment by node."""
    avoided: frozenset[NodeName]
    ports: tuple[int, int]
    """First and last."""
    ports_from: int
    """The first that is tried; the search goes round."""
    refused_ports: Mapping[str, frozenset[int]]
    """By address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    node: NodeName
    gpus: tuple[int, ...]
    numa_domain: int | None
    gpu_model: str
    port: int


@dataclass(frozen=True, slots=True)
class NoRoom:
    """The sentence says what was needed and what is free where."""

    sentence: str


def shelves_for(deployment: Deployment, ledger: GpuLedger) -> tuple[Shelf, ...]:
    """Shelves whose GPU holds the plan and whose pool is allowed, in the plan's order of GPU models."""
    pool = deployment.spec.pool
    present = sorted(shelf for shelf in ledger.shelves() if pool is None or shelf[1] == pool)
    return tuple(shelf for model in deployment.plan.gpu_models for shelf in present if shelf[0] == model)


def place(request: PlacementRequest, ledger: GpuLedger) -> Placement | NoRoom:
    """A place, not yet taken: the caller takes it from its fork."""
    for shelf in request.shelves:
        for candidates in (ledger.nodes_with_near(shelf, request.gpus), ledger.nodes_with(shelf, request.gpus)):
            placement = _best(request, ledger, candidates)
            if placement is not None:
                return placement
    return NoRoom(_no_room(request, ledger))


def first_port_tried(ports: tuple[int, int], seed: str) -> int:
    """A port of the range that follows from the seed alone; the first one without a seed or a range."""
    first, last = ports
    if not seed or last <= first:
        return first
    return first + int.from_bytes(hashlib.sha256(seed.encode()).digest()) % (last - first + 1)


def choose_gpus(node: NodeGpus, free: int, count: int) -> tuple[tuple[int, ...], int | None]:
    """`count` of the free GPUs of a node that has so many, and their NUMA domain when they share one."""
    near = [
        (_popcount(free & domain), index)
        for index, domain in enumerate(node.domains)
        if _popcount(free & domain) >= count
    ]
    if near:
        _, index = min(near)
        return gpus_of(_block(node.domains[index], free, count)), node.domain_ids[index]
    chosen = 0
    for domain in sorted(node.domains, key=lambda mask: (-_popcount(free & mask), mask)):
        for gpu in gpus_of(free & domain):
            if _popcount(chosen) < count:
                chosen |= 1 << gpu
    return gpus_of(chosen), None


def _best(request: PlacementRequest, ledger: GpuLedger, candidates: Iterator[NodeName]) -> Placement | None:
    best: tuple[tuple[int, int], Placement] | None = None
    for name in candidates:
        rank = (request.neighbours.get(name, 0), int(name in request.avoided))
        if best is not None and best[0] <= rank:
            continue
        placement = _on_node(request, ledger, name)
        if placement is None:
            continue
        if rank == (0, 0):
            return placement
        best = (rank, placement)
    return best[1] if best is not None else None


def _on_node(request: PlacementRequest, ledger: GpuLedger, name: NodeName) -> Placement | None:
    node = ledger.node(name)
    refused = request.refused_ports.get(node.address, frozenset())
    port = ledger.next_free_port(node.address, request.ports, request.ports_from, refused)
    if port is None:
        return None
    gpus, numa_domain = choose_gpus(node, ledger.free_mask(name), request.gpus)
    return Placement(node=name, gpus=gpus, numa_domain=numa_domain, gpu_model=node.shelf[0], port=port)


def _block(domain: int, free: int, count: int) -> int:
    """An aligned block of free GPUs inside the domain, its buddy already broken if there is such; else the lowest."""
    members = gpus_of(domain)
    available = free & domain
    blocks: list[tuple[int, int, int]] = []
    for start in range(0, len(members) - count + 1, max(count, 1)):
        mask = sum(1 << gpu for gpu in members[start : start + count])
        if mask & available == mask:
            pair = start - start % (2 * count)
            buddies = sum(1 << gpu for gpu in members[pair : pair + 2 * count])
            blocks.append((_popcount(buddies & available), start, mask))
    if blocks:
        return min(blocks)[2]
    return sum(1 << gpu for gpu in gpus_of(available)[:count])


def _no_room(request: PlacementRequest, ledger: GpuLedger) -> str:
    need = f"{request.gpus} free GPU{'s' if request.gpus != 1 else ''} on one node"
    if not request.shelves:
        return f"needs {need}, but no READY node has a fitting GPU in the allowed pools"
    seen = [_shelf_words(shelf, ledger) for shelf in request.shelves]
    if any(any(free >= request.gpus for free in ledger.free_histogram(shelf)) for shelf in request.shelves):
        first, last = request.ports
        return f"needs {need} and there are some, but every port of {first}-{last} is taken there: {'; '.join(seen)}"
    return f"needs {need}: {'; '.join(seen)}"


def _shelf_words(shelf: Shelf, ledger: GpuLedger) -> str:
    model, pool = shelf
    histogram = ledger.free_histogram(shelf)
    total = sum(free * nodes for free, nodes in histogram.items())
    nodes_total = sum(histogram.values())
    where = ", ".join(f"{nodes} with {free}" for free, nodes in sorted(histogram.items(), reverse=True))
    away = ledger.unusable(shelf)
    rest = f"; {away} more not taking replicas" if away else ""
    return f"{model} in pool {pool} has {total} free GPUs on {nodes_total} READY nodes ({where}{rest})"


def _popcount(mask: int) -> int:
    return mask.bit_count()
