"""Who can open a copy: the site's key, retired site keys, and an offline break-glass key that no machine here holds."""

import os
from base64 import b64decode, b64encode
from binascii import Error as BinasciiError
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite

from controlplane.adapters.backup.sealing import KEY_BYTES, seal, unseal
from controlplane.domain.dataset import KeyPurpose
from controlplane.kernel.errors import DeniedError, TerminalError
from controlplane.recovery.manifest import WrappedKey

SITE_SCHEME: Final = "aes-256-gcm"
BREAK_GLASS_SCHEME: Final = "hpke-mlkem768-x25519-hkdf-sha256-aes-256-gcm"

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_MLKEM_SEED_BYTES: Final = 64
_MLKEM_PUBLIC_BYTES: Final = 1184
_X25519_BYTES: Final = 32
_CHECKSUM_BYTES: Final = 8
"""Behind every wrapped key. Anybody can check it, so a break-glass copy that rotted is seen long before it is needed;
against an adversary the wrapping itself stands."""


def site_key_id(key: bytes) -> str:
    return f"{KeyPurpose.SITE}:{_fingerprint(b'site', key)}"


@dataclass(frozen=True, slots=True)
class BreakGlassPublic:
    """The half that stays at the site: it wraps, and opens nothing."""

    raw: bytes
    """ML-KEM-768's encapsulation key (FIPS 203), then X25519's public key (RFC 7748)."""

    def __post_init__(self) -> None:
        assert len(self.raw) == _MLKEM_PUBLIC_BYTES + _X25519_BYTES, "ML-KEM-768 and X25519 public keys"

    @property
    def key_id(self) -> str:
        return f"{KeyPurpose.BREAK_GLASS}:{_fingerprint(b'break-glass', self.raw)}"

    def hpke(self) -> MLKEM768X25519PublicKey:
        return MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(self.raw[:_MLKEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(self.raw[_MLKEM_PUBLIC_BYTES:]),
        )


@dataclass(frozen=True, slots=True)
class BreakGlassPrivate:
    """The half that lies in a safe."""

    raw: bytes = field(repr=False)
    """ML-KEM-768's seed, then X25519's private key."""

    def __post_init__(self) -> None:
        assert len(self.raw) == _MLKEM_SEED_BYTES + _X25519_BYTES, "an ML-KEM-768 seed and an X25519 private key"

    @staticmethod
    def generate() -> "BreakGlassPrivate":
        return BreakGlassPrivate(
            MLKEM768PrivateKey.generate().private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw()
        )

    @property
    def public(self) -> BreakGlassPublic:
        kem, curve = self._halves()
        return BreakGlassPublic(kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw())

    def hpke(self) -> MLKEM768X25519PrivateKey:
        return MLKEM768X25519PrivateKey(*self._halves())

    def _halves(self) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        return (
            MLKEM768PrivateKey.from_seed_bytes(self.raw[:_MLKEM_SEED_BYTES]),
            X25519PrivateKey.from_private_bytes(self.raw[_MLKEM_SEED_BYTES:]),
        )


class SiteKeyring:
    """A Keyring. Without a site key it only opens, with what it was given: a restore after the loss of the site."""

    def __init__(
        self,
        site_key: bytes | None,
        retired: Sequence[bytes] = (),
        *,
        break_glass_public: BreakGlassPublic | None = None,
        break_glass_private: BreakGlassPrivate | None = None,
    ) -> None:
        """`retired`: former site keys, which open and do not wrap."""
        self._site_key = site_key
        self._public, self._private = break_glass_public, break_glass_private
        self._site_keys = {site_key_id(key): key for key in (*retired, *([site_key] if site_key else []))}

    @property
    def holders(self) -> tuple[str, ...]:
        """Key ids that new data keys are wrapped for."""
        site = (site_key_id(self._site_key),) if self._site_key else ()
        return site + ((self._public.key_id,) if self._public else ())

    def new_data_key(self, context: str) -> tuple[bytes, tuple[WrappedKey, ...]]:
        """DeniedError without a site key: nobody here could open what is written."""
        data_key = os.urandom(KEY_BYTES)
        return data_key, self.wrap(data_key, context)

    def wrap(self, data_key: bytes, context: str) -> tuple[WrappedKey, ...]:
        if self._site_key is None:
            raise DeniedError(f"{context}: this keyring has no site key, so it opens copies and writes none")
        key_id = site_key_id(self._site_key)
        blob = seal(self._site_key, _bound(key_id, context), data_key, compress=False)
        wrapped = [_wrapped(key_id, KeyPurpose.SITE, SITE_SCHEME, blob)]
        if self._public is not None:
            key_id = self._public.key_id
            blob = _SUITE.encrypt(data_key, self._public.hpke(), _bound(key_id, context).encode())
            wrapped.append(_wrapped(key_id, KeyPurpose.BREAK_GLASS, BREAK_GLASS_SCHEME, blob))
        return tuple(wrapped)

    def open(
        self, wrapped: Sequence[WrappedKey], context: str, *, only: KeyPurpose | None = None
    ) -> tuple[bytes, WrappedKey]:
        """The data key, and whose copy of it was opened.

        DeniedError: no key here is for it. TerminalError: one is, but its copy was changed or is another point's.
        """
        damaged: TerminalError | None = None
        for one in wrapped:
            if only is not None and one.purpose is not only:
                continue
            try:
                data_key = self._unwrap(one, context)
            except TerminalError as error:
                damaged = error
                continue
            if data_key is not None:
                return data_key, one
        if damaged is not None:
            raise damaged
        raise DeniedError(self._no_key(wrapped, context, only))

    def _unwrap(self, wrapped: WrappedKey, context: str) -> bytes | None:
        """None: the key for it is not here."""
        bound = _bound(wrapped.key_id, context)
        if wrapped.scheme == SITE_SCHEME and wrapped.key_id in self._site_keys:
            return unseal(self._site_keys[wrapped.key_id], bound, blob_of(wrapped, context))
        private = self._private
        if wrapped.scheme != BREAK_GLASS_SCHEME or private is None or private.public.key_id != wrapped.key_id:
            return None
        try:
            return _SUITE.decrypt(blob_of(wrapped, context), private.hpke(), bound.encode())
        except InvalidTag:
            raise TerminalError(_changed(wrapped, context)) from None

    def _no_key(self, wrapped: Sequence[WrappedKey], context: str, only: KeyPurpose | None) -> str:
        would = [one.key_id for one in wrapped if only is None or one.purpose is only]
        private = [self._private.public.key_id] if self._private else []
        here = [key for key in (*self._site_keys, *private) if only is None or key.startswith(f"{only}:")]
        return (
            f"{context}: opens with {_names(would, 'no key of that kind')}; "
            f"here {_names(here, 'is none of that kind')}. Give the key that is missing"
        )


def blob_of(wrapped: WrappedKey, context: str) -> bytes:
    """TerminalError when its bytes are not those that were written, which shows without any key."""
    try:
        blob = b64decode(wrapped.blob, validate=True)[:-_CHECKSUM_BYTES]
    except BinasciiError:
        blob = b""
    if _wrapped(wrapped.key_id, wrapped.purpose, wrapped.scheme, blob) != wrapped:
        raise TerminalError(_changed(wrapped, context))
    return blob


def wrapping_problems(wrapped: Sequence[WrappedKey], context: str) -> list[str]:
    """Of copies of a data key, also of those that only an absent holder can open."""
    problems = []
    for one in wrapped:
        try:
            blob_of(one, context)
        except TerminalError as error:
            problems.append(str(error))
    return problems


def _changed(wrapped: WrappedKey, context: str) -> str:
    return f"{context}: its data key, wrapped for {wrapped.key_id}, was changed or is another copy's; use another copy"


def _wrapped(key_id: str, purpose: KeyPurpose, scheme: str, blob: bytes) -> WrappedKey:
    encoded = b64encode(blob + _checksum(key_id, purpose, scheme, blob)).decode()
    return WrappedKey(key_id=key_id, purpose=purpose, scheme=scheme, blob=encoded)


def _checksum(key_id: str, purpose: KeyPurpose, scheme: str, blob: bytes) -> bytes:
    return sha256(f"{key_id}|{purpose}|{scheme}|".encode() + blob).digest()[:_CHECKSUM_BYTES]


def _bound(key_id: str, context: str) -> str:
    return f"data key of {context} for {key_id}"


def _fingerprint(kind: bytes, key: bytes) -> str:
    return sha256(b"quarterdeck " + kind + b" key\x00" + key).hexdigest()[:8]


def _names(keys: Sequence[str], none: str) -> str:
    return ", ".join(keys) or none
