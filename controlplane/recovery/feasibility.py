"""Whether a dataset's retention rules can hold its RTO, and its snapshots its RPO: refused with the arithmetic."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from controlplane.domain.dataset import DatasetKind, DatasetSpec, RetentionRule, RetrievalTier, StorageClass, WalMode
from controlplane.recovery.classes import guaranteed_tiers
from controlplane.recovery.forecast import Forecast, Load, forecast_load
from controlplane.recovery.phrases import seconds, span
from controlplane.recovery.rates import Rates
from controlplane.recovery.schedule import longest_gap
from controlplane.recovery.tiering import rule_rto

_ROUND_UP: Final = timedelta(minutes=15)
"""An RTO that is proposed is a multiple of this."""


class Feasibility(StrEnum):
    FITS = "fits"
    """By the class's worst case and by what drills measured."""
    UNPROVEN = "unproven"
    """A guess decides: run a drill."""
    REFUSED = "refused"
    """It cannot be: without counting any guess, or after drills have measured everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFeasibility:
    rule: RetentionRule
    rto: timedelta
    verdict: Feasibility
    tier: RetrievalTier | None
    """The cheapest retrieval tier that holds the RTO, or else the fastest; None: nothing has to be thawed."""
    forecast: Forecast
    problem: str = ""
    """Of a refused rule: what to change."""
    caution: str = ""
    """Of an unproven one."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The arithmetic for people."""
        sign = "<=" if self.forecast.total_s <= self.rto.total_seconds() else ">"
        verdict = f"{seconds(self.forecast.total_s)} {sign} RTO {span(self.rto)}: {self.verdict}"
        return (
            f"{self.rule.period} for {span(self.rule.keep)} in {self.rule.storage_class}",
            *self.forecast.lines,
            verdict,
        )


def judge_feasibility(spec: DatasetSpec, load: Load, rates: Rates) -> tuple[RuleFeasibility, ...]:
    """Each retention rule against its RTO; `load` is the largest restore that is to be expected.

    Expedited retrievals are not counted: without provisioned capacity they may be refused, and only objects below
    250 MB come within minutes.
    """
    return tuple(_judge(rule, spec, load, rates) for rule in spec.retention)


def rpo_problem(spec: DatasetSpec, now: datetime, *, backup_took: timedelta = timedelta()) -> str | None:
    """Why snapshots alone cannot hold the RPO: too seldom, or too slow. None: they can, or a log does."""
    if spec.wal is not WalMode.OFF or spec.kind is DatasetKind.PGBACKREST:
        return None
    gap = longest_gap(spec.cadence, now)
    if gap + backup_took <= spec.rpo:
        return None
    took = f" and take {span(backup_took)}" if backup_took else ""
    return (
        f"{spec.name}: snapshots are up to {span(gap)} apart{took}, so {span(gap + backup_took)} may be lost; "
        f"the RPO is {span(spec.rpo)}. Take them more often, raise the RPO, or stream the log where the kind has one"
    )


def _judge(rule: RetentionRule, spec: DatasetSpec, load: Load, rates: Rates) -> RuleFeasibility:
    rto = rule_rto(rule, spec)
    tier, forecast = _cheapest(rule.storage_class, load, rates, rto.total_seconds())
    verdict = _verdict(forecast, rto.total_seconds())
    return RuleFeasibility(
        rule=rule,
        rto=rto,
        verdict=verdict,
        tier=tier,
        forecast=forecast,
        problem=_problem(spec, rule, rto, forecast, load, rates) if verdict is Feasibility.REFUSED else "",
        caution=_caution(spec, rule, rto, forecast) if verdict is Feasibility.UNPROVEN else "",
    )


def _cheapest(
    storage_class: StorageClass, load: Load, rates: Rates, rto_s: float
) -> tuple[RetrievalTier | None, Forecast]:
    tiers = guaranteed_tiers(storage_class)
    if not tiers:
        return None, forecast_load(load, storage_class, rates, tier=RetrievalTier.STANDARD)
    tried = [(tier, forecast_load(load, storage_class, rates, tier=tier)) for tier in tiers]
    return next((one for one in tried if one[1].total_s <= rto_s), tried[-1])


def _verdict(forecast: Forecast, rto_s: float) -> Feasibility:
    if forecast.certain_s > rto_s or (not forecast.guessed and forecast.total_s > rto_s):
        return Feasibility.REFUSED
    return Feasibility.UNPROVEN if forecast.total_s > rto_s else Feasibility.FITS


def _problem(
    spec: DatasetSpec, rule: RetentionRule, rto: timedelta, forecast: Forecast, load: Load, rates: Rates
) -> str:
    parts = " + ".join(f"{part.name} {seconds(part.duration_s)}" for part in forecast.parts)
    ways = [f"set rto of this rule to {span(_next_step(forecast.total_s))} or more"]
    fitting = list(_fitting(StorageClass, load, rates, rto.total_seconds()))
    if fitting:
        ways.insert(0, f"keep it in {' or '.join(fitting)}")
    else:
        ways.append("make restores faster: no storage class holds this RTO at the measured rates")
    return (
        f"{spec.name}, {rule.period} rule in {rule.storage_class}: {parts} = {seconds(forecast.total_s)}, "
        f"more than the RTO of {span(rto)}. {_sentence(ways)}"
    )


def _caution(spec: DatasetSpec, rule: RetentionRule, rto: timedelta, forecast: Forecast) -> str:
    return (
        f"{spec.name}, {rule.period} rule in {rule.storage_class}: {seconds(forecast.total_s)} by guessed rates, "
        f"more than the RTO of {span(rto)}. Run a drill (`quarterdeck drill run`): it measures them"
    )


def _fitting(classes: Iterable[StorageClass], load: Load, rates: Rates, rto_s: float) -> Iterator[StorageClass]:
    for storage_class in classes:
        _, forecast = _cheapest(storage_class, load, rates, rto_s)
        if forecast.total_s <= rto_s:
            yield storage_class


def _next_step(total_s: float) -> timedelta:
    return -(-timedelta(seconds=total_s) // _ROUND_UP) * _ROUND_UP


def _sentence(ways: list[str]) -> str:
    text = "; or ".join(ways)
    return text[0].upper() + text[1:]
