"""docs/doctor.md has every rule as the program has it, and shows a run as it is."""

import os
from pathlib import Path
from typing import Final

from controlplane.autoscaler.doctor.diagnose import RULES

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "doctor.md"
HEADING: Final = "## Findings\n"
START: Final = "<!-- From here to the end of this part: written from the rules by tests/docs/test_doctor_page.py. -->\n"


def tables() -> str:
    parts: list[str] = []
    for title, rules in RULES.items():
        rows = "".join(
            f"| `{rule.id}` | {rule.severity} | {rule.looks_for} | {rule.why} | {rule.source} |\n" for rule in rules
        )
        parts.append(f"\n### {title}\n\n| finding | is | looks for | why | source |\n|---|---|---|---|---|\n{rows}")
    return "".join(parts)


def test_the_table_of_findings_is_that_of_the_program() -> None:
    """QUARTERDECK_GOLDEN=write writes it anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(HEADING)
    _, _, after = rest.partition("\n## ")
    wanted = f"{before}{HEADING}\n{START}{tables()}\n## {after}"
    if os.environ.get("QUARTERDECK_GOLDEN") == "write":
        PAGE.write_text(wanted, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == wanted


def test_the_example_is_what_the_program_prints() -> None:
    printed = (ROOT / "tests" / "golden" / "doctor.txt").read_text(encoding="utf-8")
    assert f"```\n{printed}```\n" in PAGE.read_text(encoding="utf-8").replace("    $ ", "$ ")
    recipe = ROOT / "tests" / "unit" / "doctor" / "corpus" / "broken" / "chart-defaults" / "values.yaml"
    assert f"```yaml\n{recipe.read_text(encoding='utf-8')}```\n" in PAGE.read_text(encoding="utf-8")
