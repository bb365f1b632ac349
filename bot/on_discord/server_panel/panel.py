"""The panel of `/config`: what it shows on its two pages, its menus and buttons.

Every part carries what it changes in its id, so panels of earlier runs still work. Knows nothing of who may
use it, nor of how a change is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol, Self, cast

import discord

from bot.language.catalog import LANGUAGE_NAMES
from bot.language.phrases import phrase, render
from bot.parameters import written_parameters
from bot.servers.server_config import MAX_IDS, AgeRestricted, ServerConfig

Interaction = discord.Interaction[discord.Client]

PREFIX = "llamacord:config:"
SWITCHES = ("removes_invites", "labels_answers", "uses_embeds", "lists_everywhere", "refuses_unchecked")
AS_DISCORD_SAYS = "discord"
"""The choice of no language of one's own."""
_ON_SECOND_PAGE = {"free_channels", "language", "answer_defaults", "system_prompt"}
"""Settings that are changed there: Discord shows five rows at a time."""
_PLACES = [
    discord.ChannelType.text,
    discord.ChannelType.news,
    discord.ChannelType.voice,
    discord.ChannelType.stage_voice,
    discord.ChannelType.forum,
]


class ConfigControls(Protocol):
    """What the parts of the panel do. Does not raise."""

    async def press(self, interaction: Interaction, name: str, value: str | None) -> None:
        """Act on a menu or a button."""


class _HasControls(Protocol):
    config_controls: ConfigControls


class PanelItem(
    discord.ui.DynamicItem[discord.ui.Item[Any]],
    template=PREFIX + r"(?P<name>[a-z_]{1,30})(?::(?P<value>[a-z]{1,20}))?",
):
    """A menu or a button of the panel."""

    def __init__(self, item: discord.ui.Item[Any], name: str, value: str | None = None) -> None:
        super().__init__(item)
        self._name = name
        self._value = value

    @classmethod
    async def from_custom_id(
        cls,
        interaction: Interaction,  # noqa: ARG003 - discord.py's signature
        item: discord.ui.Item[discord.ui.View],
        match: re.Match[str],
    ) -> Self:
        """Make the part that was used."""
        return cls(item, match["name"], match["value"])

    async def callback(self, interaction: Interaction) -> None:
        """Pass the use on."""
        controls = cast("_HasControls", interaction.client).config_controls
        await controls.press(interaction, self._name, self._value)


def page_of(setting: str) -> int:
    """Return the page of the panel, 1 or 2, that a setting is on."""
    return 2 if setting in _ON_SECOND_PAGE else 1


def panel_text(config: ServerConfig, page: int = 1) -> list[str]:
    """Return the lines above the menus, phrases."""
    return [phrase("config.title"), *(_access_lines(config) if page == 1 else _answer_lines(config))]


def panel_view(config: ServerConfig, locale: object, page: int = 1) -> discord.ui.View:
    """Return the menus and buttons for `config`."""
    view = discord.ui.View(timeout=None)
    for name, item in _first_page(config, locale) if page == 1 else _second_page(config, locale):
        _, _, value = name.partition(":")
        view.add_item(PanelItem(item, name.partition(":")[0], value or None))
    return view


def _access_lines(config: ServerConfig) -> list[str]:
    channels = _mentions(config.allowed_channels, "<#{}>") or phrase("config.everywhere")
    roles = _mentions(config.allowed_roles, "<@&{}>") or phrase("config.everybody")
    return [
        phrase("config.channels", value=channels),
        phrase("config.roles", value=roles),
        phrase("config.log", value=f"<#{config.log_channel}>" if config.log_channel else "—"),
        phrase(f"config.age_{config.age_restricted}"),
        phrase(
            "config.limits_are",
            user=str(config.user_per_minute or "—"),
            server=str(config.server_per_minute or "—"),
        ),
        phrase(
            "config.lists_are",
            questions=len(config.question_words) + len(config.question_patterns),
            answers=len(config.answer_words) + len(config.answer_patterns),
        ),
    ]


def _answer_lines(config: ServerConfig) -> list[str]:
    language = LANGUAGE_NAMES[config.language] if config.language else phrase("config.language_of_discord")
    defaults = written_parameters(config.answer_defaults).items()
    prompt = config.system_prompt
    return [
        phrase("config.free", value=_mentions(config.free_channels, "<#{}>") or "—"),
        phrase("config.language_is", value=language),
        phrase("config.answers_are", value=", ".join(f"{name} = {text}" for name, text in defaults) or "—"),
        phrase("config.prompt_is_own", characters=len(prompt)) if prompt else phrase("config.prompt_is_not"),
    ]


def _first_page(config: ServerConfig, locale: object) -> Iterator[tuple[str, discord.ui.Item[Any]]]:
    yield "allowed_channels", _channels("allowed_channels", config.allowed_channels, locale, _PLACES)
    roles = discord.ui.RoleSelect[discord.ui.View](
        custom_id=f"{PREFIX}allowed_roles",
        placeholder=render(phrase("config.choose_allowed_roles"), locale),
        min_values=0,
        max_values=MAX_IDS,
        default_values=_defaults(config.allowed_roles, discord.Role),
    )
    yield "allowed_roles", roles
    log = frozenset() if config.log_channel is None else frozenset({config.log_channel})
    yield "log_channel", _channels("log_channel", log, locale, [discord.ChannelType.text], max_values=1)
    on = [name for name in SWITCHES if getattr(config, name)]
    switches = [(name, render(phrase(f"config.{name}"), locale)) for name in SWITCHES]
    yield "switches", _choices("switches", switches, on, locale, min_values=0, max_values=len(SWITCHES))
    for name in ("question_lists", "answer_lists", "limits"):
        yield name, _button(name, f"config.{name}", locale)
    following = _after(config.age_restricted)
    yield f"age:{following}", _button(f"age:{following}", f"config.make_age_{following}", locale)
    yield "page:second", _button("page:second", "config.more", locale)


def _second_page(config: ServerConfig, locale: object) -> Iterator[tuple[str, discord.ui.Item[Any]]]:
    yield "free_channels", _channels("free_channels", config.free_channels, locale, _PLACES)
    of_discord = (AS_DISCORD_SAYS, render(phrase("config.language_of_discord"), locale))
    languages = [of_discord, *LANGUAGE_NAMES.items()]
    chosen = [config.language or AS_DISCORD_SAYS]
    yield "language", _choices("language", languages, chosen, locale, min_values=1, max_values=1)
    yield "prompt", _button("prompt", "config.prompt", locale)
    yield "answers", _button("answers", "config.answers", locale)
    yield "page:first", _button("page:first", "config.back", locale)


def _channels(
    name: str,
    chosen: frozenset[int],
    locale: object,
    types: list[discord.ChannelType],
    *,
    max_values: int = MAX_IDS,
) -> discord.ui.Item[Any]:
    return discord.ui.ChannelSelect[discord.ui.View](
        custom_id=f"{PREFIX}{name}",
        placeholder=render(phrase(f"config.choose_{name}"), locale),
        channel_types=types,
        min_values=0,
        max_values=max_values,
        default_values=_defaults(chosen, discord.abc.GuildChannel),
    )


def _choices(
    name: str,
    options: list[tuple[str, str]],
    chosen: list[str],
    locale: object,
    *,
    min_values: int,
    max_values: int,
) -> discord.ui.Item[Any]:
    return discord.ui.Select[discord.ui.View](
        custom_id=f"{PREFIX}{name}",
        placeholder=render(phrase(f"config.choose_{name}"), locale),
        min_values=min_values,
        max_values=max_values,
        options=[
            discord.SelectOption(label=label[:100], value=value, default=value in chosen)
            for value, label in options
        ],
    )


def _button(name: str, key: str, locale: object) -> discord.ui.Item[Any]:
    return discord.ui.Button[discord.ui.View](
        custom_id=f"{PREFIX}{name}",
        label=render(phrase(key), locale)[:80],
        style=discord.ButtonStyle.secondary,
        row=4,
    )


def _after(value: AgeRestricted) -> AgeRestricted:
    order = list(AgeRestricted)
    return order[(order.index(value) + 1) % len(order)]


def _mentions(ids: frozenset[int], form: str) -> str:
    shown = ", ".join(form.format(one) for one in sorted(ids)[:10])
    return shown + (", …" if len(ids) > 10 else "")


def _defaults(ids: Any, kind: Any) -> list[discord.SelectDefaultValue]:
    is_role = kind is discord.Role
    value_type = discord.SelectDefaultValueType.role if is_role else discord.SelectDefaultValueType.channel
    return [discord.SelectDefaultValue(id=one, type=value_type) for one in sorted(ids)]
