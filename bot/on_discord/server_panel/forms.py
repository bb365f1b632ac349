"""The forms that the panel of `/config` opens: their fields, and how settings are written in them.

Knows nothing of who may use them, nor of how a setting is read and stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import discord

from bot.language.phrases import phrase, render
from bot.servers.server_config import MAX_LIST_CHARS, ServerConfig

FORM_PREFIX = "llamacord:config:"
FORMS: dict[str, tuple[str, ...]] = {
    "question_lists": ("question_words", "question_patterns"),
    "answer_lists": ("answer_words", "answer_patterns"),
    "limits": ("user_per_minute", "server_per_minute"),
    "answers": ("answer_defaults",),
}
"""The forms, and the settings that each of them has."""
_FIELD_LABELS = {
    "question_words": "config.field_words",
    "question_patterns": "config.field_patterns",
    "answer_words": "config.field_words",
    "answer_patterns": "config.field_patterns",
    "user_per_minute": "config.field_user_per_minute",
    "server_per_minute": "config.field_server_per_minute",
    "answer_defaults": "config.field_answer_defaults",
}


def form(name: str, config: ServerConfig, locale: object) -> discord.ui.Modal:
    """Return a form, filled in with what is set."""
    modal = discord.ui.Modal(
        title=render(phrase(f"config.{name}"), locale)[:45], custom_id=f"{FORM_PREFIX}{name}", timeout=600.0
    )
    for setting in FORMS[name]:
        is_number = setting.endswith("_per_minute")
        modal.add_item(
            discord.ui.TextInput[discord.ui.Modal](
                label=render(phrase(_FIELD_LABELS[setting]), locale)[:45],
                custom_id=setting,
                style=discord.TextStyle.short if is_number else discord.TextStyle.paragraph,
                default=_written(config, setting),
                required=False,
                max_length=10 if is_number else MAX_LIST_CHARS,
            )
        )
    return modal


def _written(config: ServerConfig, setting: str) -> str:
    """Return a setting as people write it in a field."""
    value = config.stored(setting)
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")


def form_values(data: Mapping[str, Any]) -> dict[str, str]:
    """Return what was written in a form, by the id of the field."""
    return dict(_fields(data.get("components", ())))


def _fields(components: Any) -> Iterator[tuple[str, str]]:
    for component in components:
        if "custom_id" in component and isinstance(component.get("value"), str):
            yield component["custom_id"], component["value"]
        yield from _fields(component.get("components", ()))
        if isinstance(component.get("component"), dict):
            yield from _fields([component["component"]])
