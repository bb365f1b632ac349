"""What the model sees of stored history as a dialog, and what of its output is its answer. Pure.

An answer is without what the model thinks and without a name in front; while the output grows, what is given
is always the beginning of what is given for more of it. Knows nothing of tokens: what does not fit is dropped
by the engine, oldest turns first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from bot.conversation.mentions import label
from engine.types import REASONING_MARKS, SAID_BEFORE, ChatMessage, Reasoning
from storage.conversations import Message, Quote, Role

YOU = "you"
"""Whom a quote without a name is from: the model itself."""
MAX_STOP_NAMES = 16
"""The most recent speakers whose names end an answer; a bound, for each one is looked for at every step."""
MAX_UNDECIDED = 200
"""Characters of a first line; a speech in a dialogue is shorter."""
_LABEL = re.compile(r"(?:\*\*|__)?[^\W\d_][\w'-]*(?: [\w'-]+){0,2}(?:\*\*|__)?(?::|：)(?:\*\*|__)?[ \t]*\S")
"""Begins a line in which somebody speaks."""
_ANSWER_MARKS = (("<response>", "</response>"), ("<answer>", "</answer>"))
_FENCE = re.compile(r"^[ \t]*(?:`{3}|~{3})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Dialog:
    """An optional system message, then user and assistant in turn, ending with the user.

    `stop` holds what must not come out of the model: the beginnings of other people's turns. `first_ids` are
    those of the stored messages that the turns begin with.
    """

    messages: tuple[ChatMessage, ...]
    stop: tuple[str, ...] = ()
    first_ids: tuple[int, ...] = ()


def build_dialog(history: Sequence[Message], system_prompt: str, summed_up: str = "") -> Dialog:
    """Return the dialog for `history`, oldest first.

    Messages in a row of the same side become one turn; answers before the first question are left out. As
    soon as two people speak, each of their messages begins with its author's name. `summed_up`: what was said
    before, which stands before the first question and has no more weight than people's own words.
    """
    spoken = _from_first_question(history)
    names = _names(spoken)
    sides = [list(messages) for _role, messages in groupby(spoken, key=lambda message: message.role)]
    turns = [
        ChatMessage(
            "user" if messages[0].role is Role.USER else "assistant",
            "\n".join(_text(message, names) for message in messages),
        )
        for messages in sides
    ]
    if summed_up and turns:
        turns[0] = ChatMessage("user", f"{summed_up}\n\n{turns[0].content}")
    system = (ChatMessage("system", system_prompt),) if system_prompt.strip() else ()
    first_ids = tuple(messages[0].id for messages in sides)
    return Dialog((*system, *turns), _stops(spoken, names), first_ids)


def with_quotes(content: str, quotes: Sequence[Quote]) -> str:
    """Return a question with what it refers to before it, quoted as people quote in mails."""
    about = [f"About what {quote.author_name or YOU} wrote:\n{quoted(quote.content)}" for quote in quotes]
    return "\n\n".join((*about, content))


def quoted(text: str) -> str:
    """Return a text as people quote in mails."""
    return "\n".join(f"> {line}" for line in text.splitlines())


def spoken(message: Message) -> str:
    """Return all that a message says."""
    return with_quotes(message.content, message.quotes)


def _from_first_question(history: Sequence[Message]) -> Sequence[Message]:
    for index, message in enumerate(history):
        if message.role is Role.USER:
            return history[index:]
    return ()


def _names(spoken: Sequence[Message]) -> dict[int | None, str]:
    """Return each author's name, or nothing while there is only one author. Namesakes get a number."""
    latest = {m.author_id: label(m.author_name) for m in spoken if m.role is Role.USER}
    if len(latest) < 2:
        return {}
    names: dict[int | None, str] = {}
    for author_id, name in latest.items():
        taken, number, unique = set(names.values()), 2, name
        while unique in taken:
            unique, number = f"{name} ({number})", number + 1
        names[author_id] = unique
    return names


def with_frame(summaries: Sequence[str]) -> str:
    """Return what the model is told of what was said before, quoted as questions quote."""
    lines = [f"> {line}" for summary in summaries for line in summary.splitlines() if line.strip()]
    return "\n".join((SAID_BEFORE, *lines)) if lines else ""


def _text(message: Message, names: dict[int | None, str]) -> str:
    if message.role is Role.USER and message.author_id in names:
        return f"{names[message.author_id]}: {spoken(message)}"
    return spoken(message)


def _stops(spoken: Sequence[Message], names: dict[int | None, str]) -> tuple[str, ...]:
    recent = dict.fromkeys(names[m.author_id] for m in reversed(spoken) if m.role is Role.USER and names)
    return tuple(f"\n{name}:" for name in list(recent)[:MAX_STOP_NAMES])


@dataclass(frozen=True, slots=True)
class Said:
    """An output taken apart. `is_thinking`: it ends inside of what the model thinks."""

    answer: str
    thought: str = ""
    is_thinking: bool = False


def take_apart(output: str, reasoning: Reasoning | None, *, final: bool) -> Said:
    """Part what a model thinks from what it says.

    Without marks of the model's own (`reasoning`) those of all models count, at the beginning alone.
    """
    known = REASONING_MARKS if reasoning is None else (reasoning,)
    thoughts: list[str] = []
    rest = output
    if reasoning is not None and reasoning.is_open and not rest.lstrip().startswith(reasoning.opening):
        if not final and reasoning.opening.startswith(rest.lstrip()):
            return Said("", "", is_thinking=True)
        rest = reasoning.opening + rest
    while True:
        begun = rest.lstrip()
        answer = begun if thoughts else rest
        marks = next((marks for marks in known if begun.startswith(marks.opening)), None)
        if marks is None:
            break
        thought, closing, rest = begun[len(marks.opening) :].partition(marks.closing)
        thoughts.append(thought.strip())
        if not closing:
            return Said("", _joined(thoughts), is_thinking=True)
    if not final and any(marks.opening.startswith(begun) for marks in known):
        return Said("", _joined(thoughts))
    # A thought in the middle of an answer counts where the model's own marks are around it.
    while reasoning is not None and (found := _next_thought(answer, reasoning)) is not None:
        before, after = answer[: found.start()], answer[found.end() :]
        thought, closing, rest = after.partition(reasoning.closing)
        thoughts.append(thought.strip())
        if not closing:
            return Said(before, _joined(thoughts), is_thinking=True)
        answer = f"{before.rstrip()}\n\n{rest.lstrip()}"
    if not final and reasoning is not None:
        answer = _without_begun_mark(answer, reasoning)
    return Said(_unwrapped(answer, final=final) if thoughts else answer, _joined(thoughts))


def without_name(answer: str, names: Sequence[str], *, final: bool) -> str:
    """Return an answer without one of `names` and a colon in front, where no dialogue begins with it."""
    marked = [
        mark for name in names if name for mark in (f"**{name}:**", f"**{name}**:", f"{name}:", f"{name}：")
    ]
    text = answer.lstrip()
    mark = next((mark for mark in marked if text.startswith(mark)), None)
    if mark is None:
        is_begun = not final and any(mark.startswith(text) for mark in marked)
        return "" if is_begun else answer
    speech = text[len(mark) :].lstrip()
    first_line, _, others = speech.partition("\n")
    if len(first_line) > MAX_UNDECIDED:
        return speech
    following = others.lstrip()
    if _LABEL.match(following):
        return answer
    is_sure = final or "\n" in following or len(following) > MAX_UNDECIDED
    return speech if is_sure else ""


def _next_thought(text: str, reasoning: Reasoning) -> re.Match[str] | None:
    """Find where a line begins with the mark of a thought, outside of code."""
    marks = re.finditer(rf"^[ \t]*{re.escape(reasoning.opening)}", text, re.MULTILINE)
    return next((one for one in marks if len(_FENCE.findall(text[: one.start()])) % 2 == 0), None)


def _without_begun_mark(text: str, reasoning: Reasoning) -> str:
    """Return `text` without a last line that may become a mark."""
    start = text.rfind("\n") + 1
    line = text[start:].strip()
    return text[:start] if start and reasoning.opening.startswith(line) else text


def _unwrapped(answer: str, *, final: bool) -> str:
    """Return an answer behind a thought without the marks that some models, like Granite, put around it."""
    if not final and any(opening.startswith(answer) for opening, _ in _ANSWER_MARKS):
        return ""
    found = next((marks for marks in _ANSWER_MARKS if answer.startswith(marks[0])), None)
    if found is None:
        return answer
    opening, closing = found
    said = answer[len(opening) :].lstrip().replace(closing, "", 1)
    sizes = range(len(closing) - 1, 0, -1)
    begun = next((size for size in sizes if not final and said.endswith(closing[:size])), 0)
    return said[: len(said) - begun].rstrip() if final else said[: len(said) - begun]


def _joined(thoughts: Sequence[str]) -> str:
    return "\n\n".join(filter(None, thoughts))
