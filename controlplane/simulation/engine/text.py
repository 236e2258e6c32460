"""Text without a model: how many tokens a prompt has, which prefix blocks it shares, and what the answer says.

A token is four characters, so a client can ask for an exact prompt length, and every filler word with its leading
space is one token. The same prompt gets the same answer from every engine with the same seed.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

CHARS_PER_TOKEN: Final = 4
"""About what the tokenizers of Llama and Qwen make of English."""

IMAGE_TOKENS: Final = 576
"""A picture in a message counts as a 24 x 24 grid of patches (LLaVA-1.5's); its content is not looked at."""

_WORDS: Final = tuple(
    part
    for line in (
        "the and for are but not you all any can had her was one our out day get has him his how man new now old see",
        "two way who boy did its let put say she too use air arm art bar bed big box bus buy car cat cup cut dog ear",
        "eat egg end far fit fly fun gas hat ice key lab law leg lot low map mix net oil own pay pen run sea set sit",
        "six sky son sun tax tea ten top toy try war win yes yet",
    )
    for part in line.split()
)

_RING_TOKENS: Final = 1024
_RING: Final = "".join(f" {word}" for word in random.Random(0).choices(_WORDS, k=_RING_TOKENS))

_LENGTH_MEDIAN_TOKENS: Final = 180.0
_LENGTH_SIGMA: Final = 0.8
"""Answers without ignore_eos: log-normal, so that the mean is about 250 tokens, near that of public chat traces."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine keeps of a prompt: no text."""

    tokens: int
    prefix_keys: tuple[int, ...]
    fingerprint: int


def fingerprint_of(content: bytes) -> int:
    """32 bits that decide what the answer to it says."""
    return crc32(content)


def count_tokens(text: str) -> int:
    """At least one: every prompt begins with a token."""
    return max(1, -(-len(text) // CHARS_PER_TOKEN))


def token_ids(text: str) -> list[int]:
    """Stable pseudo ids, one per four characters."""
    return [crc32(text[at : at + CHARS_PER_TOKEN].encode()) & 0xFFFF for at in range(0, len(text), CHARS_PER_TOKEN)]


def prompt_of_text(text: str, *, block_tokens: int, salt: str = "") -> Prompt:
    """`salt` keeps prompts for different adapters apart: their KV differs."""
    chars = block_tokens * CHARS_PER_TOKEN
    keys: list[int] = []
    key = hash(salt)
    for at in range(0, len(text) - chars + 1, chars):
        key = hash((key, text[at : at + chars]))
        keys.append(key)
    return Prompt(tokens=count_tokens(text), prefix_keys=tuple(keys), fingerprint=crc32(text.encode()))


def prompt_of_ids(ids: Sequence[int], *, block_tokens: int, salt: str = "") -> Prompt:
    keys: list[int] = []
    key = hash(salt)
    for at in range(0, len(ids) - block_tokens + 1, block_tokens):
        key = hash((key, tuple(ids[at : at + block_tokens])))
        keys.append(key)
    return Prompt(tokens=max(1, len(ids)), prefix_keys=tuple(keys), fingerprint=crc32(repr(ids).encode()))


def chat_text(messages: Sequence[Mapping[str, object]]) -> str:
    """The conversation as one string, in a template of our own: later turns begin with all earlier ones."""
    turns = [f"<|{message.get('role', 'user')}|>\n{_content_text(message.get('content'))}\n" for message in messages]
    return "".join(turns) + "<|assistant|>\n"


def filler(fingerprint: int, start: int, count: int) -> str:
    """Tokens `start` to `start + count` of the answer to a prompt: four characters each, plain ASCII letters."""
    begin = (fingerprint + start) % _RING_TOKENS
    if begin + count <= _RING_TOKENS:
        return _RING[begin * CHARS_PER_TOKEN : (begin + count) * CHARS_PER_TOKEN]
    repeats = (begin + count) // _RING_TOKENS + 1
    return (_RING * repeats)[begin * CHARS_PER_TOKEN : (begin + count) * CHARS_PER_TOKEN]


def natural_length(fingerprint: int, seed: int) -> int:
    """Tokens after which this answer would end by itself."""
    rng = random.Random(fingerprint ^ (seed << 32))
    return max(1, round(rng.lognormvariate(math.log(_LENGTH_MEDIAN_TOKENS), _LENGTH_SIGMA)))


def _content_text(content: object) -> str:
    """A message's text; parts that are not text count as one image each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    pieces = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else None
        pieces.append(text if isinstance(text, str) else "\0" * (IMAGE_TOKENS * CHARS_PER_TOKEN))
    return "".join(pieces)
