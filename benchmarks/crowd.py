"""A crowd on a simulated Discord with real clocks, and what came of the questions that it asked the bot.

Owns who is there and what is asked, and looks afterwards whether every question was answered once, in order
and from its own channel only. Knows nothing of how fast it should go.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import discord
import simcord

from bot.conversation.jobs import Job, Lane
from bot.conversation.memory import UNDO_TIME
from bot.conversation.service import ChatService
from bot.delivery.column import EDIT_INTERVAL_S, ChannelPace
from bot.delivery.delivery import Delivery
from bot.on_discord.answers.discord_answer import DiscordAnswer
from bot.on_discord.client import LlamacordClient
from bot.operations.metrics import Metrics
from bot.parameters import ChatParameters
from bot.playground.live_simcord import LiveEnv
from bot.privacy import Keeping, Privacy
from bot.servers.moderation import Moderation
from bot.servers.rates import Allowance
from engine.types import TextEngine
from engine.waiting.room import Ticket
from storage.conversations import ConversationKind, ConversationRef, Conversations, Role
from storage.database import Database
from storage.settings import SettingsStore

ROOMS_PER_SERVER = 50
PEOPLE_PER_ROOM = 2
QUESTION = re.compile(r"\br(\d+)q(\d+)\b")
"""What marks a question: its room and its number there."""
_ANY_MARK = re.compile(r"\br(\d+)[qc]\d+\b")
"""What marks a question, or what people say to each other."""
KEPT_PER_ANSWER = (Job, Ticket, Lane, DiscordAnswer, Delivery, ChannelPace, discord.ui.View)
"""What there is for an answer in the making, and for nothing else."""
_READY_TIMEOUT_S = 30.0


@dataclass(eq=False)
class Room:
    """A channel, its people, and what they asked: by mark, the id of the message."""

    number: int
    guild_id: int
    channel: simcord.ChannelHandle
    people: Sequence[simcord.MemberActor]
    asked: dict[str, int] = field(default_factory=dict)
    num_said: int = 0

    @property
    def places(self) -> list[simcord.ChannelHandle]:
        """The channel, and the threads in it."""
        return [self.channel, *self.channel.threads]

    def replies(self) -> list[discord.Message]:
        """Return what the bot wrote here."""
        return [reply for place in self.places for reply in _replies(place)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of all questions."""

    num_asked: int
    num_lost: int
    num_double: int
    num_rooms_out_of_order: int
    num_unfinished: int
    """Replies that say neither the whole answer nor why not."""
    num_foreign: int
    """Texts of one room that were found in another: shown, remembered or given to the model."""

    @property
    def is_perfect(self) -> bool:
        """Whether nothing went wrong."""
        return self == Outcome(self.num_asked, 0, 0, 0, 0, 0)


class Crowd:
    """Two people in each of many rooms, and the bot they ask. `is_echoed`: its answers repeat the marks.

    talks: whether people also say something to each other before each question.
    """

    def __init__(
        self, env: LiveEnv, client: LlamacordClient, num_rooms: int, *, is_echoed: bool, talks: bool = False
    ) -> None:
        self.client = client
        self.fetches = Counter[int]()
        """How often Discord was asked for the history of each channel."""
        self._is_echoed = is_echoed
        self._talks = talks
        self.rooms: list[Room] = []
        self.categories: dict[int, int] = {}
        """By server, the one that all its rooms are in."""
        self.mention = f"<@{env.backend.bot_user.id}>"
        for number in range(num_rooms):
            if number % ROOMS_PER_SERVER == 0:
                guild = env.create_guild(f"Server {number // ROOMS_PER_SERVER}")
                category = guild.create_category("Rooms")
                self.categories[guild.id] = category.id
            names = [f"person{number}-{index}" for index in range(PEOPLE_PER_ROOM)]
            people = [guild.add_member(env.create_user(name)) for name in names]
            channel = guild.create_text_channel(f"room{number}", category=category)
            self.rooms.append(Room(number, guild.id, channel, people))

    def count_fetches(self) -> None:
        """Begin to count them."""
        fetch = self.client.http.logs_from

        def counted(channel_id: int, *arguments: Any, **options: Any) -> Any:
            self.fetches[channel_id] += 1
            return fetch(channel_id, *arguments, **options)

        self.client.http.logs_from = counted  # type: ignore[assignment]

    async def ask(self, turns: Sequence[int], pause_s: float) -> None:
        """Let every room's people ask, room by room and turn by turn, whoever `turns` says next."""
        for person in turns:
            for room in self.rooms:
                if self._talks:
                    others = room.people[1 - person]
                    await others.send(room.channel, f"r{room.number}c{room.num_said} is what I say to you")
                    room.num_said += 1
                mark = f"r{room.number}q{len(room.asked)}"
                text = f"{self.mention} {mark} tell me about it"
                # Sent without waiting for anything, as on Discord: the bot gets it when it gets it.
                message = await room.people[person].send(room.channel, text)
                room.asked[mark] = message.id
                await asyncio.sleep(pause_s)

    async def until_answered(self, timeout_s: float) -> None:
        """Wait until nothing is being made, shown or waited for. Raises `TimeoutError`."""
        chat, num_quiet = self.client.chat, 0
        async with asyncio.timeout(timeout_s):
            while num_quiet < 5:
                await asyncio.sleep(0.1)
                is_busy = chat.num_running or chat.num_waiting or chat.num_unshown
                num_quiet = 0 if is_busy else num_quiet + 1

    async def outcome(self, dialogs: Sequence[Sequence[str]] = ()) -> Outcome:
        """Look what came of the questions; `dialogs` are the texts that the model was given at a time.

        A question is answered by its mark in a reply where answers repeat it, else by a reply to it.
        """
        num_lost = num_double = num_mixed = num_foreign = num_unfinished = 0
        for room in self.rooms:
            replies = room.replies()
            answered = [mark for reply in replies for mark in self._answered_by(room, reply)]
            counts = Counter(answered)
            num_lost += len(room.asked.keys() - counts.keys())
            num_double += sum(count - 1 for count in counts.values())
            num_unfinished += sum(not _is_finished(reply) for reply in replies)
            shown = [reply.content for reply in replies] if self._is_echoed else []
            remembered = [await self.remembered(room, place) for place in room.places]
            in_places = [
                [mark for reply in _replies(place) for mark in self._answered_by(room, reply)]
                for place in room.places
            ]
            ordered = (*in_places, *map(_marks_in, remembered))
            num_mixed += not all(_is_ordered(marks, room) for marks in ordered)
            texts = [text for texts in remembered for text in texts]
            num_foreign += len(_rooms_in(shown + texts) - {room.number})
        num_foreign += sum(len(_rooms_in(dialog)) > 1 for dialog in dialogs)
        num_asked = sum(len(room.asked) for room in self.rooms)
        return Outcome(num_asked, num_lost, num_double, num_mixed, num_unfinished, num_foreign)

    def _answered_by(self, room: Room, reply: discord.Message) -> list[str]:
        if self._is_echoed:
            return _marks_in([reply.content])
        replied_id = None if reply.reference is None else reply.reference.message_id
        return [mark for mark, message_id in room.asked.items() if message_id == replied_id]

    async def remembered(self, room: Room, place: simcord.ChannelHandle | None = None) -> list[str]:
        """Return what the bot remembers of a room: what was asked and, where that repeats it, answered."""
        conversations = self.client.chat.conversations
        is_channel = place is None or place.id == room.channel.id
        kind = ConversationKind.CHANNEL if is_channel else ConversationKind.THREAD
        ref = ConversationRef((place or room.channel).id, kind, room.guild_id)
        messages = await conversations.recent(await conversations.open(ref), 1000)
        return [m.content for m in messages if self._is_echoed or m.role is Role.USER]


def _replies(place: simcord.ChannelHandle) -> list[discord.Message]:
    """Return what the bot wrote in a place; what Discord says in its name is none of it."""
    written = (discord.MessageType.default, discord.MessageType.reply)
    return [m for m in place.history() if m.author.bot and m.type in written]


def _is_finished(reply: discord.Message) -> bool:
    """Tell whether a reply offers to regenerate it, as every whole answer does."""
    rows = [row for row in reply.components if isinstance(row, discord.ActionRow)]
    ids = [getattr(item, "custom_id", None) or "" for row in rows for item in row.children]
    return any(":regenerate:" in custom_id for custom_id in ids)


def _marks_in(texts: Sequence[str]) -> list[str]:
    return [match[0] for text in texts for match in QUESTION.finditer(text)]


def _is_ordered(marks: Sequence[str], room: Room) -> bool:
    """Tell whether marks first come up in the order in which they were asked."""
    return list(dict.fromkeys(marks)) == [mark for mark in room.asked if mark in marks]


def _rooms_in(texts: Sequence[str]) -> set[int]:
    return {int(match[1]) for text in texts for match in _ANY_MARK.finditer(text)}


def num_kept() -> int:
    """Return how many objects there are that only answers in the making need."""
    gc.collect()
    return sum(issubclass(type(thing), KEPT_PER_ANSWER) for thing in gc.get_objects())


@asynccontextmanager
async def open_crowd(
    engine: TextEngine,
    folder: Path,
    num_rooms: int,
    *,
    parameters: ChatParameters,
    edit_interval_s: float = EDIT_INTERVAL_S,
    is_echoed: bool = True,
    in_threads: bool = False,
) -> AsyncIterator[Crowd]:
    """Start the whole bot with `engine` on a simulated Discord full of people; close both at the end.

    in_threads: people also talk to each other, and the bot reads along and opens a thread for each question.
    """
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(await Database.open(folder / "crowd.sqlite3"))
        conversations = Conversations(database)
        moderation = Moderation.over(database, conversations, Allowance(per_user=0, per_server=0))
        metrics = Metrics()
        privacy = Privacy.over(database, conversations, Keeping(), undo_time=UNDO_TIME, engines=[engine])
        chat = ChatService(
            engine,
            conversations,
            SettingsStore(database),
            parameters,
            gate=moderation.gate,
            servers=moderation.servers,
            screening=moderation.screening,
            on_answered=metrics.answered,
            on_removed=privacy.purging.note,
        )
        client = LlamacordClient(
            chat, moderation, privacy, metrics, sees_all_messages=in_threads, edit_interval_s=edit_interval_s
        )
        env = LiveEnv(client)
        crowd = Crowd(env, client, num_rooms, is_echoed=is_echoed, talks=in_threads)
        for guild_id, category_id in crowd.categories.items() if in_threads else ():
            changes = {"reads_along": True, "thread_channels": [category_id]}
            await moderation.servers.change(guild_id, changes, by_user_id=1)
        await env.start()
        stack.push_async_callback(env.shutdown)
        stack.push_async_callback(client.close)
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await client.wait_until_ready()
        crowd.count_fetches()
        yield crowd
