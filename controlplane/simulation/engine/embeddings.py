"""Vectors without a model: unit length, the same text the same vector, different texts nearly always different ones."""

import base64
import math
import random
from array import array
from typing import Final

_SEED: Final = 20_240_229


class VectorTable:
    """One random vector of unit length; every text gets a rotation of it, cut out of a text that was made once."""

    def __init__(self, dimensions: int) -> None:
        rng = random.Random(_SEED)
        raw = [rng.gauss(0.0, 1.0) for _ in range(dimensions)]
        norm = math.sqrt(sum(value * value for value in raw))
        self.dimensions = dimensions
        self._values = array("f", [value / norm for value in raw])
        pieces = [f"{value:.7f}".encode() for value in self._values]
        self._text = b",".join(pieces + pieces)
        self._starts = [0]
        for piece in pieces + pieces:
            self._starts.append(self._starts[-1] + len(piece) + 1)

    def json(self, fingerprint: int) -> bytes:
        """The vector as a JSON array."""
        at = fingerprint % self.dimensions
        return b"[%b]" % self._text[self._starts[at] : self._starts[at + self.dimensions] - 1]

    def base64(self, fingerprint: int) -> bytes:
        """The vector as a JSON string of little-endian float32, encoded as OpenAI does."""
        at = fingerprint % self.dimensions
        rotated = self._values[at:] + self._values[:at]
        return b'"%b"' % base64.b64encode(rotated.tobytes())
