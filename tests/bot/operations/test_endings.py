"""Every ending arrives: the real process, a Discord that fails in all its ways, and what is shown at the end.

The process's time passes `SPEED` times faster than the world's. Seconds are the process's.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from bot.delivery.board import REFUSAL
from tests.bot.operations.comparing import buttons, differences
from tests.bot.operations.discord_api import Reply, limited, refused
from tests.bot.operations.local_discord import (
    CHANNEL_ID,
    VIEW_CHANNEL,
    Fault,
    LocalDiscord,
    banned,
    local_discord,
)
from tests.bot.operations.test_process import Bot, on_discord

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
SPEED = 20.0
OTHER_ID, THIRD_ID = 5, 6
SLACK_S = 60.0
"""For a machine that has other things to do: three seconds."""


async def until_shown(discord: LocalDiscord, folder: Path, timeout_s: float) -> None:
    """Wait until everything is shown as it is stored, but for what Discord does not take."""
    end = time.monotonic() + (timeout_s + SLACK_S) / SPEED
    while found := [one for one in differences(discord, folder / "bot.sqlite3") if REFUSAL not in one.text]:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.02)


def newest(folder: Path, channel_id: int = CHANNEL_ID) -> sqlite3.Row:
    """Return the newest answer of a channel as it is stored."""
    with closing(sqlite3.connect(f"file:{folder / 'bot.sqlite3'}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        row: sqlite3.Row = connection.execute(
            "SELECT state, content FROM messages JOIN conversations ON conversations.id = conversation_id"
            " WHERE channel_id = ? ORDER BY messages.id DESC LIMIT 1",
            (channel_id,),
        ).fetchone()
        return row


async def until_stored(folder: Path, text: str) -> None:
    async with asyncio.timeout(30):
        while text not in newest(folder)["content"]:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)


def says(discord: LocalDiscord, text: str, channel_id: int = CHANNEL_ID) -> Callable[[], bool]:
    """Return whether the bot says something."""
    return lambda: any(text in message["content"] for message in discord.ours(channel_id))


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds / SPEED)


async def ready(bot: Bot) -> None:
    await bot.until_logged("Ready: connected to Discord as Llamacord")


async def test_an_outage_of_two_minutes_is_made_good_within_half_a_minute(tmp_path: Path) -> None:
    async with local_discord() as discord, on_discord(discord, tmp_path, speed=SPEED) as bot:
        await ready(bot)
        discord.ask("60 words")
        await discord.until_true(says(discord, "word9"))
        await discord.down()
        await pause(125)
        discord.sessions.clear()
        await discord.up()
        began = time.monotonic()
        await until_shown(discord, tmp_path, 30)
        await discord.until_true(lambda: len(discord.identified_at) == 2, (30 + SLACK_S) / SPEED)
        assert time.monotonic() - began < (35 + SLACK_S) / SPEED
        (message,) = discord.ours()
        assert message["content"].endswith("word59")
        assert bot.process.returncode is None
        discord.ask("short")
        await discord.until_true(says(discord, "word49"))


async def test_a_kill_between_a_send_and_its_record_leaves_nothing_behind(tmp_path: Path) -> None:
    """And a stop while Discord is away: at the next start all of it is shown."""
    async with local_discord(OTHER_ID) as discord:
        async with on_discord(discord, tmp_path, speed=SPEED) as bot:
            await ready(bot)
            discord.ask("400 words")
            await discord.until_true(says(discord, "word150"))
            discord.faults.append(Fault("POST", "/messages$", on_carried_out=bot.process.kill))
            await bot.exit_code()
            assert len(discord.ours()) == 2
        async with on_discord(discord, tmp_path, speed=SPEED) as bot:
            await ready(bot)
            await until_shown(discord, tmp_path, 30)
            assert len(discord.ours()) == 2, "the message that nobody recorded is found, and no other is sent"
            assert discord.texts[-1].endswith("\n-# I was restarted before this answer was finished.")
            discord.ask("something without end")
            discord.ask("something else without end", OTHER_ID)
            await discord.until_true(says(discord, "word9", OTHER_ID))
            await discord.down()
            bot.process.send_signal(signal.SIGTERM)
            assert await bot.exit_code() == 0, bot.log
        await discord.up()
        question, *_ = discord.of(OTHER_ID)
        incomplete = Fault("GET", f"/channels/{OTHER_ID}/messages$", reply=Reply([question]))
        discord.faults.append(incomplete)
        async with on_discord(discord, tmp_path, speed=SPEED) as bot:
            await ready(bot)
            await until_shown(discord, tmp_path, 30)
            assert "Interrupted by a restart" in discord.texts[-1]
            assert "word9" in discord.texts[-1], "what a page lacks is not deleted"
            assert incomplete.times == 0


async def test_what_a_kill_left_unsent_comes_as_new_messages(tmp_path: Path) -> None:
    """A nonce that was used before the restart would bring back the first message, and nothing be sent."""
    async with local_discord() as discord:
        async with on_discord(discord, tmp_path, speed=SPEED) as bot:
            await ready(bot)
            discord.ask("400 words")
            await discord.until_true(says(discord, "word9"))
            discord.faults.append(Fault("POST", "/messages$", times=None, reply=refused(503)))
            await until_stored(tmp_path, "word350")
            bot.process.kill()
            await bot.exit_code()
        discord.faults.clear()
        async with on_discord(discord, tmp_path, speed=SPEED) as bot:
            await ready(bot)
            await until_shown(discord, tmp_path, 30)
            first, *others = discord.texts
            assert len(others) >= 1
            assert "word9" in first
            assert "word350" in others[-1]
            assert others[-1].endswith("\n-# I was restarted before this answer was finished.")


async def test_the_parts_of_a_long_answer_stand_above_those_who_wait(tmp_path: Path) -> None:
    async with local_discord() as discord, on_discord(discord, tmp_path, speed=SPEED) as bot:
        await ready(bot)
        for person_id in (480, 10, 11):
            discord.ask(f"{person_id} words", person_id=person_id)
        await discord.until_true(says(discord, "Waiting: place 1"))
        await discord.until_true(says(discord, "word479"))
        await until_shown(discord, tmp_path, 60)
        *_, last, second, third = discord.texts
        for text, word in ((last, "word479"), (second, "word9"), (third, "word10")):
            assert word in text


async def test_a_storm_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    async with local_discord(OTHER_ID) as discord, on_discord(discord, tmp_path, speed=SPEED) as bot:
        await ready(bot)
        discord.faults += [
            Fault("POST", "/messages$", is_lost=True),
            Fault("PATCH", "/messages/", is_lost=True),
            Fault("PATCH", "/messages/", reply=limited(2.0)),
            Fault("PATCH", "/messages/", reply=limited(2.0, is_global=True)),
            Fault("PATCH", "/messages/", times=3, reply=refused(502)),
            Fault("PATCH", "/messages/", delay_s=45 / SPEED),
        ]
        discord.ask("500 words")
        await discord.until_true(says(discord, "word9"))
        discord.send_away()
        await discord.until_true(lambda: len(discord.resumed_at) == 1)
        discord.drop()
        discord.ask("20 words", OTHER_ID)  # while the gateway is away: the resumed session brings it
        await discord.until_true(says(discord, "word19", OTHER_ID))
        assert len(discord.resumed_at) == 2
        discord.forget_sessions()
        await discord.until_true(lambda: len(discord.identified_at) == 2)
        discord.faults.append(Fault("PATCH", "/messages/", reply=banned(40)))
        await discord.until_true(lambda: discord.faults[-1].times == 0)
        during = discord.num_requests
        await pause(35)
        assert discord.num_requests == during, "a ban is obeyed by all requests"
        discord.freeze()
        discord.ask("30 words", OTHER_ID)
        await pause(75)
        discord.thaw()
        await discord.until_true(says(discord, "word29", OTHER_ID))
        await discord.until_true(says(discord, "word499"))
        await until_shown(discord, tmp_path, 60)
        assert len(discord.identified_at) <= 3
    assert discord.unknown == []


async def test_slow_mode_delays_an_answer_and_loses_nothing(tmp_path: Path) -> None:
    """Bots are not bound by it; should one be all the same, Discord says when the next message may come."""
    slow = limited(30.0)
    slow.content["code"] = 20016
    async with local_discord() as discord, on_discord(discord, tmp_path, speed=SPEED) as bot:
        await ready(bot)
        discord.faults.append(Fault("POST", "/messages$", times=2, reply=slow))
        discord.ask("20 words")
        await discord.until_true(says(discord, "word19"))
        await until_shown(discord, tmp_path, 60)
        assert len(discord.ours()) == 1


async def test_what_is_forbidden_is_shown_when_it_is_allowed_again(tmp_path: Path) -> None:
    async with (
        local_discord(OTHER_ID, THIRD_ID) as discord,
        on_discord(discord, tmp_path, speed=SPEED) as bot,
    ):
        await ready(bot)
        for channel_id in discord.channel_ids:
            discord.ask("200 words", channel_id)
            await discord.until_true(says(discord, "word1", channel_id))
        discord.permit(CHANNEL_ID, denied=VIEW_CHANNEL)
        discord.archive(OTHER_ID, is_archived=True)
        discord.faults.append(
            Fault("PATCH", f"/channels/{THIRD_ID}/", times=None, reply=refused(400, 200000), text="word15")
        )
        await discord.until_true(says(discord, REFUSAL, THIRD_ID))
        for channel_id in (CHANNEL_ID, OTHER_ID):
            (message,) = discord.ours(channel_id)
            assert any(":stop:" in one for one in buttons(message))
        assert [message["content"] for message in discord.ours(THIRD_ID)] == [REFUSAL]
        discord.permit(CHANNEL_ID)
        discord.archive(OTHER_ID, is_archived=False)
        await until_shown(discord, tmp_path, 30)
        for channel_id, end in (
            (CHANNEL_ID, "-# Stopped, because I couldn't write here."),
            (OTHER_ID, "word199"),
        ):
            (message,) = discord.ours(channel_id)
            assert message["content"].endswith(end), (
                "somebody may open a thread again while the answer is made"
            )


async def test_what_stop_says_is_what_is_stored(tmp_path: Path) -> None:
    """Also where the answer comes to its end in that moment."""
    channel_ids = tuple(range(10, 18))
    random = Random(1)
    truths: Counter[bool] = Counter()
    async with local_discord(*channel_ids) as discord, on_discord(discord, tmp_path, speed=SPEED) as bot:
        await ready(bot)

        async def ask_and_stop(channel_id: int, longest_s: float) -> None:
            num_before = len(discord.ours(channel_id))
            discord.ask("15 words", channel_id, 100 + len(discord.messages))
            await discord.until_true(lambda: len(discord.ours(channel_id)) > num_before)
            await pause(random.uniform(0.0, longest_s))
            acted = discord.interactions[discord.command("stop", channel_id)]
            await discord.until_true(lambda: bool(acted.told))
            is_said = acted.told == ["Stopped."]
            assert is_said or acted.told == ["No answer is being written here."]
            await until_shown(discord, tmp_path, 30)
            assert newest(tmp_path, channel_id)["state"] == ("stopped" if is_said else "complete")
            truths[is_said] += 1

        for longest_s in (2.5, 2.5, 2.5, 5.0, 10.0, 20.0):  # the busier the machine, the later an answer ends
            await asyncio.gather(*(ask_and_stop(one, longest_s) for one in channel_ids))
            if len(truths) == 2 and truths.total() >= 4 * len(channel_ids):
                break
    assert len(truths) == 2, "some came before the end, some after it"
    assert discord.unknown == []
