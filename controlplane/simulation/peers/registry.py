"""Every peer by its name.

To add one: a module with its rule, its assumptions in the docstring and its `Peer`; a line here; a section in
docs/peers.md (a test compares both); its documented examples as tests.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from controlplane.kernel.errors import NotFoundError
from controlplane.simulation.fleet.policy import Facts, Peer, ScalingPolicy
from controlplane.simulation.peers.aibrix import AIBRIX_APA, AIBRIX_KPA
from controlplane.simulation.peers.dynamo import DYNAMO_HYBRID, DYNAMO_LOAD, DYNAMO_THROUGHPUT
from controlplane.simulation.peers.hpa import HPA, HPA_KV
from controlplane.simulation.peers.keda import KEDA_QUEUE
from controlplane.simulation.peers.knative import KNATIVE
from controlplane.simulation.peers.knobs import Knobs
from controlplane.simulation.peers.llmd import LLMD_OLD, LLMD_SLO
from controlplane.simulation.peers.ray_serve import RAY_SERVE
from controlplane.simulation.peers.skyserve import SKYSERVE
from controlplane.simulation.peers.static import STATIC
from controlplane.simulation.peers.wva import WVA_V1, WVA_V2

PEERS: Final[Mapping[str, Peer]] = MappingProxyType(
    {
        peer.name: peer
        for peer in (
            HPA,
            HPA_KV,
            KEDA_QUEUE,
            KNATIVE,
            RAY_SERVE,
            SKYSERVE,
            AIBRIX_APA,
            AIBRIX_KPA,
            WVA_V2,
            WVA_V1,
            LLMD_SLO,
            LLMD_OLD,
            DYNAMO_LOAD,
            DYNAMO_THROUGHPUT,
            DYNAMO_HYBRID,
            STATIC,
        )
    }
)


def make_peer(name: str, facts: Facts, knobs: Knobs | None = None) -> ScalingPolicy:
    """The policy of that name with its defaults, and `knobs` over them.

    NotFoundError and InvalidError name the nearest valid name of a peer, of a knob.
    """
    peer = PEERS.get(name)
    if peer is None:
        near = get_close_matches(name, list(PEERS), n=1, cutoff=0.0)
        raise NotFoundError(f"No peer is called {name!r}; nearest: {near[0]}. All: {', '.join(PEERS)}")
    return peer.make(facts, knobs or {})
