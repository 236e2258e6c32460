"""/metrics bodies of engines, bytes in, EngineSample out. Design size: 1,000 bodies of 50 kB in one tick.

Between two scrapes of a replica only numbers change. So the first body of a replica is read line by line and remembered
as a layout: line numbers and the text before each number. Every later body is split into lines, and each needed line
has to be that text followed by a number, which one `removeprefix` and one `float` check together: a line that is
anything else is no number. A body that does not fit (a line more, other text, restarted process) is read in full again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Final

from controlplane.adapters.telemetry.engine_layout import WANTED, EngineLayout, build_layout
from controlplane.adapters.telemetry.exposition import MalformedExpositionError, SeriesLine, read_series
from controlplane.domain.telemetry import EngineSample, Missing

_STARTS: Final = tuple(sorted(name.encode() for name in WANTED))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remembered:
    """What stays between two scrapes of one process.

    Series are only ever added while a process lives (a registry's children are not removed). One added before the last
    needed line shifts that line, one added after it makes the tail longer: texts and tail together tell any change.
    """

    layout: EngineLayout
    process_start_s: float
    splits: int
    tail_newlines: int
    pick: Callable[[Sequence[bytes]], tuple[bytes, ...]]
    prefixes: tuple[bytes, ...]

    def read(self, body: bytes, at: datetime) -> EngineSample | Missing | None:
        """None: the body is not laid out as remembered."""
        lines = body.split(b"\n", self.splits)
        if len(lines) <= self.splits or lines[-1].count(b"\n") != self.tail_newlines:
            return None
        try:
            values = list(map(float, map(bytes.removeprefix, self.pick(lines), self.prefixes)))
        except ValueError:
            return None
        sample = self.layout.sample(values, at)
        if isinstance(sample, EngineSample) and sample.process_start_s != self.process_start_s:
            return None
        return sample


class EngineParser:
    """Parses bodies and remembers one layout per key. State is a cache: forgetting costs time, never a number."""

    def __init__(self) -> None:
        self._remembered: dict[str, _Remembered] = {}

    def parse(self, key: str, body: bytes, at: datetime) -> EngineSample | Missing:
        """The sample of the replica `key`; Missing says what is wrong with the body. Never raises, never fills in."""
        remembered = self._remembered.get(key)
        if remembered is not None and body.endswith(b"\n"):
            sample = remembered.read(body, at)
            if sample is not None:
                return sample
        return self._learn(key, body, at)

    def forget(self, key: str) -> None:
        """The replica is gone."""
        self._remembered.pop(key, None)

    def _learn(self, key: str, body: bytes, at: datetime) -> EngineSample | Missing:
        self.forget(key)
        if not body.endswith(b"\n"):
            return Missing(f"the body of {len(body)} bytes ends inside a line")
        try:
            lines = list(read_series(body, starting=_STARTS))
        except MalformedExpositionError as error:
            return Missing(str(error))
        layout = build_layout([line.series for line in lines])
        if isinstance(layout, Missing):
            return layout
        ordered = [lines[position] for position in layout.order]
        sample = layout.sample([line.series.value for line in ordered], at)
        if isinstance(sample, EngineSample):
            self._remembered[key] = _remember(layout, sample, ordered, body)
        return sample


def _remember(layout: EngineLayout, sample: EngineSample, ordered: Sequence[SeriesLine], body: bytes) -> _Remembered:
    splits = max(line.index for line in ordered) + 1
    return _Remembered(
        layout=layout,
        process_start_s=sample.process_start_s,
        splits=splits,
        tail_newlines=body.split(b"\n", splits)[-1].count(b"\n"),
        pick=itemgetter(*(line.index for line in ordered)),
        prefixes=tuple(line.prefix for line in ordered),
    )
