"""`python -m controlplane.simulation.engine MODEL [options]`."""

import sys

from controlplane.simulation.engine.process import main

sys.exit(main(sys.argv[1:]))
