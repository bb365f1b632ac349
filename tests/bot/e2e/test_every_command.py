"""Every command, menu entry, button, menu and form in every situation: acknowledged in time, answered, harmless.

One row says all there is to know of one of them, and the bot itself is asked that no row is missing. A test's
situation is the same for all rows: who acts and where, bad values, twice at once, after a restart, Discord or
the database failing, and somebody who is powerful on another server.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp
import discord
import pytest
import simcord
from discord import app_commands
from simcord import interactions
from simcord.http import router

from bot.conversation.model_switch import ModelSwitch
from bot.on_discord.buttons import NumberedButton, Press
from bot.on_discord.commands.ask import AboutForm
from bot.on_discord.commands.system import SystemForm
from bot.on_discord.config_panel import FORMS, PREFIX, PanelItem, panel_view
from bot.on_discord.history_pages import HistoryButton
from bot.servers.server_config import ServerConfig
from engine.types import FinishReason
from tests.bot.e2e.test_model import FakeShelf
from tests.bot.e2e.world import TOKEN_S, World, open_world
from tests.fakes import CONTROL_TAG, Script

CANARY = "xylophonequartz"
Result = simcord.InteractionResult


class Needs(StrEnum):
    """Who may do it. The value is in what everybody else is told."""

    NOTHING = "-"
    ASKER = "Only the person who asked"
    MODERATOR = "Only moderators"
    MANAGER = "Only who manages this server"
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

    async def slash(self, name: str, **options: Any) -> Result:
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
    bad: tuple[tuple[Mapping[str, object], str], ...] = field(default=())


# What comes before


async def nothing(world: World, person: Person) -> None:
    pass


async def say(world: World, person: Person, script: Script) -> None:
    """Have somebody ask: on the server Anna, so that others may not steer the answer."""
    world.engine.scripts = [script]
    if person.channel is None:
        await person.actor.send_dm(f"{CANARY}?")
    else:
        asker = world.anna if person.channel.id == world.general.id else person.actor
        await asker.send(person.channel, f"{world.me} {CANARY}?")
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
        return lambda by: by.actor.select(message, values(world, by), custom_id=found)

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
    return press(name, f"{PREFIX}{name}", Needs.MANAGER, "", panel).open


async def panel(world: World, person: Person) -> None:
    await person.slash("config")


async def asked_to_forget(world: World, person: Person) -> None:
    await talked(world, person)
    await person.slash("forget-me")


async def paged(world: World, person: Person) -> None:
    await say(world, person, Script(("answer " * 400,)))
    await person.slash("history")


async def reset_in_sight(world: World, person: Person) -> None:
    """Have the log, with its Undo, where the person is; in a direct message it is below the answer."""
    if person.channel is not None:
        change = {"log_channel": person.channel.id}
        await world.moderation.servers.change(person.channel.guild.id, change, by_user_id=1)
    await reset(world, person)


EVERYBODY = Needs.NOTHING
MODERATOR, MANAGER, ASKER = Needs.MODERATOR, Needs.MANAGER, Needs.ASKER
ON_A_SERVER = "on a server only"
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
            ({"prompt": "x" * 9000}, "Send a shorter one"),
            ({"prompt": "why?", "file": ("cat.png", b"\x89PNG\x00")}, "cat.png"),
            ({"prompt": "why?", "temperature": 99.0}, ""),
            ({"prompt": "why?", "max_new_tokens": -1}, ""),
            ({"prompt": "\ud800"}, ""),
        ),
    ),
    slash("history", said="What I remember here", before=talked),
    slash("stop", ASKER, "Stopped", before=talking),
    slash("undo", ASKER, "taken back", before=talked),
    slash("regenerate", ASKER, "answering again", before=talked),
    slash("continue", ASKER, "going on", before=cut),
    slash("opt-out", said="I do not answer you"),
    slash("opt-in", said="I answer you"),
    slash("export-data", said="All that I keep", before=talked),
    slash("forget-me", said="cannot be undone"),
    slash("reset", MODERATOR, "Forgotten: 2", before=talked, bad=(({"undo": True}, "Nothing was forgotten"),)),
    slash("block", MODERATOR, "I do not answer", options=lambda w: {"user": w.bob.user}, in_dm=ON_A_SERVER),
    slash("unblock", MODERATOR, "not blocked", options=lambda w: {"user": w.bob.user}, in_dm=ON_A_SERVER),
    slash("blocked", MODERATOR, "Nobody", in_dm=ON_A_SERVER),
    slash("config", MANAGER, "Settings of this server", in_dm=ON_A_SERVER),
    slash("free", MANAGER, "only when I am mentioned", options=lambda _: {"on": False}, in_dm=ON_A_SERVER),
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
    slash("settings reset", MODERATOR, "Nothing had been changed", bad=(UNKNOWN,)),
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
        "is changed",
        options=lambda _: {"text": "Rhyme."},
        bad=(
            ({"text": " "}, "must not be empty"),
            ({"text": CONTROL_TAG}, "control tags"),
            ({"text": "x" * 5000}, "are allowed"),
            ({"text": "\ud800"}, ""),
        ),
    ),
    slash("system edit", MODERATOR),
    slash("system preset", MODERATOR, "none holds", options=lambda _: {"name": "none"}, bad=(UNKNOWN,)),
    slash("system clear", MODERATOR, "the default already"),
    slash("model show", MODERATOR, "`small`"),
    slash(
        "model use",
        Needs.OPERATOR,
        "`large` answers",
        options=lambda _: {"name": "large"},
        bad=(({"name": "../.."}, "no such model"), ({"name": "small"}, "already")),
    ),
    Row("Ask about this", about, in_dm=None),
    form("AboutForm", about, "why?", EVERYBODY, "asks about", in_dm=None),
    form("SystemForm", edited, "Rhyme.", MODERATOR, "is changed"),
    press("stop button", "llamacord:stop:", ASKER, "", talking),
    press("regenerate button", "llamacord:regenerate:", ASKER, "", talked),
    press("continue button", "llamacord:continue:", ASKER, "", cut),
    press("report button", "llamacord:report:", EVERYBODY, "Thank you", talked),
    press("undo button", "llamacord:undo:", MODERATOR, "is back", reset_in_sight),
    press("forget button", "llamacord:forget:", EVERYBODY, "Deleted were", asked_to_forget, is_private=True),
    press("history page", r"llamacord:history:\d+:\d", EVERYBODY, "page 1", paged, is_private=True),
    press("history file", r"llamacord:history:\d+:file", EVERYBODY, "conversation.txt", paged, is_private=True),
    *(
        press(f"config {name}", f"{PREFIX}{name}", MANAGER, said, panel, values=values, is_private=True, in_dm=None)
        for name, said, values in (
            ("allowed_channels", "I answer in: <#", lambda w, by: [by.channel]),
            ("allowed_roles", "I answer people with: everybody", lambda w, by: []),
            ("log_channel", "Moderator log: <#", lambda w, by: [by.channel]),
            ("switches", "Settings of this server", lambda w, by: ["labels_answers"]),
            ("age", "Age-restricted", None),
            *((name, "", None) for name in FORMS),
        )
    ),
    *(
    form(f"config form {name}", panel_button(name), "7", MANAGER, "Settings of", in_dm=None)
        for name in FORMS
    ),
]
for_every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def names_in(client: Any) -> set[str]:
    """Return the names of everything that people can use."""
    tree: app_commands.CommandTree[discord.Client] = client.tree
    slash_commands = {c.qualified_name for c in tree.walk_commands() if isinstance(c, app_commands.Command)}
    entries = {c.name for kind in (2, 3) for c in tree.get_commands(type=discord.AppCommandType(kind))}
    parts = {str(getattr(item.item, "custom_id", "")) for item in panel_view(ServerConfig(), "en").children}  # type: ignore[attr-defined]
    config = {f"config {one.removeprefix(PREFIX).partition(':')[0]}" for one in parts}
    forms = {one.__name__ for one in discord.ui.Modal.__subclasses__() if one.__module__.startswith("bot.")}
    return {
        *slash_commands,
        *entries,
        *(f"{one} button" for one in Press),
        *("history page", "history file"),
        *config,
        *forms,
        *(f"config form {name}" for name in FORMS),
    }


# The world and what holds always


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world whose administrators opened every command to everybody, everywhere."""
    monkeypatch.setattr("simcord.actors._check_command_access", lambda *_: None)
    async with open_world(tmp_path / "every.sqlite3") as world:
        world.shelf, world.operator_ids = FakeShelf(), frozenset({world.chief.id})
        client = world.client
        client.tree.remove_command("model")
        engine: Any = client.chat.engine
        client.offer_models(ModelSwitch(client.chat, engine, world.shelf, "small"), world.operator_ids)
        yield world


@pytest.fixture(autouse=True)
def no_fault_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    for when in ("setup", "call"):
        faults = [r for r in caplog.get_records(when) if r.exc_info]  # type: ignore[arg-type]
        assert not faults, faults


def person(world: World, who: str) -> Person:
    if who == "dm":
        return Person(world.anna.user, None)
    return Person(getattr(world, who), world.general)


def who_may(row: Row) -> Person | str:
    return {MODERATOR: "mod", MANAGER: "chief", Needs.OPERATOR: "chief"}.get(row.needs, "anna")


def texts(result: Result) -> str:
    """Return all that was answered."""
    messages = [*([result.response] if result.response is not None else []), *result.followups]
    return "\n".join(f"{m.content} {' '.join(a.filename for a in m.attachments)}" for m in messages)


def check(row: Row, result: Result, said: str | None = None) -> None:
    """Assert that an interaction was acknowledged and that what is to be answered was answered."""
    assert result.acknowledged, "This interaction failed"
    assert result.response is None or not result.response.flags.loading, "still thinking"
    if row.said or said:
        assert texts(result).strip(), "no answer"
    assert (said or "") in texts(result)


async def dump(world: World, guild_id: int | None = None) -> list[tuple[Any, ...]]:
    """Return what is kept: of everybody, or of one server."""
    rows: list[tuple[Any, ...]] = []
    for table in ("messages", "settings", "resets"):
        where = "" if guild_id is None else f"WHERE c.guild_id = {guild_id}"
        sql = f"SELECT t.* FROM {table} t JOIN conversations c ON c.id = t.conversation_id {where}"
        rows += [(table, *row) for row in await world.database.fetch_all(sql)]
    for table in ("blocks", "server_settings"):
        sql = f"SELECT * FROM {table} WHERE guild_id = {guild_id or world.guild.id}"
        rows += [(table, *row) for row in await world.database.fetch_all(sql)]
    return rows


# The tests


async def test_no_command_button_or_form_is_without_a_row(world: World) -> None:
    assert names_in(world.client) == {row.name for row in ROWS}
    kinds = world.client._connection._view_store._dynamic_items.values()
    assert set(kinds) == {NumberedButton, PanelItem, HistoryButton}


def may(row: Row, who: str) -> bool:
    """Tell whether a row's work is done for somebody; in a direct message all are their own masters."""
    match row.needs:
        case Needs.OPERATOR:
            return who == "chief"
        case Needs.MANAGER:
            return who in ("chief", "dm")
        case Needs.MODERATOR:
            return who in ("mod", "dm") or (who == "chief" and row.name == "model show")
        case Needs.ASKER:
            return who in ("mod", "dm")
    return True


def can_reach(row: Row, who: str) -> bool:
    """Tell whether somebody sees it at all."""
    return (who != "dm" or row.in_dm is not None) and (not row.is_private or may(row, who))


WHO = [(row, who) for row in ROWS for who in ("bob", "mod", "chief", "dm") if can_reach(row, who)]


@pytest.mark.parametrize(("row", "who"), WHO, ids=lambda one: getattr(one, "name", one))
async def test_who_may_does_it_and_everybody_else_is_told_and_changes_nothing(
    world: World, row: Row, who: str
) -> None:
    acts = person(world, who)
    use = await row.open(world, acts)
    before = await dump(world)
    result = await use(acts)
    if may(row, who):
        check(row, result, (row.in_dm if who == "dm" else "") or row.said)
        return
    check(row, result, row.needs)
    assert await dump(world) == before


BAD = [(row, options, said) for row in ROWS for options, said in row.bad]


@pytest.mark.parametrize(("row", "options", "said"), BAD, ids=lambda one: getattr(one, "name", "-"))
async def test_a_bad_value_is_refused_in_a_sentence_and_changes_nothing(
    world: World, row: Row, options: Mapping[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discord checks values before; an old client or a hostile one need not."""
    monkeypatch.setattr(interactions, "validate_option_value", lambda _name, _option, value: value)
    before = await dump(world)
    result = await person(world, str(who_may(row))).slash(row.name, **options)
    check(row, result, said)
    if said:
        assert await dump(world) == before


@for_every_row
async def test_twice_at_once_both_are_answered(
    world: World, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = person(world, str(who_may(row)))
    use = await row.open(world, acts)
    if "form" in row.name.casefold():
        uses = [use, await row.open(world, acts)]
    else:
        uses = [use, use]
    with monkeypatch.context() as patch:
        patch.setattr(world.env, "_settle_internal", at_once)
        first = await uses[0](acts)
    second = await uses[1](acts)
    check(row, first)
    check(row, second)


async def at_once(**_: object) -> None:
    """Wait for nothing."""


@for_every_row
async def test_after_a_restart_it_works_or_says_why_not(world: World, row: Row) -> None:
    acts = person(world, str(who_may(row)))
    use = await row.open(world, acts)
    await world.client.close()
    await world.env.restart_bot(await world.new_client())
    result = await use(acts)
    is_old_form = row.name in ("AboutForm", "SystemForm")
    check(row, result, "I was restarted" if is_old_form else None)


@pytest.mark.parametrize(
    ("route", "status"),
    [("/interactions/*", 500), ("/interactions/*", 429), ("/webhooks/*", 500), ("/channels/*", 429)],
)
@for_every_row
async def test_where_discord_fails_once_there_is_an_answer_all_the_same(
    world: World, row: Row, route: str, status: int
) -> None:
    acts = person(world, str(who_may(row)))
    use = await row.open(world, acts)
    world.env.inject_error("*", route, status=status)
    check(row, await use(acts))


@for_every_row
async def test_where_discord_stays_away_nothing_breaks(world: World, row: Row) -> None:
    acts = person(world, str(who_may(row)))
    use = await row.open(world, acts)
    world.env.inject_error("*", "*", status=500, times=None)
    await use(acts)
    world.env.backend.faults.clear()
    assert "/settings" in texts(await acts.slash("help"))


@for_every_row
async def test_an_answer_whose_receipt_is_lost_is_given_once(
    world: World, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = person(world, str(who_may(row)))
    use = await row.open(world, acts)
    dispatch, lost = router.dispatch, []

    def lose_first(backend: Any, method: str, path: str, **kwargs: Any) -> Any:
        given = dispatch(backend, method, path, **kwargs)
        if path.endswith("/callback") and not lost:
            lost.append(path)
            raise aiohttp.ServerDisconnectedError
        return given

    with monkeypatch.context() as patch:
        patch.setattr(router, "dispatch", lose_first)
        result = await use(acts)
    assert lost
    check(row, result)


@pytest.mark.parametrize("is_full", [True, False], ids=["full", "closed"])
@for_every_row
async def test_where_the_database_fails_that_is_told(world: World, row: Row, *, is_full: bool) -> None:
    acts = person(world, str(who_may(row)))
    use = await row.open(world, acts)
    if is_full:
        await world.fill_disk()
    else:
        await world.database.close()
    check(row, await use(acts))


@for_every_row
async def test_on_another_server_nothing_of_ours_is_seen_or_touched(world: World, row: Row) -> None:
    await reset(world, person(world, "anna"))
    await talked(world, person(world, "anna"))
    await world.mod.slash(world.general, "system set", text=CANARY)
    await world.mod.slash(world.general, "block", user=world.bob)
    await world.chief.slash(world.general, "settings server", name="top_k", value="77")
    acts = stranger(world)
    use = await row.open(world, acts)
    before, num_requests = await dump(world, world.guild.id), len(world.env.http_requests)
    result = await use(acts)
    assert result.acknowledged
    assert world.bob.mention not in texts(result) or row.name in ("block", "unblock")
    assert "77" not in texts(result)
    assert await dump(world, world.guild.id) == before
    ours = (str(world.general.id), str(world.random.id))
    assert not [r.path for r in world.env.http_requests[num_requests:] if any(one in r.path for one in ours)]


def stranger(world: World) -> Person:
    """Return somebody who may do everything, on another server."""
    elsewhere = world.env.create_guild("Elsewhere")
    role = elsewhere.create_role("Admins", permissions=discord.Permissions.all())
    eve = elsewhere.add_member(world.env.create_user("eve", global_name="Eve"), roles=[role])
    elsewhere.add_member(world.bob.user)
    return Person(eve, elsewhere.create_text_channel("lobby"))


@pytest.mark.parametrize("kind", [one for one in Press if one is not Press.FORGET])
async def test_a_button_with_a_number_of_another_server_does_nothing(world: World, kind: Press) -> None:
    """Buttons cannot be forged on Discord; if they could, it would be of no use."""
    row = next(row for row in ROWS if row.name == f"{kind} button")
    ours, theirs = person(world, "mod"), stranger(world)
    await row.open(world, ours)
    _, forged = newest_with(f"llamacord:{kind}:", ours)
    await row.open(world, theirs)
    message, own = newest_with(f"llamacord:{kind}:", theirs)
    before = await dump(world, world.guild.id)
    for stored in world.env.backend.get_message(theirs.place.id, message.id).components:
        for item in stored["components"]:
            item["custom_id"] = forged if item["custom_id"] == own else item["custom_id"]
    result = await theirs.actor.click(message, custom_id=forged)
    assert result.followups[0].ephemeral
    assert await dump(world, world.guild.id) == before


async def test_what_takes_its_time_is_acknowledged_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program holds the database; a form, which cannot come later, has to be asked for again."""
    monkeypatch.setattr("bot.on_discord.interactions.PATIENCE_S", 0.1)
    world.env.settle_timeout = 0.5
    for name, said in (("history", "Nothing has been said"), ("system edit", "too slow")):
        async with world.database._lock:
            with pytest.raises(TimeoutError):
                await world.mod.slash(world.general, name)
            asked = world.env.backend.interactions[max(world.env.backend.interactions)]
            assert asked.responded
        await world.env.settle()
        assert said in world.env.backend.get_message(world.general.id, asked.message_id or 0).content


async def test_names_are_not_completed_while_discord_fails_and_then_they_are(world: World) -> None:
    world.env.inject_error("*", "/interactions/*", status=500)
    assert await world.chief.autocomplete(world.general, "model use", "name", "la") == []
    (offered,) = await world.chief.autocomplete(world.general, "model use", "name", "la")
    assert offered["value"] == "large"
