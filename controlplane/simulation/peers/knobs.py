"""The knobs of a peer: checked by name, and put side by side for a search."""

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import product

from controlplane.kernel.errors import InvalidError, Problem
from controlplane.simulation.fleet.policy import Peer

type Knobs = Mapping[str, float]


def settled(peer: str, defaults: Knobs, knobs: Knobs, *, positive: tuple[str, ...] = ()) -> dict[str, float]:
    """The defaults with `knobs` over them, those in `positive` above 0.

    InvalidError names every unknown knob and every value that cannot be.
    """
    problems = [
        problem
        for name, value in knobs.items()
        if (problem := _problem(peer, name, value, known=tuple(defaults), positive=name in positive)) is not None
    ]
    if problems:
        raise InvalidError(problems)
    return {**defaults, **knobs}


def combinations(peer: Peer) -> Iterator[dict[str, float]]:
    """Every set of knobs that a search of this peer tries, always in the same order; one of them is the defaults."""
    for values in product(*peer.search.values()):
        yield {**peer.defaults, **dict(zip(peer.search, values, strict=True))}


def share_or(share: float, *, of: float, default: float) -> float:
    """`share` of what the offline profile measured; at a share of 0 the peer's own absolute default."""
    return share * of if share > 0 else default


def _problem(peer: str, name: str, value: float, *, known: tuple[str, ...], positive: bool) -> Problem | None:
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.0)
        return Problem(
            field=f"{peer}.{name}",
            found="an unknown knob",
            expected=f"one of {', '.join(known)}" if known else "no knob: this peer has none",
            hint=f"Nearest: {near[0]}" if near else "",
        )
    if not math.isfinite(value) or value < 0:
        return Problem(field=f"{peer}.{name}", found=repr(value), expected="a finite number >= 0")
    if positive and value == 0:
        return Problem(field=f"{peer}.{name}", found="0", expected="a number above 0")
    return None
