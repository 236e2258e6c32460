"""What is wrong at a path of the document, before it is known on which line that is."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

type Path = tuple[str | int, ...]
"""Keys and list indices from the document's root."""

type Plain = str | int | float | bool | Sequence[Plain] | Mapping[str, Plain] | None
"""The document as plain data: mappings, lists, scalars."""

_SHOWN_CHARACTERS: Final = 60
"""More of a found value than this tells nobody more."""

_SIMILARITY: Final = 0.6
"""difflib's own default: below it a suggestion is noise."""

_LISTED_NAMES: Final = 12
"""Beyond this a list of valid names is no longer read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem. `at_key`: the key is wrong, not its value."""

    path: Path
    found: str
    expected: str
    hint: str
    at_key: bool = False


def shown(value: Plain) -> str:
    """A found value in a few words: `"eight"`, `12`, `a list of 3`."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return shown_text(value)
        case int() | float():
            return str(value)
        case Mapping():
            return f"a mapping with {_counted(len(value), 'key')}"
        case _:
            return f"a list of {len(value)}"


def shown_text(text: str) -> str:
    """`"eight"`; long ones are cut, control characters are escaped."""
    printable = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:_SHOWN_CHARACTERS])
    return f'"{printable}{"..." if len(text) > _SHOWN_CHARACTERS else ""}"'


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that was probably meant."""
    options = {option.lower(): option for option in valid}
    close = difflib.get_close_matches(name.lower(), options, n=1, cutoff=_SIMILARITY)
    return options[close[0]] if close else None


def suggestion(name: str, valid: Iterable[str], *, what: str) -> str:
    """`did you mean "x"?`, or the valid names where none is near."""
    options = sorted(valid)
    close = nearest(name, options)
    if close is not None:
        return f'did you mean "{close}"?'
    if not options:
        return f"there is no {what} to choose from yet: declare one"
    listed = ", ".join(options[:_LISTED_NAMES])
    return f"{what}s there are: {listed}{', ...' if len(options) > _LISTED_NAMES else ''}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
