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

_log = logging.getLogger(__name__)

_IN_ANY_ORDER = {"contexts", "integration_types", "channel_types"}
_COMPARED = {
    "name", "description", "type", "default_member_permissions", "required", "choices", "options", "value",
    "min_value", "max_value", "min_length", "max_length", "autocomplete", *_IN_ANY_ORDER,
}  # fmt: skip


async def sync_commands(tree: app_commands.CommandTree[discord.Client]) -> bool:
    """Register the commands if they differ from Discord's; return whether they did. Never raises."""
    try:
        # As Discord sends them: `fetch_commands` of discord.py 2.7 reads contexts wrongly.
        known = shape(await tree.client.http.get_global_commands(tree.client.application_id or 0))
        ours = shape(command.to_dict(tree) for command in tree.get_commands())
        if known == ours:
            _log.info("Commands are up to date")
            return False
        await tree.sync()
    except (discord.DiscordException, OSError) as error:
        _log.warning("Commands could not be registered; the next start tries again: %s", type(error).__name__)
        return False
    _log.info("Commands were registered: they had changed")
    return True


def shape(commands: Iterable[Mapping[str, Any]]) -> str:
    """Return commands in a form that is equal for equal commands, whoever lists them in which order."""
    return json.dumps(sorted((_compared(command) for command in commands), key=lambda c: str(c["name"])))


def _compared(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _value(key, value)
        for key, value in sorted(payload.items())
        if key in _COMPARED and value not in (None, False, [], {})
    }


def _value(key: str, value: Any) -> Any:
    if key in _IN_ANY_ORDER:
        return sorted(value)
    if key in ("options", "choices"):
        return [_compared(item) for item in value]
    return str(value)
