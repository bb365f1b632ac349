"""What of a model's output is its answer: no thoughts, no name in front; and nothing of it jumps back."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.conversation.dialog import Said, take_apart, without_name
from engine.types import Reasoning

THINK = Reasoning("<think>", "</think>")
OPEN = Reasoning("<think>", "</think>", is_open=True)


@pytest.mark.parametrize(
    ("output", "reasoning", "said"),
    [
        (
            "<think>\nThe user wants a city.\n</think>\n\nParis.",
            None,
            Said("Paris.", "The user wants a city."),
        ),
        ("<reasoning>Hm.</reasoning>Paris.", None, Said("Paris.", "Hm.")),
        ("[THINK]Hm.[/THINK]Paris.", None, Said("Paris.", "Hm.")),
        ("  <thinking>a</thinking><thinking>b</thinking> Paris.", None, Said("Paris.", "a\n\nb")),
        ("<seed:think>a</seed:think>Paris.", None, Said("Paris.", "a")),
        ("The user wants a city.\n</think>\n\nParis.", OPEN, Said("Paris.", "The user wants a city.")),
        ("<think>again</think>Paris.", OPEN, Said("Paris.", "again")),
        ("<plan>a</plan>Paris.", Reasoning("<plan>", "</plan>"), Said("Paris.", "a")),
        ("<think>not done", None, Said("", "not done", is_thinking=True)),
        ("not done", OPEN, Said("", "not done", is_thinking=True)),
        ("Well.\n<think>wait</think>\nParis.", THINK, Said("Well.\n\nParis.", "wait")),
        ("Well.\n<think>wait", THINK, Said("Well.\n", "wait", is_thinking=True)),
        (
            "Use `<think>` and\n```\n<think>\n</think>\n```",
            THINK,
            Said("Use `<think>` and\n```\n<think>\n</think>\n```"),
        ),
        ("<think>Hm.</think><response>\nParis.</response>\n", THINK, Said("Paris.", "Hm.")),
        ("<think>Hm.</think>\n<answer>Paris.", None, Said("Paris.", "Hm.")),
        ("<response>Paris.</response>", THINK, Said("<response>Paris.</response>")),
        ("The tag <think> opens it.", THINK, Said("The tag <think> opens it.")),
        ("Well.\n<think>x</think>", None, Said("Well.\n<think>x</think>")),
        (" and so on", None, Said(" and so on")),
        ("", OPEN, Said("", "", is_thinking=True)),
    ],
)
def test_thoughts_are_no_part_of_the_answer(output: str, reasoning: Reasoning | None, said: Said) -> None:
    assert take_apart(output, reasoning, final=True) == said


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("TestBot: Hello!", "Hello!"),
        ("**TestBot:** Hello!", "Hello!"),
        ("**Anna**: Hello!", "Hello!"),
        ("Anna: Hello!\n\nAnd more text.", "Hello!\n\nAnd more text."),
        ("TestBot: Sure!\nIngredients:\n- flour", "Sure!\nIngredients:\n- flour"),
        ("TestBot: Hi!\nAnna: Hello!\nTestBot: Bye.", None),
        ("Anna: Hi!\n\n**Napoleon:** Bonjour!", None),
        ("Anna: Hi!\nThe Old Man: Hm.", None),
        ("Ann: a", None),
        ("Annabel: a", None),
        ("Hello, Anna: all is well.", None),
        ("TestBot is my name: yes.", None),
        ("TestBot", None),
        ("TestBot: " + "long " * 60 + "\nAnna: what", "long " * 60 + "\nAnna: what"),
    ],
)
def test_a_name_in_front_goes_unless_a_dialogue_begins_with_it(answer: str, wanted: str | None) -> None:
    assert without_name(answer, ("TestBot", "Anna"), final=True) == (answer if wanted is None else wanted)


PIECES = (
    *(
        "<think>",
        "</think>",
        "<thi",
        "<response>",
        "</response>",
        "</resp",
        "\n",
        "\n\n",
        "Anna: ",
        "TestBot:",
        "**TestBot:** ",
        "Bob: ",
        "word ",
        "x",
    ),
    *("```\n", "Test", "Bot", "[THINK]", "[/THINK]", "word " * 50, " "),
)
pieces = st.sampled_from(PIECES)


@settings(max_examples=400, deadline=None)
@given(st.lists(pieces, max_size=14).map("".join), st.sampled_from([None, THINK, OPEN]))
@example("Test \n", THINK)
@example("Test \n<think>well</think> yes", THINK)
def test_what_is_said_never_jumps_back(output: str, reasoning: Reasoning | None) -> None:
    before = ""
    for end in range(len(output) + 1):
        said = take_apart(output[:end], reasoning, final=False)
        now = without_name(said.answer, ("TestBot", "Anna"), final=False)
        assert now.rstrip().startswith(before.rstrip())
        before = now
    said = take_apart(output, reasoning, final=True)
    assert without_name(said.answer, ("TestBot", "Anna"), final=True).rstrip().startswith(before.rstrip())
