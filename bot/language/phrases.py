"""Sentences that know how to be said in another language, and the files that they are read from.

A sentence is made where something happens and rendered where somebody reads it; until then it is its own
English. Owns the form of the files, one a language: tables of `key = "template"`, a table of plural forms
where a template counts `{num}`, and the table `commands` with a translated name and description for each
command, `settings show`, for each of its options, `settings set:value`, and for choices, `=precise`. Knows
nothing of what the keys mean.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, cast

Value = str | int | float
Form = Literal["one", "few", "many", "other"]
FORMS: frozenset[str] = frozenset(("one", "few", "many", "other"))
Template = Mapping[Form, str]
"""A template by plural form; one that counts nothing has only the form `other`."""
ENGLISH = "en"
LANGUAGE_NAMES = {ENGLISH: "English", "de": "Deutsch", "fr": "Français", "es": "Español", "pl": "Polski"}
"""How those call each language who speak it."""
LANGUAGES = tuple(LANGUAGE_NAMES)
"""Codes of the languages, as the part before the hyphen of Discord's locales has them."""


class Phrase(str):
    """An English sentence with the key and the values it was made of. Make it with `phrase`."""

    __slots__ = ("key", "values")

    key: str
    values: Mapping[str, Value]

    def __new__(cls, key: str, values: Mapping[str, Value]) -> Phrase:
        """Say it in English."""
        made = super().__new__(cls, catalog(ENGLISH).render(key, values))
        made.key = key
        made.values = MappingProxyType(dict(values))
        return made


def phrase(key: str, /, **values: Value) -> Phrase:
    """Return the sentence `key` of the catalog with `values` filled in; a value may be a phrase itself."""
    return Phrase(key, values)


def together(*sentences: str) -> str:
    """Return sentences one after the other, each of which can still be rendered; nothing for none."""
    first, *rest = sentences or ("",)
    return phrase("together", first=first, second=together(*rest)) if rest else first


def render(text: str, locale: object) -> str:
    """Return `text` in the language of one of Discord's locales; what is no `Phrase` stays as it is."""
    if not isinstance(text, Phrase):
        return text
    values = {name: _rendered(value, locale) for name, value in text.values.items()}
    return catalog(language_of(locale)).render(text.key, values)


def _rendered(value: Value, locale: object) -> Value:
    return render(value, locale) if isinstance(value, str) else value


def packed(text: str) -> str:
    """Return `text` as JSON, from which `unpacked` makes a sentence that can still be rendered."""
    return json.dumps(_as_json(text))


def unpacked(stored: str) -> str:
    """Return what was packed; nothing where it is a sentence that is no longer there."""
    try:
        text = _from_json(json.loads(stored))
    except (KeyError, ValueError):
        return ""
    return text if isinstance(text, str) else ""


def _as_json(value: Value) -> Any:
    if not isinstance(value, Phrase):
        return value
    return {"key": value.key, "values": {name: _as_json(one) for name, one in value.values.items()}}


def _from_json(value: Any) -> Value:
    if not isinstance(value, dict):
        return cast("Value", value)
    return Phrase(value["key"], {name: _from_json(one) for name, one in value["values"].items()})


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
