"""The url of a live server, for programs whose arguments everybody on the machine can read."""

from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from controlplane.kernel.errors import TerminalError

_KEEPALIVE_S: Final = 60
"""A connection that only holds its snapshot is silent for as long as the dump takes."""
_HIDDEN: Final = b"*"
_SHOWN_IN_DEBUG: Final = b"D"
"""How libpq says that a parameter is a secret, or one for developers (fe-connect.c, PQconninfoOptions)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Of a url, in two halves."""

    shown: dict[str, str]
    secret: dict[str, str]
    """Environment variables."""

    def to(self, database: str) -> str:
        """A connection string without the password."""
        return make_conninfo(**(self.shown | {"dbname": database}))

    def complete(self, database: str) -> str:
        """A connection string for ourselves."""
        password = {"password": self.secret["PGPASSWORD"]} if "PGPASSWORD" in self.secret else {}
        kept = {"keepalives_idle": str(_KEEPALIVE_S)}
        return make_conninfo(**(kept | self.shown | password | {"dbname": database}))


def login_of(url: str) -> Login:
    """TerminalError for a url that cannot be read, or with a secret that no program takes but as an argument."""
    try:
        options = [option for option in pq.Conninfo.parse(url.encode()) if option.val]
    except psycopg.Error as error:
        raise TerminalError(
            "the dataset's url cannot be read, expected postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from error
    shown, secret = {}, {}
    for option in options:
        name, value = option.keyword.decode(), (option.val or b"").decode()
        if option.dispchar == _HIDDEN or (option.dispchar == _SHOWN_IN_DEBUG and name.startswith("scram_")):
            if option.envvar is None:
                raise TerminalError(f"pg_dump cannot be given the url's {name} without showing it to everybody")
            secret[option.envvar.decode()] = value
        else:
            shown[name] = value
    return Login(shown=shown, secret=secret)


def named_database(url: str) -> str | None:
    """The only one to dump; None where the url names none: all of them."""
    return login_of(url).shown.get("dbname")
