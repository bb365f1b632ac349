"""Reads the fields of a JSON object one by one, and says in a sentence what is wrong with one.

A field that is null is as good as none. Pure; knows nothing of what the fields mean.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NoReturn

from engine.serving.errors import ApiError

_MAX_SHOWN_CHARACTERS = 40
_MAX_PARTS = 100_000
"""Brackets in a body, also in its texts: nothing else runs while arrays and objects are made of them."""


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is. Raises `ApiError`."""
    if body.count(b"[") + body.count(b"{") > _MAX_PARTS:
        raise ApiError(413, f"The body has more than {_MAX_PARTS} brackets.", code="too_large")
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise ApiError(400, "The body must be JSON in UTF-8.") from None
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"The body must be a JSON object, not {kind_of(found)}.")
    return found


def kind_of(value: object) -> str:
    """Return what JSON calls a value."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", str: "a text", int: "a number", float: "a number", list: "an array"}
    return kinds.get(type(value), "an object")


class Fields:
    """The fields of one object. `place` stands before their names in errors, as in `messages[0]`."""

    def __init__(self, values: dict[str, Any], place: str = "") -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._place = place
        self._known: set[str] = set()

    def name(self, field: str) -> str:
        """Return how a field is named in an error."""
        return f"{self._place}.{field}" if self._place else field

    def refuse(self, field: str, why: str, code: str | None = None) -> NoReturn:
        """Raise the `ApiError` that says what is wrong with a field."""
        name = self.name(field)
        raise ApiError(400, f"{name} {why}", param=name, code=code)

    def value(self, field: str) -> Any:
        """Return whatever a field is, None where it is missing."""
        self._known.add(field)
        return self._values.get(field)

    def text(self, field: str, default: str | None = None) -> str | None:
        """Return a text."""
        value = self.value(field)
        if value is not None and not isinstance(value, str):
            self.refuse(field, f"must be a text, not {kind_of(value)}.")
        return default if value is None else value

    def flag(self, field: str) -> bool:
        """Return true or false; false where it is missing."""
        value = self.value(field)
        if value is not None and not isinstance(value, bool):
            self.refuse(field, f"must be true or false, not {kind_of(value)}.")
        return bool(value)

    def whole(self, field: str, low: int | None = None) -> int | None:
        """Return a whole number that is at least `low`."""
        value = self.value(field)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            self.refuse(field, f"must be a whole number, not {_shown(value)}.")
        if value is not None and low is not None and value < low:
            self.refuse(field, f"must be at least {low}, not {_shown(value)}.")
        return value

    def number(self, field: str, low: float, high: float) -> float | None:
        """Return a number in a range, both ends included."""
        value = self.value(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(field, f"must be a number, not {kind_of(value)}.")
        if not low <= value <= high:
            self.refuse(field, f"must be between {low:g} and {high:g}, not {_shown(value)}.")
        return float(value)

    def object(self, field: str) -> Fields:
        """Return an object; an empty one where it is missing."""
        value = self.value(field)
        if value is not None and not isinstance(value, dict):
            self.refuse(field, f"must be an object, not {kind_of(value)}.")
        return Fields(value or {}, self.name(field))

    def accept(self, names: Collection[str]) -> None:
        """Know fields that change nothing here."""
        self._known.update(names)

    def refuse_others(self) -> None:
        """Raise `ApiError` where there is a field that nobody read or accepted."""
        for field in self._values:
            if field not in self._known:
                name = self.name(field[:_MAX_SHOWN_CHARACTERS])
                raise ApiError(400, f"There is no parameter {name}.", param=name, code="unknown_parameter")


def _shown(value: object) -> str:
    shown = json.dumps(value) if isinstance(value, int | float | str) else kind_of(value)
    return shown if len(shown) <= _MAX_SHOWN_CHARACTERS else shown[: _MAX_SHOWN_CHARACTERS - 1] + "…"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
