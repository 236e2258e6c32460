"""Where replicas go, and what the ledger knows."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.node import Node, NodeState
from controlplane.kernel.ids import NodeName, PoolName
from controlplane.replicas.ledger import GpuLedger, gpus_of, mask_of
from controlplane.replicas.placement import (
    NoRoom,
    Placement,
    PlacementRequest,
    choose_gpus,
    first_port_tried,
    place,
    shelves_for,
)
from controlplane.testing.builders import make_deployment, make_node, make_replica

PORTS = (20000, 20009)


def request(
    ledger: GpuLedger,
    gpus: int = 1,
    *,
    neighbours: dict[str, int] | None = None,
    avoided: tuple[str, ...] = (),
    refused_ports: tuple[int, ...] = (),
    ports_from: int = PORTS[0],
) -> PlacementRequest:
    return PlacementRequest(
        gpus=gpus,
        shelves=shelves_for(make_deployment(gpus=gpus), ledger),
        neighbours={NodeName(name): times for name, times in (neighbours or {}).items()},
        avoided=frozenset(NodeName(name) for name in avoided),
        ports=PORTS,
        ports_from=ports_from,
        refused_ports={"127.0.0.1": frozenset(refused_ports)},
    )


def placed(ledger: GpuLedger, wish: PlacementRequest) -> Placement:
    placement = place(wish, ledger)
    assert isinstance(placement, Placement), placement
    return placement


def test_the_tightest_numa_domain_is_filled_first() -> None:
    rows = [make_replica(gpus=(4,), port=20000), make_replica(ordinal=1, gpus=(5,), port=20001)]
    ledger = GpuLedger([make_node()], rows)
    placement = placed(ledger, request(ledger))
    assert (placement.gpus, placement.numa_domain, placement.port) == ((6,), 1, 20002)


@pytest.mark.parametrize(
    ("held", "count", "expected", "domain"),
    [
        ((), 4, (0, 1, 2, 3), 0),
        ((0,), 4, (4, 5, 6, 7), 1),
        ((0,), 2, (2, 3), 0),
        ((1, 2), 2, (0, 3), 0),
        ((0, 4), 4, (1, 2, 3, 5), None),
        ((), 8, (0, 1, 2, 3, 4, 5, 6, 7), None),
        ((0, 1, 2), 1, (3,), 0),
    ],
)
def test_gpus_on_a_node(held: tuple[int, ...], count: int, expected: tuple[int, ...], domain: int | None) -> None:
    ledger = GpuLedger([make_node()], [make_replica(gpus=held)] if held else [])
    name = NodeName("node-1")
    assert choose_gpus(ledger.node(name), ledger.free_mask(name), count) == (expected, domain)


def test_numa_near_beats_the_tighter_node() -> None:
    straddling = [make_replica(gpus=(0, 1, 2, 4, 5, 6), node="node-1")]
    ledger = GpuLedger([make_node("node-1"), make_node("node-2")], straddling)
    assert placed(ledger, request(ledger, 2)).node == "node-2"


def test_spreads_before_it_packs_and_avoids_failed_nodes_last_of_all() -> None:
    nodes = [make_node("node-1"), make_node("node-2"), make_node("node-3")]
    ledger = GpuLedger(nodes, [])
    assert placed(ledger, request(ledger, neighbours={"node-1": 1})).node == "node-2"
    assert placed(ledger, request(ledger, neighbours={"node-1": 1}, avoided=("node-2",))).node == "node-3"
    avoided = ("node-1", "node-2", "node-3")
    assert placed(ledger, request(ledger, avoided=avoided)).node == "node-1"


def test_only_ready_nodes_of_the_right_gpu_and_pool() -> None:
    cordoned = make_node("node-1", state=NodeState.CORDONED)
    other_gpu = make_node("node-2")
    other_gpu = replace(other_gpu, spec=replace(other_gpu.spec, gpu_model="l40s"))
    right = make_node("node-3")
    ledger = GpuLedger([cordoned, other_gpu, right], [])
    assert placed(ledger, request(ledger)).node == "node-3"
    deployment = make_deployment()
    elsewhere = replace(deployment, spec=replace(deployment.spec, pool=PoolName("h100")))
    assert shelves_for(elsewhere, ledger) == ()


def test_the_best_gpu_model_of_the_plan_comes_first() -> None:
    h100, b200 = make_node("a-h100"), make_node("b-b200")
    h100 = replace(h100, spec=replace(h100.spec, gpu_model="h100"))
    ledger = GpuLedger([h100, b200], [])
    deployment = make_deployment()
    deployment = replace(deployment, plan=replace(deployment.plan, gpu_models=("b200", "h100")))
    wish = replace(request(ledger), shelves=shelves_for(deployment, ledger))
    assert placed(ledger, wish).gpu_model == "b200"


def test_ports_are_unique_per_address_and_skip_refused_ones() -> None:
    rows = [make_replica(node="node-2", gpus=(0,), port=20000)]
    ledger = GpuLedger([make_node("node-1"), make_node("node-2")], rows)
    assert placed(ledger, request(ledger, refused_ports=(20001,))).port == 20002


def test_the_search_for_a_port_begins_where_it_is_told_and_goes_round() -> None:
    rows = [make_replica(gpus=(0,), port=20008)]
    ledger = GpuLedger([make_node("node-1")], rows)
    assert placed(ledger, request(ledger, ports_from=20008)).port == 20009
    assert placed(ledger, request(ledger, ports_from=20008, refused_ports=(20009,))).port == 20000
    everything = tuple(range(20000, 20010))
    assert isinstance(place(request(ledger, ports_from=20004, refused_ports=everything), ledger), NoRoom)


@given(st.integers(1, 65535), st.integers(0, 2000), st.text(max_size=20))
def test_the_first_port_tried_is_of_the_range_and_follows_from_the_seed(first: int, more: int, seed: str) -> None:
    ports = (first, min(first + more, 65535))
    tried = first_port_tried(ports, seed)
    assert ports[0] <= tried <= ports[1]
    assert tried == first_port_tried(ports, seed)


def test_two_sites_begin_far_apart_and_one_without_a_mark_at_the_first() -> None:
    assert first_port_tried((20000, 20999), "") == 20000
    tried = {first_port_tried((20000, 20999), f"site-{number}") for number in range(50)}
    assert len(tried) > 40


@given(st.sets(st.integers(20000, 20009)), st.integers(20000, 20009))
def test_a_port_is_found_exactly_when_one_is_free(held: set[int], start: int) -> None:
    ledger = GpuLedger([make_node("node-1")], [])
    found = ledger.next_free_port("127.0.0.1", PORTS, start, held)
    free = [port for port in [*range(start, 20010), *range(20000, start)] if port not in held]
    assert found == (free[0] if free else None)


def test_no_room_says_what_is_free_where() -> None:
    rows = [make_replica(gpus=(0, 1, 2, 3, 4, 5))]
    ledger = GpuLedger([make_node("node-1"), make_node("node-2", state=NodeState.UNKNOWN)], rows)
    refusal = place(request(ledger, 4), ledger)
    assert refusal == NoRoom(
        "needs 4 free GPUs on one node: b200 in pool b200 has 2 free GPUs on 1 READY nodes (1 with 2; "
        "1 more not taking replicas)"
    )


def test_no_room_tells_a_lack_of_ports_from_a_lack_of_gpus() -> None:
    rows = [make_replica(ordinal=i, gpus=(), port=20000 + i) for i in range(10)]
    ledger = GpuLedger([make_node("node-1")], rows)
    refusal = place(request(ledger), ledger)
    assert isinstance(refusal, NoRoom)
    assert "every port of 20000-20009 is taken" in refusal.sentence


def test_a_row_on_an_unknown_node_still_holds_its_gpus_when_the_node_returns() -> None:
    rows = [make_replica(gpus=(0, 1, 2, 3))]
    before = GpuLedger([make_node(state=NodeState.UNKNOWN)], rows)
    assert isinstance(place(request(before), before), NoRoom)
    after = GpuLedger([make_node()], rows)
    assert placed(after, request(after)).gpus == (4,)


@given(
    sizes=st.lists(st.sampled_from([1, 2, 4, 8]), max_size=40),
    nodes=st.integers(min_value=1, max_value=5),
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_given_twice_and_room_is_found_while_there_is_some(sizes: list[int], nodes: int) -> None:
    fleet: list[Node] = [make_node(f"node-{i}") for i in range(nodes)]
    original = GpuLedger(fleet, [])
    ledger = original.fork()
    held: Counter[tuple[str, int]] = Counter()
    ports: Counter[int] = Counter()
    for size in sizes:
        wish = replace(request(ledger, size), ports=(20000, 20999))
        placement = place(wish, ledger)
        free = [gpus_of(ledger.free_mask(node.name)) for node in fleet]
        if isinstance(placement, NoRoom):
            assert all(len(gpus) < size for gpus in free)
            continue
        assert len(placement.gpus) == size
        ledger.take(placement.node, placement.gpus, placement.port)
        held.update((placement.node, gpu) for gpu in placement.gpus)
        ports[placement.port] += 1
    assert all(times == 1 for times in held.values())
    assert all(times == 1 for times in ports.values())
    assert all(original.free_mask(node.name) == node_mask(node) for node in fleet)


def node_mask(node: Node) -> int:
    return mask_of(range(node.spec.gpus))
