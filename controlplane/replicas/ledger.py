"""Who holds which GPU and port: built from all rows of all deployments, asked and changed in about constant time.

A ledger is built once per look at the fleet and shared by many plans; a plan that reserves works on a `fork`. Nodes are
kept in shelves of equal GPU model and pool, sorted into buckets by how many GPUs are free, so that a placement looks at
a few nodes and not at all of them. GPU sets are bit masks: bit i is GPU i.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from controlplane.domain.node import Node
from controlplane.domain.replica import Replica
from controlplane.kernel.ids import NodeName, PoolName

type Shelf = tuple[str, PoolName]
"""GPU model and pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpus:
    """What a node has. Shared by all forks."""

    name: NodeName
    address: str
    shelf: Shelf
    all_mask: int
    domains: tuple[int, ...]
    """A mask per NUMA domain, in order of the domain's number; one mask with everything where domains are not known."""
    domain_ids: tuple[int | None, ...]
    usable: bool

    def free_near(self, free: int) -> int:
        """The most GPUs free in a single NUMA domain."""
        return max(((free & domain).bit_count() for domain in self.domains), default=0)


@dataclass(slots=True)
class _Buckets:
    """Node names by a count, each bucket sorted: the order of placement never depends on history."""

    names: dict[int, list[NodeName]] = field(default_factory=dict)

    def add(self, count: int, name: NodeName) -> None:
        insort(self.names.setdefault(count, []), name)

    def move(self, name: NodeName, before: int, after: int) -> None:
        if before == after:
            return
        bucket = self.names[before]
        del bucket[bisect_left(bucket, name)]
        self.add(after, name)

    def fork(self) -> "_Buckets":
        return _Buckets({count: list(names) for count, names in self.names.items()})

    def at_least(self, count: int) -> Iterator[NodeName]:
        for free in sorted(self.names):
            if free >= count:
                yield from self.names[free]


class GpuLedger:
    """Free GPUs per node and free ports per address."""

    def __init__(self, nodes: Iterable[Node], replicas: Iterable[Replica]) -> None:
        self._nodes: Mapping[NodeName, NodeGpus] = {node.name: _node_gpus(node) for node in nodes}
        self._free: dict[NodeName, int] = {name: node.all_mask for name, node in self._nodes.items()}
        self._ports: dict[str, int] = {}
        for replica in replicas:
            if replica.holds_gpus:
                self._take_row(replica)
        self._near: dict[Shelf, _Buckets] = {}
        self._total: dict[Shelf, _Buckets] = {}
        for name in sorted(self._nodes):
            node = self._nodes[name]
            if node.usable:
                free = self._free[name]
                self._near.setdefault(node.shelf, _Buckets()).add(node.free_near(free), name)
                self._total.setdefault(node.shelf, _Buckets()).add(free.bit_count(), name)

    def fork(self) -> "GpuLedger":
        """A copy that can be changed without touching this one."""
        copy = object.__new__(GpuLedger)
        copy._nodes = self._nodes
        copy._free = dict(self._free)
        copy._ports = dict(self._ports)
        copy._near = {shelf: buckets.fork() for shelf, buckets in self._near.items()}
        copy._total = {shelf: buckets.fork() for shelf, buckets in self._total.items()}
        return copy

    def take(self, name: NodeName, gpus: Iterable[int], port: int) -> None:
        """Mark GPUs and port of a usable node as held."""
        node = self._nodes[name]
        before = self._free[name]
        after = before & ~mask_of(gpus)
        self._free[name] = after
        self._ports[node.address] = self._ports.get(node.address, 0) | (1 << port)
        self._near[node.shelf].move(name, node.free_near(before), node.free_near(after))
        self._total[node.shelf].move(name, before.bit_count(), after.bit_count())

    def node(self, name: NodeName) -> NodeGpus:
        return self._nodes[name]

    def shelves(self) -> Iterable[Shelf]:
        """Those that have a usable node."""
        return self._total

    def free_mask(self, name: NodeName) -> int:
        return self._free[name]

    def nodes_with_near(self, shelf: Shelf, count: int) -> Iterator[NodeName]:
        """Usable nodes with so many free GPUs in one NUMA domain, the tightest fit first, then by name."""
        buckets = self._near.get(shelf)
        return buckets.at_least(count) if buckets is not None else iter(())

    def nodes_with(self, shelf: Shelf, count: int) -> Iterator[NodeName]:
        """Usable nodes with so many free GPUs, the tightest fit first, then by name."""
        buckets = self._total.get(shelf)
        return buckets.at_least(count) if buckets is not None else iter(())

    def free_histogram(self, shelf: Shelf) -> Mapping[int, int]:
        """How many usable nodes have how many free GPUs."""
        buckets = self._total.get(shelf)
        return {count: len(names) for count, names in buckets.names.items() if names} if buckets is not None else {}

    def unusable(self, shelf: Shelf) -> int:
        """Nodes of the shelf that take no replica now (unknown, cordoned, draining)."""
        return sum(1 for node in self._nodes.values() if node.shelf == shelf and not node.usable)

    def port_is_free(self, address: str, port: int) -> bool:
        return not self._ports.get(address, 0) >> port & 1

    def next_free_port(self, address: str, ports: tuple[int, int], start: int, refused: Iterable[int]) -> int | None:
        """The first from `start` on, round the range with both its ends, that no row holds and nobody refused."""
        first, last = ports
        taken = self._ports.get(address, 0)
        for port in refused:
            taken |= 1 << port
        found = _lowest_clear(taken, start, last)
        return found if found is not None else _lowest_clear(taken, first, start - 1)

    def _take_row(self, replica: Replica) -> None:
        """A row may stand on a node that is not usable now, or not of this site any more."""
        node = self._nodes.get(replica.node)
        if node is None:
            return
        self._free[replica.node] &= ~mask_of(replica.gpus)
        self._ports[node.address] = self._ports.get(node.address, 0) | (1 << replica.port)


def _lowest_clear(taken: int, first: int, last: int) -> int | None:
    """The lowest bit from `first` to `last` that is not set."""
    clear_from_first = ~(taken >> first)
    port = first + (clear_from_first & -clear_from_first).bit_length() - 1
    return port if port <= last else None


def mask_of(gpus: Iterable[int]) -> int:
    mask = 0
    for gpu in gpus:
        mask |= 1 << gpu
    return mask


def gpus_of(mask: int) -> tuple[int, ...]:
    """Indices of the set bits, ascending."""
    gpus: list[int] = []
    while mask:
        lowest = mask & -mask
        gpus.append(lowest.bit_length() - 1)
        mask ^= lowest
    return tuple(gpus)


def _node_gpus(node: Node) -> NodeGpus:
    spec = node.spec
    masks: dict[int, int] = {}
    for gpu, domain in enumerate(spec.numa_of_gpu[: spec.gpus]):
        masks[domain] = masks.get(domain, 0) | (1 << gpu)
    everything = (1 << spec.gpus) - 1
    known = len(spec.numa_of_gpu) == spec.gpus and spec.gpus > 0
    return NodeGpus(
        name=node.name,
        address=spec.address,
        shelf=(spec.gpu_model, spec.pool),
        all_mask=everything,
        domains=tuple(masks[domain] for domain in sorted(masks)) if known else (everything,),
        domain_ids=tuple(sorted(masks)) if known else (None,),
        usable=node.accepts_replicas,
    )
