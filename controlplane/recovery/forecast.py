"""How long a restore of a recovery point will take, with the arithmetic."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from controlplane.domain.dataset import RetrievalTier, StorageClass
from controlplane.kernel.units import format_bytes
from controlplane.recovery.classes import coldest, is_archive, retrieval_wait
from controlplane.recovery.lineage import Chain
from controlplane.recovery.phrases import seconds
from controlplane.recovery.rates import Line, Rates, work_s

_UNSURE_A_DOUBLING: Final = 0.1
"""Wider by so much (of a logarithm) for each doubling beyond the sizes that were drilled."""
_LABEL_WIDTH: Final = 34


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a restore has to move."""

    plain_bytes: int
    log_bytes: int = 0
    """Of the log to replay, as stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    duration_s: float
    why: str
    guessed: bool

    @property
    def line(self) -> str:
        return f"{self.name:<{_LABEL_WIDTH}}{seconds(self.duration_s):>8}   {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    parts: tuple[Part, ...]
    low_s: float
    high_s: float

    @property
    def total_s(self) -> float:
        return sum(part.duration_s for part in self.parts)

    @property
    def certain_s(self) -> float:
        """Of the parts that are no guess."""
        return sum(part.duration_s for part in self.parts if not part.guessed)

    @property
    def guessed(self) -> bool:
        return any(part.guessed for part in self.parts)

    @property
    def lines(self) -> tuple[str, ...]:
        """The arithmetic, aligned."""
        total = f"{'together':<{_LABEL_WIDTH}}{seconds(self.total_s):>8}   {self._band}"
        return (*(part.line for part in self.parts), total)

    @property
    def sentence(self) -> str:
        guess = ", partly guessed" if self.guessed else ""
        return f"{seconds(self.total_s)} to restore ({self._band}{guess})"

    @property
    def _band(self) -> str:
        return f"between {seconds(self.low_s)} and {seconds(self.high_s)}"


def forecast_rto(
    chain: Chain, rates: Rates, *, log_bytes: int = 0, tier: RetrievalTier = RetrievalTier.STANDARD
) -> Forecast:
    """Of a recovery point as it lies in the bucket. Retrievals take what drills have waited, or else the worst case."""
    storage_class = coldest(chain.storage_classes)
    load = Load(plain_bytes=chain.plain_bytes, log_bytes=log_bytes)
    return forecast_load(load, storage_class, rates, tier=tier, waited_s=rates.wait_s(storage_class))


def forecast_load(
    load: Load, storage_class: StorageClass, rates: Rates, *, tier: RetrievalTier, waited_s: float | None = None
) -> Forecast:
    """With `waited_s` in place of the class's worst case. The tier must be one of the class."""
    parts = (*_retrieval(storage_class, tier, waited_s), *_work(load, rates))
    worked_s = work_s(rates, plain_bytes=load.plain_bytes, log_bytes=load.log_bytes)
    wait_s = sum(part.duration_s for part in parts) - worked_s
    factor = math.exp(rates.scatter + _UNSURE_A_DOUBLING * _doublings(load.plain_bytes, rates))
    return Forecast(parts=parts, low_s=wait_s + worked_s / factor, high_s=wait_s + worked_s * factor)


def _retrieval(storage_class: StorageClass, tier: RetrievalTier, waited_s: float | None) -> Iterator[Part]:
    if not is_archive(storage_class):
        return
    name = f"retrieval from {storage_class}"
    if waited_s is not None:
        yield Part(name=name, duration_s=waited_s, why="as drills have waited", guessed=False)
        return
    worst = retrieval_wait(storage_class, tier)
    assert worst is not None, f"{storage_class} has no tier {tier}"
    yield Part(name=name, duration_s=worst.total_seconds(), why=f"tier {tier}, at worst", guessed=False)


def _work(load: Load, rates: Rates) -> Iterator[Part]:
    size = format_bytes(load.plain_bytes)
    yield _part(f"fetch and restore {size}", rates.restore, load.plain_bytes)
    replay = f" and replay {format_bytes(load.log_bytes)} of log" if load.log_bytes else ""
    yield _part(f"start{replay}", rates.replay, load.log_bytes)
    yield _part(f"verify {size}", rates.verify, load.plain_bytes)


def _part(name: str, line: Line, size_bytes: int) -> Part:
    guessed = line.is_guess(size_bytes)
    return Part(name=name, duration_s=line.seconds(size_bytes), why=line.said(size_bytes), guessed=guessed)


def _doublings(plain_bytes: int, rates: Rates) -> float:
    """How far a size is from those that were drilled."""
    if rates.sizes is None or plain_bytes <= 0:
        return 0.0
    smallest, largest = (max(size, 1) for size in rates.sizes)
    return max(math.log2(smallest / plain_bytes), math.log2(plain_bytes / largest), 0.0)
