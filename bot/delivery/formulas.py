"""LaTeX as people read it without LaTeX: in Unicode where that reads well. The only file with `pylatexenc`.

Pure. Knows nothing of where in a text a formula stands.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from pylatexenc.latexwalker import LatexMacroNode

MAX_FORMULA = 400
"""Characters; a longer one does not read well in any form."""
_LAYOUT = re.compile(r"\\begin|\\\\|&")
"""What makes rows and columns."""
_SCRIPT = re.compile(r"([\^_])[ \t]*(?:\{((?:[^{}]|\{[^{}]*\})*)\}|(.))", re.DOTALL)
_ONE_THING = re.compile(r"\d[\d.]*|[^\W\d_]+|.", re.DOTALL)
_UNREADABLE = re.compile(r"[\\{}@]|%s|[^\W\d]\.[^\W\d]|\w{20}|^[/^_]|[/^_]$")
"""What is left where something was not understood, and what might be an address or a key."""
_RELATION = re.compile(r"[ ]*([≤≥≠≈≡∼≅∝→←↔⇒⇐⇔↦∈∉∋⊂⊃⊆⊇∩∪∧∨×÷])[ ]*")
_SPACES = re.compile(r"\s+")
_KEPT = {"\ue000": "^", "\ue001": "_", "\ue002": "{", "\ue003": "}"}
"""Characters that are part of the formula, while the others of their kind still say how to read it."""
_ACCENTS = {
    "vec": "\u20d7",
    "hat": "\u0302",
    "bar": "\u0305",
    "overline": "\u0305",
    "tilde": "\u0303",
    "dot": "\u0307",
}
_WORDS = ("det", "dim", "ker", "gcd", "deg", "arg", "Pr", "sup", "inf", "hom", "argmax", "argmin")
_OF_LOOKS = (
    *("displaystyle", "textstyle", "limits", "nolimits", "left", "right", "middle"),
    *("big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr"),
)
"""Macros that change what a formula looks like and not what it says."""


class _UnreadableError(Exception):
    """A formula has no form that reads well."""


def readable(latex: str) -> str | None:
    """Return a formula in Unicode, on one line; None where that would not read well."""
    if len(latex) > MAX_FORMULA or _LAYOUT.search(latex) or not latex.strip():
        return None
    try:
        text = _converter().latex_to_text(latex)
    except Exception:  # noqa: BLE001 - a foreign parser of a foreign text: whatever it does not take
        return None
    text = _SPACES.sub(" ", _RELATION.sub(r" \1 ", _scripts(text))).strip()
    if not text or _UNREADABLE.search(text):
        return None
    return text.translate({ord(kept): char for kept, char in _KEPT.items()})


@functools.cache
def _converter() -> LatexNodes2Text:
    known = get_default_latex_context_db()
    ours = [
        *(MacroTextSpec(name, simplify_repl=_fraction) for name in ("frac", "dfrac", "tfrac")),
        MacroTextSpec("sqrt", simplify_repl=_root),
        *(MacroTextSpec(name, simplify_repl=_accented) for name in _ACCENTS),
        *(MacroTextSpec(name, simplify_repl=name) for name in _WORDS),
        *(MacroTextSpec(name, simplify_repl="") for name in _OF_LOOKS),
        *(MacroTextSpec(name, simplify_repl=kept) for kept, name in _KEPT.items() if name in "{}"),
        MacroTextSpec("bmod", simplify_repl="mod"),
    ]
    known.add_context_category("llamacord", prepend=True, macros=ours)
    known.set_unknown_macro_spec(MacroTextSpec("", simplify_repl=_refuse))
    spaces = {"between-macro-and-chars": False, "between-latex-constructs": False, "after-comment": False}
    return LatexNodes2Text(
        known,
        math_mode="text",
        keep_braced_groups=True,
        keep_braced_groups_minlen=0,
        strict_latex_spaces=spaces,
    )


def _refuse(node: LatexMacroNode) -> str:
    raise _UnreadableError(node.macroname)


def _fraction(node: LatexMacroNode, l2tobj: LatexNodes2Text) -> str:
    above, below = (_argument(node, at, l2tobj) for at in (0, 1))
    return f"{_grouped(above)}/{_grouped(below)}"


def _root(node: LatexMacroNode, l2tobj: LatexNodes2Text) -> str:
    degree, of = _argument(node, 0, l2tobj), _argument(node, 1, l2tobj)
    sign = {"": "√", "2": "√", "3": "∛", "4": "∜"}.get(degree)
    if sign is None:
        raise _UnreadableError(degree)
    return f"{sign}{_grouped(of)}"


def _accented(node: LatexMacroNode, l2tobj: LatexNodes2Text) -> str:
    of = _argument(node, 0, l2tobj)
    if len(of) != 1:
        raise _UnreadableError(of)
    return of + _ACCENTS[node.macroname]


def _argument(node: LatexMacroNode, at: int, l2tobj: LatexNodes2Text) -> str:
    given = node.nodeargd.argnlist[at]
    if given is None:
        return ""
    text: str = l2tobj.nodelist_to_text([given])
    inner = text[1:-1] if text[:1] in ("{", "[") and text[-1:] in ("}", "]") else text
    return _scripts(inner).strip()


def _grouped(text: str) -> str:
    """Return `text` in parentheses unless it is one thing."""
    return text if _ONE_THING.fullmatch(text) else f"({text})"


def _scripts(text: str) -> str:
    """Raise and lower what follows `^` and `_`, and do without the braces around the rest."""
    before = ""
    while before != text:
        before, text = text, _SCRIPT.sub(_script, text)
    return text.replace("{", "").replace("}", "")


def _script(match: re.Match[str]) -> str:
    inner = (_scripts(match[2]) if match[3] is None else match[3]).strip()
    is_raised = match[1] == "^"
    if is_raised and inner in ("∘", "°"):
        return "°"
    table = _table("super" if is_raised else "sub")
    if inner and all(char in table for char in inner.replace(" ", "")):
        return "".join(table[char] for char in inner if char != " ")
    mark = "\ue000" if is_raised else "\ue001"
    shown = f"{mark}{inner}" if len(inner) == 1 else f"{mark}({inner})"
    return shown if is_raised else f"{shown} "


@functools.cache
def _table(kind: str) -> dict[str, str]:
    """Return the raised (`super`) or lowered (`sub`) form of each character that has one."""
    forms: dict[str, str] = {"-": "⁻", "−": "⁻"} if kind == "super" else {"-": "₋", "−": "₋"}
    for code in (*range(0xA0, 0x250), *range(0x2070, 0x20A0), *range(0x1D2C, 0x1D7F), *range(0x2C7C, 0x2C7E)):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and parts[0] == f"<{kind}>":
            forms.setdefault(chr(int(parts[1], 16)), chr(code))
    return forms


def raised(text: str) -> str | None:
    """Return a text as a superscript, None where one of its characters has none."""
    table = _table("super")
    return "".join(table[char] for char in text) if all(char in table for char in text) else None
