"""The bot on Discord: events in, answers out.

Owns the connection and the background work around it; asks for no privileged intent. What a message means
is `mentions`, what happens with it `chat`. One event's fault never reaches another.
"""

from __future__ import annotations

import logging
from typing import Any

import discord

from bot.config import Settings
from bot.conversation.model_switch import ModelSwitch
from bot.conversation.service import ChatService
from bot.delivery.pace import Paces
from bot.logs import set_level
from bot.on_discord.answers.buttons import NumberedButton, OnPress, Press
from bot.on_discord.answers.controls import AnswerControls, answer_old_form
from bot.on_discord.answers.discord_answer import EDIT_INTERVAL_S, DiscordAnswer
from bot.on_discord.answers.discord_outbox import SILENT, Channel
from bot.on_discord.answers.interrupted import EarlierAnswers
from bot.on_discord.asking.asking import Asking
from bot.on_discord.asking.history_pages import HistoryButton
from bot.on_discord.asking.incoming import bot_of
from bot.on_discord.asking.message_changes import MessageChanges
from bot.on_discord.asking.messages import MessageIntake
from bot.on_discord.command_sync import sync_commands
from bot.on_discord.departures import Departures
from bot.on_discord.interactions import Interaction
from bot.on_discord.invite import intents
from bot.on_discord.languages import CommandTranslator, Locales
from bot.on_discord.model import ModelCommands
from bot.on_discord.moderation.controls import ModerationButtons
from bot.on_discord.moderation.log import ModLog
from bot.on_discord.presence import keep_presence
from bot.on_discord.privacy import PersonForgetting
from bot.on_discord.prompts.drafts import PromptButton, is_prompt_form
from bot.on_discord.prompts.editor import PromptEditor
from bot.on_discord.purging import Purging
from bot.on_discord.server_panel.controls import ConfigPanel, is_config_form
from bot.on_discord.server_panel.panel import PanelItem
from bot.on_discord.tree import Commands
from bot.operations.health import Vitals
from bot.operations.metrics import Metrics
from bot.privacy.sweeper import Privacy
from bot.servers.moderation import Moderation
from bot.tasks import Tasks
from storage.errors import StorageError

_log = logging.getLogger(__name__)


class LlamacordClient(discord.Client):
    """The bot. Closes `chat` when it is closed; closing twice is fine."""

    def __init__(
        self,
        chat: ChatService,
        moderation: Moderation,
        privacy: Privacy,
        metrics: Metrics,
        *,
        sees_all_messages: bool = False,
        edit_interval_s: float = EDIT_INTERVAL_S,
    ) -> None:
        super().__init__(
            intents=intents(sees_all_messages=sees_all_messages),
            allowed_mentions=SILENT,
            max_messages=None,
        )
        self.chat = chat
        self.moderation = moderation
        self.privacy = privacy
        self.metrics = metrics
        self.departures = Departures(privacy.retention)
        self._locales = Locales(moderation.servers)
        self.prompt_editor = PromptEditor(chat.system_prompts)
        self.config_controls = ConfigPanel(
            moderation.servers, chat.preferences, self.prompt_editor, sees_all=sees_all_messages
        )
        self.mod_log = ModLog(self, moderation.servers, self._locales)
        self.tree = Commands(
            self,
            chat,
            moderation,
            privacy,
            self.config_controls,
            self.prompt_editor,
            Asking(chat, self._answer_in, self._locales),
            self._answer_in,
            sees_all=sees_all_messages,
        )
        self._purging = Purging(chat.conversations, self._drop_caches)
        self.privacy.sweeper.on_deleted = self._purging.note
        chat.on_removed = self._purging.note
        self.presses = self._what_presses_do()
        self._changes = MessageChanges(chat, self._locales)
        self._intake = MessageIntake(
            chat,
            moderation.servers,
            self._locales,
            self._answer_in,
            metrics.refused,
            sees_all=sees_all_messages,
        )
        self._edit_interval_s = edit_interval_s
        self._paces = Paces()
        self._tasks = Tasks()

    def offer_models(self, switch: ModelSwitch, operator_ids: frozenset[int]) -> None:
        """Add `/model`. Call before the connection."""
        self.tree.add_command(ModelCommands(switch, operator_ids))

    async def setup_hook(self) -> None:
        """Before the first event: buttons of earlier runs live again, unfinished answers are marked."""
        self.add_dynamic_items(NumberedButton, PanelItem, HistoryButton, PromptButton)
        self.moderation.notices.listen(self.mod_log.post)
        self._tasks.start(self._purging.run(), "deleting what was reset")
        try:
            await self.privacy.retention.clear_up()
            earlier = await self.chat.interrupt_pending()
        except StorageError as error:
            _log.error("Answers of the last run could not be looked up: %s", error)
            earlier = []
        shown = EarlierAnswers(self, self.chat.conversations, self.moderation.servers, self._locales)
        self._tasks.start(shown.show(earlier), "showing earlier answers")
        self._tasks.start(self._sync(), "registering commands")
        self._tasks.start(self.privacy.sweeper.run(), "deleting what is too old")
        self._tasks.start(keep_presence(self, self.vitals), "presence")

    async def close(self) -> None:
        """End every answer while it can still be shown, then the connection."""
        await self.chat.close()
        await self.mod_log.close()
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
        )

    async def on_message(self, message: discord.Message) -> None:
        """Answer what is meant for us."""
        if self.user is not None:
            await self._intake.take(message, bot_of(self.user, message.guild))

    async def on_raw_message_edit(self, payload: discord.RawMessageUpdateEvent) -> None:
        """Follow what people change in questions that were taken."""
        message = payload.message
        if self.user is None or message.author.bot or message.edited_at is None or not message.content:
            return
        await self._changes.edited(message, bot_of(self.user, message.guild))

    async def on_raw_message_delete(self, payload: discord.RawMessageDeleteEvent) -> None:
        """Forget what people delete."""
        await self._changes.deleted(payload.channel_id, payload.message_id)

    async def on_raw_bulk_message_delete(self, payload: discord.RawBulkMessageDeleteEvent) -> None:
        """Forget what moderators clear."""
        for message_id in sorted(payload.message_ids):
            await self._changes.deleted(payload.channel_id, message_id)

    async def on_ready(self) -> None:
        """Look which servers we are in."""
        await self.departures.compare(self.guilds)

    async def on_guild_join(self, guild: discord.Guild) -> None:
        """Keep what there is of a server that we are in again; its settings may be gone meanwhile."""
        self.moderation.servers.forget(guild.id)
        await self.departures.joined(guild)

    async def on_guild_remove(self, guild: discord.Guild) -> None:
        """Let what there is of a server go after a while."""
        await self.departures.removed(guild)

    async def on_guild_channel_delete(self, channel: discord.abc.GuildChannel) -> None:
        """Let what there is of a channel go after a while."""
        await self.departures.channel_deleted(channel)

    async def on_raw_thread_delete(self, payload: discord.RawThreadDeleteEvent) -> None:
        """Let what there is of a thread go after a while."""
        await self.departures.thread_deleted(payload.thread_id)

    async def on_interaction(self, interaction: Interaction) -> None:
        """Take forms of the server's settings and of system prompts, those of earlier runs too."""
        if is_config_form(interaction):
            await self.config_controls.submit(interaction)
        elif is_prompt_form(interaction):
            await self.prompt_editor.submit(interaction)
        elif interaction.type is discord.InteractionType.modal_submit:
            await answer_old_form(interaction)

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Log a fault in an event; its arguments hold content and stay out of the log."""
        _log.exception("The event %s failed", event_method)

    def _what_presses_do(self) -> dict[Press, OnPress]:
        answers = AnswerControls(self.chat, self._answer_in)
        moderators = ModerationButtons(self.chat, self.moderation)
        people = PersonForgetting(self.chat, self.privacy.people, self._drop_caches)
        return {
            Press.STOP: answers.stop,
            Press.REGENERATE: answers.regenerate,
            Press.CONTINUE: answers.continue_,
            Press.REPORT: moderators.report,
            Press.UNDO_RESET: moderators.undo_reset,
            Press.FORGET: people.forget,
        }

    def _drop_caches(self) -> None:
        """Let the engines forget what they computed of texts some of which were deleted."""
        self.chat.engine.drop_idle_cache()
        if self.moderation.safety_model is not None:
            self.moderation.safety_model.drop_idle_cache()

    async def _answer_in(self, channel: Channel, trigger_id: int | None) -> DiscordAnswer:
        """Return what shows an answer in a channel, as its server wants it. Raises `StorageError`."""
        guild = getattr(channel, "guild", None)
        config = await self.moderation.servers.config(None if guild is None else guild.id)
        return DiscordAnswer(
            channel,
            trigger_id,
            self.chat.conversations,
            locale=await self._locales.of(guild),
            as_embeds=config.uses_embeds,
            edit_interval_s=self._edit_interval_s,
            pace=self._paces.of(channel.id),
        )

    async def _sync(self) -> None:
        await self.tree.set_translator(CommandTranslator())
        await sync_commands(self.tree)
