"""The bot on Discord: events in, answers out.

Owns the connection and the background work around it; asks for no privileged intent. What a message means
is `mentions`, what happens with it `chat`. One event's fault never reaches another.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import discord

from bot.config import Settings
from bot.conversation.model_switch import ModelSwitch
from bot.conversation.service import ChatService
from bot.delivery.budget import RequestBudget
from bot.delivery.column import EDIT_INTERVAL_S, Columns
from bot.fleet.fleet import Fleet, Kind
from bot.on_discord.answers.controls import AnswerControls
from bot.on_discord.answers.discord_answer import DiscordAnswer
from bot.on_discord.answers.endings import Endings
from bot.on_discord.asking.ask import Asking, ask_commands
from bot.on_discord.asking.catchup import CatchUp
from bot.on_discord.asking.channel_talk import ChannelTalk
from bot.on_discord.asking.history import History
from bot.on_discord.asking.messages import MessageIntake
from bot.on_discord.asking.missed import Missed
from bot.on_discord.asking.questions import Questions
from bot.on_discord.asking.threads import QuestionThreads
from bot.on_discord.buttons import Lasting, OnPress, Press, form_of, on_number
from bot.on_discord.changes import Departures, MessageChanges
from bot.on_discord.commands import Commands, CommandTranslator, help_command, sync_commands
from bot.on_discord.connection import intents, keep_presence
from bot.on_discord.hearing.hearing import Hearing
from bot.on_discord.interactions import SILENT, answer_old_form
from bot.on_discord.moderation.block import block_commands
from bot.on_discord.moderation.log import ModLog
from bot.on_discord.moderation.reset import Resets
from bot.on_discord.origins import Channel, Interaction, Locales, bot_of, may_embed, surroundings_of
from bot.on_discord.privacy import PersonForgetting, privacy_commands
from bot.on_discord.settings.command import ModelCommands, SettingsCommands
from bot.on_discord.settings.server import ConfigPanel, free_commands
from bot.on_discord.settings.system_prompt import PromptEditor, SystemCommands
from bot.on_discord.traffic import MAX_WAIT_S, Gateway, Traffic
from bot.operations.health import Vitals
from bot.operations.metrics import Metrics
from bot.privacy import Privacy
from bot.servers.moderation import Moderation
from bot.tasks import Tasks
from engine.logs import set_level
from storage.errors import StorageError
from storage.fleet import News

_log = logging.getLogger(__name__)


class LlamacordClient(discord.Client):
    """The bot. Closes `chat` when it is closed; closing twice is fine."""

    def __init__(
        self,
        chat: ChatService,
        moderation: Moderation,
        privacy: Privacy,
        metrics: Metrics,
        models: ModelSwitch | None = None,
        *,
        operator_ids: frozenset[int] = frozenset(),
        sees_all_messages: bool = False,
        edit_interval_s: float = EDIT_INTERVAL_S,
        fleet: Fleet | None = None,
        **options: Any,
    ) -> None:
        """`fleet`: this process among the others that are the same bot. `options`: discord.py's own."""
        self.fleet = fleet or Fleet()
        budget = RequestBudget(self.fleet.share)
        super().__init__(
            intents=intents(sees_all_messages=sees_all_messages),
            allowed_mentions=SILENT,
            max_messages=None,
            http_trace=Traffic(lambda: self._endings.look(), budget, self.fleet.may_act).trace,
            max_ratelimit_timeout=MAX_WAIT_S,
            **options,
        )
        self._gateway = Gateway(self, self.fleet)
        self.http.ws_connect = self._gateway.connect  # type: ignore[method-assign]
        self.chat = chat
        chat.preferences.surroundings = functools.partial(surroundings_of, self)
        self.moderation = moderation
        self.privacy = privacy
        self.metrics = metrics
        self._models = models
        self._edit_interval_s = edit_interval_s
        self._columns = Columns(budget)
        self._tasks = Tasks()
        self._locales = Locales(moderation.servers)
        self._mod_log = ModLog(self, moderation.servers, self._locales)
        self._talk = ChannelTalk(self, moderation.servers, sees_all=sees_all_messages)
        chat.ears = self._talk
        self._threads = QuestionThreads(
            self,
            chat,
            moderation.servers,
            self._locales,
            self._talk,
            self._answer_in,
            sees_all=sees_all_messages,
        )
        hearing = Hearing(self, sees_all=sees_all_messages)
        questions = Questions(hearing, chat)
        self._intake = MessageIntake(
            chat,
            moderation.servers,
            questions,
            self._locales,
            self._answer_in,
            metrics.refused,
            self._talk,
            self._threads,
            sees_all=sees_all_messages,
        )
        self._missed = Missed(self, self.fleet.shards, self.fleet.attended_at, self._intake.take)
        self._changes = MessageChanges(chat, questions, self._locales, self._intake)
        self._endings = Endings(
            self,
            chat.conversations,
            moderation.servers,
            self._locales,
            self._columns,
            self._changes.deleted,
        )
        self._departures = Departures(chat, privacy.retention)
        self._catch_up = CatchUp(chat, self._talk)
        editor = PromptEditor(chat.system_prompts)
        panel = ConfigPanel(moderation.servers, chat.preferences, editor, sees_all=sees_all_messages)
        answers = AnswerControls(chat, moderation, self._answer_in, self._endings.owe)
        history, resets = History(chat), Resets(chat, moderation)
        self.presses: dict[Press, OnPress] = {
            Press.STOP: on_number(answers.stop),
            Press.REGENERATE: on_number(answers.regenerate),
            Press.CONTINUE: on_number(answers.continue_),
            Press.REPORT: on_number(answers.report),
            Press.UNDO_RESET: on_number(resets.undo),
            Press.FORGET: on_number(PersonForgetting(chat, privacy, self.fleet).forget),
            Press.HISTORY: history.press,
            Press.CONFIG: panel.press,
            Press.PROMPT: editor.press,
            Press.CATCHUP: on_number(self._catch_up.stop),
        }
        self._forms = {Press.CONFIG: panel.submit, Press.PROMPT: editor.submit}
        self.tree = Commands(
            self,
            (
                SettingsCommands(chat.preferences, chat.system_prompts, moderation.servers),
                SystemCommands(chat.system_prompts, editor),
                *([] if models is None else [ModelCommands(models, operator_ids, self.fleet)]),
                help_command(chat),
                *answers.commands(),
                *ask_commands(Asking(chat, questions, self._answer_in, self._locales, self._threads)),
                *privacy_commands(chat, privacy, self._talk.listens, self.fleet),
                resets.command(),
                *block_commands(chat, moderation),
                panel.command(),
                *free_commands(moderation.servers, sees_all=sees_all_messages),
                history.command(),
                self._catch_up.command(),
            ),
            self.fleet.may_act,
        )

    async def setup_hook(self) -> None:
        """Before the first event: buttons of earlier runs live again, unfinished answers are marked."""
        self.add_dynamic_items(Lasting)
        self.moderation.notices.listen(self._mod_log.post)
        self._tasks.start(self.privacy.purging.run(), "deleting what was reset")
        try:
            await self.privacy.retention.clear_up()
            for one in await self.chat.interrupt_pending():
                self._endings.owe(one.channel_id, one.answer.id)
        except StorageError as error:
            _log.error("Answers of the last run could not be looked up: %s", error)
        self.fleet.watch(self._is_attending, lambda: self._columns.num_shown)
        self.fleet.listen(self._hear)
        self._tasks.start(self._follow_model(), "changing the model")
        self.moderation.servers.on_changed = lambda guild_id: self.fleet.tell_soon(
            Kind.CONFIG_CHANGED, guild_id
        )
        self._tasks.start(self._sync(), "registering commands")
        self._tasks.start(self.privacy.sweeper.run(), "deleting what is too old")
        self._tasks.start(keep_presence(self, self.vitals), "presence")

    async def before_identify_hook(
        self,
        shard_id: int | None,
        *,
        initial: bool = False,
    ) -> None:
        """Begin sessions as rarely as Discord wants it."""
        await self._gateway.before_session(shard_id, is_first=initial)

    async def close(self) -> None:
        """End every answer while it can still be shown, then the connection."""
        await self._catch_up.close()
        await self.chat.close(is_late=self.fleet.lost.is_set())
        await self._talk.close()
        await self._endings.close()
        await self._mod_log.close()
        await self._tasks.close()
        await super().close()

    def apply(self, settings: Settings) -> None:
        """Let settings that were read anew take effect."""
        self.chat.preferences.defaults = settings.chat
        self.privacy.sweeper.keeping = settings.keeping
        set_level(settings.log_level)

    def vitals(self) -> Vitals:
        """Return how we are now."""
        return Vitals(
            engine=self.chat.engine.health,
            is_connected=self.is_ready() and not self.is_closed(),
            num_running=self.chat.num_running,
            num_waiting=self.chat.num_waiting,
            shards=self.fleet.shards,
        )

    def _is_attending(self) -> bool:
        """Tell whether all that is said in our servers comes to us, and what was said before us has."""
        return self.is_ready() and not self.is_closed() and self._missed.is_done

    async def _hear(self, news: News) -> None:
        """Follow what another process did."""
        if news.kind == Kind.CONFIG_CHANGED:
            self.moderation.servers.forget(news.about)
        elif news.kind == Kind.MODEL_CHANGED:
            self._tasks.start(self._follow_model(), "changing the model")
        elif news.kind == Kind.OPTED_OUT:
            await self.chat.drop_person(news.about)
        elif news.kind == Kind.FORGOTTEN:
            await self.chat.drop_person(news.about)
            self.chat.reread()
            await self.privacy.purging.drop_caches()

    async def _follow_model(self) -> None:
        """Use the model that somebody chose for all processes."""
        mark = None if self._models is None else await self.fleet.chosen_model()
        if self._models is not None and mark is not None:
            await self._models.follow(mark)

    async def on_message(self, message: discord.Message) -> None:
        """Answer what is meant for us, unless another process does so by now."""
        if self.user is not None and (self.fleet.may_act() or await self.fleet.until_may_act()):
            bot = bot_of(self.user, message.guild)
            self._talk.said(message, bot)
            await self._intake.take(message, bot)

    async def on_raw_message_edit(self, payload: discord.RawMessageUpdateEvent) -> None:
        """Follow what people change in questions that were taken."""
        message = payload.message
        if self.user is not None and self._talk.edited(message, bot_of(self.user, message.guild)):
            self.chat.unsay(message.id)
        if self.user is None or message.edited_at is None or not message.content:
            return
        is_ours = message.author.id == self.user.id
        if is_ours or (message.author.bot and message.webhook_id is None):  # copies for members change, too
            return
        await self._changes.edited(message, bot_of(self.user, message.guild))

    async def on_raw_message_delete(self, payload: discord.RawMessageDeleteEvent) -> None:
        """Forget what people delete; what we delete ourselves comes again, or is said elsewhere."""
        self._unhear(payload.channel_id, payload.message_id)
        if not await self._intake.proxies.deleted(payload.channel_id, payload.message_id):
            await self._threads.question_deleted(payload.guild_id, payload.message_id)
        if not self._columns.is_deleted(payload.message_id):
            await self._changes.deleted(payload.channel_id, payload.message_id)

    async def on_raw_bulk_message_delete(self, payload: discord.RawBulkMessageDeleteEvent) -> None:
        """Forget what moderators clear."""
        for message_id in payload.message_ids:
            self._unhear(payload.channel_id, message_id)
            await self._threads.question_deleted(payload.guild_id, message_id)
        for message_id in sorted(payload.message_ids):
            await self._changes.deleted(payload.channel_id, message_id)

    def _unhear(self, channel_id: int, message_id: int) -> None:
        """Let nobody be told any more what a message said."""
        if self._talk.deleted(channel_id, message_id):
            self.chat.unsay(message_id)

    async def on_connect(self) -> None:
        """Begin anew with what is said: a new session does not tell what was missed."""
        self._talk.lose()

    async def on_guild_unavailable(self, guild: discord.Guild) -> None:
        """Begin anew with what is said in a server that is away."""
        self._talk.lose(guild.id)

    async def on_ready(self) -> None:
        """Look which servers we are in, and what is owed there."""
        self._endings.look()
        await self._departures.compare(self.guilds)
        await self._missed.look()

    async def on_resumed(self) -> None:
        """Look what is owed, after the connection was lost."""
        self._endings.look()

    async def on_guild_available(self, guild: discord.Guild) -> None:  # noqa: ARG002 - discord.py's signature
        """Look what is owed in a server that is back."""
        self._endings.look()

    async def on_guild_channel_update(
        self,
        before: discord.abc.GuildChannel,
        after: discord.abc.GuildChannel,
    ) -> None:
        """Look what is owed where we may write again, and begin anew with what we could not read."""
        self._endings.look()
        us = after.guild.me
        if before.permissions_for(us).view_channel != after.permissions_for(us).view_channel:
            self._talk.lose(after.guild.id)

    async def on_guild_role_update(self, before: discord.Role, after: discord.Role) -> None:
        """Look what is owed where we may write again, and begin anew with what we could not read."""
        self._endings.look()
        if before.permissions != after.permissions:
            self._talk.lose(after.guild.id)

    async def on_guild_role_delete(self, role: discord.Role) -> None:
        """Look what is owed where we may write again, and begin anew with what we could not read."""
        self._endings.look()
        self._talk.lose(role.guild.id)

    async def on_thread_join(self, thread: discord.Thread) -> None:  # noqa: ARG002
        """Look what is owed in a private thread that we are in again."""
        self._endings.look()

    async def on_member_update(self, before: discord.Member, after: discord.Member) -> None:
        """Look what is owed where we may write again, and begin anew with what we could not read."""
        if after == after.guild.me:
            self._endings.look()
            if before.roles != after.roles:
                self._talk.lose(after.guild.id)

    async def on_raw_thread_update(self, payload: discord.RawThreadUpdateEvent) -> None:
        """Look what is owed in a thread that is open again, or that we may open."""
        state = payload.data.get("thread_metadata", {})
        if not (state.get("archived") and state.get("locked")):
            self._endings.look()

    async def on_guild_join(self, guild: discord.Guild) -> None:
        """Keep what there is of a server that we are in again; its settings may be gone meanwhile."""
        self.moderation.servers.forget(guild.id)
        await self._departures.joined(guild)

    async def on_guild_remove(self, guild: discord.Guild) -> None:
        """Let what there is of a server go after a while."""
        self._talk.lose(guild.id)
        await self._departures.removed(guild)

    async def on_guild_channel_delete(self, channel: discord.abc.GuildChannel) -> None:
        """Let what there is of a channel go after a while."""
        await self._departures.channel_deleted(channel)

    async def on_raw_thread_delete(self, payload: discord.RawThreadDeleteEvent) -> None:
        """Let what there is of a thread go after a while."""
        await self._departures.thread_deleted(payload.thread_id)

    async def on_interaction(self, interaction: Interaction) -> None:
        """Take forms of the server's settings and of system prompts, those of earlier runs too."""
        if interaction.type is discord.InteractionType.modal_submit and self.fleet.may_act():
            press, argument = form_of(interaction)
            if press in self._forms:
                await self._forms[press](interaction, argument)
            else:
                await answer_old_form(interaction)

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Log a fault in an event; its arguments hold content and stay out of the log."""
        _log.exception("The event %s failed", event_method)

    async def _answer_in(self, channel: Channel, trigger_id: int | None) -> DiscordAnswer:
        """Return what shows an answer in a channel, as its server wants it. Raises `StorageError`."""
        guild = getattr(channel, "guild", None)
        config = await self.moderation.servers.config(None if guild is None else guild.id)
        return DiscordAnswer(
            channel,
            trigger_id,
            self.chat.conversations,
            locale=await self._locales.of(guild),
            as_embeds=config.uses_embeds and may_embed(channel),
            hides_previews=config.hides_previews,
            shows_thoughts=config.shows_thoughts,
            notify_after_s=config.notify_after_s,
            edit_interval_s=self._edit_interval_s,
            columns=self._columns,
            on_owed=self._endings.owe,
        )

    async def _sync(self) -> None:
        await self.tree.set_translator(CommandTranslator())
        await sync_commands(self.tree, self.fleet)


class ShardedClient(LlamacordClient, discord.AutoShardedClient):
    """The bot with several shards, or with one of several."""

    def __init__(self, *parts: Any, fleet: Fleet, **options: Any) -> None:
        shards = fleet.shards
        super().__init__(*parts, fleet=fleet, shard_ids=list(shards.ids), shard_count=shards.count, **options)

    async def setup_hook(self) -> None:
        """Ask, besides, how many sessions Discord lets us begin."""
        limits = await self.fetch_session_start_limits()
        self._gateway.max_concurrency = max(1, limits.max_concurrency)
        if limits.remaining < len(self.fleet.shards):
            _log.warning(
                "Discord takes only %d new sessions in the next %.0f s",
                limits.remaining,
                limits.reset_after / 1000,
            )
        await super().setup_hook()

    async def on_shard_ready(self, shard_id: int) -> None:  # noqa: ARG002 - discord.py's signature
        """Look which servers we are in, and what is owed there, also when one shard alone begins anew."""
        if self.is_ready():
            self._endings.look()
            await self._departures.compare(self.guilds)


def client_for(fleet: Fleet) -> type[LlamacordClient]:
    """Return what connects to Discord: one shard alone needs nothing of what several need."""
    return LlamacordClient if fleet.shards.count == 1 else ShardedClient
