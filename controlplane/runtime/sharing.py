"""How instances share the resources of a loop: each keeps what it has up to a fair part, and leaves the rest.

An instance that runs a loop shows it by holding a claim of its own, `<loop>/@<instance>`. Whoever sees n resources
and k such claims takes at most ceil(n / k). One that dies stops renewing: its presence and its resources' claims
expire together, and the others' parts grow. Nothing here is needed for safety, which is the claims' own; a wrong
view costs at most a resource's delay by one `claim_ttl`.
"""

import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from controlplane.domain.store import Claim
from controlplane.kernel.ids import InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What an instance should do about a loop's resources now."""

    work: frozenset[str]
    """Keep, or try to claim."""
    finishing: frozenset[str]
    """Beyond the fair part, with a tick under way: it may end, no other is begun, and then they are given up. Without
    this an instance whose surveys always meet its ticks would keep everything."""
    give_up: tuple[Claim, ...]
    """Own claims to release: beyond the fair part, or on resources that are gone."""
    instances: int
    """Alive, this one included."""


def presence(loop: str, instance: InstanceId) -> str:
    """The claim by which an instance shows that it runs the loop. `@` begins no resource's name."""
    return f"{loop}/@{instance}"


def claim_name(loop: str, resource: str) -> str:
    return f"{loop}/{resource}"


def fair_share(
    *,
    loop: str,
    resources: Sequence[str],
    busy: Collection[str],
    claims: Iterable[Claim],
    instance: InstanceId,
    now: datetime,
) -> Share:
    """`busy` are resources with a tick under way: they are not given up before it ends."""
    prefix = claim_name(loop, "")
    ours, taken, alive = dict[str, Claim](), set[str](), {instance}
    for claim in claims:
        resource = claim.resource.removeprefix(prefix)
        if not claim.resource.startswith(prefix):
            continue
        if claim.holder == instance:
            ours[resource] = claim
        elif claim.expires_at > now and resource.startswith("@"):
            alive.add(claim.holder)
        elif claim.expires_at > now:
            taken.add(resource)
    ours.pop(f"@{instance}", None)
    part = -(-len(resources) // len(alive))
    wanted = set(resources) - taken
    # Each instance prefers other resources, so that two which start together rarely try the same.
    by_preference = sorted(
        wanted, key=lambda resource: (resource not in busy, resource not in ours, _preference(instance, resource))
    )
    work = frozenset(by_preference[:part])
    finishing = frozenset(wanted & set(busy)) - work
    give_up = tuple(claim for resource, claim in ours.items() if resource not in work and resource not in busy)
    return Share(work=work, finishing=finishing, give_up=give_up, instances=len(alive))


def _preference(instance: InstanceId, resource: str) -> int:
    return zlib.crc32(f"{instance}/{resource}".encode())
