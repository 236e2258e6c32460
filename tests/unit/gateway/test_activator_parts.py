"""The activator's parts: where the model stands, who may wait, how many bytes."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.activator.bodies import (
    PIECE_BYTES,
    ROOM_WAITERS_MAX,
    Body,
    BodyTooLargeError,
    Budget,
    NoRoomError,
    read_away,
)
from controlplane.adapters.activator.hold import ClosingError, HoldFullError, HoldQueue
from controlplane.adapters.activator.modelfield import NoModel, find_model
from controlplane.kernel.ids import DeploymentName
from controlplane.testing.effects import settle

CHAT = DeploymentName("chat")
EMBED = DeploymentName("embed")
JSON = "application/json"
LONG = timedelta(minutes=1)

PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


@given(
    model=st.text(min_size=1, max_size=20).filter(is_text),
    before=st.dictionaries(st.text(max_size=6).filter(lambda key: key != "model"), VALUES, max_size=3),
    after=st.dictionaries(st.text(max_size=6).filter(lambda key: key != "model"), VALUES, max_size=3),
    ascii_only=st.booleans(),
)
def test_a_model_is_found_wherever_it_stands(
    model: str, before: dict[str, object], after: dict[str, object], *, ascii_only: bool
) -> None:
    document = {**before, "model": model, **after}
    try:
        body = json.dumps(document, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return  # lone surrogates elsewhere in the document: not UTF-8, so no JSON to any engine
    found = find_model(JSON, body)
    assert found == model or isinstance(found, NoModel), "found, or refused as invalid: never another"
    if is_text(body.decode()) and b"\\ud" not in body.lower():
        assert found == model


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"model":"\\ud800"}', "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no `model`"),
        (b'{"model":null}', "no `model`"),
        (b'{"model":""}', "is empty"),
        (b'{"model":5}', "found int"),
        (b'{"model":["chat"]}', "found list"),
    ],
)
def test_no_model(body: bytes, why: str) -> None:
    found = find_model(JSON, body)
    assert isinstance(found, NoModel)
    assert why in found.why


def test_the_last_of_equal_keys_counts() -> None:
    assert find_model(JSON, b'{"model":"a","x":{"model":"b"},"model":"c"}') == "c"


def form(*parts: tuple[str, bytes], boundary: bytes = b"xYz") -> bytes:
    text = b""
    for disposition, content in parts:
        text += b"--" + boundary + b"\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"
    return text + b"--" + boundary + b"--\r\n"


FILE = ('form-data; name="file"; filename="model.wav"', b'\r\n\r\nname="model"\r\n--other\r\n')
MULTIPART = "multipart/form-data; boundary=xYz"


@pytest.mark.parametrize(
    "disposition", ['form-data; name="model"', "form-data; name=model", 'form-data; filename="x"; name="model"']
)
def test_a_forms_model(disposition: str) -> None:
    for parts in ([FILE, (disposition, b"whisper")], [(disposition, b"whisper"), FILE]):
        assert find_model(MULTIPART, form(*parts)) == "whisper"
    assert find_model('Multipart/Form-Data; BOUNDARY="xYz"', form((disposition, b"whisper"))) == "whisper"


@pytest.mark.parametrize(
    ("content_type", "body", "why"),
    [
        (MULTIPART, form(FILE), "no field `model`"),
        (MULTIPART, form(("form-data; name=model", b"")), "is empty"),
        (MULTIPART, form(("form-data; name=model", b"x" * 2000)), "too long"),
        (MULTIPART, b"", "no field"),
        (MULTIPART, b"--xYz\r\nContent-Disposition: form-data; name=model\r\n\r\nwhisper", "no field"),
        (MULTIPART, b"--xYz", "no field"),
        ("multipart/form-data", form(FILE), "no boundary"),
    ],
)
def test_a_form_without_model(content_type: str, body: bytes, why: str) -> None:
    found = find_model(content_type, body)
    assert isinstance(found, NoModel)
    assert why in found.why


@given(st.binary(max_size=200))
def test_any_bytes_as_a_form_end(body: bytes) -> None:
    assert isinstance(find_model(MULTIPART, body), NoModel)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_body_counts_until_it_is_freed() -> None:
    budget = Budget(10)
    body = Body(budget)
    await body.fill(chunks(b"abc", b"de"), expected_bytes=None, limit_bytes=100)
    assert (body.data, budget.used_bytes) == (bytearray(b"abcde"), 5)
    body.free()
    body.free()
    assert budget.used_bytes == 0


@pytest.mark.parametrize("expected_bytes", [None, 6])
async def test_bodies_share_one_budget(expected_bytes: int | None) -> None:
    budget = Budget(10)
    first, second = Body(budget), Body(budget)
    await first.fill(chunks(b"abcdef"), expected_bytes=6, limit_bytes=100)
    with pytest.raises(NoRoomError):
        await second.fill(chunks(b"abc", b"def"), expected_bytes=expected_bytes, limit_bytes=100, patience=timedelta(0))
    second.free()
    assert budget.used_bytes == 6


@pytest.mark.parametrize("expected_bytes", [None, 6])
async def test_one_body_has_a_limit(expected_bytes: int | None) -> None:
    budget = Budget(100)
    body = Body(budget)
    with pytest.raises(BodyTooLargeError):
        await body.fill(chunks(b"abc", b"def"), expected_bytes=expected_bytes, limit_bytes=5)
    body.free()
    assert budget.used_bytes == 0


async def test_a_body_waits_for_room_and_a_small_one_not_behind_it() -> None:
    budget = Budget(10)
    budget.take(6)
    large = [asyncio.create_task(budget.take_soon(size_bytes, LONG)) for size_bytes in (6, 10, 5)]
    await settle()
    await budget.take_soon(4, LONG)
    assert (budget.used_bytes, [task.done() for task in large]) == (10, [False] * 3)
    budget.give_back(6)
    await settle()
    assert (budget.used_bytes, [task.done() for task in large]) == (10, [True, False, False])
    budget.give_back(10)
    await settle()
    assert (budget.used_bytes, [task.done() for task in large]) == (10, [True, True, False])
    budget.resize(15)
    await asyncio.gather(*large)
    assert budget.used_bytes == 15


async def test_who_waits_for_room_is_bounded() -> None:
    budget = Budget(10)
    with pytest.raises(NoRoomError):
        await budget.take_soon(11, LONG)
    budget.take(10)
    waiting_for_room = [asyncio.create_task(budget.take_soon(1, LONG)) for _ in range(ROOM_WAITERS_MAX)]
    await settle()
    with pytest.raises(NoRoomError):
        await budget.take_soon(1, LONG)
    waiting_for_room[0].cancel()
    await settle()
    last = asyncio.create_task(budget.take_soon(10, LONG))
    await settle()
    for task in waiting_for_room:
        task.cancel()
    await settle()
    budget.give_back(10)
    await last
    assert budget.used_bytes == 10


async def test_room_granted_to_one_who_just_left_is_given_back() -> None:
    budget = Budget(10)
    budget.take(10)
    leaving = asyncio.create_task(budget.take_soon(4, LONG))
    await settle()
    budget.give_back(10)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert budget.used_bytes == 0


async def test_a_body_is_sent_in_pieces_and_may_be_freed_meanwhile() -> None:
    body = Body(Budget(2 * PIECE_BYTES))
    data = b"x" * (PIECE_BYTES + 5)
    await body.fill(chunks(data), expected_bytes=len(data), limit_bytes=len(data))
    pieces = []
    async for piece in body.pieces():
        body.free()
        pieces.append(bytes(piece))
    assert (b"".join(pieces), len(body.data)) == (data, 0)


async def test_reading_away_takes_nothing() -> None:
    await read_away(chunks(b"x" * 1000, b"y"))


async def waiting(holds: HoldQueue, deployment: DeploymentName, *tickets: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(holds.wait(deployment, ticket)) for ticket in tickets]
    await settle()
    return tasks


async def test_released_oldest_first_and_only_theirs() -> None:
    holds = HoldQueue(10)
    order: list[int] = []

    async def wait(ticket: int) -> None:
        await holds.wait(CHAT, ticket)
        order.append(ticket)

    tasks = [asyncio.create_task(wait(ticket)) for ticket in (5, 3, 4, 9)]
    other = await waiting(holds, EMBED, 1)
    assert holds.counts() == {CHAT: 4, EMBED: 1}
    assert await holds.release(CHAT) == 4
    await asyncio.gather(*tasks)
    assert order == [3, 4, 5, 9]
    assert holds.counts() == {EMBED: 1}
    await holds.release(EMBED)
    await asyncio.gather(*other)


async def test_the_bound_is_per_deployment() -> None:
    holds = HoldQueue(2)
    tasks = await waiting(holds, CHAT, 1, 2)
    assert holds.is_full(CHAT)
    assert not holds.is_full(EMBED)
    with pytest.raises(HoldFullError):
        await holds.wait(CHAT, 3)
    tasks[0].cancel()
    await settle()
    assert not holds.is_full(CHAT)
    tasks += await waiting(holds, CHAT, 4)
    await holds.release(CHAT)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert holds.counts() == {}


async def test_somebody_tells_when_to_look() -> None:
    holds = HoldQueue(2)
    watcher = asyncio.create_task(holds.somebody())
    await settle()
    assert not watcher.done()
    tasks = await waiting(holds, CHAT, 1)
    assert watcher.done()
    await holds.release(CHAT)
    await asyncio.gather(*tasks)
    again = asyncio.create_task(holds.somebody())
    await settle()
    assert not again.done()
    again.cancel()


async def test_closing_sends_all_away() -> None:
    holds = HoldQueue(5)
    tasks = await waiting(holds, CHAT, 1, 2)
    holds.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, ClosingError) for result in results)
    with pytest.raises(ClosingError):
        await holds.wait(CHAT, 3)


async def test_releasing_nobody() -> None:
    assert await HoldQueue(1).release(CHAT) == 0
