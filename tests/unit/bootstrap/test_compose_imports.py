"""What a start loads: heavy libraries only where the site asks for what they do."""

import subprocess
import sys
from datetime import timedelta

HEAVY = ("prometheus_api_client", "alembic", "pyarrow", "pandas", "numpy")
DEADLINE = timedelta(seconds=60)


def test_putting_a_control_plane_together_loads_no_library_that_only_some_sites_need() -> None:
    program = f"import sys, controlplane.bootstrap.compose; print([m for m in {HEAVY!r} if m in sys.modules])"
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE.total_seconds(), check=True
    )
    assert child.stdout.strip() == "[]"
