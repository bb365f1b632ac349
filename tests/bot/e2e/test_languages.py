"""Everybody is spoken to in their own language: a person in theirs, a channel in its server's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import discord
import pytest
from discord import app_commands
from simcord import interactions

from bot.conversation.model_switch import ModelSwitch
from bot.fleet.fleet import Fleet
from bot.language.phrases import ENGLISH, LANGUAGES, catalog, phrase, render
from bot.on_discord.commands import CommandTranslator
from bot.on_discord.settings.command import ModelCommands
from tests.bot.e2e.world import World, labels, open_world, said

TRANSLATIONS = [language for language in LANGUAGES if language != ENGLISH]
SLASH_NAME = re.compile(r"[-_'\w]{1,32}")
"""https://docs.discord.com/developers/interactions/application-commands#application-command-object"""


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what sets the language of everybody's Discord; simcord's people all have an English one."""
    english = interactions.base_payload

    def set_locale(locale: str) -> None:
        def base_payload(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            record, payload = english(*args, **kwargs)
            return record, {**payload, "locale": locale}

        monkeypatch.setattr(interactions, "base_payload", base_payload)

    return set_locale


def speak_in_server(world: World, locale: str) -> None:
    """Change the server's language."""
    guild = world.client.get_guild(world.guild.id)
    assert guild is not None
    guild.preferred_locale = discord.Locale(locale)


@pytest.mark.parametrize(
    ("locale", "expected"),
    [
        ("de", "top_k muss eine ganze Zahl zwischen 0 und 1000 sein."),
        ("fr", "top_k doit être un nombre entier entre 0 et 1000."),
        ("es-419", "top_k debe ser un número entero entre 0 y 1000."),
        ("pl", "top_k musi być liczbą całkowitą od 0 do 1000."),
        ("ja", "top_k must be a whole number from 0 to 1000."),
    ],
)
async def test_errors_are_in_the_language_of_whoever_acts(
    world: World, speak: Callable[[str], None], locale: str, expected: str
) -> None:
    speak(locale)
    assert said(await world.mod.slash(world.general, "settings set", name="top_k", value="many")) == expected


async def test_answers_to_commands_are_in_the_language_of_whoever_acts(
    world: World, speak: Callable[[str], None]
) -> None:
    speak("de")
    assert "ein Sprachmodell (scripted)" in " ".join(
        said(await world.anna.slash(world.general, "help")).split()
    )
    assert "(Standard, 0 bis 2)" in said(await world.anna.slash(world.general, "settings show"))
    world.answers("answer")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert said(await world.mod.slash(world.general, "reset")).startswith("Erledigt: 2 Nachrichten")
    assert said(await world.anna.user.slash("system clear")) == "Es war schon der Standard."


async def test_what_everybody_reads_is_in_the_servers_language(world: World) -> None:
    speak_in_server(world, "pl")
    world.answers("word ", loops=True)
    await world.anna.send(world.general, f"{world.me}")
    assert world.reply(world.general).content.startswith("Twoja wzmianka o mnie")
    await world.anna.send(world.general, f"{world.me} one")
    await world.bob.send(world.general, f"{world.me} two")
    await world.run(1)
    running, waiting = sorted(world.replies(world.general)[1:], key=lambda m: "Oczekuje" in m.content)
    assert [labels(running), labels(waiting)] == [["Zatrzymaj"], ["Zatrzymaj"]]
    assert waiting.content == "-# Oczekuje: miejsce 1 w kolejce tej rozmowy."
    await world.anna.click(running, label="Zatrzymaj")
    await world.run(1)
    (stopped,) = [m for m in world.replies(world.general) if m.id == running.id]
    assert stopped.content.endswith("-# Zatrzymano.")
    assert labels(stopped) == ["Odpowiedz ponownie", "Kontynuuj"]


async def test_one_persons_language_does_not_change_what_others_read(
    world: World, speak: Callable[[str], None]
) -> None:
    speak("fr")
    world.answers("word ", loops=True)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(1)
    await world.anna.click(world.reply(world.general), label="Stop")
    await world.run(1)
    assert world.reply(world.general).content.endswith("-# Stopped.")
    refused = await world.bob.click(world.reply(world.general), label="Regenerate")
    assert refused.followups[0].content.startswith("Seule la personne")


async def test_after_a_restart_interrupted_answers_are_marked_in_the_servers_language(tmp_path: Path) -> None:
    async with open_world(tmp_path / "llamacord.sqlite3") as world:
        world.env.backend.get_guild(world.guild.id).preferred_locale = "de"
        world.answers("word ", loops=True)
        await world.anna.send(world.general, f"{world.me} hi")
        await world.run(1)
        await world.env.restart_bot(await world.new_client())
        await world.env.settle()
        assert world.reply(world.general).content.endswith(render(phrase("answer.cut_short"), "de"))
        assert labels(world.reply(world.general)) == ["Neu antworten", "Weiter"]


# Names and descriptions of commands


def named(payload: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give a command's payload and those of all subcommands and options below it."""
    path = f"{path} {payload['name']}".strip()
    yield path, payload
    for option in payload.get("options", ()):
        yield from named(option, path)


def whole_tree(world: World) -> app_commands.CommandTree[discord.Client]:
    """Return the tree with the commands that are there only where several models are."""
    tree = world.client.tree
    if tree.get_command("model") is None:
        tree.add_command(ModelCommands(cast("ModelSwitch", None), frozenset(), Fleet()))
    return tree


async def payloads(world: World) -> list[dict[str, Any]]:
    """Return all commands as they are sent to Discord."""
    tree = whole_tree(world)
    return [await c.get_translated_payload(tree, CommandTranslator()) for c in tree.get_commands()]


async def test_every_command_is_translated_within_discords_limits(world: World) -> None:
    for command in await payloads(world):
        is_slash = command.get("type", 1) == 1
        for path, payload in named(command):
            assert len(payload.get("description", "")) <= 100, path
            for locale in ("de", "fr", "es-ES", "es-419", "pl"):
                name = payload["name_localizations"][locale]
                assert not is_slash or (SLASH_NAME.fullmatch(name) and name == name.lower()), (path, name)
                assert 1 <= len(name) <= 32, (path, name)
                if is_slash:
                    assert 1 <= len(payload["description_localizations"][locale]) <= 100, (path, locale)


async def test_no_two_commands_have_the_same_name_in_any_language(world: World) -> None:
    commands = await payloads(world)
    groups = [commands, *(p["options"] for c in commands for _, p in named(c) if p.get("options"))]
    for locale in ("de", "fr", "es-ES", "pl"):
        for group in groups:
            names = [(payload.get("type"), payload["name_localizations"][locale]) for payload in group]
            assert len(set(names)) == len(names), (locale, names)


@pytest.mark.parametrize("language", TRANSLATIONS)
async def test_no_translation_is_of_a_command_that_does_not_exist(world: World, language: str) -> None:
    known = set()
    for command in whole_tree(world).walk_commands():
        known.add(command.qualified_name)
        if isinstance(command, app_commands.Command):
            for parameter in command.parameters:
                known.add(f"{command.qualified_name}:{parameter.name}")
                known.update(f"={choice.name}" for choice in parameter.choices)
    known.update(command.name for command in world.client.tree.get_commands())
    assert set(catalog(language).commands) <= known


async def test_translations_reach_discord_and_a_change_of_one_is_registered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def syncs() -> list[str]:
        return [
            json.dumps(r.json)
            for r in world.env.http_requests
            if r.method == "PUT" and r.path.endswith("/commands")
        ]

    assert len(syncs()) == 1
    assert '"de": "einstellungen"' in syncs()[0]

    async def translate(self: object, string: object, locale: object, context: object) -> str | None:
        return None

    monkeypatch.setattr(CommandTranslator, "translate", translate)
    await world.restart()
    assert len(syncs()) == 2
