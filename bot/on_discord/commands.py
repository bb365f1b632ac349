"""All commands of the bot in one tree, in every language, and how Discord is told when they changed.

Discord's commands and ours are compared in a common shape. Knows which key of a catalog's table `commands`
belongs to what discord.py asks for, and nothing of what the commands do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import discord
from discord import app_commands
from discord.app_commands import TranslationContextLocation as Location
from discord.http import Route

from bot.conversation.service import ChatService
from bot.errors import sentence_for
from bot.fleet.fleet import Fleet
from bot.language.phrases import ENGLISH, catalog, language_of, phrase, together
from bot.on_discord.interactions import DISCORD_FAILURES, say
from bot.on_discord.origins import Interaction
from storage.errors import StorageError

_log = logging.getLogger(__name__)

AnyCommand = app_commands.Command[Any, ..., Any] | app_commands.Group | app_commands.ContextMenu
_CONTEXTS = app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=False)
_INSTALLS = app_commands.AppInstallationType(guild=True, user=False)
_IN_ANY_ORDER = {"contexts", "integration_types", "channel_types"}
_BY_LOCALE = {"name_localizations", "description_localizations"}
_COMPARED = {
    "name", "description", "type", "default_member_permissions", "required", "choices", "options", "value",
    "min_value", "max_value", "min_length", "max_length", "autocomplete", *_IN_ANY_ORDER, *_BY_LOCALE,
}  # fmt: skip
_DESCRIPTIONS = {
    Location.command_description,
    Location.group_description,
    Location.parameter_description,
}


class Commands(app_commands.CommandTree[discord.Client]):
    """All commands of the bot, global, in servers and direct messages."""

    def __init__(
        self,
        client: discord.Client,
        commands: Iterable[AnyCommand],
        may_act: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(client, allowed_contexts=_CONTEXTS, allowed_installs=_INSTALLS)
        self._may_act = may_act
        for command in commands:
            self.add_command(command)

    async def interaction_check(
        self,
        interaction: Interaction,  # noqa: ARG002 - discord.py's signature
    ) -> bool:
        """Leave it to another process that may act for us by now."""
        return self._may_act()

    async def on_error(self, interaction: Interaction, error: app_commands.AppCommandError) -> None:
        """Answer even where a command could not be called."""
        if isinstance(error, (app_commands.CommandNotFound, app_commands.CommandSignatureMismatch)):
            await say(interaction, phrase("errors.command_changed"))
            return
        _log.error("A command failed", exc_info=error)
        await say(interaction, sentence_for(error))


def help_command(chat: ChatService) -> app_commands.Command[Any, ..., None]:
    """Return `/help`."""

    @app_commands.command(name="help", description="What I can do")
    async def help_(interaction: Interaction) -> None:
        info = chat.engine.info
        text = phrase("help", model=info.name)
        await say(interaction, text if info.chat_format else together(phrase("errors.no_chat_format"), text))

    return help_


async def sync_commands(tree: app_commands.CommandTree[discord.Client], fleet: Fleet | None = None) -> bool:
    """Register the commands if they differ from Discord's; return whether they did. Never raises.

    Of several processes with the same commands one does it for all.
    """
    fleet = fleet or Fleet()
    ours = shape([await _payload(command, tree) for command in tree.get_commands()])
    job = f"commands:{tree.client.application_id}:{hashlib.sha256(ours.encode()).hexdigest()}"
    try:
        if not await fleet.once(job):
            return False
        return await _sync(tree, ours)
    except DISCORD_FAILURES as error:
        _log.warning("Commands could not be registered; the next start tries again: %s", type(error).__name__)
        with contextlib.suppress(StorageError):
            await fleet.not_done(job)
    except StorageError as error:
        _log.warning("Commands could not be registered; the next start tries again: %s", error)
    return False


async def _sync(tree: app_commands.CommandTree[discord.Client], ours: str) -> bool:
    """Register the commands if they differ from Discord's; return whether they did."""
    if shape(await _registered(tree)) == ours:
        _log.info("Commands are up to date")
        return False
    await tree.sync()
    _log.info("Commands were registered: they had changed")
    return True


async def _registered(tree: app_commands.CommandTree[discord.Client]) -> list[dict[str, Any]]:
    """Return the commands as Discord has them, with all translations.

    `fetch_commands` of discord.py 2.7 asks for no translations and reads contexts wrongly.
    """
    route = Route("GET", "/applications/{application_id}/commands", application_id=tree.client.application_id)
    commands: list[dict[str, Any]] = await tree.client.http.request(
        route, params={"with_localizations": "true"}
    )
    return commands


async def _payload(command: AnyCommand, tree: app_commands.CommandTree[discord.Client]) -> dict[str, Any]:
    """Return a command as `tree.sync` would send it."""
    if tree.translator is None:
        return command.to_dict(tree)
    return await command.get_translated_payload(tree, tree.translator)


def shape(commands: Iterable[Mapping[str, Any]]) -> str:
    """Return commands in a form that is equal for equal commands, whoever lists them in which order."""
    return json.dumps(sorted((_compared(command) for command in commands), key=lambda c: str(c["name"])))


def _compared(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _value(key, value)
        for key, value in sorted(payload.items())
        if key in _COMPARED and value not in (None, False, "", [], {})
    }


def _value(key: str, value: Any) -> Any:
    if key in _IN_ANY_ORDER:
        return sorted(value)
    if key in _BY_LOCALE:
        return dict(sorted(value.items()))
    if key in ("options", "choices"):
        return [_compared(item) for item in value]
    # Discord gives a bound of 2.0 back as 2.
    return f"{value:.17g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


class CommandTranslator(app_commands.Translator):
    """Translates what the catalogs know; everything else stays English."""

    async def translate(
        self,
        string: app_commands.locale_str,
        locale: discord.Locale,
        context: app_commands.TranslationContextTypes,
    ) -> str | None:
        """Return the name or description for `locale`, or None to keep the English one."""
        language = language_of(locale)
        if language == ENGLISH:
            return None
        translation = catalog(language).commands.get(_key(string, context), ())
        index = 1 if context.location in _DESCRIPTIONS else 0
        return translation[index] if index < len(translation) else None


def _key(string: app_commands.locale_str, context: app_commands.TranslationContextTypes) -> str:
    match context.data:
        case app_commands.Parameter() as parameter:
            return f"{parameter.command.qualified_name}:{parameter.name}"
        case app_commands.Choice():
            return f"={string.message}"
        case described:
            return described.qualified_name
