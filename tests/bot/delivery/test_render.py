"""What every way of cutting must keep: lengths, completeness, stability, and whatever belongs together."""

from __future__ import annotations

import re
import time

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.delivery.markup import scan
from bot.delivery.render import (
    AT,
    MAX_LENGTH,
    defuse,
    is_boundary,
    render,
    split,
    stretches,
    with_note,
    with_note_inside,
)

CONSTRUCTS = [
    "[the whole text](https://example.org/a_(b)?q=1)",
    '![a b](https://example.org/x "with a title")',
    "https://example.org/path/that/is?quite=long&indeed#yes",
    "<https://example.org/漢字漢字漢字>",
    "<:llama:123456789012345678>",
    "<a:dance_9:123456789012345678>",
    "<@123456789012345678>",
    "<@!123456789012345678>",
    "<#123456789012345678>",
    "<@&123456789012345678>",
    "<t:1618953630:R>",
    "</settings show:123456789012345678>",
    "`inline code with spaces`",
    "``inline ` code``",
    "```one line of code```",
]
CLUSTERS = [
    "👩‍👩‍👧‍👦",
    "👍🏽",
    "🏳️‍🌈",
    "🇩🇪",
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "1️⃣",
    "e\u0301\u0323",
    "각",
    "नि",
    "क्ष",
    "กำ",
    "x\u0308\u200d\u0308",
]
FRAGMENTS = [
    *CONSTRUCTS,
    *CLUSTERS,
    *("word ", "another, ", "\n", "\n\n", "    ", "- item\n", "1. item\n", "# Heading\n", "| a | b |\n", "x"),
    *(
        "```",
        "```py\n",
        "\n```\n",
        "````md\n",
        "\n````\n",
        "~~~\n",
        "~~~sh\n",
        "    ```js\n",
        "text ```\n",
        "> ```\n",
    ),
    *(
        "`",
        "``",
        "`````````",
        "[",
        "](",
        "<",
        "<@1",
        "http://",
        "漢字。",
        "「漢」",
        "x" * 300,
        "\r\n",
        "\u00a0",
    ),
]

fragments = st.sampled_from(FRAGMENTS) | st.text(max_size=12)
runs = st.tuples(fragments, st.integers(1, 120)).map(lambda run: run[0] * run[1])
markdown = st.lists(st.one_of(fragments, fragments, runs), max_size=40).map("".join)
long_markdown = st.lists(st.one_of(fragments, runs), min_size=5, max_size=60).map("".join)
many = settings(max_examples=300, deadline=None)


def num_units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


@many
@given(markdown | long_markdown, st.booleans())
@example("x" * 100_000, True)
@example("😀" * 3000, True)
@example("`" * 5000, False)
@example("~~~\n" + " " * 5000 + "x", True)
@example("```\n" + "\n" * 1500 + "```\n" + "y " * 1000, False)
def test_every_part_can_be_sent(text: str, final: bool) -> None:
    for part in render(text, final=final):
        assert part.strip()
        assert num_units(part) <= MAX_LENGTH


@many
@given(markdown | long_markdown)
@example(
    "`inline code with spaces````one line of code```" + "https://example.org/path?quite=long&indeed#yes" * 43
)
def test_the_pieces_together_are_the_text(text: str) -> None:
    pieces = split(text, final=True)
    at = 0
    for index, piece in enumerate(pieces):
        gap = text[at : piece.start]
        closed_by = pieces[index - 1].tail if index else ""
        fence = closed_by.strip()[:1] if closed_by.startswith("\n") else ""
        marks = "" if fence else closed_by
        assert re.fullmatch(rf"\s*{fence or 'x'}{{0,8}}\s*(?:{re.escape(marks)})?", gap) or not gap.strip(
            marks
        )
        assert not gap.strip() or closed_by, "only what closes something that is closed already is left out"
        at = piece.end
        if piece.head.startswith(("`", "~~~")) and fence:
            assert not gap.strip()
        elif index and fence and not gap.strip():
            before = text[pieces[index - 1].start : pieces[index - 1].end]
            assert before.rstrip().endswith("`"), "only the cut made this look like a block of code"
        assert piece.show(text) == defuse(piece.head + text[piece.start : piece.end] + piece.tail)
    assert not text[at:].strip()
    assert bool(pieces) == bool(text.strip())


@many
@given(long_markdown, st.lists(st.floats(0, 1), min_size=1, max_size=6), st.booleans())
@example("~~~sh\ncode", [0.2, 0.6], False)
def test_no_part_but_the_last_ever_changes(text: str, shares: list[float], final: bool) -> None:
    shown: list[str] = []
    for length in [*sorted(int(share * len(text)) for share in shares), len(text)]:
        parts = render(text[:length], final=final and length == len(text))
        assert parts[: len(shown[:-1])] == shown[:-1]
        assert len(parts) >= len(shown), "a message that was sent is never taken back"
        shown = parts


@pytest.mark.parametrize("unit", ["x", "word ", "`a b` [c d](e) ", "漢字", "x\n", "```py\ncode\n```\n", "🇩🇪"])
def test_no_part_but_the_last_ever_changes_character_by_character(unit: str) -> None:
    text = ("intro " * 300 + unit * 700)[:4200]
    shown: list[str] = []
    for length in range(1700, len(text)):
        parts = render(text[:length], final=False)
        assert parts[: len(shown) - 1] == shown[:-1]
        assert len(parts) >= len(shown)
        shown = parts


def test_a_cut_behind_backticks_does_not_open_a_block_of_code() -> None:
    code = "``inline ` code````inline ` code``"
    for part in render(code + "0`" + 42 * "[the whole text](https://example.org/a_(b)?q=1)", final=False):
        assert scan(part, 0, len(part), None, complete=True).fence is None


@many
@given(markdown | long_markdown)
def test_no_part_leaves_a_block_of_code_open(text: str) -> None:
    for part in render(text, final=False):
        assert scan(part, 0, len(part), None, complete=True).fence is None


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*CLUSTERS, *"a\n \U0001f1eb\u200d\u0301\u1100\u1161\u094d", "क्ष्म", "か\u3099", "\r\n"]
        )
    )
)
def test_clusters_are_those_of_the_whole_text_wherever_one_begins_to_look(pieces: list[str]) -> None:
    text = "".join(pieces)
    ends = [match.end() for match in regex.finditer(r"\X", text)]
    assert [index for index in range(1, len(text) + 1) if is_boundary(text, index, 0)] == ends


@pytest.mark.parametrize("construct", CONSTRUCTS + CLUSTERS)
@pytest.mark.parametrize("filler", ["word ", "x", "漢", "line of text\n", "😀"])
@pytest.mark.parametrize("separator", ["", " "])
def test_what_belongs_together_is_never_cut(construct: str, filler: str, separator: str) -> None:
    for position in [*range(950, 1000, 3), *range(1920, 1996)]:
        before = (filler * position)[:position] + separator
        text = before + construct + separator + filler * 500
        assert any(defuse(construct) in part for part in render(text, final=True)), position


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("abcdefghij", min_size=1, max_size=1900), min_size=20, max_size=60),
    st.sampled_from(" \n"),
)
def test_words_stay_whole(words: list[str], separator: str) -> None:
    parts = render(separator.join(words), final=True)
    assert [word for part in parts for word in part.split()] == words


def test_a_space_that_carries_a_mark_is_not_trimmed() -> None:
    for length in range(1950, 2000):
        parts = render("x" * length + "  \u0301" + "y" * 100, final=True)
        assert any(" \u0301" in part for part in parts)


def test_a_word_longer_than_a_part_is_cut_and_nothing_is_lost() -> None:
    parts = render("short " + "w" * 5000 + " end", final=True)
    assert parts[0] == "short"
    assert "".join(parts[1:]) == "w" * 5000 + " end"


@pytest.mark.parametrize("begin", ["a", "```\n", "```\na", "~~~\n", "~~~\na"])
@pytest.mark.parametrize(
    "unit",
    ["x", "😀", "`", "[", "`a ", "🇩🇪", "a\u0301", "~", "\u0301", "漢", "<a ", "```a", " \n", " ", "~~~ "],
)
def test_one_endless_line_takes_time_in_proportion(begin: str, unit: str) -> None:
    text = begin + unit * (100_000 // len(unit)) + "z"
    started = time.process_time()
    render(text, final=True)
    assert time.process_time() - started < 2


def test_a_paragraph_is_a_better_end_than_a_line_and_a_line_than_a_word() -> None:
    first = "a" * 1600
    assert render(f"{first}\n\n{'b ' * 100}\n{'c ' * 200}", final=True)[0] == first
    assert render(f"{first}\n{'b ' * 400}", final=True)[0] == first
    assert len(render(f"{'a' * 500}\n{'b ' * 1000}", final=True)[0]) > 1900


def test_a_heading_stays_with_its_text() -> None:
    parts = render("word " * 380 + "\n## Heading\n" + "text " * 100, final=True)
    assert parts[1].startswith("## Heading\ntext")


def test_chinese_is_cut_between_characters_but_not_before_a_full_stop() -> None:
    for shift in range(5):
        parts = render("a" * shift + "漢字漢。" * 700, final=True)
        assert all(len(part) > 1900 for part in parts[:-1])
        assert not any(part.startswith("。") for part in parts)


@pytest.mark.parametrize("text", ["", " ", "\n\n\t", "\u00a0\u3000"])
def test_a_blank_text_has_no_parts(text: str) -> None:
    assert render(text, final=True) == render(text, final=False) == []


def test_a_note_is_a_small_line_below_or_a_part_of_its_own() -> None:
    assert with_note(["text"], "stopped\nby you") == ["text\n-# stopped by you"]
    assert with_note([], "stopped") == ["-# stopped"]
    full = "x" * MAX_LENGTH
    assert with_note(["first", full], "stopped") == ["first", full, "-# stopped"]
    for length in range(MAX_LENGTH - 15, MAX_LENGTH + 1):
        assert max(map(len, with_note(["x" * length], "stopped"))) <= MAX_LENGTH
    assert len(with_note([], "n" * 9000)[0]) <= MAX_LENGTH


@many
@given(markdown | long_markdown, st.integers(1, 6))
def test_the_stretches_hold_all_of_the_text(text: str, max_parts: int) -> None:
    shown = stretches(text, max_parts)
    assert len(shown) == min(len(render(text, final=True)), max_parts)
    marks = re.compile(r"[`~\s]")
    assert marks.sub("", "".join(shown)) == marks.sub("", text)


@pytest.mark.parametrize("shift", range(0, 90, 7))
def test_lists_tables_and_headings_survive_a_cut(shift: int) -> None:
    rows = [f"| {number} | {'cell ' * 8}|" for number in range(60)]
    items = [f"{number}. {'item ' * 12}" for number in range(1, 60)]
    sections = [f"## Section {number}\n{'text ' * 30}" for number in range(12)]
    text = "x" * shift + "\n" + "\n".join([*rows, "", *items, "", *sections])
    lines = [line.rstrip() for part in render(text, final=True) for line in part.splitlines()]
    for line in [*rows, *items, *(f"## Section {number}" for number in range(12))]:
        assert line.rstrip() in lines, "a line of its own, whole and at the beginning of one"
    for part in render(text, final=True):
        assert not part.splitlines()[-1].startswith("##"), "a heading stays with its text"


@pytest.mark.parametrize("mark", ["**", "*", "***", "~~", "__", "_"])
@pytest.mark.parametrize("shift", range(0, 40, 7))
def test_marked_words_are_closed_and_opened_anew_over_a_cut(mark: str, shift: int) -> None:
    text = "x " * shift + f"Look: {mark}{'marked words ' * 420}end{mark} and plain."
    parts = render(text, final=True)
    assert len(parts) > 2
    assert parts[0].endswith(mark)
    assert all(part.startswith(mark) and part.endswith(mark) for part in parts[1:-1])
    assert parts[-1].startswith(mark)
    assert f"end{mark} and plain." in parts[-1]
    assert all(part.count(mark) == 2 for part in parts)
    assert "".join(parts).replace(mark, "").replace(" ", "") == text.replace(mark, "").replace(" ", "")


def test_a_quote_and_the_place_in_a_list_go_on_after_a_cut() -> None:
    parts = render("> " + "quoted words " * 300, final=True)
    assert all(part.startswith(("> quoted", "> words")) for part in parts)
    nested = "- top\n" + "".join(f"  - sub {n} {'word ' * 20}\n" for n in range(60)) + "- last"
    first, *others = render(nested, final=True)
    assert others
    assert all(part.startswith("- \u200b\n  - sub") for part in others)
    assert first.startswith("- top\n  - sub 0")


@pytest.mark.parametrize(
    "text", ["2 * 3 * 4 " * 400, "snake_case_name " * 300, "a ** b " * 500, "\\*no " * 600]
)
def test_what_marks_nothing_is_not_closed(text: str) -> None:
    assert "".join(render(text, final=True)).replace(" ", "") == text.replace(" ", "")


def test_marks_end_with_their_paragraph() -> None:
    parts = render("never **closed\n\n" + "plain words " * 400, final=True)
    assert "".join(parts).count("**") == 1


def visible(parts: list[str]) -> str:
    """Return what is read of parts: no marks, and no matter which at sign."""
    return re.sub(r"[\s*_~`>\u200b|\u01c0-]", "", "".join(parts).replace(AT, "@"))


@many
@given(
    st.lists(
        fragments
        | st.sampled_from(["**", "*", "_", "~~", "**bold** ", "*it* ", "> ", "- ", "  - ", "||", "w " * 300]),
        max_size=40,
    ).map("".join),
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
def test_what_is_shown_never_jumps_back(text: str, shares: list[float]) -> None:
    before: list[str] = []
    for length in [*sorted(int(share * len(text)) for share in shares), len(text)]:
        parts = render(text[:length], final=False)
        assert visible(parts).startswith(visible(before))
        assert parts[: max(len(before) - 1, 0)] == before[:-1]
        before = parts
    assert visible(render(text, final=True)).startswith(visible(before))


@given(st.text(alphabet=st.sampled_from("ab \n🦙"), min_size=1, max_size=2000))
def test_a_note_finds_room_inside_a_full_message(text: str) -> None:
    for part in (text, f"```py\n{text}\n```"):
        if num_units(part) > MAX_LENGTH:
            continue
        noted = with_note_inside(part, "Not all of it.")
        assert num_units(noted) <= MAX_LENGTH
        assert noted.endswith("\n-# Not all of it.")
        assert noted.count("```") == part.count("```")
