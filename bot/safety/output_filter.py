"""What no answer may show: invitations, secrets and mentions of everybody. Pure.

Looks at the folded text, so look-alikes and invisible characters hide nothing. While an answer grows, what
may yet become one of these is held back, so at no time is anything forbidden shown.
"""

from __future__ import annotations

from collections.abc import Callable

import regex

from bot.safety.folding import fold

REMOVED = {"invite": "[invitation removed]", "secret": "[secret removed]"}
_ZERO_WIDTH_SPACE = "\u200b"
_CONTEXT = 8
"""Characters before a text that say whether a word begins with it."""

_MASS = r"(?P<mass>@(?:everyone|here))"
_ID = r"[a-z0-9_-]"
_FREE = r"(?<![a-z0-9_])"
"""A key is a word of its own: "task-management" holds none."""
# Every repetition of slashes is possessive: otherwise a row of them takes a time that grows with its cube.
_SECRETS = {
    "bot_token": rf"{_FREE}[mno]{_ID}{{22,29}}\.{_ID}{{6,7}}\.{_ID}{{27,60}}",
    "user_token": rf"{_FREE}mfa\.{_ID}{{60,120}}",
    "webhook": (
        rf"(?:https:/++)?discord(?:app)?\.com/++api/++(?:v[0-9]{{1,3}}/++)?webhooks/++[0-9]{{15,21}}/++{_ID}{{40,100}}"
    ),
    "github": rf"{_FREE}(?:gh[pousr]_[a-z0-9]{{36,255}}|github_pat_[a-z0-9]{{22}}_[a-z0-9]{{59,255}})",
    "gitlab": rf"{_FREE}glpat-{_ID}{{20,60}}",
    "sk": (
        rf"{_FREE}(?<!-)sk-(?:(?:proj|svcacct|admin|ant-[a-z0-9]{{3,12}}|or-v[0-9])-{_ID}{{20,250}}"
        r"|[a-z0-9]{20,250})"
    ),
    "stripe": rf"{_FREE}[sr]k_(?:live|test)_[a-z0-9]{{24,120}}",
    "google": rf"{_FREE}aiza{_ID}{{35}}",
    "hugging_face": rf"{_FREE}hf_[a-z0-9]{{34,60}}",
    "npm": rf"{_FREE}npm_[a-z0-9]{{36,60}}",
    "pypi": rf"{_FREE}pypi-ageichlwas5vcmc{_ID}{{40,250}}",
    "aws": rf"{_FREE}a(?:kia|sia)[a-z2-7]{{16}}",
    "slack": rf"{_FREE}(?:xox[abeoprs]|xapp)-(?:[0-9]{{1,20}}-)[a-z0-9-]{{10,200}}",
    "private_key": (
        r"-----begin [a-z0-9 ]{0,30}private key(?: block)?-----(?:\s|/n){1,9}"
        r"(?:[a-z-]{1,20}: [^\n]{0,100}\n\s?){0,4}"
        r"[a-z0-9+/=]{40,}+[a-z0-9+/=\s]{0,4000}+"
    ),
}
"""What a key of each kind looks like once it is folded, by its boundaries, its alphabet and its length."""


def _is_mixed(key: str) -> bool:
    """Tell whether digits and both cases stand in what may be a key: chance writes so, people do not."""
    return any(map(str.islower, key)) and any(map(str.isupper, key)) and any(map(str.isdigit, key))


def _is_mixed_or_numbered(key: str) -> bool:
    return any(map(str.isdigit, key)) or (any(map(str.islower, key)) and any(map(str.isupper, key)))


_LOOKS_RANDOM: dict[str, Callable[[str], bool]] = {
    "bot_token": lambda key: key[0].isupper() and _is_mixed(key),
    "sk": lambda key: _is_mixed_or_numbered(key[3:]),
    "aws": lambda key: not any(map(str.islower, key)),
}
"""What else is true of a key of a kind, seen before folding."""
_INVITE_WORD = "".join(f"(?:{letter}|%{ord(letter):x}|%{ord(letter.upper()):x})" for letter in "invite")
_CODE = r"""[^\s<>()\[\]"'*|`]{1,100}"""
_INVITE = "|".join(
    (
        rf"(?:discord|dsc|invite)\.gg(?:/|%2f)++{_CODE}",
        rf"discord\.(?:me|io|li|link)/++{_CODE}",
        rf"discord(?:app)?\.com/++(?:[^\s/]{{1,20}}/++){{0,3}}?{_INVITE_WORD}/++{_CODE}",
        rf"discord:/++(?:[^\s/]{{1,20}}/++)?{_INVITE_WORD}/++{_CODE}",
    )
)


class OutputFilter:
    """Takes out of texts what no answer may show. `removes_invites` off leaves invitations."""

    def __init__(self, *, removes_invites: bool = True) -> None:
        rules = [_MASS, *(f"(?P<{kind}>{key})" for kind, key in _SECRETS.items())]
        rules += [f"(?P<invite>{_INVITE})"] if removes_invites else []
        self._rules = regex.compile("|".join(rules))

    def filtered(self, text: str) -> str:
        """Return a complete text as it may be shown."""
        return self.scan(text, final=True)[0]

    def scan(self, text: str, *, final: bool, before: str = "") -> tuple[str, int]:
        """Return what may be shown of `text`, and how much of `text` that is.

        Unless it is `final`, the end is left out from where it may go on to something forbidden. `before` is
        what stands before the text and is shown already.
        """
        folded, seen = fold(text), fold(before[-_CONTEXT:]).text
        rest, offset, at = f"{seen}{folded.text}", -len(seen), len(seen)
        shown: list[str] = []
        done = 0
        while (match := self._rules.search(rest, at, partial=not final)) and match.end() > match.start():
            start = max(done, folded.origin(match.start() + offset, len(text)))
            if match.partial or (not final and match.end() == len(rest)):
                return "".join((*shown, text[done:start])), start
            end = folded.origin(match.end() + offset - 1, len(text)) + 1
            kind, found, at = match.lastgroup, text[start:end], match.start() + 1
            if kind not in _LOOKS_RANDOM or _LOOKS_RANDOM[kind](found):
                instead = _replacement(kind, found)
                shown += [text[done:start], instead]
                # What follows stands behind the replacement, whose last character may be part of its word.
                # A character that folds to several, as ¼ does, goes as a whole.
                stop = match.end()
                while stop < len(rest) and folded.origin(stop + offset, len(text)) < end:
                    stop += 1
                rest, at, done = instead[-1].lower() + rest[stop:], 1, end
                offset += stop - 1
        return "".join((*shown, text[done:])), len(text)


class FilterStream:
    """The filter over one text that grows. Takes time in proportion to what is new."""

    def __init__(self, rules: OutputFilter) -> None:
        self._rules = rules
        self._raw = ""
        self._shown = ""

    def feed(self, text: str, *, final: bool) -> str:
        """Return what may be shown of the whole text so far: what was shown, and maybe more."""
        if not text.startswith(self._raw):  # the end was cut off, as at a stop string
            return self._rules.scan(text, final=final)[0]
        num_seen = len(self._raw)
        shown, num_done = self._rules.scan(text[num_seen:], final=final, before=self._shown)
        self._raw = text[: num_seen + num_done]
        self._shown += shown
        return self._shown


def _replacement(rule: str | None, found: str) -> str:
    if rule == "mass":
        # Discord takes it literally: in any disguise it mentions nobody.
        return f"@{_ZERO_WIDTH_SPACE}{found[1:]}" if found.lower() in ("@everyone", "@here") else found
    return REMOVED["invite" if rule == "invite" else "secret"]
