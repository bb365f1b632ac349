"""What a message becomes: a question that is answered, one that is refused, or none of our business.

Whoever is to be answered gets an answer or a sentence. Knows nothing of the connection.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import timedelta

import discord

from bot.conversation.intake import Arrival
from bot.conversation.jobs import Question
from bot.conversation.mentions import Bot, Incoming, has_words, is_for_us, is_from_a_person
from bot.conversation.service import ChatService
from bot.errors import BlockedError, EmptyQuestionError, NotHereError, RefusalError, is_expected, sentence_for
from bot.language.phrases import phrase, render
from bot.on_discord.answers.discord_answer import MakeAnswer
from bot.on_discord.asking.channel_talk import ChannelTalk
from bot.on_discord.asking.overheard import Overheard
from bot.on_discord.asking.proxies import Original, Proxies
from bot.on_discord.asking.questions import Questions
from bot.on_discord.asking.threads import QuestionThreads
from bot.on_discord.interactions import DISCORD_FAILURES, SILENT
from bot.on_discord.origins import Locales, incoming_of, may_answer, origin_of_message, ref_of
from bot.servers.rates import Buckets, Rate, RefusalPace, loop_seconds
from bot.servers.servers import Servers
from engine.tracing import new_trace, traced
from storage.errors import DuplicateMessageError

_log = logging.getLogger(__name__)

OnRefusal = Callable[[Exception], None]
"""Told of every question that is not taken, and why."""
QUIET = (BlockedError, NotHereError, EmptyQuestionError)
"""Not told where every message is answered: who may not ask there may still talk to others."""
SENTENCES_PER_MINUTE = 6
"""To one person, of what is not paced otherwise: who mentions us in a flood is not answered with one."""
EDIT_TIME = timedelta(minutes=15)
"""For so long after it was written an edit makes a message a question."""
MAX_TRIES = 4
"""Of one message that is edited again and again."""
MAX_EDITED = 1000
"""Edited messages that are known."""
BEFORE_TIME = timedelta(minutes=5)
"""How far back a mention without words may point."""
MAX_BEFORE = 4
"""Messages in a row that are the question of such a mention."""

_NO_WORD = re.compile(r"[\s!?.\u2026]*")


class MessageIntake:
    """Takes messages as they come."""

    def __init__(
        self,
        chat: ChatService,
        servers: Servers,
        questions: Questions,
        locales: Locales,
        make_answer: MakeAnswer,
        on_refusal: OnRefusal,
        talk: ChannelTalk,
        threads: QuestionThreads,
        *,
        sees_all: bool,
    ) -> None:
        """`sees_all`: whether we get messages that do not mention us."""
        self._talk = talk
        self._threads = threads
        self._chat = chat
        self._questions = questions
        self._locales = locales
        self._make_answer = make_answer
        self._on_refusal = on_refusal
        self._sees_all = sees_all
        self._overheard = Overheard(chat, servers, sees_all=sees_all)
        self.proxies = Proxies(servers)
        self._refusal_pace = RefusalPace(loop_seconds)
        self._sentences = Buckets(loop_seconds)
        self._tried: OrderedDict[int, set[int]] = OrderedDict()
        """By message, hashes of what it said when it was not taken."""

    async def take(self, message: discord.Message, bot: Bot) -> None:
        """Answer what is meant for us."""
        with traced(new_trace()):
            await self._take(message, bot)

    async def _take(self, message: discord.Message, bot: Bot) -> None:
        if message.guild is None and not isinstance(message.channel, discord.DMChannel):
            _log.info("A message came from a server that Discord has not announced")
            return  # without its server it would look like a direct message
        if message.webhook_id is not None:
            await self._take_copy(message, bot)
            return
        incoming = incoming_of(message)
        is_addressed = is_for_us(incoming, bot)
        if is_addressed or is_from_a_person(incoming):
            if not is_addressed:
                self._questions.notice(message)
            await self._ask(message, message, bot, incoming)

    async def _take_copy(self, copy: discord.Message, bot: Bot) -> None:
        """Answer what was posted for a member, whose message it takes the place of."""
        said = dataclasses.replace(incoming_of(copy), is_bot=False, is_webhook=False)
        if not (is_for_us(said, bot) or await self._overheard.is_for_us(copy, said, bot)):
            return  # of a message with words of several members, another copy may be for us
        original = await self.proxies.claim(copy)
        if original is None:
            return
        try:
            channel_id, asked = copy.channel.id, original.message
            if (arrival := self._chat.arrivals.find(channel_id, asked.id)) is not None:
                await arrival.has_left.wait()
            name = copy.author.display_name
            content = await self._questions.content_of(copy, bot)
            await self._chat.check_text(origin_of_message(asked), content)
            if await self._chat.upkeep.question_moved(channel_id, asked.id, copy.id, name, content):
                return
        except Exception as error:  # noqa: BLE001 - the edge: the copy is a question all the same
            if not is_expected(error):
                _log.exception("A copy could not take the place of its original")
        finally:
            original.settle()
        if not original.is_refused:
            await self._ask(copy, asked, bot, dataclasses.replace(said, author_id=asked.author.id))

    async def take_edited(self, message: discord.Message, bot: Bot) -> None:
        """Answer a message that was no question when it was written, if its edit speaks to us."""
        is_late = message.edited_at is None or message.edited_at - message.created_at > EDIT_TIME
        if is_late or not is_for_us(incoming_of(message), bot):
            return
        if self._note_try(message):
            await self.take(message, bot)

    def _note_try(self, message: discord.Message) -> bool:
        """Note what a message says that is no question; tell whether that was not tried, nor too often."""
        tried = self._tried.setdefault(message.id, set())
        is_new = hash(message.content) not in tried and len(tried) < MAX_TRIES
        tried.add(hash(message.content))
        self._tried.move_to_end(message.id)
        if len(self._tried) > MAX_EDITED:
            self._tried.popitem(last=False)
        return is_new

    async def _ask(
        self, message: discord.Message, written: discord.Message, bot: Bot, incoming: Incoming
    ) -> None:
        """Take a message as a question if it is one.

        written: what the person wrote who asks; another message than `message` where that is a copy.
        """
        original: Original | None = None
        refusal: Exception | None = None
        is_addressed = is_for_us(incoming, bot)
        with self._chat.arrivals.enter(message.channel.id, message.id, incoming.author_id) as arrival:
            try:  # nothing is waited for before it has arrived: it may be changed or deleted from here on
                original = await self.proxies.see(message) if written is message else None
                if original is not None and await self.proxies.is_replaced(original):
                    return
                if is_addressed or await self._overheard.is_for_us(message, incoming, bot):
                    await self._take_in(message, written, bot, arrival, is_addressed=is_addressed)
            except DuplicateMessageError:
                _log.info("A question arrived twice")
            except Exception as error:  # noqa: BLE001 - the edge: whoever asks gets an answer
                refusal = error
        if arrival.is_withdrawn:
            _log.info("A question was deleted before it was taken")
        elif refusal is not None:
            if original is not None:
                original.is_refused = True
            self._note_try(message)
            await self._say_why(message, incoming.author_id, refusal, is_addressed=is_addressed)

    async def _take_in(
        self,
        message: discord.Message,
        written: discord.Message,
        bot: Bot,
        arrival: Arrival,
        *,
        is_addressed: bool,
    ) -> None:
        """Take a message as a question, in the order in which all came and with its newest text."""
        if not (may_answer(message) or await self._threads.opens_in(message.channel)):
            _log.info("A question was left alone: no permission to answer there")
            return
        newest = await self._newest_part(message)
        question = await self._questions.of(message, bot, newest, written)
        typed = message.content
        await arrival.is_first.wait()
        while (edited := arrival.take_edit()) is not None:
            arrival.check()
            content = await self._questions.content_of(edited, bot)
            question, typed = dataclasses.replace(question, content=content), edited.content
        if written is not message:
            asked_from = origin_of_message(written)
            question = dataclasses.replace(question, author_id=written.author.id, origin=asked_from)
        question = await self._questions.begun(question, message.channel, bot)
        is_said = bool(question.content.strip()) and not (
            is_addressed and _NO_WORD.fullmatch(question.content)
        )
        for one in [question] if is_said else await self._meant(message, question, bot):
            view = await self._make_answer(message.channel, one.discord_id)
            said = typed if one.discord_id == message.id else one.content
            settle = functools.partial(self._threads.settle, channel=message.channel, text=said)
            await self._chat.take(one, view, arrival, settle)

    async def _meant(self, message: discord.Message, question: Question, bot: Bot) -> Sequence[Question]:
        """Return what somebody asks who mentions us without a word: what they reply to, or said before.

        Raises `EmptyQuestionError` with how to ask.
        """
        is_blank = not question.content.strip()
        if question.quotes and is_blank:
            asked = render(phrase("ask.bare_reply"), await self._locales.of(message.guild))
            return [dataclasses.replace(question, content=asked)]
        if question.notes and is_blank:  # what they reply to is not shown to us
            raise EmptyQuestionError(question.notes[0])
        if not message.content:
            is_role = bool(message.role_mentions)
            me = f"<@{bot.user_id}>"
            raise EmptyQuestionError(phrase("errors.role_mention", me=me) if is_role else None)
        # Discord tells nothing of a member with a message of the past, so they are who they are now.
        before = [
            dataclasses.replace(
                await self._questions.of(one, bot), origin=question.origin, author_name=question.author_name
            )
            for one in await self._said_before(message)
        ]
        found = [one for one in before if one.content.strip()] or ([] if is_blank else [question])
        if not found:
            raise EmptyQuestionError(phrase("errors.bare_mention"))
        return found

    async def _said_before(self, message: discord.Message) -> list[discord.Message]:
        """Return what the author of a message said right before it and was not asked, oldest first."""
        found: list[discord.Message] = []
        if not self._sees_all or message.guild is None:
            return found
        try:
            for one in await self._talk.right_before(message, BEFORE_TIME):
                is_theirs = one.author.id == message.author.id
                if message.created_at - one.created_at > BEFORE_TIME or (found and not is_theirs):
                    break
                if not is_theirs:
                    continue
                is_known = await self._chat.conversations.find_by_discord_id(one.id) is not None
                if is_known or not is_from_a_person(incoming_of(one)) or len(found) == MAX_BEFORE:
                    break
                found.append(one)
        except DISCORD_FAILURES as error:
            _log.info("What was said before a mention could not be read: %s", type(error).__name__)
        return found[::-1]

    async def _say_why(
        self, message: discord.Message, author_id: int, refusal: Exception, *, is_addressed: bool
    ) -> None:
        """Say why a question is not taken, unless that would be too much."""
        self._on_refusal(refusal)
        if not is_expected(refusal):
            _log.error("A question could not be taken", exc_info=refusal)
        if self._may_tell(message, author_id, refusal, is_addressed=is_addressed):
            await self._refuse(message, sentence_for(refusal))

    def _may_tell(
        self, message: discord.Message, author_id: int, refusal: Exception, *, is_addressed: bool
    ) -> bool:
        """Tell whether to say why; if so, that is counted."""
        guild_id = _guild_id(message)
        if not is_addressed and (isinstance(refusal, QUIET) or not has_words(message.content)):
            return False
        if isinstance(refusal, RefusalError):
            return self._refusal_pace.may_tell(author_id, guild_id, refusal)
        rate = Rate((author_id, guild_id or 0), SENTENCES_PER_MINUTE)
        is_allowed = self._sentences.wait_s(rate) == 0
        if is_allowed:
            self._sentences.take([rate])
        return is_allowed

    async def _newest_part(self, message: discord.Message) -> int | None:
        """Return the message replied to if it shows the newest answer: all that is said follows that."""
        replied_id = None if message.reference is None else message.reference.message_id
        if replied_id is None:
            return None
        ref = ref_of(message.channel.id, message.channel, _guild_id(message))
        return replied_id if await self._chat.steering.is_newest(ref, replied_id) else None

    async def _refuse(self, message: discord.Message, sentence: str) -> None:
        reference = message.to_reference(fail_if_not_exists=False)
        try:
            text = render(sentence, await self._locales.of(message.guild))
            await message.channel.send(text, reference=reference, allowed_mentions=SILENT)
        except DISCORD_FAILURES as error:
            _log.warning("A refusal could not be sent: %s", type(error).__name__)


def _guild_id(message: discord.Message) -> int | None:
    return None if message.guild is None else message.guild.id
