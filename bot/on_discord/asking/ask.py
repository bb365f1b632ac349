"""`/ask`, and Ask about this in a message's menu: also for people who installed the bot for themselves.

The question is shown as the command's response, and the answer is an ordinary message below it. Where only
one person is to see it, or we may not write, the answer is the response itself: in a conversation of its own,
deleted once it is shown, if it is private, and in one of the person's own in a place where we are not
ourselves.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import discord
from discord import app_commands

from bot.conversation.jobs import Question
from bot.conversation.mentions import Bot, label
from bot.conversation.service import ChatService
from bot.errors import AttachmentError
from bot.language.phrases import phrase, render
from bot.on_discord.answers.discord_answer import DiscordAnswer, MakeAnswer
from bot.on_discord.answers.outboxes import TOKEN_LIFE_S, InteractionOutbox
from bot.on_discord.asking.questions import Questions, referring
from bot.on_discord.asking.threads import QuestionThreads
from bot.on_discord.hearing.hearing import why_unreadable
from bot.on_discord.hearing.message_text import told
from bot.on_discord.interactions import (
    DISCORD_FAILURES,
    SILENT,
    acknowledge_with,
    reporting,
    say,
    sentence_of,
    show_form,
)
from bot.on_discord.origins import (
    Channel,
    Interaction,
    Locales,
    are_we_there,
    bot_of,
    conversation_of,
    origin_of,
    writable_channel,
)
from bot.parameters import PARAMETERS
from storage.conversations import ConversationKind, ConversationRef
from storage.errors import StorageError

_log = logging.getLogger(__name__)

MAX_PROMPT_CHARS = 4000
_MAX_SHOWN = 1500
"""Characters of a question in the response that shows it."""
_TEMPERATURE, _LENGTH = PARAMETERS["temperature"].allowed, PARAMETERS["max_new_tokens"].allowed
_everywhere = app_commands.allowed_contexts(guilds=True, dms=True, private_channels=True)
_for_everybody = app_commands.allowed_installs(guilds=True, users=True)


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks by a command."""

    prompt: str
    is_private: bool = False
    about: discord.Message | None = None
    files: tuple[discord.Attachment, ...] = ()
    overrides: Mapping[str, object] = field(default_factory=dict)


class Asking:
    """Takes requests. Never raises: whoever asks gets an answer or a sentence."""

    def __init__(
        self,
        chat: ChatService,
        questions: Questions,
        make_answer: MakeAnswer,
        locales: Locales,
        threads: QuestionThreads,
    ) -> None:
        self._threads = threads
        self._chat = chat
        self._questions = questions
        self._make_answer = make_answer
        self._locales = locales

    async def take(self, interaction: Interaction, request: Request) -> None:
        """Answer a request."""
        channel = writable_channel(interaction)
        try:
            if channel is not None and (not request.is_private or interaction.guild_id is None):
                await self._ask_in_channel(interaction, request, channel)
            else:
                await self._ask_in_response(interaction, request)
        except Exception as error:  # noqa: BLE001 - the edge: an interaction always gets an answer
            await _refuse(interaction, sentence_of(error))

    async def _ask_in_channel(self, interaction: Interaction, request: Request, channel: Channel) -> None:
        locale = await self._locales.of(interaction.guild)
        response = await interaction.response.send_message(
            _shown(interaction, request, locale), allowed_mentions=SILENT
        )
        discord_id = response.message_id or interaction.id
        with self._chat.arrivals.enter(channel.id, discord_id, interaction.user.id) as arrival:
            question = await self._question(interaction, request, discord_id)
            view = await self._make_answer(channel, response.message_id)
            await arrival.is_first.wait()
            settle = functools.partial(self._threads.settle, channel=channel, text=request.prompt)
            await self._chat.take(question, view, arrival, settle)

    async def _ask_in_response(self, interaction: Interaction, request: Request) -> None:
        await acknowledge_with(interaction, is_private=request.is_private)
        question = await self._question(interaction, request, interaction.id)
        if request.is_private:
            own = ConversationRef(interaction.id, ConversationKind.DIRECT, interaction.guild_id)
            question = dataclasses.replace(
                question, conversation=own, settings_of=question.conversation, starter_id=None
            )
        locale = str(interaction.locale) if request.is_private else await self._locale_of(interaction)
        outbox = InteractionOutbox(interaction, is_private=request.is_private, locale=locale)
        view = DiscordAnswer(
            None,
            None,
            self._chat.conversations,
            locale=locale,
            outbox=outbox,
            on_shown=functools.partial(self._forget, interaction.id) if request.is_private else None,
        )
        try:
            answer_id = await self._chat.ask(question, view)
        except Exception:
            if request.is_private:
                await self._forget(interaction.id)
            raise
        asyncio.get_running_loop().call_later(TOKEN_LIFE_S, self._chat.out_of_time, answer_id)

    async def _question(self, interaction: Interaction, request: Request, discord_id: int) -> Question:
        """Return what is asked. Raises `AttachmentError`."""
        channel, user, bot = interaction.channel, interaction.user, _bot_at(interaction)
        is_our_thread = isinstance(channel, discord.Thread) and are_we_there(interaction)
        listener = self._questions.listen(conversation_of(interaction), bot)
        files = await listener.read(request.files)
        if files.problems or (files.notes and not files.is_readable):
            raise AttachmentError((*files.problems, *files.notes)[0])
        references = []
        if request.about is not None:
            about = await listener.quote(request.about)
            if not about.is_readable:
                raise AttachmentError((*about.notes, phrase("ask.nothing_there"))[0])
            references.append(about)
        place = None if request.is_private else channel
        if are_we_there(interaction):
            references += await listener.linked(request.prompt, user, place)
        question = Question(
            conversation=conversation_of(interaction),
            discord_id=discord_id,
            author_id=user.id,
            author_name=user.display_name,
            content=told([request.prompt, files.text]),
            created_at=interaction.created_at,
            origin=origin_of(interaction),
            starter_id=interaction.channel_id if is_our_thread else None,
            overrides=request.overrides,
            notes=files.notes,
        )
        question = referring(question, references)
        return await self._questions.begun(question, channel, bot) if is_our_thread else question

    async def _forget(self, interaction_id: int) -> None:
        """Delete what was asked in private, and its answer; after a failure the next sweep does it."""
        try:
            await self._chat.upkeep.forget_conversation(interaction_id)
        except StorageError as error:
            _log.warning("A private question was not deleted: %s", error)

    async def _locale_of(self, interaction: Interaction) -> str:
        """Return the locale of those who read the answer; of a server that we are no member of, Discord's."""
        if are_we_there(interaction):
            return await self._locales.of(interaction.guild)
        return str(interaction.guild_locale or interaction.locale)


def ask_commands(asking: Asking) -> list[app_commands.Command[Any, ..., None] | app_commands.ContextMenu]:
    """Return `/ask` and the entry in the menu of messages."""

    @app_commands.command(name="ask", description="Ask me something")
    @app_commands.describe(
        prompt="Your question",
        private="Only you see the answer, and I do not remember it",
        file="A file that goes with the question: text, PDF or Word",
        temperature="How adventurous this answer is; 0 takes the likeliest",
        max_new_tokens="Longest answer, in tokens",
    )
    @_everywhere
    @_for_everybody
    async def ask(
        interaction: Interaction,
        prompt: app_commands.Range[str, 1, MAX_PROMPT_CHARS],
        private: bool = False,
        file: discord.Attachment | None = None,
        temperature: app_commands.Range[float, _TEMPERATURE.low, _TEMPERATURE.high] | None = None,
        max_new_tokens: app_commands.Range[int, int(_LENGTH.low), int(_LENGTH.high)] | None = None,
    ) -> None:
        given = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        overrides = {name: value for name, value in given.items() if value is not None}
        files = () if file is None else (file,)
        await asking.take(interaction, Request(prompt, private, None, files, overrides))

    @app_commands.context_menu(name="Ask about this")
    @_everywhere
    @_for_everybody
    async def ask_about(interaction: Interaction, message: discord.Message) -> None:
        async with reporting(interaction):
            if (reason := why_unreadable(message, _bot_at(interaction))) is not None:
                await say(interaction, reason)
                return
            await show_form(interaction, AboutForm(asking, message, str(interaction.locale)))

    return [ask, ask_about]


class AboutForm(discord.ui.Modal):
    """Asks what one wants to know about a message."""

    def __init__(self, asking: Asking, about: discord.Message, locale: str) -> None:
        super().__init__(title=render(phrase("ask.form_title"), locale))
        self._asking = asking
        self._about = about
        self._prompt: discord.ui.TextInput[AboutForm] = discord.ui.TextInput(
            label=render(phrase("ask.form_question"), locale),
            default=render(phrase("ask.form_default"), locale),
            style=discord.TextStyle.paragraph,
            max_length=MAX_PROMPT_CHARS // 2,
        )
        self.add_item(self._prompt)

    async def on_submit(self, interaction: Interaction) -> None:
        """Ask it."""
        await self._asking.take(interaction, Request(self._prompt.value, about=self._about))


def _shown(interaction: Interaction, request: Request, locale: str) -> str:
    """Return what everybody sees of a question."""
    key = "ask.asks" if request.about is None else "ask.asks_about"
    author = "" if request.about is None else request.about.author.display_name
    head = render(phrase(key, name=label(interaction.user.display_name), author=label(author)), locale)
    prompt = " ".join(request.prompt.split())
    cut = prompt if len(prompt) <= _MAX_SHOWN else f"{prompt[:_MAX_SHOWN]}…"
    files = "".join(f"\n-# {label(one.filename)}" for one in request.files)
    return f"{head}\n> {cut}{files}"


async def _refuse(interaction: Interaction, sentence: str) -> None:
    """Say it to the person alone; a question that everybody sees, and that is not taken, goes again."""
    if interaction.response.type is discord.InteractionResponseType.channel_message:
        with suppress(*DISCORD_FAILURES):
            await interaction.delete_original_response()
        with suppress(*DISCORD_FAILURES):
            text = render(sentence, interaction.locale)
            await interaction.followup.send(text, ephemeral=True, allowed_mentions=SILENT)
        return
    await say(interaction, sentence)


def _bot_at(interaction: Interaction) -> Bot:
    user = interaction.client.user
    return Bot(interaction.application_id, "") if user is None else bot_of(user, interaction.guild)
