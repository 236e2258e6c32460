"""Who has nowhere to go when a node is drained."""

from dataclasses import replace

from controlplane.api.drains import without_room
from controlplane.domain.node import Node, NodeState
from controlplane.domain.replica import Replica
from controlplane.testing.builders import make_node, make_replica


def nodes(*names: str, state: NodeState = NodeState.READY) -> list[Node]:
    return [replace(make_node(name), state=state) for name in names]


def replica(ordinal: int, node: str, gpus: int, first: int = 0) -> Replica:
    taken = tuple(range(first, first + gpus))
    return make_replica("chat", ordinal, node=node, gpus=taken, port=20000 + ordinal)


def test_all_find_room_on_an_empty_node() -> None:
    here = [replica(0, "a", 4), replica(1, "a", 4, first=4)]
    assert without_room("a", nodes("a", "b"), here) == []


def test_alone_nobody_finds_room() -> None:
    here = [replica(0, "a", 1)]
    assert without_room("a", nodes("a"), here) == here


def test_a_node_that_takes_no_replicas_is_no_room() -> None:
    here = [replica(0, "a", 1)]
    assert without_room("a", [*nodes("a"), *nodes("b", state=NodeState.CORDONED)], here) == here


def test_the_largest_goes_first_and_small_ones_fill_what_is_left() -> None:
    small, large = replica(0, "a", 1), replica(1, "a", 4, first=1)
    elsewhere = [replica(2, "b", 4), replica(3, "c", 7)]
    assert without_room("a", nodes("a", "b", "c"), [small, large, *elsewhere]) == []


def test_gpus_together_are_not_gpus_apart() -> None:
    large = replica(0, "a", 4)
    elsewhere = [replica(1, "b", 5), replica(2, "c", 5)]
    assert without_room("a", nodes("a", "b", "c"), [large, *elsewhere]) == [large]
