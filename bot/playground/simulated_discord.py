"""The playground's Discord: a server with a member and a moderator, a German one, and the bot.

Owns who and what is there, and the running bot. Knows nothing of how simcord is made to run live, nor of
browsers. Import it only after `bot.playground.serve` found the right simcord.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from zoneinfo import available_timezones

import discord
import simcord

from bot.playground.live_page import LivePreview, Seat, cheap_pages
from bot.playground.live_simcord import LiveEnv
from bot.playground.page import Held
from bot.tasks import Tasks

BOT_NAME = "Llamacord"

_READY_TIMEOUT_S = 10.0


class SimulatedDiscord:
    """The people, the channels, and the page on which to meet the bot: a log channel too, for moderators."""

    def __init__(self, env: LiveEnv, client: discord.Client, *, port: int) -> None:
        self._client = client
        self._env = env
        env.backend.bot_user.name = BOT_NAME
        guild = env.create_guild("Playground")
        topic = f"Write @{BOT_NAME} and a question, or / for its commands."
        rooms = [guild.create_text_channel(name, topic=topic) for name in ("general", "random")]
        mia, max_ = (env.create_user(name.lower(), global_name=name) for name in ("Mia", "Max"))
        rights = discord.Permissions(manage_messages=True, manage_guild=True)
        moderators = guild.create_role("Moderators", permissions=rights)
        member, moderator = guild.add_member(mia), guild.add_member(max_, roles=[moderators])
        self._direct, self._elsewhere, self._max = mia.dm_channel, rooms[1], moderator
        self._mia_id = mia.id
        log = guild.create_text_channel(
            "mod-log", overwrites={member: discord.PermissionOverwrite(view_channel=False)}
        )
        self._mentions = _TypedMentions(
            {BOT_NAME: f"<@{env.backend.bot_user.id}>", "Mia": mia.mention, "Max": max_.mention}
        )
        seats = [
            *_seats("Mia (member)", member, rooms),
            *_seats("Max (moderator)", moderator, [*rooms, log]),
            *_german_seats(env, rights),
        ]
        self._first_rooms = {seat.channel.id for seat in (seats[0], seats[-2])}
        self.page = LivePreview(
            env,
            seats,
            title=BOT_NAME,
            timezone=_local_timezone(),
            read_typed=self._mentions.resolve,
            port=port,
        )

    async def send_held(self, held: Held) -> None:
        """Have Mia send the bot directly what cannot be typed."""
        backend, direct = self._env.backend, self._direct
        attachments = backend.store_attachments(direct.id, [held.file] if held.file else [])
        reference = None
        if held.forwarded:
            said = await self._max.send(self._elsewhere, held.forwarded)
            reference = {"type": 1, "channel_id": str(self._elsewhere.id), "message_id": str(said.id)}
        backend.create_message(
            direct.id, self._mia_id, held.text, reference=reference, attachments=attachments
        )

    async def greet(self, greeting: Callable[[object], str]) -> None:
        """Let the bot speak first, on each server in its language."""
        for room in self._first_rooms:
            channel = self._client.get_channel(room)
            if isinstance(channel, discord.TextChannel):
                text = greeting(channel.guild.preferred_locale)
                await channel.send(
                    text, allowed_mentions=discord.AllowedMentions.none(), suppress_embeds=True
                )


@contextlib.asynccontextmanager
async def simulate(client: discord.Client, *, port: int) -> AsyncIterator[SimulatedDiscord]:
    """Run a bot in a simulated Discord and serve its page on a loopback port (0 takes any free one)."""
    env = LiveEnv(client)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        world = SimulatedDiscord(env, client, port=port)
        await env.start()
        stack.push_async_callback(env.shutdown)
        stack.push_async_callback(client.close)  # before the shutdown: a closing bot may still have to speak
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await client.wait_until_ready()
        stack.enter_context(cheap_pages())
        await stack.enter_async_context(world.page)
        tasks = await stack.enter_async_context(Tasks())
        tasks.start(world.page.keep_fresh(), "showing the playground")
        yield world


class _TypedMentions:
    """Turns `@Name`, as people type it, into Discord's mention; a browser has no picker for it."""

    def __init__(self, mentions: Mapping[str, str]) -> None:
        self._mentions = {name.casefold(): mention for name, mention in mentions.items()}
        names = "|".join(re.escape(name) for name in sorted(mentions, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<![\w<])@({names})(?!\w)", re.IGNORECASE)

    def resolve(self, text: str) -> str:
        """Return the text as Discord's own client would send it."""
        return self._pattern.sub(lambda match: self._mentions[match[1].casefold()], text)


def _seats(label: str, person: simcord.MemberActor, rooms: list[simcord.ChannelHandle]) -> list[Seat]:
    seats = [Seat(f"{person.id}-{room.id}", f"{label} in #{room.name}", person, room) for room in rooms]
    direct = person.user.dm_channel
    return [*seats, Seat(f"{person.id}-{direct.id}", f"{label} in a direct message", person.user, direct)]


def _german_seats(env: LiveEnv, rights: discord.Permissions) -> list[Seat]:
    """Return the seats of a person whose Discord is German, and who moderates a German server."""
    guild = env.create_guild("Spielplatz", preferred_locale="de")
    room = guild.create_text_channel("allgemein", topic=f"Schreib @{BOT_NAME} und eine Frage.")
    lea = env.create_user("lea", global_name="Lea")
    env.speak(lea.id, "de")
    moderators = guild.create_role("Moderation", permissions=rights)
    return _seats("Lea (moderator, in German)", guild.add_member(lea, roles=[moderators]), [room])


def _local_timezone() -> str:
    """Return the IANA name of this machine's time zone, or UTC where none can be told."""
    place = os.environ.get("TZ", "").lstrip(":") or str(Path("/etc/localtime").resolve())
    name = place.rpartition("zoneinfo/")[2]
    return name if name in available_timezones() else "UTC"
