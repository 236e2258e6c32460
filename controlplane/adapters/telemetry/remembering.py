"""Bodies that are laid out alike at every scrape, read quickly. Design size: 1,000 bodies of 50 kB in one tick.

Between two scrapes of a process only numbers change. So the first body is read line by line and remembered as a layout:
line numbers and the text before each number. Every later body is split into lines, and each needed line has to be that
text followed by a number, which one `removeprefix` and one `float` check together: a line that is anything else is no
number. A body that does not fit (a line more, other text, another epoch) is read in full again.

Replicas of one deployment are laid out alike too: a new one first tries the layouts of the others, so that a thousand
of them cost one layout's memory and a thousand quick reads.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Final, Protocol

from controlplane.adapters.telemetry.exposition import MalformedExpositionError, Series, SeriesLine, read_series
from controlplane.domain.telemetry import Missing

_SHARED_LAYOUTS_MAX: Final = 16
"""A site runs a few models and engine versions at a time; each further layout costs a new replica one more try."""


class Layout[T](Protocol):
    """What a set of series means: built once, used for every body that shows the same ones."""

    @property
    def order(self) -> tuple[int, ...]:
        """Positions, at least one, in the series it was built from, in the order in which `sample` wants the values."""
        ...

    def sample(self, values: Sequence[float], at: datetime) -> T | Missing:
        """What the values say; Missing when they say nothing usable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remembered[T]:
    """What stays between two scrapes of one process.

    Series are only ever added while a process lives (a registry's children are not removed). One added before the last
    needed line shifts that line, one added after it makes the tail longer: texts and tail together tell any change.
    """

    layout: Layout[T]
    census: tuple[int, ...]
    """How many lines start with each needed prefix: another process's body must have no needed line besides these."""
    splits: int
    tail_newlines: int
    pick: Callable[[Sequence[bytes]], tuple[bytes, ...]]
    prefixes: tuple[bytes, ...]

    def values(self, body: bytes) -> list[float] | None:
        """The numbers; None: the body is not laid out as remembered."""
        lines = body.split(b"\n", self.splits)
        if len(lines) <= self.splits or lines[-1].count(b"\n") != self.tail_newlines:
            return None
        try:
            return list(map(float, map(bytes.removeprefix, self.pick(lines), self.prefixes)))
        except ValueError:
            return None


class RememberingParser[T]:
    """Parses bodies and remembers one layout per key. Its state is a cache: forgetting costs time, never a number."""

    def __init__(
        self,
        *,
        starting: tuple[bytes, ...],
        build: Callable[[Sequence[Series]], Layout[T] | Missing],
        epoch: Callable[[T], float],
    ) -> None:
        """`starting`: how needed lines begin. `epoch`: a number that changes with the process behind the body."""
        self._starting = starting
        self._build = build
        self._epoch = epoch
        self._remembered: dict[str, tuple[_Remembered[T], float]] = {}
        self._shared: deque[_Remembered[T]] = deque(maxlen=_SHARED_LAYOUTS_MAX)

    def parse(self, key: str, body: bytes, at: datetime) -> T | Missing:
        """The sample of the target `key`; Missing says what is wrong with the body. Never raises, never fills in."""
        if not body.endswith(b"\n"):
            return Missing(f"the body of {len(body)} bytes ends inside a line")
        known = self._remembered.get(key)
        if known is not None:
            remembered, epoch = known
            values = remembered.values(body)
            if values is not None:
                sample = remembered.layout.sample(values, at)
                if isinstance(sample, Missing) or self._epoch(sample) == epoch:
                    return sample
        return self._learn(key, body, at)

    def retain(self, keys: set[str]) -> None:
        """Forget the layouts of all other keys: their targets are gone."""
        for key in self._remembered.keys() - keys:
            del self._remembered[key]

    def _learn(self, key: str, body: bytes, at: datetime) -> T | Missing:
        self._remembered.pop(key, None)
        found = self._recognise(body) or self._read(body)
        if isinstance(found, Missing):
            return found
        remembered, values = found
        sample = remembered.layout.sample(values, at)
        if not isinstance(sample, Missing):
            self._remembered[key] = (remembered, self._epoch(sample))
        return sample

    def _recognise(self, body: bytes) -> tuple[_Remembered[T], list[float]] | None:
        """A layout of another target that this body has as well."""
        for remembered in self._shared:
            values = remembered.values(body)
            if values is not None and remembered.census == self._census(body):
                return remembered, values
        return None

    def _read(self, body: bytes) -> tuple[_Remembered[T], list[float]] | Missing:
        """Line by line."""
        try:
            lines = list(read_series(body, starting=self._starting))
        except MalformedExpositionError as error:
            return Missing(str(error))
        layout = self._build([line.series for line in lines])
        if isinstance(layout, Missing):
            return layout
        ordered = [lines[position] for position in layout.order]
        remembered = _remember(layout, self._census(body), ordered, body)
        self._shared.appendleft(remembered)
        return remembered, [line.series.value for line in ordered]

    def _census(self, body: bytes) -> tuple[int, ...]:
        return tuple(body.count(b"\n" + prefix) + body.startswith(prefix) for prefix in self._starting)


def _remember[T](
    layout: Layout[T], census: tuple[int, ...], ordered: Sequence[SeriesLine], body: bytes
) -> _Remembered[T]:
    indices = tuple(line.index for line in ordered)
    splits = max(indices) + 1
    return _Remembered(
        layout=layout,
        census=census,
        splits=splits,
        tail_newlines=body.split(b"\n", splits)[-1].count(b"\n"),
        # itemgetter of a single index returns no tuple.
        pick=itemgetter(*indices) if len(indices) > 1 else lambda lines: (lines[indices[0]],),
        prefixes=tuple(line.prefix for line in ordered),
    )
