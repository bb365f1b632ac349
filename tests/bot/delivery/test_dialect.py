"""What Discord does not know is shown in what it knows, and what is shown stays while the text grows."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.delivery.dialect import RULE, translate
from bot.delivery.formulas import readable
from bot.delivery.render import MAX_LENGTH, render, stretches
from bot.delivery.tables import MAX_WIDTH
from tests.bot.delivery.test_render import FRAGMENTS as OLD_FRAGMENTS

TABLE = "| Name | Age |\n|---|--:|\n| Ann | 5 |\n| 漢字 | 12 |\n"
WIDE = "| City | What to see there |\n|---|---|\n| Paris | the tower, the river, and all of its museums |\n"
FRAGMENTS = [
    *OLD_FRAGMENTS,
    *(TABLE, WIDE, "| a | b |\n", "|---|---|\n", "| `x` | $y^2$ |\n", "|", "| x\n", "|:-:|\n", " | "),
    *(
        "# ",
        "#### Deep\n",
        "##### ",
        "---\n",
        "***\n",
        "===\n",
        "- - -\n",
        "--",
        "- [ ] do\n",
        "- [x] done\n",
    ),
    *(
        "- [",
        "[^1]",
        "[^1]: note\n",
        "[^",
        "[^a]",
        "> ",
        ">> deep\n",
        ">>> all\n",
        "> > x\n",
        ">",
        "> | a |\n",
    ),
    *(r"\(x^2\)", r"\[\frac{a}{b}\]", "$x$", "$$y_1$$", "$5", " $", "\\", r"\(", r"\[", "$$", r"\)", r"\]"),
    *("**", "**bold**", "*", "_it_", "__", "~~", "||", "a || b", "\\*", "1.", "12", "+ x\n", "   "),
]
fragments = st.sampled_from(FRAGMENTS) | st.text(max_size=5)
texts = st.lists(fragments, max_size=30).map("".join)


def shown(text: str) -> str:
    return translate(text, final=True).text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("#### Deep\ntext", "### Deep\ntext"),
        ("###### Deeper", "### Deeper"),
        ("### Kept", "### Kept"),
        ("#hashtag and #####", "#hashtag and #####"),
        ("a\n\n---\n\nb", f"a\n\n{RULE}\n\nb"),
        ("* * *", RULE),
        ("_____\nx", f"{RULE}\nx"),
        ("***bold***\n-- dashes", "***bold***\n-- dashes"),
        ("- [ ] one\n- [x] two\n  1. [X] three", "- ☐ one\n- ☑ two\n  1. ☑ three"),
        ("- [link](https://a.b)\n- [maybe] not", "- [link](https://a.b)\n- [maybe] not"),
        ("So it is[^1].\n\n[^1]: A book, page 12.", "So it is¹.\n\n-# ¹ A book, page 12."),
        ("the class [^a-z] and [^12](x)", "the class [^a-z] and [^12](x)"),
        (">> deep\n> > deeper\n>>> all\n> one", "> deep\n> deeper\n> all\n> one"),
        (">_< and >:( stay", ">_< and >:( stay"),
        ("> #### In a quote\n> - [x] done", "> ### In a quote\n> - ☑ done"),
        ("```\n#### code\n---\n| a |\n|---|\n- [ ] x $x^2$\n```", None),
        ("`[^1] $x^2$ \\(a\\)` and `#### x`", None),
        ("https://example.org/$x$/[^1]", None),
    ],
)
def test_blocks_that_discord_does_not_know(text: str, wanted: str | None) -> None:
    assert shown(text) == (text if wanted is None else wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"so \(s = \frac{a}{b}\).", "so s = a/b."),
        (r"$$E = mc^2$$", "E = mc²"),
        (r"\[ x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a} \]", "x = (-b ±√(b² - 4ac))/(2a)"),
        (r"$\alpha \le \beta$, $x_{ij}$ and $n$", "α ≤ β, xᵢⱼ and n"),
        (r"\(\left( a \right)\)", "( a )"),
        (r"\(\begin{matrix} 1 & 2 \end{matrix}\)", r"`\begin{matrix} 1 & 2 \end{matrix}`"),
        (
            "$$\n\\begin{cases}\n1 \\\\ 2\n\\end{cases}\n$$",
            "```latex\n\\begin{cases}\n1 \\\\ 2\n\\end{cases}\n```",
        ),
        (r"\(\unknown{x}\)", r"`\unknown{x}`"),
        ("It costs $5 or $10, or US$5=A$7, or $3.50-$4.", None),
        ("$HOME/bin:$PATH and `$x$`, $1,000 = $1k", None),
        (r"a \$ b $ c $ d", None),
        (r"open \(x without an end", None),
    ],
)
def test_formulas_are_unicode_or_code_and_prices_stay(text: str, wanted: str | None) -> None:
    assert shown(text) == (text if wanted is None else wanted)


@pytest.mark.parametrize(
    "latex",
    [
        r"\text{AKIA}IOSFODNN7EXAMPLE",
        r"discord.\text{gg}/abc",
        r"\text{@}everyone",
        "{" * 300,
        r"\sqrt" * 80,
        "^" * 99,
    ],
)
def test_no_formula_becomes_an_address_a_mention_or_a_fault(latex: str) -> None:
    assert readable(latex) is None


def test_a_table_is_aligned_in_a_block_of_code() -> None:
    assert shown(f"See:\n\n{TABLE}\nDone.") == (
        "See:\n\n```\nName | Age\n-----+----\nAnn  |   5\n漢字 |  12\n```\n\nDone."
    )


def test_a_table_wider_than_a_phone_is_a_list() -> None:
    assert shown(WIDE) == (
        "- **City: Paris**\n  - What to see there: the tower, the river, and all of its museums\n"
    )
    assert shown(
        "| A | B |\n|---|---|\n| [x](https://e.org) | `y` |"
    ) == "- A: [x](https://e.org)\n  - B: `y`\n".replace(
        "- A: [x](https://e.org)", "- **A: [x](https://e.org)**"
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("| a | b |\n| c | d |", None),
        ("| only | a | head |", None),
        ("make build || echo failed", None),
        ("|---|---|", None),
        ("||| a | b |\n|---|---|\n| c | d |", None),
        (
            "| a\\|b | **c** |\n|-|-|\n| `d` | e<br>f | g |\n",
            "```\na|b | c   |\n----+-----+--\nd   | e f | g\n```\n",
        ),
        ("| a |\n|---|\n| ``` |\n", "```\na\n-\n```\n| ``` |\n"),
        ("text\n  | a |\n  |---|\n  | b |\nafter", "text\n```\na\n-\nb\n```\nafter"),
    ],
)
def test_what_is_a_table_and_what_is_not(text: str, wanted: str | None) -> None:
    assert shown(text) == (text if wanted is None else wanted)


def test_no_line_of_a_table_in_code_is_wider_than_a_phone() -> None:
    for width in range(10, 50):
        text = f"| {'x' * width} | b |\n|---|---|\n| 1 | 2 |\n"
        lines = shown(text).splitlines()
        assert lines[0] != "```" or max(map(len, lines)) <= MAX_WIDTH


def test_a_long_table_grows_row_by_row_and_survives_cuts() -> None:
    text = "| n | square |\n|---|---|\n" + "".join(f"| {n} | {n * n} |\n" for n in range(400))
    early = translate(text[:2500], final=False).text
    assert "\n40 " in early
    parts = render(text, final=True)
    assert len(parts) > 2
    assert all(
        part.startswith("```\n") and part.endswith("\n```") and len(part) <= MAX_LENGTH for part in parts
    )


@settings(max_examples=300, deadline=None)
@given(texts, st.lists(st.floats(0, 1), min_size=1, max_size=6))
@example("0000$$y_1$$", [0.5])
def test_what_is_given_for_a_text_is_the_beginning_of_what_is_given_for_more(
    text: str, shares: list[float]
) -> None:
    before = ""
    for length in [*sorted(int(share * len(text)) for share in shares), len(text)]:
        now = translate(text[:length], final=False).text
        assert now.startswith(before)
        before = now
    assert shown(text).startswith(before)


@pytest.mark.parametrize(
    "text", [TABLE, WIDE, "0$$x_1$$", *(one + " end\n" for one in FRAGMENTS if one.strip())]
)
def test_it_holds_character_by_character(text: str) -> None:
    whole = f"Intro `code` \n{text}\nmore $x^2$ text\n{text}"
    before = ""
    for length in range(len(whole) + 1):
        now = translate(whole[:length], final=False).text
        assert now.startswith(before)
        before = now
    assert shown(whole).startswith(before)


@pytest.mark.parametrize("word", ["a", "12 ", "- x", "**b", "# T", "text with `code"])
def test_ordinary_words_do_not_wait(word: str) -> None:
    assert translate(f"Hello\n{word} and", final=False).text == f"Hello\n{word} and"


marks = re.compile(r"[\s`*_~#>|\-─+☐☑\[\]xX^:=¹\u01c0]")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([one for one in FRAGMENTS if not re.search(r"[\\$<@]", one)]), max_size=20))
def test_without_marks_it_is_the_models_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    letters = marks.sub("", text).replace("1", "")
    visible = marks.sub("", "".join(render(text, final=True))).replace("1", "")
    assert not Counter(letters) - Counter(visible), "nothing is lost"
    if WIDE not in text:
        assert visible == letters


@settings(max_examples=200, deadline=None)
@given(texts.map(lambda text: text * 20), st.integers(1, 6))
def test_the_stretches_of_its_messages_are_the_text(text: str, max_parts: int) -> None:
    pieces = stretches(text, max_parts)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert len(pieces) == min(len(render(text, final=True)), max_parts)


@pytest.mark.parametrize(
    "unit", ["$", "$$", r"\[", r"\(", "|", "| a ", "[^1", "- [", ">", "> ", "#", "-", "$a ", "|-"]
)
def test_it_takes_time_in_proportion(unit: str) -> None:
    text = unit * (60_000 // len(unit))
    begun = time.process_time()
    translate(text, final=True)
    translate(text, final=False)
    translate("\n".join([unit * 5] * 4000), final=False)
    assert time.process_time() - begun < 3
