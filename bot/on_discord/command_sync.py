"""Tells Discord our commands when they changed, and only then.

Compares what Discord has with what we have, in a common shape. Knows nothing of what the commands do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import discord
from discord import app_commands
from discord.http import Route

from bot.on_discord.answers.discord_outbox import DISCORD_FAILURES

AnyCommand = app_commands.Command[Any, ..., Any] | app_commands.Group | app_commands.ContextMenu

_log = logging.getLogger(__name__)

_IN_ANY_ORDER = {"contexts", "integration_types", "channel_types"}
_BY_LOCALE = {"name_localizations", "description_localizations"}
_COMPARED = {
    "name", "description", "type", "default_member_permissions", "required", "choices", "options", "value",
    "min_value", "max_value", "min_length", "max_length", "autocomplete", *_IN_ANY_ORDER, *_BY_LOCALE,
}  # fmt: skip


async def sync_commands(tree: app_commands.CommandTree[discord.Client]) -> bool:
    """Register the commands if they differ from Discord's; return whether they did. Never raises."""
    try:
        known = shape(await _registered(tree))
        ours = shape([await _payload(command, tree) for command in tree.get_commands()])
        if known == ours:
            _log.info("Commands are up to date")
            return False
        await tree.sync()
    except DISCORD_FAILURES as error:
        _log.warning("Commands could not be registered; the next start tries again: %s", type(error).__name__)
        return False
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
