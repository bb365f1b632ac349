"""Every language says everything, and nothing is said past the catalogs."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.language.phrases import (
    ENGLISH,
    LANGUAGES,
    Phrase,
    catalog,
    language_of,
    packed,
    phrase,
    plural_form,
    render,
    together,
    unpacked,
)

ROOT = Path(__file__).parents[3]
TRANSLATIONS = [language for language in LANGUAGES if language != ENGLISH]
KEYS = catalog(ENGLISH).templates

FORMS_OF = {"en": {"one", "other"}, "pl": {"one", "few", "many", "other"}}
FORMS_OF.update({language: {"one", "other"} for language in ("de", "fr", "es")})


def placeholders(template: str) -> set[str]:
    """Return the names in a template, which must be plain names with no formatting."""
    fields = list(string.Formatter().parse(template))
    assert all(not spec and conversion is None for _, name, spec, conversion in fields if name is not None)
    names = {name for _, name, _, _ in fields if name is not None}
    assert all(name.isidentifier() for name in names), template
    return names


def all_placeholders(language: str, key: str) -> list[set[str]]:
    return [placeholders(template) for template in catalog(language).templates[key].values()]


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_language_has_every_key_with_the_same_placeholders(language: str) -> None:
    assert set(catalog(language).templates) == set(KEYS)
    for key in KEYS:
        (expected, *same) = all_placeholders(ENGLISH, key)
        assert all(names == expected for names in [*same, *all_placeholders(language, key)]), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_plural_forms_are_whole_and_count_num(language: str) -> None:
    counted = {key for key, template in KEYS.items() if set(template) != {"other"}}
    assert counted
    for key, template in catalog(language).templates.items():
        if key in counted:
            assert set(template) == FORMS_OF[language], key
            assert all("{num}" in text for text in template.values()), key
        else:
            assert set(template) == {"other"}, key
            assert "{num}" not in template["other"], key


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_fits_into_one_discord_message(language: str) -> None:
    for key, template in catalog(language).templates.items():
        assert all(0 < len(text) <= 1900 for text in template.values()), key


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_is_not_the_english_left_in_place(language: str) -> None:
    same = [
        key
        for key, template in catalog(language).templates.items()
        if len(template["other"].split()) > 3 and template["other"] == KEYS[key]["other"]
    ]
    assert same == []


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_sentence_names_commands_as_they_are_called_in_its_language(language: str) -> None:
    renamed = {name for name, (new, *_) in catalog(language).commands.items() if name != new}
    for key, template in catalog(language).templates.items():
        for name in re.findall(r"`?/([a-z-]+)\b", " ".join(template.values())):
            assert name not in renamed or name in {c[0] for c in catalog(language).commands.values()}, key


@pytest.mark.parametrize(
    ("language", "num", "form"),
    [
        *[("en", 0, "other"), ("en", 1, "one"), ("en", 2, "other"), ("fr", 0, "one"), ("fr", 2, "other")],
        *[("pl", num, "few") for num in (2, 3, 4, 22, 104)],
        *[("pl", num, "many") for num in (0, 5, 11, 12, 14, 21, 111, 112)],
        ("pl", 1, "one"),
    ],
)
def test_plural_rules(language: str, num: int, form: str) -> None:
    assert plural_form(language, num) == form


@pytest.mark.parametrize(
    ("locale", "language"),
    [("de", "de"), ("es-ES", "es"), ("es-419", "es"), ("en-GB", "en"), ("pt-BR", "en"), ("", "en")],
)
def test_a_locale_has_its_language_and_english_stands_in_for_others(locale: str, language: str) -> None:
    assert language_of(locale) == language


def test_a_phrase_is_its_english_until_it_is_rendered_with_the_phrases_in_it() -> None:
    made = together(phrase("answer.stopped"), phrase("answer.not_saved"))
    assert made.startswith("Stopped. I couldn't save")
    assert render(made, "de").startswith("Gestoppt. Diese Antwort")
    assert render("no phrase", "de") == "no phrase"


def test_a_phrase_can_be_stored_and_is_still_a_phrase_afterwards() -> None:
    made = together(phrase("answer.length", num=7), phrase("moderation.label"))
    again = unpacked(packed(made))
    assert again == made
    assert render(again, "de") == render(made, "de") != made
    assert unpacked(packed("no phrase")) == "no phrase"


@pytest.mark.parametrize("stored", ['{"key": "gone.with.an.update", "values": {}}', "{", "7", "null"])
def test_a_stored_phrase_that_is_known_no_more_says_nothing(stored: str) -> None:
    assert unpacked(stored) == ""


def test_values_are_not_templates() -> None:
    assert "{num} {0.__class__}" in render(phrase("help", model="{num} {0.__class__}"), "fr")


# What the code says


def trees() -> list[tuple[str, ast.Module]]:
    files = sorted((ROOT / "bot").rglob("*.py"))
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))) for path in files]


def test_the_code_says_only_keys_that_exist_and_every_key_is_said() -> None:
    literals: set[str] = set()
    prefixes: set[str] = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.add(node.value)
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                prefixes.add(str(node.values[0].value))
    made_up = {prefix for prefix in prefixes if re.fullmatch(r"[a-z_.]+\.", prefix)}
    unused = [key for key in KEYS if key not in literals and not key.startswith(tuple(made_up))]
    assert unused == []


def test_a_phrase_gets_the_values_that_its_sentence_needs() -> None:
    num_checked = 0
    for name, tree in trees():
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            if call.func.id != "phrase" or not isinstance(call.args[0], ast.Constant):
                continue
            key = call.args[0].value
            assert isinstance(key, str)
            assert key in KEYS, f"{name} says {key}"
            given = {keyword.arg for keyword in call.keywords}
            assert given == all_placeholders(ENGLISH, key)[0], f"{name}: {key}"
            num_checked += 1
    assert num_checked > 20


SPOKEN_BY = ("bot/conversation/", "bot/on_discord/", "bot/errors.py")
TO_OTHERS = {"bot/on_discord/connection.py", "bot/on_discord/hearing/message_text.py"}
"""What these say is for operators, and for the model."""
NOT_FOR_USERS = {"ValueError", "RuntimeError", "TypeError", "EngineUnavailableError"}
"""Whose texts only programmers read: `bot.errors` says the engine's exceptions in its own words."""


def sentences(tree: ast.AST) -> Iterator[str]:
    """Give the texts that look like a sentence, but for docstrings, logging and command descriptions.

    The English names and descriptions of commands stay in the code; the tree of commands is checked on its
    own.
    """
    if isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Constant):
        return
    if isinstance(tree, ast.Call) and _is_not_for_users(tree.func):
        return
    if isinstance(tree, ast.keyword) and tree.arg == "description":
        return
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str) and _is_sentence(tree.value):
        yield tree.value
    is_start = (
        isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and tree.func.attr == "start"
    )
    for child in ast.iter_child_nodes(tree):
        is_name = is_start and isinstance(child, ast.Constant | ast.JoinedStr)
        if not is_name:  # what a task is called in the log
            yield from sentences(child)


def _is_not_for_users(called: ast.expr) -> bool:
    if isinstance(called, ast.Attribute):
        is_log = isinstance(called.value, ast.Name) and called.value.id in ("_log", "logger")
        return is_log or called.attr in ("describe", "warn", "context_menu")
    return isinstance(called, ast.Name) and (called.id in NOT_FOR_USERS or called.id.startswith("Outbox"))


def _is_sentence(text: str) -> bool:
    """Tell whether people would read a text as language: three words, or two and a full stop."""
    words = re.findall(r"(?<![\w</])[A-Za-z][a-z']+(?![\w>])", text)
    return (len(words) >= 3 and " " in text.strip()) or (
        len(words) == 2 and text.rstrip().endswith((".", "!", "?"))
    )


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('say("Nothing had been changed.")', ["Nothing had been changed."]),
        ('say(f"Forgotten: {n} messages here.")', ["Forgotten: ", " messages here."][1:]),
        ('_log.info("This is for the operator.")', []),
        ('tasks.start(say("Hello to you all."), "greeting people here")', ["Hello to you all."]),
        ('tasks.start(say("Hello to you all."), f"greeting people here in {x}")', ["Hello to you all."]),
        ('"""This is a docstring of this."""', []),
        ('command(name="x", description="What it does here")', []),
        ('raise NotAllowedError("You may not.")', ["You may not."]),
        ('key = "answer.stopped"', []),
    ],
)
def test_the_search_for_sentences_finds_them(code: str, found: list[str]) -> None:
    assert list(sentences(ast.parse(code))) == found


def test_no_sentence_for_users_stands_outside_the_catalogs() -> None:
    found = {
        name: texts
        for name, tree in trees()
        if name.startswith(SPOKEN_BY) and name not in TO_OTHERS and (texts := list(sentences(tree)))
    }
    assert found == {}


def test_phrases_compare_and_hash_as_their_english() -> None:
    assert phrase("answer.stopped") == "Stopped."
    assert {phrase("answer.stopped")} == {"Stopped."}
    assert isinstance(phrase("answer.stopped"), Phrase)
