"""Stored history to dialog, and dialog to prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.conversation.dialog import MAX_STOP_NAMES, build_dialog
from bot.conversation.prompting import MAX_MESSAGES, FittedPrompt, check_question, fit_history
from engine.errors import PromptTooLongError, UnsafePromptError
from engine.types import ChatMessage, Prompt
from storage.conversations import Message, MessageState, Role
from tests.fakes import CONTROL_TAG, ScriptedEngine


def said(text: str, author_id: int = 1, name: str = "Anna") -> Message:
    return _message(Role.USER, text, author_id, name)


def answered(text: str) -> Message:
    return _message(Role.ASSISTANT, text, None, "")


def _message(role: Role, text: str, author_id: int | None, name: str) -> Message:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Message(1, 1, role, MessageState.COMPLETE, author_id, name, text, now, None, None, None)


def test_one_person_needs_no_names() -> None:
    dialog = build_dialog([said("Hi"), answered("Hello"), said("Bye")], "Be kind.")
    assert dialog.messages == (
        ChatMessage("system", "Be kind."),
        ChatMessage("user", "Hi"),
        ChatMessage("assistant", "Hello"),
        ChatMessage("user", "Bye"),
    )
    assert dialog.stop == ()


def test_two_people_are_told_apart_and_not_spoken_for() -> None:
    history = [said("Hi"), answered("Hello"), said("Me too", 2, "B<o>b:\n"), said("And?")]
    dialog = build_dialog(history, "")
    assert [m.content for m in dialog.messages] == ["Anna: Hi", "Hello", "Bob: Me too\nAnna: And?"]
    assert set(dialog.stop) == {"\nAnna:", "\nBob:"}


def test_namesakes_get_a_number_and_a_renamed_person_one_name() -> None:
    dialog = build_dialog([said("1"), said("2", 2, "Anna"), said("3", 1, "Anne")], "")
    assert dialog.messages[0].content == "Anne: 1\nAnna: 2\nAnne: 3"
    dialog = build_dialog([said("1"), said("2", 2, "Anna"), said("3", 3, "Anna (2)")], "")
    assert dialog.messages[0].content == "Anna: 1\nAnna (2): 2\nAnna (2) (2): 3"


def test_an_answer_without_its_question_is_left_out() -> None:
    dialog = build_dialog([answered("Lost"), said("Hi")], "")
    assert dialog.messages == (ChatMessage("user", "Hi"),)


def test_a_blank_system_prompt_is_none() -> None:
    assert build_dialog([said("Hi")], " \n").messages[0].role == "user"


def test_stop_strings_are_bounded_to_the_latest_speakers() -> None:
    dialog = build_dialog([said("x", n, f"N{n}") for n in range(100)], "")
    assert len(dialog.stop) == MAX_STOP_NAMES
    assert dialog.stop[0] == "\nN99:"


MESSAGES = st.one_of(
    st.builds(answered, st.text(min_size=1)),
    st.builds(said, st.text(min_size=1), st.integers(1, 4), st.text()),
)


@given(st.lists(MESSAGES), st.text())
def test_roles_always_alternate_and_begin_with_a_person(history: list[Message], prompt: str) -> None:
    dialog = build_dialog(history, prompt)
    roles = [m.role for m in dialog.messages if m.role != "system"]
    assert roles == [("user", "assistant")[n % 2] for n in range(len(roles))]
    asked = [m.content for m in history if m.role is Role.USER]
    shown = "\n".join(m.content for m in dialog.messages if m.role == "user")
    assert all(text in shown for text in asked)


def test_an_unsafe_message_of_the_past_does_not_poison_the_conversation() -> None:
    engine = ScriptedEngine()
    history = [said("Hi"), answered(f"Write {CONTROL_TAG}!"), said("Thanks")]
    fitted = fit_history(engine, history, "", 1000)
    assert b"Thanks" in bytes(fitted.prompt.ids)
    assert CONTROL_TAG.encode() not in bytes(fitted.prompt.ids)


def test_an_unsafe_question_is_refused() -> None:
    engine = ScriptedEngine()
    with pytest.raises(UnsafePromptError):
        fit_history(engine, [said("Hi"), said(CONTROL_TAG)], "", 1000)
    with pytest.raises(UnsafePromptError):
        check_question(engine, CONTROL_TAG, "", 1000)


def test_unanswered_questions_that_pile_up_give_way_to_the_last_one() -> None:
    engine = ScriptedEngine()
    history = [*(said("x" * 50) for _ in range(10)), said("short")]
    assert bytes(fit_history(engine, history, "", 100).prompt.ids) == b"user\nshort"


def numbered(*messages: Message) -> list[Message]:
    return [dataclasses.replace(message, id=number) for number, message in enumerate(messages, start=11)]


def view(history: Sequence[Message], max_tokens: int) -> tuple[int, int]:
    """Return where the model's view begins, and how many messages are before that."""
    fitted: FittedPrompt = fit_history(ScriptedEngine(), history, "Be kind.", max_tokens)
    seen = [message for message in history if message.content.encode() in bytes(fitted.prompt.ids)]
    assert fitted.view_from == seen[0].id
    assert history[fitted.num_left_out] is seen[0]
    return fitted.view_from, fitted.num_left_out


def test_it_is_told_where_the_view_begins_and_how_much_is_before() -> None:
    history = numbered(
        said("q1"), said("q2"), answered("a2"), answered("a3"), said("q4"), answered("a4"), said("q5")
    )
    assert view(history, 1000) == (11, 0)
    assert view(history, 70) == (15, 4), "messages in a row are one turn"
    assert view(history, 40) == (17, 6)
    lost = numbered(answered("of what?"), said("q1"), answered("a1"))
    assert view([*lost, *numbered(said("q2"))], 1000) == (12, 1)


def test_it_is_told_also_where_only_the_last_message_is_asked_or_unsafe_ones_are_left_out() -> None:
    piled = numbered(*(said("x" * 50 + str(number)) for number in range(10)), said("short"))
    assert view(piled, 100) == (21, 10)
    engine = ScriptedEngine()
    history = numbered(said("q1"), answered(CONTROL_TAG), said("q2"), answered("a2" * 50), said("q3"))
    fitted = fit_history(engine, history, "", 1000)
    assert (fitted.view_from, fitted.num_left_out) == (11, 0)
    fitted = fit_history(engine, history, "", 100)
    assert (fitted.view_from, fitted.num_left_out) == (15, 4)


def test_only_the_newest_messages_are_looked_at() -> None:
    history = numbered(*(said("q") if number % 2 else answered("a") for number in range(MAX_MESSAGES + 2)))[
        1:
    ]
    fitted = fit_history(ScriptedEngine(), history, "", 100_000)
    assert (fitted.num_left_out, history[1].role) == (102, Role.ASSISTANT)
    assert fitted.view_from == history[102].id
    assert bytes(fitted.prompt.ids).count(b"user\nq") == MAX_MESSAGES // 4


def test_unsafe_messages_cost_no_prompt_each(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, num_fitted = ScriptedEngine(), 0
    fit = engine.fit_prompt

    def counted(dialog: Sequence[ChatMessage], max_tokens: int, *, answer_so_far: str = "") -> Prompt:
        nonlocal num_fitted
        num_fitted += 1
        return fit(dialog, max_tokens, answer_so_far=answer_so_far)

    monkeypatch.setattr(engine, "fit_prompt", counted)
    history = numbered(
        said("Hi"), *(answered(f"{CONTROL_TAG} {number}") for number in range(99)), said("Bye")
    )
    assert bytes(fit_history(engine, history, "", 1000).prompt.ids) == b"user\nHi\nBye"
    assert num_fitted == 2


def test_a_question_that_can_never_fit_is_refused() -> None:
    engine = ScriptedEngine()
    with pytest.raises(PromptTooLongError):
        fit_history(engine, [said("x" * 200)], "", 100)
    with pytest.raises(PromptTooLongError):
        check_question(engine, "x" * 60, "y" * 60, 100)
