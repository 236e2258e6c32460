"""Keys as files: text that survives a printout, with a checksum, and modes that keep others out.

    -----BEGIN QUARTERDECK BREAK GLASS PUBLIC KEY-----
    Key-Id: break-glass:0a1b2c3d
    Checksum: 0123456789abcdef

    <base64, 64 characters a line>
    -----END QUARTERDECK BREAK GLASS PUBLIC KEY-----

A private key under a passphrase has a line more, `Scrypt: <log2 N> <r> <p> <salt>` (RFC 7914), and is sealed under the
key that scrypt gives. The site key is one line of base64, so that it can also come from a secret store.
"""

import os
import re
import stat
from base64 import b64decode, b64encode
from binascii import Error as BinasciiError
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import mkstemp
from textwrap import wrap
from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from controlplane.adapters.backup.keyring import BreakGlassPrivate, BreakGlassPublic
from controlplane.adapters.backup.sealing import KEY_BYTES, seal, unseal
from controlplane.kernel.errors import ConflictError, DeniedError, NotFoundError, TerminalError

PUBLIC_KIND: Final = "BREAK GLASS PUBLIC KEY"
PRIVATE_KIND: Final = "BREAK GLASS PRIVATE KEY"

_LOG_N: Final = 17
_R: Final = 8
_P: Final = 1
"""128 MiB and about half a second for each guess (OWASP, password storage: scrypt)."""
_LOG_N_MAX: Final = 20
"""1 GiB: a file must not make its reader allocate more."""
_SALT_BYTES: Final = 16
_SCRYPT: Final = re.compile(rf"(?P<log_n>\d{{1,2}}) {_R} {_P} (?P<salt>[A-Za-z0-9+/]{{22}}==)")
_LINE_CHARACTERS: Final = 64
_CHECKSUM_DIGITS: Final = 16
_PRIVATE_MODE: Final = 0o600
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO

type Passphrase = Callable[[], bytes]
"""Asked only when a file needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    kind: str
    """E.g. `BREAK GLASS PUBLIC KEY`."""
    headers: Mapping[str, str]
    payload: bytes


def parse_site_key(text: str, where: str) -> bytes:
    """32 bytes from base64 or hexadecimal. TerminalError names `where`, and repeats nothing of the text."""
    text = text.strip()
    with suppress(ValueError, BinasciiError):
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else b64decode(text, validate=True)
        if len(key) == KEY_BYTES:
            return key
    raise TerminalError(
        f"{where}: found {len(text)} characters, expected {KEY_BYTES} random bytes in base64 or hexadecimal "
        f"(`openssl rand -base64 {KEY_BYTES}` makes such a key)"
    )


def site_key_file(path: Path) -> bytes:
    """The key in the file, which is made (mode 0600) where there is none."""
    if not path.exists():
        with suppress(ConflictError):  # Another process was faster: its key counts.
            create_private(path, b64encode(os.urandom(KEY_BYTES)).decode() + "\n")
    return parse_site_key(read_private(path), str(path))


def generate_break_glass(
    private_path: Path, public_path: Path, *, passphrase: bytes | None = None, log_n: int = _LOG_N
) -> BreakGlassPublic:
    """A new pair. ConflictError when one of the files is there: a key is never written over."""
    for path in (private_path, public_path):
        if path.exists():
            raise ConflictError(f"{path}: is there already; move it away, or name another file")
    private = BreakGlassPrivate.generate()
    key_id = private.public.key_id
    create_private(private_path, format_key(_private_file(private, passphrase, log_n)))
    create(public_path, format_key(KeyFile(kind=PUBLIC_KIND, headers={"Key-Id": key_id}, payload=private.public.raw)))
    return private.public


def read_break_glass_public(path: Path) -> BreakGlassPublic:
    file = read_key(path, PUBLIC_KIND)
    public = _built(BreakGlassPublic, file.payload, path)
    _same_id(path, file, public.key_id)
    return public


def read_break_glass_private(path: Path, passphrase: Passphrase | None = None) -> BreakGlassPrivate:
    """DeniedError when the passphrase is wrong or was not given."""
    file = read_key(path, PRIVATE_KIND, private=True)
    raw = file.payload
    if "Scrypt" in file.headers:
        if passphrase is None:
            raise DeniedError(
                f"{path}: is protected by a passphrase, and none was given; write it into a file (`chmod 600`) and "
                "name that in QUARTERDECK_BREAK_GLASS_PASSPHRASE_FILE"
            )
        key = _stretched(passphrase(), file.headers["Scrypt"], path)
        try:
            raw = unseal(key, file.headers.get("Key-Id", ""), raw)
        except TerminalError:
            raise DeniedError(f"{path}: the passphrase is wrong") from None
    private = _built(BreakGlassPrivate, raw, path)
    _same_id(path, file, private.public.key_id)
    return private


def read_key(path: Path, kind: str, *, private: bool = False) -> KeyFile:
    """TerminalError, with what to do, unless the file is a key of that kind and whole."""
    text = read_private(path) if private else _read(path)
    lines = [line.strip() for line in text.strip().splitlines()]
    begin, end = _frame(kind)
    if not lines or lines[0] != begin or lines[-1] != end:
        raise TerminalError(f"{path}: expected a file from `{begin}` to `{end}`; give the right file, or a whole copy")
    blank = lines.index("") if "" in lines else 1
    headers = dict(line.partition(": ")[::2] for line in lines[1:blank])
    encoded = "".join(lines[blank:-1])
    try:
        payload = b64decode(encoded, validate=True)
    except BinasciiError:
        payload = b""
    found = KeyFile(kind=kind, headers={k: v for k, v in headers.items() if k != "Checksum"}, payload=payload)
    if headers.get("Checksum") != _checksum(found) or b64encode(payload).decode() != encoded:
        raise TerminalError(f"{path}: its checksum does not fit: a character was changed or lost; use another copy")
    return found


def format_key(file: KeyFile) -> str:
    begin, end = _frame(file.kind)
    headers = [f"{name}: {value}" for name, value in (*file.headers.items(), ("Checksum", _checksum(file)))]
    return "\n".join([begin, *headers, "", *wrap(b64encode(file.payload).decode(), _LINE_CHARACTERS), end, ""])


def read_private(path: Path) -> str:
    """TerminalError when others may read or write the file."""
    text = _read(path)
    _check_closed(path)
    return text


def read_passphrase(path: Path) -> bytes:
    """What the file holds, without the end of its line. TerminalError when others may read or write it, or for none."""
    try:
        words = path.read_bytes().rstrip(b"\r\n")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: there is no such passphrase file") from None
    except OSError as error:
        raise TerminalError(f"{path}: cannot be read as a passphrase file: {error.strerror}") from error
    _check_closed(path)
    if not words:
        raise TerminalError(f"{path}: is empty, expected a passphrase on its one line")
    return words


def _check_closed(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        raise TerminalError(f"{path}: found mode {mode:o}, expected {_PRIVATE_MODE:o}: run `chmod 600 {path}`")


def create_private(path: Path, text: str) -> None:
    create(path, text, mode=_PRIVATE_MODE)


def create(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Durable, all of it or nothing. ConflictError when the file is there already."""
    handle, name = mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 from its first moment on.
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.link(name, path)
    except FileExistsError as error:
        raise ConflictError(f"{path}: is there already; move it away, or name another file") from error
    finally:
        os.unlink(name)  # noqa: PTH108 - mkstemp gives a name
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: there is no such key file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TerminalError(f"{path}: cannot be read as a key file: {error}") from error


def _private_file(private: BreakGlassPrivate, passphrase: bytes | None, log_n: int) -> KeyFile:
    key_id = private.public.key_id
    headers = {"Key-Id": key_id}
    if passphrase is None:
        return KeyFile(kind=PRIVATE_KIND, headers=headers, payload=private.raw)
    scrypt = f"{log_n} {_R} {_P} {b64encode(os.urandom(_SALT_BYTES)).decode()}"
    sealed = seal(_stretched(passphrase, scrypt, Path()), key_id, private.raw, compress=False)
    return KeyFile(kind=PRIVATE_KIND, headers={**headers, "Scrypt": scrypt}, payload=sealed)


def _stretched(passphrase: bytes, parameters: str, path: Path) -> bytes:
    match = _SCRYPT.fullmatch(parameters)
    if match is None or not 1 <= int(match["log_n"]) <= _LOG_N_MAX:
        expected = f"`Scrypt: <up to {_LOG_N_MAX}> {_R} {_P} <salt>`"
        raise TerminalError(f"{path}: found `Scrypt: {parameters}`, expected {expected}")
    salt = b64decode(match["salt"])
    return Scrypt(salt=salt, length=KEY_BYTES, n=1 << int(match["log_n"]), r=_R, p=_P).derive(passphrase)


def _built[Key](kind: Callable[[bytes], Key], raw: bytes, path: Path) -> Key:
    try:
        return kind(raw)
    except AssertionError as error:
        raise TerminalError(f"{path}: found a key of {len(raw)} bytes, expected {error}") from error


def _same_id(path: Path, file: KeyFile, key_id: str) -> None:
    if file.headers.get("Key-Id") != key_id:
        raise TerminalError(f"{path}: says it is {file.headers.get('Key-Id')}, its key is {key_id}; use another copy")


def _frame(kind: str) -> tuple[str, str]:
    return f"-----BEGIN QUARTERDECK {kind}-----", f"-----END QUARTERDECK {kind}-----"


def _checksum(file: KeyFile) -> str:
    """Over all that the file says, so that what was mistyped is known before it is tried."""
    headers = "".join(f"{name}: {value}\n" for name, value in file.headers.items())
    return sha256(f"{file.kind}\n{headers}".encode() + file.payload).hexdigest()[:_CHECKSUM_DIGITS]
