"""From stored history to a prompt that the engine accepts.

Owns what is left out when a history cannot be used as it is, so that one odd message never ends a
conversation for good. Pure computation of milliseconds: call it in a thread. Knows nothing of storage's
database and of Discord.
"""

from __future__ import annotations

import contextlib
import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bot.conversation.dialog import Dialog, build_dialog, spoken, with_frame
from bot.conversation.talk import Heard, lines_of, told
from engine.errors import PromptError, PromptTooLongError, UnsafePromptError
from engine.types import ChatMessage, Prompt, TextEngine
from storage.conversations import Message, MessageState, Role
from storage.summaries import Summary

MAX_MESSAGES = 200
"""The newest ones, which are looked at at all."""
SHARE_KEPT = 0.5
"""How much of the room for history is filled after a stride. With a share s each token is computed anew
s/(1-s) times before it is let go, and (1+s)/2 of the room is filled on average: a half costs each token once
more and shows three quarters, where a share of 0.7 would cost it 2.3 times more and show 85 %."""
SHARE_OF_SUMMARIES = 0.125
"""How much of a prompt may tell of what is left out."""
MADE = (MessageState.COMPLETE, MessageState.STOPPED)
"""Of answers whose prompt is known."""
NUM_LATE = 8
"""The newest questions: the next one is expected to be as long as one of them."""
TURNS_AHEAD = 3
"""So long before a stride it is computed where it leads: more than one pause may be needed for that."""
_ANY = "…"
"""Stands for a question of which nothing is known yet."""


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt, the texts that must end its answer, and how much of the history it shows.

    view_from: the id of the stored message that it begins with. num_left_out: messages before that one.
    messages: what the prompt says.
    """

    prompt: Prompt
    stop: tuple[str, ...]
    view_from: int
    num_left_out: int
    messages: tuple[ChatMessage, ...] = ()


class PromptMaker(Protocol):
    """What of a `TextEngine` makes prompts."""

    def fit_prompt(
        self, dialog: Sequence[ChatMessage], max_prompt_tokens: int, *, answer_so_far: str = ""
    ) -> Prompt: ...

    def is_safe(self, text: str) -> bool: ...

    def count_tokens(self, text: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes prompts for a model that is to think before it answers, or is not; None is its own way."""

    engine: TextEngine
    thinks: bool | None

    def fit_prompt(
        self, dialog: Sequence[ChatMessage], max_prompt_tokens: int, *, answer_so_far: str = ""
    ) -> Prompt:
        """See `TextEngine.fit_prompt`."""
        return self.engine.fit_prompt(
            dialog, max_prompt_tokens, answer_so_far=answer_so_far, thinking=self.thinks
        )

    def is_safe(self, text: str) -> bool:
        """See `TextEngine.is_safe`."""
        return self.engine.is_safe(text)

    def count_tokens(self, text: str) -> int:
        """See `TextEngine.count_tokens`."""
        return self.engine.count_tokens(text)


def check_question(engine: PromptMaker, text: str, system_prompt: str, max_tokens: int) -> None:
    """Raise the `PromptError` that `text` would cause as the first question of a conversation."""
    system = (ChatMessage("system", system_prompt),) if system_prompt.strip() else ()
    engine.fit_prompt((*system, ChatMessage("user", text)), max_tokens)


def num_fitting(engine: PromptMaker, text: str, system_prompt: str, max_tokens: int, share: float) -> int:
    """Return how many characters of `text` fit into a share of what the system prompt leaves."""
    room = int((max_tokens - engine.count_tokens(system_prompt)) * share)
    num_characters = len(text)
    while num_characters and (num_tokens := engine.count_tokens(text[:num_characters])) > max(room, 0):
        num_characters = min(num_characters - 1, num_characters * max(room, 0) // num_tokens)
    return num_characters


def fit_history(
    engine: PromptMaker,
    history: Sequence[Message],
    system_prompt: str,
    max_tokens: int,
    begun: str = "",
    summaries: Sequence[Summary] = (),
) -> FittedPrompt:
    """Return the prompt for the last message of `history`, whose answer begins with `begun`.

    `summaries`, oldest first, tell of what is left out.

    What does not fit is let go in strides: the prompt begins where the one before it began as long as that
    fits, so that its KV can be used again, and else so that half of the room is free for what comes. Unsafe
    messages of the past (an answer may quote control tags) are left out. Where questions without an answer
    have piled up into one turn that is too long, only the last message is asked. Raises `PromptError` where
    the last message itself is at fault.
    """
    has_all = len(history) <= MAX_MESSAGES
    told = [one for one in summaries if one.content and engine.is_safe(with_frame([one.content]))]
    fitting = _Fitting(engine, system_prompt, max_tokens, begun, has_all, told)
    newest = history[-MAX_MESSAGES:]
    try:
        fitted = fitting.fit_or_last(newest)
    except UnsafePromptError:
        safe = [*(m for m in newest[:-1] if engine.is_safe(spoken(m))), *newest[-1:]]
        fitted = fitting.fit_or_last(safe)
    num_left_out = next(at for at, message in enumerate(history) if message.id == fitted.view_from)
    return FittedPrompt(fitted.prompt, fitted.dialog.stop, fitted.view_from, num_left_out, fitted.messages)


def with_talk(
    engine: PromptMaker,
    fitted: FittedPrompt,
    heard: Sequence[Heard],
    most: int,
    max_tokens: int,
    begun: str = "",
) -> FittedPrompt:
    """Return a prompt that also tells what was overheard, right before the question.

    It stands there, and not before the history, so that the KV of the conversation can be used again, and
    takes at most so many tokens, and only those that the history leaves of `max_tokens`.
    """
    lines = [line for line in lines_of(heard) if engine.is_safe(line)]
    room = min(most, max_tokens - len(fitted.prompt.ids))
    *past, question = fitted.messages
    if not (block := told(lines, engine.count_tokens, room)):
        return fitted
    messages = (*past, ChatMessage("user", f"{block}\n\n{question.content}"))
    try:
        prompt = engine.fit_prompt(messages, max_tokens, answer_so_far=begun)
    except PromptError:
        return fitted
    return fitted if prompt.num_dropped else dataclasses.replace(fitted, prompt=prompt, messages=messages)


def next_prefixes(
    engine: PromptMaker,
    history: Sequence[Message],
    system_prompt: str,
    max_tokens: int,
    summaries: Sequence[Summary] = (),
) -> list[Prompt]:
    """Return the beginnings, the likelier first, one of which the prompt for the next question will have.

    There are two where a stride may be near: where it leads is known before it is due.
    """
    asked = [message for message in history if message.role is Role.USER]
    if not asked:
        return []

    def fit(seen: Sequence[Message], text: str) -> FittedPrompt:
        question = dataclasses.replace(asked[-1], id=history[-1].id + 1, content=text, quotes=())
        return fit_history(engine, [*seen, question], system_prompt, max_tokens, "", summaries)

    found: dict[Prompt, None] = {}
    late = sorted((message.content for message in asked[-NUM_LATE:]), key=len)
    turns_more = "\n".join([late[-1], *(m.content for m in history[-2 * TURNS_AHEAD :])])[: max_tokens // 2]
    for text in (late[len(late) // 2], _ANY, late[-1], turns_more):
        with contextlib.suppress(PromptError):
            fitted = fit(history, text)
            other = fit(history[fitted.num_left_out :], "?" if text == _ANY else _ANY)
            found[_common(fitted.prompt, other.prompt)] = None
    return list(found)[:2]


def _common(one: Prompt, other: Prompt) -> Prompt:
    """Return what two prompts have in common at their beginnings."""
    pairs = enumerate(zip(one.ids, other.ids, strict=False))
    end = next((at for at, (mine, its) in pairs if mine != its), min(len(one.ids), len(other.ids)))
    return Prompt(one.ids[:end])


@dataclass(frozen=True, slots=True)
class _Fitted:
    dialog: Dialog
    prompt: Prompt
    is_whole: bool
    """Whether it shows all that it was to show."""

    @property
    def view_from(self) -> int:
        return self.dialog.first_ids[self.prompt.num_dropped]

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        num_system = len(self.dialog.messages) - len(self.dialog.first_ids)
        shown = self.dialog.messages[num_system + self.prompt.num_dropped :]
        return (*self.dialog.messages[:num_system], *shown)


@dataclass(frozen=True, slots=True)
class _Fitting:
    """Chooses how much of a history is shown, by nothing but what is stored. has_all: nothing is older."""

    engine: PromptMaker
    system_prompt: str
    max_tokens: int
    begun: str
    has_all: bool
    summaries: Sequence[Summary]

    def fit_or_last(self, messages: Sequence[Message]) -> _Fitted:
        """Return what is shown of `messages`, or of the last one where only that fits."""
        try:
            return self._fit(messages)
        except PromptTooLongError:
            return self._begin(messages[-1:])

    def _fit(self, messages: Sequence[Message]) -> _Fitted:
        whole = self._begin(messages)
        if self.has_all and whole.is_whole:
            return whole
        kept = self._keep(messages)
        if kept is None:
            return self._begin(_since(messages, self._stride(messages)))
        if len(kept.prompt.ids) <= self._filled(SHARE_KEPT / 2):
            # So little is seen that there may be room for more: the limit was raised, or texts were deleted.
            wider = self._begin(_since(messages, self._newest(messages)))
            return wider if wider.view_from < kept.view_from else kept
        return kept

    def _begin(self, messages: Sequence[Message]) -> _Fitted:
        """Return the prompt for `messages`, without the oldest turns if they do not fit."""
        dialog = build_dialog(messages, self.system_prompt, self._summed_up(messages[0]))
        try:
            prompt = self._encode(dialog)
        except PromptTooLongError:
            dialog = build_dialog(messages, self.system_prompt)
            prompt = self._encode(dialog)
        if prompt.num_dropped and self.summaries:  # what tells of the past went with the first turn
            fitted = self._begin(_since(messages, dialog.first_ids[prompt.num_dropped]))
            return dataclasses.replace(fitted, is_whole=False)
        return _Fitted(dialog, prompt, is_whole=not prompt.num_dropped)

    def _encode(self, dialog: Dialog) -> Prompt:
        return self.engine.fit_prompt(dialog.messages, self.max_tokens, answer_so_far=self.begun)

    def _summed_up(self, first: Message) -> str:
        """Return what the newest summaries say of what was before `first`, within a share of the room."""
        shown: list[str] = []
        for summary in reversed(self.summaries):
            if summary.until_id <= place_of(first):
                told = with_frame([summary.content, *shown])
                if self.engine.count_tokens(told) > self.max_tokens * SHARE_OF_SUMMARIES:
                    break
                shown.insert(0, summary.content)
        return with_frame(shown)

    def _keep(self, messages: Sequence[Message]) -> _Fitted | None:
        """Return the prompt that begins where the one before it began, None where that is too much."""
        view_from, oldest = last_view(messages), place_of(messages[0])
        if view_from < oldest or (self.has_all and view_from == oldest):
            return None  # that is all of it, or more than is looked at
        kept = self._begin(_since(messages, view_from))
        return kept if kept.is_whole else None

    def _filled(self, share: float) -> int:
        """Return the tokens of a prompt whose history takes a share of the room that there is for it."""
        num_others = self._num_ids(build_dialog((), self.system_prompt).messages)
        return num_others + int((self.max_tokens - num_others) * share)

    def _stride(self, messages: Sequence[Message]) -> int:
        """Return the message to begin with so that about half of the room is free.

        That is told by how much goes from where the view began: whatever is said after that does not change
        it, so that it is known, and its KV can be there, long before. Where that is not enough, or the view
        began before all that is looked at, it is told by how much stays.
        """
        view_from = max(last_view(messages), place_of(messages[0]) if self.has_all else 0)
        if view_from >= place_of(messages[0]):
            dialog = build_dialog(_since(messages, view_from), self.system_prompt)
            num_system, num_turns = dialog.messages[0].role == "system", len(dialog.first_ids) // 2
            half = self._filled(1 - SHARE_KEPT)
            # Half a turn more than half is nearer to it than half a turn less.
            num_going = bisect_right(
                range(num_turns),
                2 * half,
                key=lambda turn: sum(
                    self._num_ids(dialog.messages[: num_system + 2 * end]) for end in (turn, turn + 1)
                ),
            )
            at = 2 * max(num_going, 1)
            rest = (*dialog.messages[:num_system], *dialog.messages[num_system + at : -1])
            if at < len(dialog.first_ids) and self._num_ids(rest) <= self.max_tokens:
                return dialog.first_ids[at]
        return self._newest(messages)

    def _newest(self, messages: Sequence[Message]) -> int:
        """Return the message to begin with so that at most half of the room is filled."""
        dialog = build_dialog(messages[-int(MAX_MESSAGES * SHARE_KEPT) :], self.system_prompt)
        past = (*dialog.messages[:-1], ChatMessage("user", _ANY))
        num_dropped = self.engine.fit_prompt(past, self._filled(SHARE_KEPT)).num_dropped
        return dialog.first_ids[num_dropped]

    def _num_ids(self, past: Sequence[ChatMessage]) -> int:
        """Return the tokens of turns and a short question, more than all where there is no room for them."""
        prompt = self.engine.fit_prompt((*past, ChatMessage("user", _ANY)), self.max_tokens)
        return self.max_tokens + 1 if prompt.num_dropped else len(prompt.ids)


def last_view(messages: Sequence[Message]) -> int:
    """Return the id of the message that the newest answer's prompt began with, 0 if it left nothing out."""
    for message in reversed(messages):
        if message.role is Role.ASSISTANT and message.state in MADE and message.content:
            return message.view_from or 0
    return 0


def place_of(message: Message) -> int:
    """Return the place of a message in its conversation: an answer stands with its question."""
    return message.reply_to or message.id


def _since(messages: Sequence[Message], first_id: int) -> Sequence[Message]:
    at = next((at for at, message in enumerate(messages) if place_of(message) >= first_id), -1)
    return messages[at:]
