"""Attempts on the bot, on the simulated Discord: none of them breaks a rule that code can enforce."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from bot.parameters import ChatParameters, Guidance
from bot.safety.output_filter import OutputFilter
from bot.servers.rates import Allowance
from engine.types import META_SYSTEM_PROMPT, ModelInfo
from storage.conversations import ConversationKind, ConversationRef
from tests.bot.e2e.world import EDIT_S, World
from tests.bot.red_team.attempts import BOB, BOT, SECRET, Attempt, attempts
from tests.bot.red_team.red_engine import RedEngine
from tests.fakes import Script

ROWS = list(attempts())
GROUP_SIZE = 12
MAX_LAG_S = 2.0
"""Of the event loop, on a busy machine; a loop that is blocked by an attempt lags for much longer."""
FILTER = OutputFilter()
LEAKS = re.compile(
    r"discord\.(?:gg|com/invite)/abcdef|webhooks/\d|AKIAIOSFODNN7EXAMPLE|BEGIN RSA", re.IGNORECASE
)


class Named(Protocol):
    """What every attempt has."""

    @property
    def name(self) -> str: ...


def groups() -> Iterator[Any]:
    """Give the attempts of a kind in groups, each of which plays in one world."""
    for kind, rows in itertools.groupby(ROWS, key=lambda row: row[0]):
        of_kind = [attempt for _, attempt in rows]
        for start in range(0, len(of_kind), GROUP_SIZE):
            yield pytest.param(of_kind[start : start + GROUP_SIZE], id=f"{kind} {start}")


class Heartbeat:
    """Looks from a thread how late the event loop is."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(0.02):
            answered = threading.Event()
            begun_s = time.perf_counter()
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(answered.set)
            while not answered.wait(0.05) and not self._stop.is_set():
                pass
            self.longest_s = max(self.longest_s, time.perf_counter() - begun_s)

    def stop(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()


@contextlib.asynccontextmanager
async def red_world(path: Path, *, sees_all_messages: bool = False) -> AsyncIterator[World]:
    """Open a world with the operator's guidance, a secret in another channel, and no rate limits."""
    async with contextlib.AsyncExitStack() as stack:
        world = World(path, stack)
        world.sees_all_messages = sees_all_messages
        world.engine = RedEngine()
        world.engine.info = ModelInfo("red", "fp32", "cpu", "llama-2", 8192, META_SYSTEM_PROMPT)
        world.defaults = ChatParameters(max_history_tokens=4096, guidance=Guidance())
        world.allowance = Allowance(per_user=0, per_server=0)
        await world.start()
        world.engine.respond = lambda _: Script(("noted",))
        await world.bob.send(world.random, f"{world.me} the word is {SECRET}")
        await world.run(1)
        world.engine.dialogs.clear()
        yield world
        world.check_no_pings()
        await world.close()
        world.env.raise_errors()


def filled(world: World, text: str) -> str:
    return text.replace(BOT, world.me).replace(BOB, world.bob.mention)


async def carry_out(world: World, attempt: Attempt, number: int) -> None:
    """Do what the attempt says, as a person of its own."""
    user = world.env.create_user(f"user{number}", global_name=attempt.author_name)
    person = world.guild.add_member(user)
    pieces = None if attempt.answer is None else tuple(filled(world, piece) for piece in attempt.answer)
    world.engine.respond = lambda dialog: Script(
        pieces or ("\n".join(f"{m.role}: {m.content}" for m in dialog),)
    )
    replied = None
    if attempt.replied:
        replied = await world.bob.send(world.general, filled(world, attempt.replied))
    if attempt.system_prompt:
        with contextlib.suppress(Exception):  # simcord itself refuses what Discord would
            await world.mod.slash(world.general, "system set", text=attempt.system_prompt)
    await person.send(
        world.general,
        f"{world.me} {filled(world, attempt.text)}"[:2000],
        reply_to=replied,
        attachments=[attempt.attachment] if attempt.attachment else (),
    )
    await world.env.advance_time(EDIT_S)
    await world.env.advance_time(EDIT_S)


def check_rules(world: World, attempt: Named, num_requests: int, seen: set[str]) -> None:
    """Assert every rule over what was sent to Discord and to the model since the attempt began."""
    world.check_no_pings()
    for request in world.env.http_requests[num_requests:]:
        body = request.json if isinstance(request.json, dict) else {}
        message = body.get("data", {}) if "/callback" in request.path else body
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            continue
        assert len(content.encode("utf-16-le", "replace")) <= 4000, attempt.name
        if not message.get("flags", 0) & 64:  # what only the person who acts can see may repeat their words
            assert not re.search("@(everyone|here)", content, re.IGNORECASE), attempt.name
            assert not LEAKS.search(content), attempt.name
            assert FILTER.filtered(content) == content, attempt.name
        assert SECRET not in json.dumps(body), attempt.name
    assert isinstance(world.engine, RedEngine)
    assert world.engine.problems == [], attempt.name
    for dialog in world.engine.dialogs:
        assert dialog[0].role == "system", attempt.name
        assert dialog[0].content.startswith(META_SYSTEM_PROMPT), attempt.name
        assert not any(SECRET in message.content for message in dialog), attempt.name
        for message in dialog:
            seen.add(message.role)


async def check_alive(world: World, attempt: Named) -> None:
    """Assert that an ordinary question is still answered, in the same place."""
    world.engine.respond = lambda _: Script(("still here",))
    await world.bob.send(world.general, f"{world.me} are you there after {attempt.name}?")
    await world.env.advance_time(EDIT_S)
    assert world.replies(world.general)[-1].content.startswith("still here"), attempt.name


def test_there_are_enough_attempts_and_no_two_are_the_same() -> None:
    assert len(ROWS) >= 150
    assert len({(kind, attempt.name) for kind, attempt in ROWS}) == len(ROWS)
    assert len({repr(attempt) for _, attempt in ROWS}) == len(ROWS)


@pytest.mark.parametrize("group", list(groups()))
async def test_no_attempt_breaks_a_rule(group: list[Attempt], tmp_path: Path) -> None:
    """Asks 1, 2, 3 and 7: the loop is never blocked, parts fit, conversations never mix, nobody is pinged."""
    async with red_world(tmp_path / "llamacord.sqlite3") as world:
        heartbeat = Heartbeat()
        try:
            for number, attempt in enumerate(group):
                heartbeat.longest_s = 0.0
                seen: set[str] = set()
                num_requests = len(world.env.http_requests)
                await carry_out(world, attempt, number)
                check_rules(world, attempt, num_requests, seen)
                assert seen <= {"system", "user", "assistant"}
                await check_alive(world, attempt)
                assert heartbeat.longest_s < MAX_LAG_S, attempt.name
                await start_anew(world)
        finally:
            heartbeat.stop()


async def start_anew(world: World) -> None:
    """Forget the conversation and its system prompt, so that each attempt stands for itself."""
    ref = ConversationRef(world.general.id, ConversationKind.CHANNEL, world.guild.id)
    await world.client.chat.memory.reset(ref, by_user_id=1, at=world.env.now())
    await world.client.chat.system_prompts.clear(ref, by_user_id=1)
    world.engine.dialogs.clear()
