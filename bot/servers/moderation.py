"""What moderators decide, put together; and the gate: whether a question may be asked, before it is stored.

The gate asks in this order: does the person want no answers, are they blocked, may one ask here, is it a
loop, was too much asked, and do the server's lists allow the text. Knows nothing of Discord: who asks and
where comes as an `Origin`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from bot.errors import BlockedError, ForbiddenTextError, NotHereError, OptedOutError, RepeatedError
from bot.language.phrases import phrase
from bot.origin import Origin
from bot.safety.lists import Finding, TextLists
from bot.safety.safety_model import SafetyModel
from bot.servers.rates import Allowance, RateLimits, Repetitions, loop_seconds
from bot.servers.screening import Screening
from bot.servers.server_config import AgeRestricted, ServerConfig
from bot.servers.servers import Notice, NoticeKind, Notices, Servers
from storage.conversations import Conversations
from storage.database import Database
from storage.moderation import Blocks, Reports
from storage.people import People
from storage.settings import ServerSettingsStore


class Said(Protocol):
    """What somebody said."""

    @property
    def author_id(self) -> int: ...

    @property
    def content(self) -> str: ...


AnySaid = TypeVar("AnySaid", bound=Said)


@dataclass(frozen=True, slots=True)
class Moderation:
    """The parts, each of which knows its own business."""

    servers: Servers
    blocks: Blocks
    reports: Reports
    notices: Notices
    gate: Gate
    screening: Screening
    safety_model: SafetyModel | None

    @classmethod
    def over(
        cls,
        database: Database,
        conversations: Conversations,
        allowance: Allowance,
        *,
        safety_model: SafetyModel | None = None,
        clock: Callable[[], float] = loop_seconds,
    ) -> Moderation:
        """Return the parts over one database. `clock` counts seconds."""
        blocks, notices = Blocks(database), Notices()
        servers = Servers(ServerSettingsStore(database), notices)
        gate = Gate(
            servers, blocks, RateLimits(allowance, clock), Repetitions(clock), notices, People(database)
        )
        screening = Screening(servers, conversations, notices, clock, safety_model)
        return cls(servers, blocks, Reports(database), notices, gate, screening, safety_model)


class Gate:
    """Lets questions in, or says why not."""

    def __init__(
        self,
        servers: Servers,
        blocks: Blocks,
        rates: RateLimits,
        repetitions: Repetitions,
        notices: Notices,
        people: People,
    ) -> None:
        self._people = people
        self._servers = servers
        self._blocks = blocks
        self._rates = rates
        self._repetitions = repetitions
        self._notices = notices

    async def admit(self, origin: Origin, text: str) -> None:
        """Let a question in and count it. Raises a `RefusalError`, or `StorageError`.

        `text` is empty where nothing new is written, as when an answer is made again.
        """
        config = await self._check_person(origin)
        if text and self._repetitions.is_loop(origin.user_id, origin.channel_id, text):
            raise RepeatedError
        self._rates.admit(origin.user_id, origin.guild_id, config)
        await self._check_text(origin, config, text)

    async def precheck(self, origin: Origin) -> None:
        """Raise what `admit` would raise whatever is written, before anything is done for a question.

        Nothing is counted.
        """
        config = await self._check_person(origin)
        self._rates.check(origin.user_id, origin.guild_id, config)

    async def readmit(self, origin: Origin, text: str) -> None:
        """Look at a question once more that was let in and has waited; it is not counted again.

        Raises what `admit` raises for what was decided meanwhile.
        """
        await self._check_text(origin, await self._check_person(origin), text)

    async def may_be_heard(self, origin: Origin, heard: Sequence[AnySaid]) -> list[AnySaid]:
        """Return what the model may be told of what people said where somebody asks, without a notice.

        Whoever opted out or is blocked is left out, and what the server's lists do not allow.
        """
        authors = {one.author_id for one in heard}
        silent = await self._people.opted_out(authors)
        config = await self._servers.config(origin.guild_id)
        if origin.guild_id is not None:
            silent |= await self._blocks.blocked(origin.guild_id, authors)
        kept = [one for one in heard if one.author_id not in silent]
        lists = TextLists(config.question_words, config.question_patterns)
        if lists.is_empty or (origin.is_age_restricted and not config.lists_everywhere):
            return kept
        return [one for one in kept if await lists.look(one.content) is Finding.CLEAN]

    async def check_text(self, origin: Origin, text: str) -> None:
        """Check only what is written. Raises `ForbiddenTextError`, or `StorageError`."""
        await self._check_text(origin, await self._servers.config(origin.guild_id), text)

    async def _check_person(self, origin: Origin) -> ServerConfig:
        """Check who asks, and where; return what holds there."""
        if await self._people.is_opted_out(origin.user_id):
            raise OptedOutError
        config = await self._servers.config(origin.guild_id)
        if origin.guild_id is not None:
            if await self._blocks.is_blocked(origin.guild_id, origin.user_id):
                raise BlockedError
            check_place(origin, config)
        return config

    async def _check_text(self, origin: Origin, config: ServerConfig, text: str) -> None:
        if origin.guild_id is None or (origin.is_age_restricted and not config.lists_everywhere):
            return
        lists = TextLists(config.question_words, config.question_patterns)
        finding = await lists.look(text)
        if finding is Finding.CLEAN or (finding is Finding.UNDECIDED and not config.refuses_unchecked):
            return
        self._notices.post(
            Notice(
                origin.guild_id,
                NoticeKind.QUESTION_REFUSED
                if finding is Finding.FORBIDDEN
                else NoticeKind.QUESTION_UNCHECKED,
                about_user_id=origin.user_id,
                channel_id=origin.channel_id,
            )
        )
        raise ForbiddenTextError


def check_place(origin: Origin, config: ServerConfig) -> None:
    """Raise `NotHereError` unless the server lets this person ask in this place. Pure."""
    if config.allowed_channels and not config.allowed_channels & (origin.place_ids | {origin.channel_id}):
        places = ", ".join(f"<#{channel_id}>" for channel_id in sorted(config.allowed_channels)[:5])
        raise NotHereError(phrase("refusals.channels", places=places))
    if config.age_restricted is AgeRestricted.NEVER and origin.is_age_restricted:
        raise NotHereError(phrase("refusals.age_never"))
    if config.age_restricted is AgeRestricted.ONLY and not origin.is_age_restricted:
        raise NotHereError(phrase("refusals.age_only"))
    if config.allowed_roles and not origin.is_moderator and not config.allowed_roles & origin.role_ids:
        raise NotHereError(phrase("refusals.roles"))
