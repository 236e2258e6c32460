"""One function over many items, in this process or in several."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from controlplane.kernel.errors import TerminalError


def mapped[Item, Result](
    work: Callable[[Item], Result], items: Sequence[Item], *, processes: int, killed: str
) -> Iterator[Result]:
    """In the order of the items, whatever the number of processes. TerminalError(killed) when one of them dies."""
    if processes <= 1 or len(items) <= 1:
        yield from map(work, items)
        return
    # Started anew, not forked: threads of pyarrow and numba do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(items)), mp_context=context, initializer=_end_quietly) as pool:
        try:
            yield from pool.map(work, items)
        except BrokenProcessPool as error:
            raise TerminalError(killed) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_quietly() -> None:
    """At Ctrl-C the one that asked says so; the others just end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
