"""One function over the parts of a benchmark, in several processes."""

from collections.abc import Callable, Iterator, Sequence

from controlplane.simulation.processes import mapped


def over_jobs[Item, Result](work: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """In the order of the items. TerminalError, with what to do, when a process dies."""
    killed = "a process of the benchmark was killed, perhaps for its memory: fewer --jobs"
    return mapped(work, items, processes=jobs, killed=killed)
