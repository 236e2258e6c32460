"""The hint board, from the event loop's thread and from others."""

import asyncio

import pytest

from controlplane.runtime.hints import HintBoard
from controlplane.testing.effects import settle


async def test_a_hint_reaches_its_loop_alone_at_once() -> None:
    board, woken = HintBoard(frozenset({"replicas", "gateway"})), list[str]()
    board.subscribe("replicas", lambda: woken.append("replicas"))
    board.subscribe("gateway", lambda: woken.append("gateway"))
    board.hint("replicas")
    assert woken == ["replicas"]


async def test_a_hint_from_another_thread_arrives_on_the_loops_own() -> None:
    board, woken = HintBoard(frozenset({"replicas"})), list[asyncio.AbstractEventLoop]()
    board.subscribe("replicas", lambda: woken.append(asyncio.get_running_loop()))
    await asyncio.to_thread(board.hint, "replicas")
    await settle()
    assert woken == [asyncio.get_running_loop()]


async def test_a_hint_before_the_subscription_is_void() -> None:
    board, woken = HintBoard(frozenset({"replicas"})), list[str]()
    board.hint("replicas")
    board.subscribe("replicas", lambda: woken.append("replicas"))
    assert woken == []


async def test_an_unknown_name_is_a_programmers_error() -> None:
    board = HintBoard(frozenset({"replicas"}))
    with pytest.raises(AssertionError, match="'replica'"):
        board.hint("replica")
    with pytest.raises(AssertionError, match="not one of the loops"):
        board.subscribe("replica", lambda: None)
