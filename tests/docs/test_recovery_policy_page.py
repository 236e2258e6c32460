"""docs/recovery-policy.md shows the arithmetic as the program prints it, and the numbers of its tables."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from controlplane.domain.dataset import StorageClass, WalMode
from controlplane.domain.recovery import DrillTimes
from controlplane.kernel.units import GIB, KIB, MIB
from controlplane.recovery.backup_plan import CHAIN_MAX
from controlplane.recovery.classes import CLASS_FACTS
from controlplane.recovery.cost import Volume, steady_cost
from controlplane.recovery.feasibility import judge_feasibility
from controlplane.recovery.forecast import Load
from controlplane.recovery.rates import SAMPLES_MAX, learn_rates
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import DAILY, DAY, QUARTERLY, make_dataset, make_drill, make_point

PAGE: Final = Path(__file__).parents[2] / "docs" / "recovery-policy.md"
MARK: Final = "<!-- From here to the next heading: printed by tests/docs/test_recovery_policy_page.py. -->\n"
WIDTH: Final = 110
"""Columns of an example; longer lines are folded, as a terminal does."""


def folded(line: str) -> Iterator[str]:
    while len(line) > WIDTH:
        cut = line.rindex(" ", 0, WIDTH)
        yield line[:cut]
        line = line[cut + 1 :]
    yield line


def feasibility_example() -> Iterator[str]:
    drills = [
        make_drill(
            START + age * DAY,
            plain_bytes=gib * GIB,
            log_bytes=log_gib * GIB,
            point=make_point(START + age * DAY).point,
            times=DrillTimes(
                fetch_and_restore_s=12.0 + gib * GIB / (350 * MIB),
                start_and_replay_s=4.0 + log_gib * GIB / (60 * MIB),
                verify_s=6.0 + gib * GIB / (900 * MIB),
            ),
        )
        for age, (gib, log_gib) in enumerate(((60, 1), (240, 3)))
    ]
    points = [make_point(drill.asked_at, plain_bytes=drill.plain_bytes) for drill in drills]
    spec = make_dataset(retention=(DAILY, replace(QUARTERLY, storage_class=StorageClass.GLACIER)))
    judged = judge_feasibility(spec, Load(plain_bytes=512 * GIB, log_bytes=8 * GIB), learn_rates(drills, points))
    for one in judged:
        yield from one.lines
        if one.problem:
            yield from folded(one.problem)
        yield ""


def cost_example() -> Iterator[str]:
    spec = replace(make_dataset(), wal=WalMode.STREAMING)
    cost = steady_cost(spec, Volume(stored_bytes=200 * GIB, log_bytes_a_day=4 * GIB), START)
    for line in cost.lines:
        yield f"{line.what:<60}{line.per_month:>9.2f}"
    yield f"{cost.sentence}"
    yield ""


def test_the_examples_are_what_the_program_prints() -> None:
    """QUARTERDECK_GOLDEN=write writes them anew."""
    first, *parts = PAGE.read_text(encoding="utf-8").split(MARK)
    wanted = first
    for part, example in zip(parts, (feasibility_example(), cost_example()), strict=True):
        printed = "\n".join(example).rstrip("\n")
        heading = re.search(r"^##", part, re.MULTILINE)
        assert heading is not None
        wanted += f"{MARK}\n```text\n{printed}\n```\n\n{part[heading.start() :]}"
    if os.environ.get("QUARTERDECK_GOLDEN") == "write":
        PAGE.write_text(wanted, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == wanted


def test_the_table_of_classes_is_that_of_the_program() -> None:
    rows = {
        row[1].strip(): row
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if len(row := line.split("|")) == 5
    }
    for storage_class, facts in CLASS_FACTS.items():
        _, _, waits, billed, _ = rows[storage_class]
        said = ", ".join(f"{tier} {wait // timedelta(hours=1)} h" for tier, wait in reversed(facts.waits)) or "none"
        assert waits.strip() == said
        parts = [
            *([f"{facts.minimum.days} days"] if facts.minimum else []),
            *([f"{facts.billed_at_least_bytes // KIB} KiB an object"] if facts.billed_at_least_bytes else []),
        ]
        more = facts.standard_overhead_bytes + facts.archive_overhead_bytes
        parts += [f"{more // KIB} KiB more an object"] if more else []
        assert billed.strip() == ", ".join(parts)


def test_its_numbers_are_those_of_the_program() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"until a chain has {CHAIN_MAX} copies" in text
    assert f"the last {SAMPLES_MAX} drills that passed" in text
