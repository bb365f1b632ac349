"""All that people can use of the bot: a row for every command, menu entry, button, menu and form.

A row says who may use it, what it answers and how it is used; the bot itself is asked that none is missing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import discord
import simcord
from discord import app_commands

from bot.on_discord.buttons import Press, id_of
from bot.on_discord.settings.panel import FORMS, panel_view
from bot.on_discord.settings.system_prompt import Act
from bot.servers.server_config import ServerConfig
from engine.types import FinishReason
from tests.bot.e2e.world import TOKEN_S, World
from tests.fakes import CONTROL_TAG, Script

NUMBERED = tuple(
    one for one in Press if one not in (Press.HISTORY, Press.CONFIG, Press.PROMPT, Press.CATCHUP)
)
"""Buttons that carry the number of an answer, a reset or a person."""
PREFIX = id_of(Press.CONFIG, "")
CANARY = "xylophonequartz"
Result = simcord.InteractionResult


class Needs(StrEnum):
    """Who may do it. The value is in what everybody else is told."""

    NOTHING = "-"
    ASKER = "Only the person who asked"
    MODERATOR = "Only moderators"
    MANAGER = "Only people who manage this server"
    OPERATOR = "Only whoever runs me"


@dataclass(frozen=True)
class Person:
    """Somebody somewhere; in a direct message there is no channel."""

    actor: Any
    channel: simcord.ChannelHandle | None

    @property
    def place(self) -> simcord.ChannelHandle:
        place: simcord.ChannelHandle = self.channel or self.actor.dm_channel
        return place

    async def slash(self, name: str, /, **options: Any) -> Result:
        where = () if self.channel is None else (self.channel,)
        result: Result = await self.actor.slash(*where, name, **options)
        return result


Use = Callable[[Person], Awaitable[Result]]
"""Does it, as somebody."""
Open = Callable[[World, Person], Awaitable[Use]]
"""Brings about what it needs where a person is, and returns how it is done."""
Before = Callable[[World, Person], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """What there is to know of a command, a button or a form.

    said: a part of the answer; empty where acknowledging is all. is_private: only who opened it sees it.
    in_dm: what it says in a direct message, if that is something else; None if it is not there.
    """

    name: str
    open: Open
    needs: Needs = Needs.NOTHING
    said: str = ""
    is_private: bool = False
    in_dm: str | None = ""
    bad: tuple[tuple[Mapping[str, object], str], ...] = ()


# What comes before


async def nothing(world: World, person: Person) -> None:
    pass


async def say(world: World, person: Person, script: Script) -> None:
    """Have somebody ask: on the server Anna, so that others may not steer the answer."""
    world.engine.scripts = [script]
    text = f"{CANARY} {len(world.env.http_requests)}?"
    if person.channel is None:
        await person.actor.send_dm(text)
    else:
        asker = world.anna if person.channel.id == world.general.id else person.actor
        await asker.send(person.channel, f"{world.me} {text}")
    await world.run(1)


async def talked(world: World, person: Person) -> None:
    await say(world, person, Script(("answer",)))


async def cut(world: World, person: Person) -> None:
    await say(world, person, Script(("cut",), finish_reason=FinishReason.LENGTH))


async def talking(world: World, person: Person) -> None:
    await say(world, person, Script(("word ",), delay_s=TOKEN_S, loops=True))


async def reset(world: World, person: Person) -> None:
    await talked(world, person)
    is_ours = person.channel is not None and person.channel.id == world.general.id
    await (Person(world.mod, person.channel) if is_ours else person).slash("reset")


# How it is done


def slash(
    name: str,
    needs: Needs = Needs.NOTHING,
    said: str = "",
    *,
    before: Before = nothing,
    options: Callable[[World], Mapping[str, object]] = lambda _: {},
    **known: Any,
) -> Row:
    """Return the row of a slash command."""

    async def open_(world: World, person: Person) -> Use:
        await before(world, person)
        return lambda by: by.slash(name, **options(world))

    return Row(name, open_, needs, said, **known)


def press(
    name: str, pattern: str, needs: Needs, said: str, before: Before, *, values: Any = None, **known: Any
) -> Row:
    """Return the row of a button or a menu on the newest message that has it."""

    async def open_(world: World, person: Person) -> Use:
        await before(world, person)
        message, found = newest_with(pattern, person)
        if values is None:
            return lambda by: by.actor.click(message, custom_id=found)
        return lambda by: by.actor.select(message, values(by), custom_id=found)

    return Row(name, open_, needs, said, **known)


def newest_with(pattern: str, person: Person) -> tuple[discord.Message, str]:
    """Return the newest message that a person sees with such a button or menu, and the id of that."""
    return next(
        (message, found)
        for message in reversed(person.place.history(viewer=person.actor))
        for found in custom_ids(message)
        if re.match(pattern, found)
    )


def form(
    name: str, opened_by: Open, written: str, needs: Needs, said: str, before: Before = nothing, **known: Any
) -> Row:
    """Return the row of a form; its first field is filled in."""

    async def open_(world: World, person: Person) -> Use:
        await before(world, person)
        shown = await (await opened_by(world, person))(person)
        assert shown.modal is not None
        fields = [component["components"][0] for component in shown.modal["components"]]
        values = {one["custom_id"]: "" for one in fields} | {fields[0]["custom_id"]: written}
        return lambda by: by.actor.submit_modal(shown, values)

    return Row(name, open_, needs, said, is_private=True, **known)


def custom_ids(message: discord.Message) -> Iterator[str]:
    for row in message.components:
        for item in getattr(row, "children", ()):
            yield str(item.custom_id)


async def about(world: World, person: Person) -> Use:
    target = await person.actor.send(person.place, f"{CANARY} is a word")
    return lambda by: by.actor.context_menu(by.channel, "Ask about this", target)


async def edited(world: World, person: Person) -> Use:
    return lambda by: by.slash("system edit")


def panel_button(name: str) -> Open:
    return press(name, f"{PREFIX}{name}", Needs.MANAGER, "", before_panel(name)).open


def before_panel(name: str) -> Before:
    """Return what shows the page of the panel that has this part."""
    return second_page if name in SECOND_PAGE else panel


SECOND_PAGE = ("free_channels", "thread_channels", "language", "prompt", "answers", "notify", "proxies")


async def panel(world: World, person: Person) -> None:
    await person.slash("config")


async def second_page(world: World, person: Person) -> None:
    await panel(world, person)
    message, found = newest_with(f"{PREFIX}page:second", person)
    await person.actor.click(message, custom_id=found)


async def drafted(world: World, person: Person) -> None:
    shown = await person.slash("system edit")
    assert shown.modal is not None
    field = shown.modal["components"][0]["components"][0]["custom_id"]
    await person.actor.submit_modal(shown, {field: "Rhyme."})


async def asked_to_forget(world: World, person: Person) -> None:
    await talked(world, person)
    await person.slash("forget-me")


async def paged(world: World, person: Person) -> None:
    for _ in range(3):
        await say(world, person, Script(("answer " * 300,)))
    await person.slash("history")


async def reset_in_sight(world: World, person: Person) -> None:
    """Have the log, with its Undo, where the person is; in a direct message it is below the answer."""
    if person.channel is not None:
        await world.set_up(person.actor.guild.id, {"log_channel": person.channel.id})
    await reset(world, person)


EVERYBODY = Needs.NOTHING
MODERATOR, MANAGER, ASKER = Needs.MODERATOR, Needs.MANAGER, Needs.ASKER
ON_A_SERVER = "only works on a server"
UNKNOWN = ({"name": "nonsense"}, "There is no such")

ROWS = [
    slash("help", said="/settings"),
    slash("privacy", said="What I keep"),
    slash(
        "ask",
        said="asks:",
        options=lambda _: {"prompt": "why?"},
        bad=(
            ({"prompt": ""}, "no text"),
            ({"prompt": CONTROL_TAG}, "control tags"),
            ({"prompt": "x" * 9000}, "send a shorter one"),
            ({"prompt": "why?", "file": ("cat.png", b"\x89PNG\x00")}, "cannot see pictures"),
            ({"prompt": "why?", "temperature": 99.0}, ""),
            ({"prompt": "why?", "max_new_tokens": -1}, ""),
            ({"prompt": "\ud800"}, ""),
        ),
    ),
    slash("history", said="What I remember here", before=talked),
    slash("stop", ASKER, "Stopped", before=talking),
    slash("undo", ASKER, "forgotten the last question", before=talked),
    slash("regenerate", ASKER, "answering again", before=talked),
    slash("continue", ASKER, "carrying on", before=cut),
    slash("opt-out", said="I won't answer you"),
    slash("opt-in", said="I answer you"),
    slash("export-data", said="everything I keep", before=talked),
    slash("forget-me", said="can't be undone"),
    slash(
        "reset", MODERATOR, "I forgot ", before=talked, bad=(({"undo": True}, "nothing here to bring back"),)
    ),
    slash(
        "block", MODERATOR, "I no longer answer", options=lambda w: {"user": w.bob.user}, in_dm=ON_A_SERVER
    ),
    slash("unblock", MODERATOR, "isn't blocked", options=lambda w: {"user": w.bob.user}, in_dm=ON_A_SERVER),
    slash("blocked", MODERATOR, "Nobody", in_dm=ON_A_SERVER),
    slash("catchup", said="MESSAGE_CONTENT_INTENT=on", in_dm=None),
    slash("config", MANAGER, "Server settings", in_dm=ON_A_SERVER),
    slash("free", MANAGER, "only answer mentions", options=lambda _: {"on": False}, in_dm=ON_A_SERVER),
    slash("embeds", MANAGER, "as embeds", options=lambda _: {"on": True}, in_dm=ON_A_SERVER),
    slash("settings show", said="temperature"),
    slash(
        "settings set",
        MODERATOR,
        "`0.5`",
        options=lambda _: {"name": "temperature", "value": "0.5"},
        bad=(
            ({"name": "nonsense", "value": "1"}, "There is no such"),
            ({"name": "top_k", "value": "x" * 5000}, "must be a whole number"),
            ({"name": "temperature", "value": "nan"}, "must be a number"),
            ({"name": "top_k", "value": "9" * 5000}, "must be a whole number"),
        ),
    ),
    slash("settings preset", MODERATOR, "precise", options=lambda _: {"name": "precise"}, bad=(UNKNOWN,)),
    slash("settings reset", MODERATOR, "Nothing to reset", bad=(UNKNOWN,)),
    slash(
        "settings server",
        MANAGER,
        "on this server",
        options=lambda _: {"name": "top_k", "value": "7"},
        in_dm=ON_A_SERVER,
        bad=(UNKNOWN, ({"name": "top_k", "value": "many"}, "must be a whole number")),
    ),
    slash("system show", said="You are a test."),
    slash(
        "system set",
        MODERATOR,
        "Saved the system prompt",
        options=lambda _: {"text": "Rhyme."},
        bad=(
            ({"text": " "}, "can't be empty"),
            ({"text": CONTROL_TAG}, "control tags"),
            ({"text": "x" * 5000}, "the limit is"),
            ({"text": "\ud800"}, ""),
        ),
    ),
    slash("system edit", MODERATOR),
    slash("system preset", MODERATOR, "the preset none", options=lambda _: {"name": "none"}, bad=(UNKNOWN,)),
    slash("system clear", MODERATOR, "already the default"),
    slash("model show", MODERATOR, "`small`"),
    slash(
        "model use",
        Needs.OPERATOR,
        "`large` now answers",
        options=lambda _: {"name": "large"},
        bad=(({"name": "../.."}, "no such model"), ({"name": "small"}, "already")),
    ),
    Row("Ask about this", about, in_dm=None),
    form("AboutForm", about, "why?", EVERYBODY, "asks about", in_dm=None),
    form("prompt form", edited, "Rhyme.", MODERATOR, "Not saved yet"),
    press(
        "prompt save",
        "llamacord:prompt:save:",
        MODERATOR,
        "Saved the system prompt",
        drafted,
        is_private=True,
    ),
    press("prompt edit", "llamacord:prompt:edit:", MODERATOR, "", drafted, is_private=True),
    press("prompt discard", "llamacord:prompt:discard:", MODERATOR, "Nothing", drafted, is_private=True),
    press("stop button", "llamacord:stop:", ASKER, "", talking),
    press("regenerate button", "llamacord:regenerate:", ASKER, "", talked),
    press("continue button", "llamacord:continue:", ASKER, "", cut),
    press("report button", "llamacord:report:", EVERYBODY, "Thank you", talked),
    press("undo button", "llamacord:undo:", MODERATOR, "is back", reset_in_sight),
    press("forget button", "llamacord:forget:", EVERYBODY, "Done: deleted", asked_to_forget, is_private=True),
    press("history page", r"llamacord:history:\d+:\d", EVERYBODY, "page 1", paged, is_private=True),
    press(
        "history file", r"llamacord:history:\d+:file", EVERYBODY, "conversation.txt", paged, is_private=True
    ),
    *(
        press(
            f"config {name}",
            f"{PREFIX}{name}",
            MANAGER,
            said,
            before_panel(name),
            values=values,
            is_private=True,
            in_dm=None,
        )
        for name, said, values in (
            ("allowed_channels", "**Where I answer:** <#", lambda by: [by.channel]),
            ("allowed_roles", "**Who I answer:** everyone", lambda _: []),
            ("log_channel", "**Moderator log:** <#", lambda by: [by.channel]),
            ("switches", "Server settings", lambda _: ["labels_answers"]),
            ("age", "Age-restricted", None),
            ("page", "**Language:**", None),
            ("free_channels", "", lambda _: []),
            ("thread_channels", "", lambda _: []),
            ("language", "**Language:** Deutsch", lambda _: ["de"]),
            ("proxies", "**Bots that post for members:**", lambda _: []),
            ("prompt", "", None),
            *((name, "", None) for name in FORMS),
        )
    ),
    *(
        form(
            f"config form {name}",
            panel_button(name),
            "top_k = 7" if name == "answers" else "7",
            MANAGER,
            "Server settings",
            in_dm=None,
        )
        for name in FORMS
    ),
]


def names_in(client: Any) -> set[str]:
    """Return the names of everything that people can use."""
    tree: app_commands.CommandTree[discord.Client] = client.tree
    slash_commands = {c.qualified_name for c in tree.walk_commands() if isinstance(c, app_commands.Command)}
    entries = {c.name for kind in (2, 3) for c in tree.get_commands(type=discord.AppCommandType(kind))}
    items = [item for page in (1, 2) for item in panel_view(ServerConfig(), "en", page).children]
    parts = {str(item.item.custom_id) for item in items}  # type: ignore[attr-defined]
    config = {f"config {one.removeprefix(PREFIX).partition(':')[0]}" for one in parts}
    forms = {one.__name__ for one in discord.ui.Modal.__subclasses__() if one.__module__.startswith("bot.")}
    return {
        *slash_commands,
        *entries,
        *(f"{one} button" for one in NUMBERED),
        *("history page", "history file", "prompt form"),
        *(f"prompt {act}" for act in Act),
        *config,
        *forms,
        *(f"config form {name}" for name in FORMS),
    }
