"""Which form of a sentence goes with a whole number. Pure.

The rules are those of Unicode's CLDR, as far as whole numbers below a million need them.
"""

from __future__ import annotations

from typing import Literal

Form = Literal["one", "few", "many", "other"]

FORMS: frozenset[str] = frozenset(("one", "few", "many", "other"))


def plural_form(language: str, num: int) -> Form:
    """Return the form for `num` things."""
    if num == 1 or (language == "fr" and num == 0):
        return "one"
    if language != "pl":
        return "other"
    return "few" if num % 10 in (2, 3, 4) and num % 100 not in (12, 13, 14) else "many"
