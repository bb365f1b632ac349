"""A process of the bot as the state machine has it: the real service over the real storage, with an engine, a
room and views that look at what is done with them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from bot.conversation.service import ChatService
from bot.conversation.views import Ending
from bot.fleet.fleet import Fleet, Kind
from bot.parameters import ChatParameters
from bot.servers.moderation import Moderation
from bot.servers.rates import Allowance
from engine.types import ChatMessage, Generation, Prompt, SamplingParams
from engine.waiting.room import Ticket, WaitingRoom, _State
from storage.conversations import Conversations
from storage.fleet import News
from storage.people import People
from storage.settings import SettingsStore
from storage.shards import Shards
from tests.bot.conversation.slow_databases import SlowDatabase
from tests.fakes import RecordingView, Script, ScriptedEngine


class KilledError(Exception):
    """What is left of a killed process ends with this, once nobody looks any more."""


@dataclass(eq=False)
class Said:
    """A message that somebody sent, and what became of it. process: the one that it came to."""

    discord_id: int
    channel_id: int
    user_id: int
    text: str
    process: BotProcess
    view: SlowView
    is_taken: bool | None = None
    """Whether an answer of its own was begun; None while that is not known."""


@dataclass
class Delays:
    """How long each thing takes, over and over."""

    given: Sequence[int] = (0,)
    _next: itertools.cycle[int] = field(default_factory=lambda: itertools.cycle((0,)))

    def __post_init__(self) -> None:
        self._next = itertools.cycle(self.given)

    def __call__(self) -> float:
        return next(self._next) / 10


@dataclass
class World:
    """What is outside of all processes, and what is wrong with what they do."""

    servers: dict[int, int | None]
    """Of channels; None is a direct message."""
    delay: Delays = field(default_factory=Delays)
    discord_is_there: asyncio.Event = field(default_factory=asyncio.Event)
    by_text: dict[str, Said] = field(default_factory=dict)
    shown: dict[int, list[int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    is_over: bool = False

    def check(self, is_right: bool, what: str) -> None:
        """Note what is wrong: the code that is tested would log what is raised inside it, and go on."""
        process = ACTING.get()
        if not is_right and not self.is_over and (process is None or not process.is_dead):
            self.faults.append(what)


class SlowView(RecordingView):
    """Takes its time to show an ending; while Discord is out, as long as that lasts."""

    def __init__(self, process: BotProcess, channel_id: int) -> None:
        super().__init__()
        self._process = process
        self._world = process.world
        self.channel_id = channel_id

    def update(self, text: str) -> None:
        self._check_order()
        super().update(text)

    def waiting(self, place: int, *, for_others: bool) -> None:
        self._check_order()
        super().waiting(place, for_others=for_others)

    async def finish(self, ending: Ending) -> None:
        self._world.check(not self.endings, "an answer ended twice")
        await self._process.pause()
        await self._world.discord_is_there.wait()
        await self._process.pause()
        await super().finish(ending)
        self._world.shown.setdefault(self.channel_id, []).append(self.answer_id)
        await self._process.conversations.note_shown(ending.answer_id)

    def _check_order(self) -> None:
        """Look whether all answers before this one that were made are shown."""
        lane = self._process.chat._queues._lanes[self.channel_id]
        before = [job for job in lane.unshown if job.answer_id != self.answer_id]
        self._world.check(not before, "an answer is shown above the end of another one")


class WatchedEngine(ScriptedEngine):
    """Echoes what it is asked, and has each beginning looked at."""

    def __init__(self, process: BotProcess) -> None:
        super().__init__(max_requests=2, max_kv_tokens=1200, respond=self._echo)
        self._process = process

    def _echo(self, dialog: Sequence[ChatMessage]) -> Script:
        return Script(("You", " said", " that", "."), delay_s=self._process.world.delay())

    def generate(self, prompt: Prompt, params: SamplingParams, **options: Any) -> Generation:
        generation = super().generate(prompt, params, **options)
        self._process.check_beginning(self.dialogs[-1])
        return generation


class WatchedRoom(WaitingRoom):
    """Counts who is overtaken by whom: each waiting one by how many turns of each server."""

    def __init__(self, world: World, engine: WatchedEngine) -> None:
        super().__init__(lambda: engine.load, max_waiting=50)
        self._world = world
        self._overtaken: dict[Ticket, dict[object, int]] = {}

    def _call(self, ticket: Ticket) -> None:
        super()._call(ticket)
        self._overtaken.pop(ticket, None)
        for other in self._line():
            counts = self._overtaken.setdefault(other, {})
            server, own = ticket.claim.keys[0], other.claim.keys[0]
            counts[server] = counts.get(server, 0) + 1
            self._world.check(counts[server] <= 1 + counts.get(own, 0), f"{server} twice before {own}")

    def _put_back(self, ticket: Ticket) -> None:
        if ticket.state is _State.CALLED:  # that turn came to nothing, so it overtook nobody
            for counts in self._overtaken.values():
                if ticket.claim.keys[0] in counts:
                    counts[ticket.claim.keys[0]] -= 1
        super()._put_back(ticket)


class BotProcess:
    """One process. Make it on the event loop; it acts once it is `started`.

    forgotten: the texts of each person who was forgotten. standing: who is refused by what was decided last.
    A process is held to either only once it can have heard of it.
    """

    def __init__(
        self,
        world: World,
        place: SlowDatabase,
        shards: Shards,
        forgotten: dict[int, set[str]],
        standing: set[tuple[object, int]],
    ) -> None:
        self.world = world
        self.shards = shards
        self.is_dead = False
        self.gone_texts: set[str] = set()
        self.refused: set[tuple[object, int]] = set()
        self._place = place
        self._forgotten = forgotten
        self._standing = standing
        before = ACTING.set(self)
        self.database = place.opened(self.pause)
        self.engine = WatchedEngine(self)
        self.room = WatchedRoom(world, self.engine)
        self.conversations = Conversations(self.database, shards=shards)
        self.people = People(self.database)
        self.fleet = Fleet(shards, database=None if shards.are_all else self.database)
        loop = asyncio.get_running_loop()
        self.moderation = Moderation.over(
            self.database, self.conversations, Allowance(per_user=0, per_server=0), clock=loop.time
        )
        self.chat = ChatService(
            self.engine,
            self.conversations,
            SettingsStore(self.database),
            ChatParameters(SamplingParams(max_new_tokens=300)),
            gate=self.moderation.gate,
            servers=self.moderation.servers,
            screening=self.moderation.screening,
            room=self.room,
        )
        ACTING.reset(before)

    async def start(self) -> list[int]:
        """Do what a process begins with; return the answers whose endings it shows for an earlier one."""
        await self.fleet.start()
        interrupted = await self.chat.interrupt_pending()
        for one in interrupted:
            is_ours = self.shards.has(self.world.servers[one.channel_id])
            self.world.check(is_ours, "a process ends answers of another one")
        self.fleet.listen(self._hear)
        for one in interrupted:
            await self.pause()
            await self.conversations.note_shown(one.answer.id)
        return [one.answer.id for one in interrupted]

    def kill(self) -> None:
        """Let nothing more happen in it."""
        self.is_dead = True
        self._place.killed(self.database)

    async def close(self) -> None:
        """End it in order."""
        await self.chat.close()
        await self.fleet.close()
        await self.database.close()

    async def pause(self) -> None:
        """Take as long as the machine wants."""
        await asyncio.sleep(self.world.delay())
        if self.is_dead and not self.world.is_over:
            await asyncio.get_running_loop().create_future()
        if self.is_dead:
            raise KilledError

    async def forget(self, user_id: int) -> None:
        """Do what `/forget-me` does."""
        await self.fleet.tell(Kind.FORGOTTEN, user_id)
        await self.chat.drop_person(user_id)
        texts = {
            text
            for text, one in self.world.by_text.items()
            if one.user_id == user_id and one.is_taken is not None
        }
        await self.people.forget(user_id)
        self._forgotten.setdefault(user_id, set()).update(texts)
        await self.fleet.tell(Kind.FORGOTTEN, user_id)
        self.chat.reread()
        self.gone_texts |= texts

    async def opt_out(self, user_id: int) -> None:
        """Do what `/opt-out` does."""
        await self.people.opt_out(user_id)
        await self.chat.drop_person(user_id)
        self.fleet.tell_soon(Kind.OPTED_OUT, user_id)

    async def _hear(self, news: News) -> None:
        """Follow what another process did, as the client does."""
        known = set(self._forgotten.get(news.about, ()))
        await self.chat.drop_person(news.about)
        if news.kind == Kind.FORGOTTEN:
            self.chat.reread()
            self.gone_texts |= known
        elif ("user", news.about) in self._standing:
            self.refused.add(("user", news.about))

    def check_beginning(self, dialog: Sequence[ChatMessage]) -> None:
        """Look at what the model is given."""
        check = self.world.check
        text = "\n".join(message.content for message in dialog)
        for gone in self.gone_texts:
            check(gone not in text, f"{gone} was deleted before")
        (turn,) = [message.content for message in dialog if message.role == "user"][-1:]
        asked = self.world.by_text[turn[turn.rindex("<") :]]
        server_id = self.world.servers[asked.channel_id]
        check(self.shards.has(server_id), "a process answers on a server of another one")
        check(("user", asked.user_id) not in self.refused, "somebody opted out before")
        check((server_id, asked.user_id) not in self.refused, "somebody was blocked before")


ACTING: ContextVar[BotProcess | None] = ContextVar("acting", default=None)
"""The process in which something happens."""
