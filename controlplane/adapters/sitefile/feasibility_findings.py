"""Promises that no restore could keep: a storage class whose retrieval alone takes longer than the RTO.

Sizes and rates are not known while a file is checked, so only what is certain counts; what drills measure is judged by
`quarterdeck recovery status`.
"""

from collections.abc import Iterator
from typing import Final

from controlplane.adapters.sitefile.findings import Finding
from controlplane.domain.site import Site
from controlplane.kernel.units import format_duration
from controlplane.recovery.feasibility import Feasibility, judge_feasibility
from controlplane.recovery.forecast import Load
from controlplane.recovery.rates import GUESSED_RATES

_NOTHING: Final = Load(plain_bytes=0)
"""The smallest restore there is: what does not fit for it fits for none."""


def feasibility_findings(site: Site) -> Iterator[Finding]:
    for dataset in site.recovery.datasets:
        for index, judged in enumerate(judge_feasibility(dataset, _NOTHING, GUESSED_RATES)):
            if judged.verdict is Feasibility.REFUSED:
                yield Finding(
                    path=("recovery", "datasets", dataset.name, "retention", index),
                    found=f"{judged.rule.storage_class} for an RTO of {format_duration(judged.rto)}",
                    expected="a class out of which a restore can be that soon",
                    hint=judged.problem,
                )
