"""Whether the replicas of a node that is drained have somewhere to go. Pure."""

from collections.abc import Sequence

from controlplane.domain.node import Node
from controlplane.domain.replica import Replica


def without_room(name: str, nodes: Sequence[Node], replicas: Sequence[Replica]) -> list[Replica]:
    """The replicas of node `name` for which no other ready node of its GPU model has enough GPUs free.

    The largest are placed first, each on the fullest node that takes it, which leaves the most room for the rest. An
    estimate for a person: the loop that places them also knows what else is on its way.
    """
    model = next((node.spec.gpu_model for node in nodes if node.name == name), None)
    free = {
        node.name: node.spec.gpus - sum(len(replica.gpus) for replica in replicas if replica.node == node.name)
        for node in nodes
        if node.name != name and node.accepts_replicas and node.spec.gpu_model == model
    }
    stranded: list[Replica] = []
    here = (replica for replica in replicas if replica.node == name)
    for replica in sorted(here, key=lambda row: (-len(row.gpus), row.name)):
        needed = len(replica.gpus)
        fitting = [target for target, gpus in free.items() if gpus >= needed]
        if not fitting:
            stranded.append(replica)
            continue
        free[min(fitting, key=lambda target: (free[target], target))] -= needed
    return stranded
