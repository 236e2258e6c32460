"""One piece of plaintext to one sealed blob and back: zstd inside AES-256-GCM, bound to the place where it belongs.

    0   4  magic `QDSB`
    4   1  version
    5   1  flags: bit 0, the plaintext is a zstd frame
    6  12  nonce, random
    18     ciphertext, and 16 bytes of tag

The header and the context are authenticated with the ciphertext: a blob opens only under its key and in its place. The
AES key is derived from the caller's key by HKDF-SHA-256 (RFC 5869). Random nonces are safe for 2^32 blobs under one
derived key (NIST SP 800-38D, 8.3).
"""

import os
from typing import Final

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from controlplane.kernel.errors import TerminalError

KEY_BYTES: Final = 32
HEADER_BYTES: Final = 18
TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = HEADER_BYTES + TAG_BYTES
FAST_LEVEL: Final = 1
"""Of zstd. Lower ones pack faster, but what they leave costs more to seal, hash and send: see docs/encryption.md."""

_MAGIC: Final = b"QDSB"
_VERSION: Final = 1
_PLAIN: Final = _MAGIC + bytes([_VERSION, 0])
_PACKED: Final = _MAGIC + bytes([_VERSION, 1])
_NONCE_AT: Final = len(_PLAIN)


def seal(
    key: bytes, context: str, plain: bytes | memoryview, *, compress: bool = True, level: int = FAST_LEVEL
) -> bytes:
    """The blob. `key`: 32 bytes. `context`: where the blob belongs; never written, but needed to open it."""
    packed = zstandard.ZstdCompressor(level=level).compress(plain) if compress else None
    return bytes(Sealer(key, context).close(context, plain, packed))


def unseal(key: bytes, context: str, sealed: bytes | memoryview) -> bytes:
    """The plaintext. TerminalError, naming the context, unless blob, key and context are those of `seal`."""
    return Sealer(key, context).open(context, sealed)


def derived_key(key: bytes, purpose: str) -> bytes:
    """32 bytes that tell nothing about the key, nor about those of another purpose."""
    assert len(key) == KEY_BYTES, f"a key has {KEY_BYTES} bytes"
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"quarterdeck/1/" + purpose.encode()).derive(key)


class Sealer:
    """Seals and opens many blobs under one derived key. Safe to use from several threads."""

    def __init__(self, key: bytes, purpose: str) -> None:
        self._cipher = AESGCM(derived_key(key, purpose))

    def close(self, context: str, plain: bytes | memoryview, packed: bytes | None) -> bytearray:
        """`packed`: the plaintext as a zstd frame with its size; taken only when it is smaller."""
        body, prefix = plain, _PLAIN
        if packed is not None and len(packed) < len(plain):
            body, prefix = packed, _PACKED
        sealed = bytearray(len(body) + OVERHEAD_BYTES)
        sealed[:_NONCE_AT] = prefix
        sealed[_NONCE_AT:HEADER_BYTES] = nonce = os.urandom(HEADER_BYTES - _NONCE_AT)
        self._cipher.encrypt_into(nonce, body, prefix + context.encode(), memoryview(sealed)[HEADER_BYTES:])
        return sealed

    def open(self, context: str, sealed: bytes | memoryview) -> bytes:
        """TerminalError, naming the context, when it is not what was sealed for it."""
        view = memoryview(sealed)
        prefix, nonce, body = bytes(view[:_NONCE_AT]), view[_NONCE_AT:HEADER_BYTES], view[HEADER_BYTES:]
        if len(view) < OVERHEAD_BYTES:
            found = f"{len(view)} bytes, expected a sealed blob of at least {OVERHEAD_BYTES}"
            raise TerminalError(f"{context}: found {found}; it is cut off: use another copy")
        if prefix not in {_PLAIN, _PACKED}:
            raise TerminalError(f"{context}: {_unknown(prefix)}")
        try:
            if prefix == _PLAIN:
                return self._cipher.decrypt(nonce, body, prefix + context.encode())
            packed = bytearray(len(body) - TAG_BYTES)
            self._cipher.decrypt_into(nonce, body, prefix + context.encode(), packed)
        except InvalidTag:
            raise TerminalError(
                f"{context}: its bytes were changed, or they were sealed under another key or for another place; "
                "use another copy"
            ) from None
        return zstandard.ZstdDecompressor().decompress(packed)


def _unknown(prefix: bytes) -> str:
    magic, version = prefix[: len(_MAGIC)], prefix[len(_MAGIC)]
    if magic == _MAGIC and version > _VERSION:
        return f"found format {version}, this program reads up to {_VERSION}: use a newer one, or another copy"
    return f"found {prefix.hex()}, expected a sealed blob, which begins with {_PLAIN.hex()}: use another copy"
