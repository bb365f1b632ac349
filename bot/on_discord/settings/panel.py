"""The panel of `/config`: what it shows on its two pages, its menus and buttons, and the forms they open.

Every part carries what it changes in its id, so panels of earlier runs still work. Knows nothing of who may
use it, nor of how a change is read and stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import discord

from bot.language.phrases import LANGUAGE_NAMES, phrase, render
from bot.on_discord.buttons import Lasting, Press, button, id_of, view_of
from bot.parameters import written_parameters
from bot.servers.server_config import MAX_IDS, MAX_LIST_CHARS, AgeRestricted, ServerConfig

SWITCHES = (
    *("removes_invites", "labels_answers", "uses_embeds", "hides_previews", "shows_thoughts"),
    *("sums_up", "reads_along", "lists_everywhere", "refuses_unchecked"),
)
AS_DISCORD_SAYS = "discord"
"""The choice of no language of one's own."""
_ON_SECOND_PAGE = {
    *("free_channels", "thread_channels", "language", "answer_defaults", "system_prompt"),
    *("notify_after_s", "proxies"),
}
"""Settings that are changed there: Discord shows five rows at a time."""
_PLACES = [
    discord.ChannelType.text,
    discord.ChannelType.news,
    discord.ChannelType.voice,
    discord.ChannelType.stage_voice,
    discord.ChannelType.forum,
]
_THREAD_PLACES = [discord.ChannelType.text, discord.ChannelType.news, discord.ChannelType.category]
FORMS: dict[str, tuple[str, ...]] = {
    "question_lists": ("question_words", "question_patterns"),
    "answer_lists": ("answer_words", "answer_patterns"),
    "limits": ("user_per_minute", "server_per_minute"),
    "answers": ("answer_defaults",),
    "notify": ("notify_after_s",),
}
"""The forms, and the settings that each of them has."""
NUMBERS = {"user_per_minute", "server_per_minute", "notify_after_s"}
MAX_PROXIES = 5
_FIELD_LABELS = {
    "question_words": "config.field_words",
    "question_patterns": "config.field_patterns",
    "answer_words": "config.field_words",
    "answer_patterns": "config.field_patterns",
    "user_per_minute": "config.field_user_per_minute",
    "server_per_minute": "config.field_server_per_minute",
    "answer_defaults": "config.field_answer_defaults",
    "notify_after_s": "config.field_notify_after_s",
}


def page_of(setting: str) -> int:
    """Return the page of the panel, 1 or 2, that a setting is on."""
    return 2 if setting in _ON_SECOND_PAGE else 1


def panel_text(config: ServerConfig, page: int = 1) -> list[str]:
    """Return the lines above the menus, phrases."""
    return [phrase("config.title"), *(_access_lines(config) if page == 1 else _answer_lines(config))]


def panel_view(config: ServerConfig, locale: object, page: int = 1) -> discord.ui.View:
    """Return the menus and buttons for `config`."""
    return view_of(*(_first_page(config, locale) if page == 1 else _second_page(config, locale)))


def form(name: str, config: ServerConfig, locale: object) -> discord.ui.Modal:
    """Return a form, filled in with what is set."""
    modal = discord.ui.Modal(
        title=render(phrase(f"config.{name}"), locale)[:45],
        custom_id=id_of(Press.CONFIG, name),
        timeout=600.0,
    )
    for setting in FORMS[name]:
        is_number = setting in NUMBERS
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


def _access_lines(config: ServerConfig) -> list[str]:
    channels = _mentions(config.allowed_channels, "<#{}>") or phrase("config.everywhere")
    roles = _mentions(config.allowed_roles, "<@&{}>") or phrase("config.everybody")
    return [
        phrase("config.channels", value=channels),
        phrase("config.roles", value=roles),
        phrase(
            "config.log", value=f"<#{config.log_channel}>" if config.log_channel else phrase("config.nowhere")
        ),
        phrase(f"config.age_{config.age_restricted}"),
        phrase(
            "config.limits_are",
            user=config.user_per_minute or phrase("config.no_limit"),
            server=config.server_per_minute or phrase("config.no_limit"),
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
    prompt, wait_s = config.system_prompt, config.notify_after_s
    return [
        phrase("config.free", value=_mentions(config.free_channels, "<#{}>") or phrase("config.nowhere")),
        phrase(
            "config.threads", value=_mentions(config.thread_channels, "<#{}>") or phrase("config.nowhere")
        ),
        phrase("config.language_is", value=language),
        phrase(
            "config.answers_are",
            value=", ".join(f"{name} = {text}" for name, text in defaults) or phrase("config.mine"),
        ),
        phrase("config.prompt_is_own", characters=len(prompt)) if prompt else phrase("config.prompt_is_not"),
        phrase("config.notify_is", seconds=wait_s) if wait_s else phrase("config.notify_is_not"),
        phrase("config.proxies_are", value=_mentions(config.proxies, "<@{}>") or phrase("config.nobody")),
    ]


def _first_page(config: ServerConfig, locale: object) -> Iterator[Lasting]:
    yield _channels("allowed_channels", config.allowed_channels, locale, _PLACES)
    roles = discord.ui.RoleSelect[discord.ui.View](
        custom_id=id_of(Press.CONFIG, "allowed_roles"),
        placeholder=render(phrase("config.choose_allowed_roles"), locale),
        min_values=0,
        max_values=MAX_IDS,
        default_values=_defaults(config.allowed_roles, discord.Role),
    )
    yield Lasting(roles)
    log = frozenset() if config.log_channel is None else frozenset({config.log_channel})
    yield _channels("log_channel", log, locale, [discord.ChannelType.text], max_values=1)
    on = [name for name in SWITCHES if getattr(config, name)]
    switches = [(name, render(phrase(f"config.{name}"), locale)) for name in SWITCHES]
    yield _choices("switches", switches, on, locale, min_values=0, max_values=len(SWITCHES))
    for name in ("question_lists", "answer_lists", "limits"):
        yield _button(name, f"config.{name}", locale)
    following = _after(config.age_restricted)
    yield _button(f"age:{following}", f"config.make_age_{following}", locale)
    yield _button("page:second", "config.more", locale)


def _second_page(config: ServerConfig, locale: object) -> Iterator[Lasting]:
    yield _channels("free_channels", config.free_channels, locale, _PLACES)
    yield _channels("thread_channels", config.thread_channels, locale, _THREAD_PLACES)
    of_discord = (AS_DISCORD_SAYS, render(phrase("config.language_of_discord"), locale))
    languages = [of_discord, *LANGUAGE_NAMES.items()]
    chosen = [config.language or AS_DISCORD_SAYS]
    yield _choices("language", languages, chosen, locale, min_values=1, max_values=1)
    proxies = discord.ui.UserSelect[discord.ui.View](
        custom_id=id_of(Press.CONFIG, "proxies"),
        placeholder=render(phrase("config.choose_proxies"), locale),
        min_values=0,
        max_values=MAX_PROXIES,
        default_values=_defaults(config.proxies, discord.User),
    )
    yield Lasting(proxies)
    yield _button("prompt", "config.prompt", locale)
    yield _button("answers", "config.answers", locale)
    yield _button("notify", "config.notify", locale)
    yield _button("page:first", "config.back", locale)


def _channels(
    name: str,
    chosen: frozenset[int],
    locale: object,
    types: list[discord.ChannelType],
    *,
    max_values: int = MAX_IDS,
) -> Lasting:
    menu = discord.ui.ChannelSelect[discord.ui.View](
        custom_id=id_of(Press.CONFIG, name),
        placeholder=render(phrase(f"config.choose_{name}"), locale),
        channel_types=types,
        min_values=0,
        max_values=max_values,
        default_values=_defaults(chosen, discord.abc.GuildChannel),
    )
    return Lasting(menu)


def _choices(
    name: str,
    options: list[tuple[str, str]],
    chosen: list[str],
    locale: object,
    *,
    min_values: int,
    max_values: int,
) -> Lasting:
    menu = discord.ui.Select[discord.ui.View](
        custom_id=id_of(Press.CONFIG, name),
        placeholder=render(phrase(f"config.choose_{name}"), locale),
        min_values=min_values,
        max_values=max_values,
        options=[
            discord.SelectOption(label=label[:100], value=value, default=value in chosen)
            for value, label in options
        ],
    )
    return Lasting(menu)


def _button(argument: str, key: str, locale: object) -> Lasting:
    return button(Press.CONFIG, argument, render(phrase(key), locale), row=4)


def _after(value: AgeRestricted) -> AgeRestricted:
    order = list(AgeRestricted)
    return order[(order.index(value) + 1) % len(order)]


def _mentions(ids: frozenset[int], form: str) -> str:
    shown = ", ".join(form.format(one) for one in sorted(ids)[:10])
    return shown + (", …" if len(ids) > 10 else "")


def _defaults(ids: Any, kind: Any) -> list[discord.SelectDefaultValue]:
    types = {
        discord.Role: discord.SelectDefaultValueType.role,
        discord.User: discord.SelectDefaultValueType.user,
    }
    value_type = types.get(kind, discord.SelectDefaultValueType.channel)
    return [discord.SelectDefaultValue(id=one, type=value_type) for one in sorted(ids)]
