"""Functions that numba turns into machine code where it is installed; without it they are the same, only slower.

The machine code is kept in the user's cache folder, under the digest of all the sources that it is made of: numba
itself looks only at the file of the outermost function, and would run old code of the others.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]
type Ints = npt.NDArray[np.int64]
type Records = Any
"""A numpy.recarray: its fields are not known to the type checker."""

SOURCES: Final = ("state.py", "kernel.py", "routing.py", "closed_loop.py", "../engine/families.py")
"""Whatever the machine code is made of: compiled functions, and the constants that end up in them."""
_DIGITS: Final = 16


def cache_folder(folder: Path = Path(__file__).parent) -> Path:
    """Where the machine code of exactly the sources in `folder` is kept."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "quarterdeck" / f"compiled-{digest.hexdigest()[:_DIGITS]}"


os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder()))  # read when numba is imported
try:
    from numba import njit
except ImportError:
    _njit: Any = None
else:
    _njit = njit(cache=True)


def compiled[F: Callable[..., Any]](function: F) -> F:
    """The same function, compiled on its first call. It must not recurse: numba's cache does not bear that."""
    if _njit is None:
        return function
    made: F = _njit(function)
    return made
