"""The panel of `/config`: what it shows, its menus and buttons, and the forms it opens.

Every part carries what it changes in its id, so panels of earlier runs still work. Knows nothing of who may
use it, nor of how a change is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self, cast

import discord

from bot.language.phrases import phrase, render
from bot.servers.server_config import MAX_IDS, MAX_LIST_CHARS, AgeRestricted, ServerConfig

Interaction = discord.Interaction[discord.Client]

PREFIX = "llamacord:config:"
SWITCHES = ("removes_invites", "labels_answers", "lists_everywhere", "refuses_unchecked")
FORMS: dict[str, tuple[str, str]] = {
    "question_lists": ("question_words", "question_patterns"),
    "answer_lists": ("answer_words", "answer_patterns"),
    "limits": ("user_per_minute", "server_per_minute"),
}
"""The forms, and the two settings that each of them has."""
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


def panel_text(config: ServerConfig) -> list[str]:
    """Return the lines above the menus, phrases."""
    return [
        phrase("config.title"),
        phrase(
            "config.channels",
            value=_mentions(config.allowed_channels, "<#{}>") or phrase("config.everywhere"),
        ),
        phrase("config.roles", value=_mentions(config.allowed_roles, "<@&{}>") or phrase("config.everybody")),
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


def panel_view(config: ServerConfig, locale: object) -> discord.ui.View:
    """Return the menus and buttons for `config`."""

    def say(key: str) -> str:
        return render(phrase(key), locale)

    view = discord.ui.View(timeout=None)
    channels = discord.ui.ChannelSelect[discord.ui.View](
        custom_id=f"{PREFIX}allowed_channels",
        placeholder=say("config.choose_channels"),
        channel_types=_PLACES,
        min_values=0,
        max_values=MAX_IDS,
        default_values=_defaults(config.allowed_channels, discord.abc.GuildChannel),
    )
    roles = discord.ui.RoleSelect[discord.ui.View](
        custom_id=f"{PREFIX}allowed_roles",
        placeholder=say("config.choose_roles"),
        min_values=0,
        max_values=MAX_IDS,
        default_values=_defaults(config.allowed_roles, discord.Role),
    )
    log = discord.ui.ChannelSelect[discord.ui.View](
        custom_id=f"{PREFIX}log_channel",
        placeholder=say("config.choose_log"),
        channel_types=[discord.ChannelType.text],
        min_values=0,
        max_values=1,
        default_values=_defaults({config.log_channel} - {None}, discord.abc.GuildChannel),
    )
    switches = discord.ui.Select[discord.ui.View](
        custom_id=f"{PREFIX}switches",
        placeholder=say("config.choose_switches"),
        min_values=0,
        max_values=len(SWITCHES),
        options=[
            discord.SelectOption(
                label=say(f"config.{name}")[:100], value=name, default=bool(getattr(config, name))
            )
            for name in SWITCHES
        ],
    )
    for name, menu in (
        ("allowed_channels", channels),
        ("allowed_roles", roles),
        ("log_channel", log),
        ("switches", switches),
    ):
        view.add_item(PanelItem(menu, name))
    for name in FORMS:
        view.add_item(PanelItem(_button(f"{PREFIX}{name}", say(f"config.{name}")), name))
    following = _after(config.age_restricted)
    label = say(f"config.make_age_{following}")
    view.add_item(PanelItem(_button(f"{PREFIX}age:{following}", label), "age", str(following)))
    return view


def form(name: str, config: ServerConfig, locale: object) -> discord.ui.Modal:
    """Return a form with two fields, filled in with what is set."""
    modal = discord.ui.Modal(
        title=render(phrase(f"config.{name}"), locale)[:45], custom_id=f"{PREFIX}{name}", timeout=600.0
    )
    is_lists = name != "limits"
    for setting in FORMS[name]:
        value = getattr(config, setting)
        label = f"config.field_{setting.split('_')[1]}" if is_lists else f"config.field_{setting}"
        modal.add_item(
            discord.ui.TextInput[discord.ui.Modal](
                label=render(phrase(label), locale)[:45],
                custom_id=setting,
                style=discord.TextStyle.paragraph if is_lists else discord.TextStyle.short,
                default="\n".join(value) if is_lists else str(value or ""),
                required=False,
                max_length=MAX_LIST_CHARS if is_lists else 10,
            )
        )
    return modal


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


def _button(custom_id: str, label: str) -> discord.ui.Button[discord.ui.View]:
    return discord.ui.Button(
        custom_id=custom_id, label=label[:80], style=discord.ButtonStyle.secondary, row=4
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
