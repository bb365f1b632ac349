"""A sentence that knows how to be said in another language.

It is made where something happens and rendered where somebody reads it. Until then it is its own English.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from bot.language.catalog import ENGLISH, catalog, language_of

Value = str | int | float


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
