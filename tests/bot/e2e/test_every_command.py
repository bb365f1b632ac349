"""Every command, entry, button, menu and form in every situation: acknowledged in time, answered, harmless.

A test's situation is the same for all rows of `surface.py`: who acts and where, bad values, twice at once,
after a restart, Discord or the database failing, and somebody who is powerful on another server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import discord
import pytest
from simcord import interactions
from simcord.http import router

from bot.conversation.model_switch import ModelSwitch
from bot.fleet.fleet import Fleet
from bot.on_discord.buttons import Lasting, Press
from bot.on_discord.interactions import GRACE_S
from bot.on_discord.settings.command import ModelCommands
from storage.sqlite import SqliteBackend
from tests.bot.e2e.surface import (
    CANARY,
    NUMBERED,
    ROWS,
    Needs,
    Person,
    Result,
    Row,
    names_in,
    newest_with,
    reset,
    talked,
)
from tests.bot.e2e.test_model import FakeShelf
from tests.bot.e2e.world import World, open_world

for_every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world whose administrators opened every command to everybody, everywhere."""
    monkeypatch.setattr("simcord.actors._check_command_access", lambda *_: None)
    async with open_world(tmp_path / "every.sqlite3", edit_interval_s=0.01) as world:
        await world.database.fetch_all("PRAGMA synchronous = OFF")
        world.shelf, world.operator_ids = FakeShelf(), frozenset({world.chief.id})
        client = world.client
        client.tree.remove_command("model")
        engine: Any = client.chat.engine
        models = ModelSwitch(client.chat, engine, world.shelf, "small")
        client.tree.add_command(ModelCommands(models, world.operator_ids, Fleet()))
        yield world


@pytest.fixture(autouse=True)
def no_fault_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    for when in ("setup", "call"):
        faults = [r for r in caplog.get_records(when) if r.exc_info]
        assert not faults, faults


def person(world: World, who: str) -> Person:
    if who == "dm":
        return Person(world.anna.user, None)
    return Person(getattr(world, who), world.general)


def who_may(row: Row) -> str:
    return {Needs.MODERATOR: "mod", Needs.MANAGER: "chief", Needs.OPERATOR: "chief"}.get(row.needs, "anna")


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
        sql = f"SELECT t.* FROM {table} t JOIN conversations c ON c.id = t.conversation_id {where}"  # noqa: S608 - numbers only
        rows += [(table, *row) for row in await world.database.fetch_all(sql)]
    for table in ("blocks", "server_settings"):
        sql = f"SELECT * FROM {table} WHERE guild_id = {guild_id or world.guild.id}"  # noqa: S608 - numbers only
        rows += [(table, *row) for row in await world.database.fetch_all(sql)]
    return rows


# The tests


async def test_no_command_button_or_form_is_without_a_row(world: World) -> None:
    assert names_in(world.client) == {row.name for row in ROWS}
    kinds = world.client._connection._view_store._dynamic_items.values()
    assert set(kinds) == {Lasting}
    assert set(world.client.presses) == set(Press)


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


@for_every_row
async def test_everybody_else_is_told_and_changes_nothing_and_then_who_may_does_it(
    world: World, row: Row
) -> None:
    people = [who for who in ("bob", "mod", "chief") if can_reach(row, who)]
    for who in people:
        if not may(row, who):
            use = await row.open(world, person(world, who))
            before = await dump(world)
            check(row, await use(person(world, who)), row.needs)
            assert await dump(world) == before
    acts = person(world, next(who for who in people if may(row, who)))
    use = await row.open(world, acts)
    check(row, await use(acts), row.said)


@pytest.mark.parametrize("row", [r for r in ROWS if can_reach(r, "dm")], ids=lambda row: row.name)
async def test_in_a_direct_message_one_moderates_oneself(world: World, row: Row) -> None:
    acts = person(world, "dm")
    use = await row.open(world, acts)
    check(row, await use(acts), (row.in_dm or row.said) if may(row, "dm") else row.needs)


BAD = [(row, options, said) for row in ROWS for options, said in row.bad]


@pytest.mark.parametrize(("row", "options", "said"), BAD, ids=lambda one: getattr(one, "name", "-"))
async def test_a_bad_value_is_refused_in_a_sentence_and_changes_nothing(
    world: World, row: Row, options: Mapping[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discord checks values before; an old client or a hostile one need not."""
    monkeypatch.setattr(interactions, "validate_option_value", lambda _name, _option, value: value)
    before = await dump(world)
    result = await person(world, who_may(row)).slash(row.name, **options)
    check(row, result, said)
    if said:
        assert await dump(world) == before


@for_every_row
async def test_twice_at_once_both_are_answered(
    world: World, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = person(world, who_may(row))
    use = await row.open(world, acts)
    uses = [use, await row.open(world, acts)] if "form" in row.name.casefold() else [use, use]
    with monkeypatch.context() as patch:
        patch.setattr(world.env, "_settle_internal", at_once)
        first = await uses[0](acts)
    second = await uses[1](acts)
    check(row, first)
    check(row, second)


async def at_once(**_: object) -> None:
    """Wait for nothing."""


@pytest.mark.parametrize("row", [r for r in ROWS if r.name != "stop button"], ids=lambda row: row.name)
async def test_after_a_restart_it_works_or_says_why_not(world: World, row: Row) -> None:
    """Stop is gone then: nothing runs any more."""
    acts = person(world, who_may(row))
    use = await row.open(world, acts)
    await world.restart()
    result = await use(acts)
    await world.env.advance_time(GRACE_S)
    is_old_form = row.name == "AboutForm"
    check(row, result, "I've restarted" if is_old_form else None)


@for_every_row
async def test_where_discord_fails_once_there_is_an_answer_and_where_it_stays_away_nothing_breaks(
    world: World, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = person(world, who_may(row))
    for route, status in (("/interactions/*", 500), ("/webhooks/*", 429), ("/channels/*", 500)):
        use = await row.open(world, acts)
        world.env.inject_error("*", route, status=status)
        check(row, await use(acts))
        world.env.backend.faults.clear()
    use = await row.open(world, acts)
    with monkeypatch.context() as patch:
        patch.setattr(router, "dispatch", losing_the_first_receipt())
        check(row, await use(acts))
    use = await row.open(world, acts)
    world.env.inject_error("*", "*", status=500, times=None)
    await use(acts)
    world.env.backend.faults.clear()
    assert "/settings" in texts(await acts.slash("help"))


def losing_the_first_receipt() -> Callable[..., Any]:
    """Return a Discord that takes the first answer to an interaction and whose line is dead then."""
    dispatch = router.dispatch
    lost: list[str] = []

    def lose_first(backend: Any, method: str, path: str, **kwargs: Any) -> Any:
        given = dispatch(backend, method, path, **kwargs)
        if path.endswith("/callback") and not lost:
            lost.append(path)
            raise aiohttp.ServerDisconnectedError
        return given

    return lose_first


@for_every_row
async def test_where_the_database_fails_that_is_told(world: World, row: Row) -> None:
    acts = person(world, who_may(row))
    uses = [await row.open(world, acts), await row.open(world, acts)]
    await world.fill_disk()
    check(row, await uses[1](acts))
    await world.database.close()
    check(row, await uses[0](acts))


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


@pytest.mark.parametrize("kind", [one for one in NUMBERED if one is not Press.FORGET])
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
    """The disk is slow; a form, which can only come at once, has to be asked for again."""
    run = SqliteBackend._run

    async def run_slowly(*given: Any) -> Any:
        await asyncio.sleep(2.5)
        return await run(*given)

    for name, said in (("history", "Nothing has been said"), ("system edit", "too slow")):
        with monkeypatch.context() as patch:
            patch.setattr(SqliteBackend, "_run", run_slowly)
            result = await world.mod.slash(world.general, name)
            assert not result.acknowledged
            await world.env.advance_time(2.1)
            assert result.deferred
        await world.env.advance_time(60)
        assert said in texts(result)
