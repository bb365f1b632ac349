"""What no answer may show: invitations, secrets and mentions of everybody. Pure.

Looks at the folded text, so look-alikes and invisible characters hide nothing. While an answer grows, what
may yet become one of these is held back, so at no time is anything forbidden shown.
"""

from __future__ import annotations

import regex

from bot.safety.folding import fold

REMOVED = {"invite": "[invitation removed]", "secret": "[secret removed]"}
_ZERO_WIDTH_SPACE = "\u200b"
_HARMLESS = regex.compile(r"[A-Za-z0-9_-]{1,19}")
"""What may be shown though it may yet go on to something forbidden: a word shorter than any secret."""

_MASS = r"(?P<mass>@(?:everyone|here))"
_ID = r"[a-z0-9_-]"
# Every repetition of slashes is possessive: otherwise a row of them takes a time that grows with its cube.
_SECRET = "|".join(
    (
        rf"{_ID}{{23,30}}\.{_ID}{{6,7}}\.{_ID}{{27,60}}",  # a bot's token
        rf"mfa\.{_ID}{{40,120}}",
        rf"discord(?:app)?\.com/++api/++(?:v[0-9]{{1,3}}/++)?webhooks/++[0-9]{{15,21}}/++{_ID}{{20,100}}",
        r"(?:gh[pousr]_|github_pat_)[a-z0-9_]{30,90}",
        rf"sk-{_ID}{{20,200}}",
        r"akia[a-z0-9]{16}",
        rf"xox[abprs]-{_ID}{{10,100}}",
        r"-----begin [a-z ]{0,30}private key-----[a-z0-9+/=\s]{0,4000}+"
        r"(?:-----end [a-z ]{0,30}private key-----)?",
    )
)
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
        rules = [_MASS, f"(?P<secret>{_SECRET})", *([f"(?P<invite>{_INVITE})"] if removes_invites else [])]
        self._rules = regex.compile("|".join(rules))

    def filtered(self, text: str) -> str:
        """Return a complete text as it may be shown."""
        return self.scan(text, final=True)[0]

    def scan(self, text: str, *, final: bool) -> tuple[str, int]:
        """Return what may be shown of `text`, and how much of `text` that is.

        Unless it is `final`, the end is left out from where it may go on to something forbidden.
        """
        folded = fold(text)
        shown: list[str] = []
        done = 0
        for match in self._rules.finditer(folded.text, partial=not final):
            if match.end() == match.start():
                continue
            start = max(done, folded.origin(match.start(), len(text)))
            if match.partial or (not final and match.end() == len(folded.text)):
                return "".join((*shown, text[done:start])), start
            end = folded.origin(match.end() - 1, len(text)) + 1
            shown += [text[done:start], _replacement(match.lastgroup, text[start:end])]
            done = end
        return "".join((*shown, text[done:])), len(text)


class FilterStream:
    """The filter over one text that grows. Takes time in proportion to what is new."""

    def __init__(self, rules: OutputFilter) -> None:
        self._rules = rules
        self._raw = ""
        self._shown = ""

    def feed(self, text: str, *, final: bool) -> str:
        """Return what may be shown of the whole text so far; of what was shown only the last word changes."""
        if not text.startswith(self._raw):  # the end was cut off, as at a stop string
            return self._rules.scan(text, final=final)[0]
        shown, num_done = self._rules.scan(text[len(self._raw) :], final=final)
        self._raw = text[: len(self._raw) + num_done]
        self._shown += shown
        held = text[len(self._raw) :]
        return self._shown + held if _HARMLESS.fullmatch(held) else self._shown


def _replacement(rule: str | None, found: str) -> str:
    if rule == "mass":
        # Discord takes it literally: in any disguise it mentions nobody.
        return f"@{_ZERO_WIDTH_SPACE}{found[1:]}" if found.lower() in ("@everyone", "@here") else found
    return REMOVED[rule or "secret"]
