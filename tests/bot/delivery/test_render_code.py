"""Blocks of code: cut, closed and opened anew, and shown while they are written."""

from __future__ import annotations

import pytest

from bot.delivery.render import MAX_LENGTH, render


@pytest.mark.parametrize("language", ["python", "c++", "objective-c", "f#", ""])
@pytest.mark.parametrize("marker", ["```", "````", "~~~"])
def test_a_long_block_is_closed_and_opened_with_its_language(marker: str, language: str) -> None:
    lines = [f"{' ' * (n % 9)}line {n} = {n * n}" for n in range(400)]
    text = f"Look:\n{marker}{language}\n" + "\n".join(lines) + f"\n{marker}\nDone."
    parts = render(text, final=True)
    assert len(parts) > 3
    assert parts[0].startswith(f"Look:\n{marker}{language}\n")
    assert parts[-1].endswith(f"\n{marker}\nDone.")
    for part in parts[1:]:
        assert part.startswith(f"{marker}{language}\n")
    for part in parts[:-1]:
        assert part.endswith(f"\n{marker}")
    code = [line for part in parts for line in part.split("\n") if "line" in line]
    assert code == lines, "indentation is kept and no line of code is cut"


def test_a_block_that_is_opened_again_still_fits() -> None:
    language = "l" * 32
    parts = render(f"````{language}\n" + "x" * 9000 + "\n````", final=True)
    assert all(part.startswith(f"````{language}\n") and part.endswith("\n````") for part in parts)
    assert max(map(len, parts)) <= MAX_LENGTH
    assert "".join(part[len(language) + 5 : -5] for part in parts) == "x" * 9000


@pytest.mark.parametrize("info", ["x" * 5000, "word " * 1000, "x" * 33, "x" * 101])
def test_an_absurd_info_string_is_not_repeated(info: str) -> None:
    parts = render(f"```{info}\n" + "code\n" * 1000 + "```", final=True)
    assert len(parts) > 2
    assert all(part.startswith("```\n") for part in parts[1:])


def test_only_the_language_of_an_info_string_is_repeated() -> None:
    parts = render('```python title="x"\n' + "code\n" * 1000 + "```", final=True)
    assert all(part.startswith("```python\n") for part in parts[1:])


def test_a_shorter_marker_inside_a_longer_fence_is_code() -> None:
    parts = render("````md\n" + "```py\nx\n```\n" * 300 + "````\nend", final=True)
    assert all(part.startswith("````md\n") for part in parts)
    assert all(part.endswith("\n````") for part in parts[:-1])
    assert parts[-1].endswith("````\nend")


def test_an_indented_fence_and_one_in_a_list_are_fences() -> None:
    for opening in ("    ```py", "- ```py", "> ```py", "1. ```py", "Sure: ```py"):
        parts = render(f"{opening}\n" + "    code\n" * 500 + "    ```", final=True)
        assert all(part.startswith("```py\n    code") for part in parts[1:]), opening


def test_discord_closes_a_block_in_the_middle_of_a_line() -> None:
    parts = render("```py\nprint(1)```\n" + "prose " * 700, final=True)
    assert all("```" not in part for part in parts[1:])


def test_a_block_is_not_opened_again_only_to_be_closed() -> None:
    for length in range(1960, 2000):
        parts = render("```py\n" + "x" * length + "\n```\n\nThen prose.", final=True)
        assert "".join(parts).count("x") == length
        assert all("x" in part for part in parts if part.startswith("```"))
        assert parts[-1].endswith("Then prose.")


def test_a_block_that_begins_late_moves_to_the_next_part_whole() -> None:
    block = "```py\n" + "code\n" * 150 + "```"
    parts = render("word " * 300 + "\n\n" + block + "\n\nEnd.", final=True)
    assert parts == [("word " * 300).strip(), block + "\n\nEnd."]


def test_backticks_named_in_prose_open_nothing() -> None:
    text = "Put (```) before the code. " + "prose " * 500
    assert "".join(render(text, final=True)).count("```") == 1


def test_a_comment_in_code_is_no_heading() -> None:
    parts = render("```py\n" + "x = 1\n" * 300 + "# last\n" + "y" * 500 + "\n```", final=True)
    assert parts[0].endswith("# last\n```")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Sure:\n```py\nx = 1", ["Sure:\n```py\nx = 1\n```"]),
        ("Sure:\n```py\nx = 1\n", ["Sure:\n```py\nx = 1\n```"]),
        ("Sure:\n```py\nx = 1\n``", ["Sure:\n```py\nx = 1\n```"]),
        ("Sure:\n```py\nx = 1\n```", ["Sure:\n```py\nx = 1\n```"]),
        ("Sure:\n```py\n", ["Sure:"]),
        ("Sure:\n```p", ["Sure:"]),
        ("Sure:\n``", ["Sure:"]),
        ("Sure: ```", ["Sure:"]),
        ("```", []),
        ("Type `ls`", ["Type `ls`"]),
        ("Type\n```ls -l```", ["Type\n```ls -l```"]),
        ("~~~sh\nls", ["~~~sh\nls\n~~~"]),
    ],
)
def test_while_streaming_a_block_looks_finished_or_not_begun(text: str, shown: list[str]) -> None:
    assert render(text, final=False) == shown


def test_the_final_text_is_shown_to_its_last_character() -> None:
    assert render("a ``", final=True) == ["a ``"]
    assert render("a\n```py", final=True) == ["a\n```py"]
    assert render("a\n```py\nx", final=True) == ["a\n```py\nx\n```"]
