"""The sentences of each language, read from the file that bears its code.

Owns the files' form: tables of `key = "template"`, a table of plural forms where a template counts `{num}`,
and the table `commands` with a translated name and description for each command, `settings show`, for each of
its options, `settings set:value`, and for choices, `=precise`. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

Form = Literal["one", "few", "many", "other"]
FORMS: frozenset[str] = frozenset(("one", "few", "many", "other"))
Template = Mapping[Form, str]
"""A template by plural form; one that counts nothing has only the form `other`."""
ENGLISH = "en"
LANGUAGE_NAMES = {ENGLISH: "English", "de": "Deutsch", "fr": "Français", "es": "Español", "pl": "Polski"}
"""How those call each language who speak it."""
LANGUAGES = tuple(LANGUAGE_NAMES)
"""Codes of the languages, as the part before the hyphen of Discord's locales has them."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All that one language has: templates by key, and commands (name, description) by English name."""

    language: str
    templates: Mapping[str, Template]
    commands: Mapping[str, tuple[str, ...]]

    def render(self, key: str, values: Mapping[str, object]) -> str:
        """Return the sentence `key` with `values` filled in."""
        template = self.templates[key]
        num = values.get("num")
        form: Form = plural_form(self.language, num) if isinstance(num, int) else "other"
        return template.get(form, template["other"]).format_map(values)


@functools.cache
def catalog(language: str) -> Catalog:
    """Return the catalog of one of `LANGUAGES`. It is read once: it belongs to the program like its code."""
    text = resources.files("bot.language").joinpath(f"{language}.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    commands = {name: tuple(translation) for name, translation in tables.pop("commands", {}).items()}
    templates = dict(_templates(tables))
    if commands:
        templates = {key: _with_translated_names(template, commands) for key, template in templates.items()}
    return Catalog(language, templates, commands)


def language_of(locale: object) -> str:
    """Return the language for one of Discord's locales, such as `es-419`; English for all we do not speak."""
    code = str(locale).partition("-")[0].lower()
    return code if code in LANGUAGES else ENGLISH


def plural_form(language: str, num: int) -> Form:
    """Return the form for `num` things."""
    if num == 1 or (language == "fr" and num == 0):
        return "one"
    if language != "pl":
        return "other"
    return "few" if num % 10 in (2, 3, 4) and num % 100 not in (12, 13, 14) else "many"


def _templates(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Template]]:
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, str):
            yield key, {"other": value.strip()}
        elif "other" in value and value.keys() <= FORMS:
            yield key, {form: template.strip() for form, template in value.items()}
        else:
            yield from _templates(value, f"{key}.")


def _with_translated_names(template: Template, commands: Mapping[str, tuple[str, ...]]) -> Template:
    """Write `/settings show` as those read it in Discord whose language this is."""
    names = {name: _translated_name(name, commands) for name in commands if not re.search("[:=A-Z]", name)}
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    written = re.compile(rf"(?<![\w/])/({longest_first})(?![\w-])")
    return {form: written.sub(lambda m: f"/{names[m[1]]}", text) for form, text in template.items()}


def _translated_name(name: str, commands: Mapping[str, tuple[str, ...]]) -> str:
    words = name.split(" ")
    paths = [" ".join(words[: length + 1]) for length in range(len(words))]
    return " ".join(commands[path][0] if path in commands else path.split(" ")[-1] for path in paths)
