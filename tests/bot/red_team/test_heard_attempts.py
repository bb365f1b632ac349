"""What messages hold besides words breaks no rule either, however the bot comes to hear of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import discord
import pytest
import simcord

from tests.bot.e2e.hearing_stage import ask_about, named, post, sticker
from tests.bot.e2e.world import EDIT_S, World
from tests.bot.red_team.attempts import SECRET
from tests.bot.red_team.heard_attempts import SECRET_LINK, HeardAttempt, Way, attempts
from tests.bot.red_team.test_red_team import (
    MAX_LAG_S,
    Heartbeat,
    check_alive,
    check_rules,
    red_world,
    start_anew,
)
from tests.fakes import Script

ROWS = attempts()
GROUP_SIZE = 7
PICTURE = b"\x89PNG\r\n"


async def hide(world: World) -> str:
    """Have a secret said where only Bob and Max read it; return a link to it."""
    shown = discord.PermissionOverwrite(view_channel=True)
    overwrites: dict[Any, discord.PermissionOverwrite] = {
        world.guild.default_role: discord.PermissionOverwrite(view_channel=False),
        world.client.user: shown,
        world.bob: shown,
        world.mod: shown,
    }
    channel = world.guild.create_text_channel("secret", overwrites=overwrites)
    await world.env.settle()
    said = await world.bob.send(channel, f"the word is {SECRET}")
    return f"https://discord.com/channels/{world.guild.id}/{channel.id}/{said.id}"


def with_link(value: Any, link: str) -> Any:
    """Return what an attempt holds, with the link in it."""
    if isinstance(value, str):
        return value.replace(SECRET_LINK, link)
    if isinstance(value, Mapping):
        return {key: with_link(one, link) for key, one in value.items()}
    return [with_link(one, link) for one in value] if isinstance(value, list) else value


def held(world: World, attempt: HeardAttempt, channel: simcord.ChannelHandle, link: str) -> dict[str, Any]:
    """Return what the message holds, for `post`."""
    holds: dict[str, Any] = {**with_link(attempt.holds, link)}
    if attempt.sticker:
        holds["stickers"] = [sticker(world, attempt.sticker)]
    files = [
        named(world, channel, name, data.replace(SECRET_LINK.encode(), link.encode()))
        for name, data in attempt.files
    ]
    if attempt.picture:
        files.append(named(world, channel, "a.png", PICTURE, description=attempt.picture))
    return {**holds, **({"attachments": files} if files else {})}


async def carry_out(world: World, attempt: HeardAttempt, link: str) -> None:
    """Have somebody send what the attempt says, and somebody ask about it."""
    eve = world.guild.add_member(
        world.env.create_user(f"eve{world.env.backend.snowflake()}", global_name=attempt.author_name)
    )
    asker = world.bob if attempt.by_member else world.anna
    place, text = world.general, with_link(attempt.text, link)
    if attempt.way is Way.OWN:
        await post(world, place, asker, f"{world.me} what is it? {text}", **held(world, attempt, place, link))
        return
    said = await post(world, place, eve, text, **held(world, attempt, place, link))
    if attempt.way is Way.REPLY:
        await post(world, place, asker, f"{world.me} what is it?", reply_to=said)
    elif attempt.way is Way.FORWARD:
        forwarded = await post(world, place, asker, forwards=said)
        await post(world, place, asker, f"{world.me} what is it?", reply_to=forwarded)
    elif attempt.way is Way.MENU:
        await ask_about(world, place, said)
    elif attempt.way is Way.LINK:
        link = f"https://discord.com/channels/{world.guild.id}/{place.id}/{said.id}"
        await post(world, place, asker, f"{world.me} what is it? {link}")
    else:
        world.env.backend.create_thread(place.id, attempt.title, eve.id, message_id=said.id)
        await world.env.settle()
        await post(world, place.threads[-1], asker, f"{world.me} what is it?")


@pytest.mark.parametrize("start", range(0, len(ROWS), GROUP_SIZE))
async def test_nothing_that_a_message_holds_breaks_a_rule(
    start: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with red_world(tmp_path / "llamacord.sqlite3", sees_all_messages=True) as world:
        link = await hide(world)
        heartbeat = Heartbeat()
        try:
            for attempt in ROWS[start : start + GROUP_SIZE]:
                heartbeat.longest_s = 0.0
                seen: set[str] = set()
                num_requests, num_before = len(world.env.http_requests), len(world.replies(world.general))
                world.engine.respond = lambda dialog: Script(
                    ("\n".join(f"{m.role}: {m.content}" for m in dialog),)
                )
                with monkeypatch.context() as patch:
                    if attempt.is_slow:
                        patch.setattr(discord.Attachment, "read", never)
                    await carry_out(world, attempt, link)
                    for _ in range(6):
                        await world.env.advance_time(EDIT_S)
                check_rules(world, attempt, num_requests, seen)
                assert seen <= {"system", "user", "assistant"}
                told = json.dumps([m.content for dialog in world.engine.dialogs for m in dialog])
                assert "root:" not in told, attempt.name
                threads = [reply for thread in world.general.threads for reply in world.replies(thread)]
                is_told = len(world.replies(world.general)) > num_before or threads or attempt.way is Way.MENU
                assert is_told, attempt.name
                await check_alive(world, attempt)
                assert heartbeat.longest_s < MAX_LAG_S, attempt.name
                await start_anew(world)
        finally:
            heartbeat.stop()


async def never(_attachment: discord.Attachment) -> bytes:
    """Fetch a file for ever."""
    await asyncio.sleep(1e6)
    return b""


def test_no_two_attempts_are_the_same() -> None:
    assert len(ROWS) >= 25
    assert len({attempt.name for attempt in ROWS}) == len({repr(attempt) for attempt in ROWS}) == len(ROWS)
