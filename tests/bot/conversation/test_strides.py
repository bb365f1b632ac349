"""A history is let go in strides, so that the beginning of the prompt stays the same for many turns."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.conversation.prompting import MAX_MESSAGES, FittedPrompt, fit_history
from storage.conversations import Message, MessageState, Role
from tests.fakes import CONTROL_TAG, ScriptedEngine

SYSTEM = "Be kind."


@dataclass
class Past:
    """A stored conversation. `limit`: tokens of a prompt, each a byte."""

    limit: int = 1000
    system: str = SYSTEM
    engine: ScriptedEngine = field(default_factory=ScriptedEngine)
    messages: list[Message] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def fit(self, question: str, author_id: int = 1, begun: str = "") -> FittedPrompt:
        """Return the prompt of one more question, which is not kept."""
        history = [*self.messages, self.question(question, author_id)][-MAX_MESSAGES - 1 :]
        return fit_history(self.engine, history, self.system, self.limit, begun)

    def ask(self, question: str, answer: str = "a" * 20, author_id: int = 1) -> FittedPrompt:
        """Ask, and keep the question and its answer."""
        asked = self._message(Role.USER, question, author_id=author_id)
        self.messages.append(asked)
        fitted = fit_history(self.engine, self.messages[-MAX_MESSAGES - 1 :], self.system, self.limit)
        view = fitted.view_from if fitted.num_left_out else None
        self.messages.append(self._message(Role.ASSISTANT, answer, reply_to=asked.id, view_from=view))
        return fitted

    def question(self, text: str, author_id: int = 1) -> Message:
        """Return one more question, which is not kept."""
        return self._message(Role.USER, text, author_id=author_id)

    def fill(self, num_turns: int = 40) -> None:
        """Go on for so many turns."""
        for _ in range(num_turns):
            self.ask("q" * 20)

    def _message(self, role: Role, text: str, *, author_id: int = 1, **others: int | None) -> Message:
        is_asked = role is Role.USER
        return Message(
            next(self.numbers),
            1,
            role,
            MessageState.COMPLETE,
            author_id if is_asked else None,
            ("Anna", "Bob", "Cleo")[author_id - 1] if is_asked else "",
            text,
            datetime(2026, 1, 1, tzinfo=UTC),
            others.get("reply_to"),
            None,
            None,
            view_from=others.get("view_from"),
        )


def num_shared(one: FittedPrompt, other: FittedPrompt) -> int:
    """Return how many tokens two prompts have in common at their beginnings."""
    pairs = zip(one.prompt.ids, other.prompt.ids, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def test_the_beginning_of_the_prompt_stays_the_same_for_many_turns_at_the_limit() -> None:
    past = Past()
    fitted = [past.ask(f"{number:020}") for number in range(100)]
    assert all(len(one.prompt.ids) <= past.limit for one in fitted)
    changed = [at for at in range(3, 100) if num_shared(fitted[at - 1], fitted[at]) < 100]
    assert 5 < len(changed) < 12
    assert all(later - earlier >= 8 for earlier, later in itertools.pairwise(changed))
    assert all(len(fitted[at].prompt.ids) > 500 - 60 for at in changed), "no more goes than half"


def test_a_history_below_the_limit_is_never_cut() -> None:
    past = Past(limit=100_000)
    assert all(past.ask("q" * 20).num_left_out == 0 for _ in range(MAX_MESSAGES // 2))


def test_many_short_messages_are_let_go_in_strides_too() -> None:
    past = Past(limit=100_000)
    past.fill(MAX_MESSAGES // 2)
    fitted = [past.ask("q") for _ in range(100)]
    changed = sum(num_shared(one, other) < 100 for one, other in itertools.pairwise(fitted))
    assert 1 <= changed <= 3


def test_the_stride_does_not_depend_on_the_question_that_brings_it_about() -> None:
    past = Past()
    past.fill()
    while past.fit("q" * 20).view_from == past.fit("q" * 200).view_from:
        past.ask("q" * 20)
    assert len({past.fit("q" * length).view_from for length in range(200, 450, 50)}) == 1


def test_where_a_stride_leads_is_known_long_before() -> None:
    past = Past()
    past.fill()
    start = past.fit("q").view_from
    known = set()
    while past.fit("q").view_from == start:
        room = past.limit - len(past.fit("q").prompt.ids)
        if room < 350:
            known.add(past.fit("q" * (room + 10)).view_from)
        past.ask("q" * 20)
    assert known == {past.fit("q").view_from}


def test_the_same_state_gives_the_same_prompt_whatever_came_between() -> None:
    past = Past()
    past.fill()
    before = past.fit("And now?")
    kept = list(past.messages)
    past.fill(30)
    past.messages[:] = kept
    assert past.fit("And now?").prompt == before.prompt


def test_an_answer_made_anew_sees_what_the_one_before_it_saw() -> None:
    past = Past()
    for _ in range(60):
        fitted = past.ask("q" * 20)
        del past.messages[-2:]
        assert past.ask("q" * 20).prompt == fitted.prompt


def test_a_turn_taken_back_brings_back_the_view_of_the_one_before() -> None:
    past = Past()
    past.fill()
    views = [past.ask("q" * 20).view_from for _ in range(10)]
    for view in reversed(views):
        del past.messages[-2:]
        assert past.fit("q" * 20).view_from == view


def test_a_deleted_message_leaves_the_rest_in_sight() -> None:
    past = Past()
    past.fill()
    view = past.fit("q").view_from
    past.messages = [m for m in past.messages if (m.reply_to or m.id) != view]
    fitted = past.fit("q")
    first = next(m for m in past.messages if m.id > view)
    assert fitted.view_from <= first.id
    past.messages = [m for m in past.messages if (m.reply_to or m.id) > past.messages[-8].id]
    assert past.fit("q").num_left_out == 0, "all that is left fits"


def test_a_raised_limit_brings_back_what_fits_and_a_lowered_one_is_kept_to() -> None:
    past = Past()
    past.fill(90)
    view = past.fit("q").view_from
    past.limit = 4000
    wide = past.fit("q")
    assert wide.view_from < view
    assert 1900 < len(wide.prompt.ids) <= 2050, "as after a stride"
    past.limit = 400
    assert len(past.fit("q").prompt.ids) <= 400
    past.limit = 100_000
    assert past.fit("q").num_left_out == 0


def test_a_longer_system_prompt_leaves_less_and_the_beginning_stays_the_same_again() -> None:
    past = Past()
    past.fill()
    past.system = "Be kind. " * 40
    fitted = [past.ask("q" * 20) for _ in range(12)]
    assert all(len(one.prompt.ids) <= past.limit for one in fitted)
    assert sum(one.view_from != other.view_from for one, other in itertools.pairwise(fitted)) <= 2


@pytest.mark.parametrize("length", [600, 900, 960])
def test_a_very_long_message_leaves_of_the_rest_what_a_stride_leaves_or_what_fits(length: int) -> None:
    past = Past()
    past.fill()
    fitted = past.ask("q" * length)
    assert len(fitted.prompt.ids) <= past.limit
    assert len(fitted.prompt.ids) + 56 * 2 > min(past.limit, 250 + length)
    assert len(past.ask("short").prompt.ids) <= past.limit


def test_what_a_begun_answer_takes_is_counted() -> None:
    past = Past()
    past.fill()
    begun = "b" * 480
    fitted = past.fit("q", begun=begun)
    assert len(fitted.prompt.ids) <= past.limit
    assert bytes(fitted.prompt.ids).endswith(begun.encode())


def test_an_unsafe_message_of_the_past_does_not_move_the_view() -> None:
    past = Past()
    past.fill(5)
    past.ask("q", f"Write {CONTROL_TAG}!")
    fitted = [past.ask("q" * 20) for _ in range(60)]
    changed = sum(one.view_from != other.view_from for one, other in itertools.pairwise(fitted))
    assert changed <= 7
    assert all(len(one.prompt.ids) <= past.limit for one in fitted)


Turn = tuple[int, int, int]
"""The lengths of a question and of its answer, and who asks."""


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.integers(1, 300), st.integers(0, 400), st.integers(1, 3)), min_size=5, max_size=40
    ),
    limit=st.integers(450, 1500),
)
def test_whatever_is_said_fits_and_strides_are_far_apart(turns: list[Turn], limit: int) -> None:
    past = Past(limit=limit)
    view, num_since_stride = 0, 0
    for asked, answered, author_id in turns:
        fitted = past.ask("q" * asked, "a" * answered, author_id)
        assert len(fitted.prompt.ids) <= limit
        seen = past.messages[fitted.num_left_out : -1] if fitted.num_left_out else past.messages[:-1]
        assert fitted.view_from == seen[0].id
        is_small = max(one + other for one, other, _ in turns) < limit / 8
        assert fitted.view_from >= view or not is_small, "nothing comes back by itself"
        num_since_stride += asked + answered
        if fitted.view_from > view and view:
            # Names and frames take some too; what is asked now may be any part of the room.
            assert num_since_stride + asked > 0.3 * (limit - len(SYSTEM) - 100) - 300
        if fitted.view_from > view:
            view, num_since_stride = fitted.view_from, 0
