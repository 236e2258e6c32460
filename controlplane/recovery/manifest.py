"""What a recovery point says of itself: which streams, in which packs, under which keys.

A manifest always lies in the class STANDARD, whatever class its data are in: a catalogue that has to be thawed first is
no catalogue. It is plain JSON (a MAC under the data key protects it), so an operator can read it with any S3 client.
"""

from dataclasses import dataclass
from datetime import datetime

from controlplane.domain.dataset import DatasetKind, KeyPurpose
from controlplane.kernel.ids import DatasetName, PointId

FORMAT = 1
"""Of manifests and of the sealed chunks they name. A reader refuses a higher one by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """The data key of one recovery point, sealed for one holder."""

    key_id: str
    """Which key opens it: `site:<8 hex digits of its fingerprint>` or `break-glass:<8 hex digits>`."""
    purpose: KeyPurpose
    scheme: str
    """`aes-256-gcm`, or `hpke-mlkem768-x25519-hkdf-sha256-aes-256-gcm`."""
    blob: str
    """Base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecord:
    """One object with sealed chunks of one stream."""

    key: str
    version: str | None
    """A restore reads this version: a newer one, or a delete marker above it, hides nothing."""
    stored_bytes: int
    sha256: str
    """Of the stored bytes, hexadecimal."""
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecord:
    """One file or tar of the copy, in order of its packs."""

    name: str
    plain_bytes: int
    stored_bytes: int
    sha256: str
    """Of the plaintext, hexadecimal."""
    packs: tuple[PackRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Rows of a table (or keys, or files) at the moment of the copy, where the kind can count consistently."""

    name: str
    rows: int
    sha256: str | None = None
    """Of the contents in the order of the primary key, where that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    format: int
    point: PointId
    dataset: DatasetName
    kind: DatasetKind
    engine: str
    """Program and version that the data came from, e.g. `postgresql 18.6`."""
    started_at: datetime
    consistent_at: datetime
    """The newest moment that this copy alone surely holds everything of; an RPO is counted from here."""
    finished_at: datetime
    parent: PointId | None
    """An increment needs its parent; a full copy has none."""
    compression: str
    """`zstd` or `none`, of each chunk."""
    streams: tuple[StreamRecord, ...]
    counts: tuple[Count, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    """Of the kind: PostgreSQL's `start_lsn`, `stop_lsn`, `timeline`, `system_id`; Redis' `aof`..."""
    keys: tuple[WrappedKey, ...] = ()
    """Outside the MAC: rotation replaces them without touching anything else."""
    mac: str = ""
    """HMAC-SHA-256 under a key derived from the data key, of all other fields but `keys`; hexadecimal."""

    @property
    def plain_bytes(self) -> int:
        return sum(stream.plain_bytes for stream in self.streams)

    @property
    def stored_bytes(self) -> int:
        return sum(stream.stored_bytes for stream in self.streams)

    def fact(self, name: str) -> str | None:
        return next((value for key, value in self.facts if key == name), None)
