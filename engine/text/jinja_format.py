"""Dialogs to ids with the chat template that a model brings along.

The template writes control tokens as text, and so may people. Which of them the template wrote is found out
by rendering the dialog once more with each visible character of its messages replaced by one of its own that
nobody uses (a disguise): what is readable then is the template's. White space stays, so that templates that
trim do the same to both, and so do the words that some look for to switch thinking.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain

from engine.describing.manifest import ChatSpec
from engine.errors import ModelFormatError, PromptError, UnsafePromptError
from engine.text.template_process import TemplateProcess
from engine.text.tokenizer import Tokenizer, valid_unicode
from engine.types import ChatMessage, marks_in

_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_SYSTEM = ChatMessage("system", "Answer in verse.")
_TURN = (ChatMessage("user", "How are you?"), ChatMessage("assistant", "Fine, thanks."))
_QUESTION = ChatMessage("user", "And now?")
_CHARACTERS_AROUND = 16
"""What a template adds to a message, roughly."""
_MAX_GUESSES = 8
"""Then it is bisected."""
_MAX_VERDICTS = 10_000
_WHITE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
_WHITE_BEFORE, _WHITE_BEHIND = re.compile(rf"\A{_WHITE}"), re.compile(rf"{_WHITE}\Z")
"""As tokenizers has it, which swallows it beside some control tokens."""
_SWITCH_WORDS = re.compile(r"((?<!<)/(?:no_)?think\b(?!>))")
"""What some templates look for in messages, to switch thinking."""
_NOTHING = re.compile("((?!))")
_WITHOUT_THOUGHTS: tuple[Callable[[str], str], ...] = (
    str,
    lambda said: said.lstrip("\n"),
    str.lstrip,
    str.strip,
)
"""What templates do with the rest of an answer from which they take what the model thought."""


class JinjaFormat:
    """A Jinja template as a chat format. Satisfies `engine.text.prompt.ChatFormat`."""

    def __init__(
        self, chat: ChatSpec, tokenizer: Tokenizer, bos_id: int, eos_id: int, stop_ids: Collection[int] = ()
    ) -> None:
        """Try the template. Raises `ModelFormatError` for one that cannot be used."""
        self._template = chat.template
        self._tokenizer = tokenizer
        self._ids = tokenizer.special_ids
        written = {token: text for text, token in self._ids.items()}
        # The longest first: one may begin another. Without any, nothing matches.
        self._control = re.compile(
            "|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))) or "(?!)"
        )
        tokens = chat.tokens or {"bos_token": written.get(bos_id, ""), "eos_token": written.get(eos_id, "")}
        self._process = TemplateProcess(chat.template, dict(tokens))
        self._kept = _SWITCH_WORDS if _SWITCH_WORDS.search(chat.template) else _NOTHING
        self._closing = "".join((chat.reasoning or marks_in(chat.template))[1:])
        self._switches: dict[str, bool] = {}
        self._characters_per_token = 4.0
        self._verdicts: dict[bytes, bool] = {}
        self._folds_system = False
        self.answer_head = self.probed = ""
        ends = self._probe()
        self.ends_turns = bool(ends)
        self.stop_ids = frozenset({eos_id, *stop_ids, *ends})

    def switched(self, name: str, *, on: bool) -> JinjaFormat:
        """Return this format with a variable of the template's own set. Raises `ModelFormatError`."""
        other = copy.copy(self)
        other._switches, other._verdicts = {name: on}, {}
        other._probe()
        return other

    def encode(self, dialog: Sequence[ChatMessage]) -> list[int]:
        """Raises `PromptError` where the template refuses, `UnsafePromptError` where it may be fooled."""
        text, revealed = self._render(self._prepared(dialog))
        strips = self._tokenizer.strips
        ids: list[int] = []
        end = 0
        for match in chain(self._control.finditer(text), [None]):
            run = text[end : match.start() if match else None]
            if end and ids[-1] in strips.right:
                run = _WHITE_BEFORE.sub("", run)
            if match and self._ids[match[0]] in strips.left:
                run = _WHITE_BEHIND.sub("", run)
            if run:
                run = run.translate(revealed)
                ids += self._tokenizer.encode_inside(run) if end else self._tokenizer.encode(run)
            if match:
                ids.append(self._ids[match[0]])
                end = match.end()
        return ids

    def fit(self, dialog: Sequence[ChatMessage], max_tokens: int) -> tuple[list[int], int]:
        """Guess by the characters where to begin, and try: a dialog with a turn more never takes fewer ids.

        Raises what `encode` raises for a part of the dialog that is not much longer than what is kept.
        """
        num_system = int(dialog[0].role == "system")
        left = _num_characters(dialog[:num_system], dialog[num_system:])
        wanted = max_tokens * self._characters_per_token
        too_many, enough, ids = -1, len(left), list[int]()
        num_guesses = 0
        while enough - too_many > 1:
            between = range(too_many + 1, enough)
            guess = next((turn for turn in between if left[turn] <= wanted), between[-1])
            if num_guesses >= _MAX_GUESSES:
                guess = between[len(between) // 2]
            num_guesses += 1
            tried = self.encode([*dialog[:num_system], *dialog[num_system + 2 * guess :]])
            self._characters_per_token = left[guess] / max(len(tried), 1)
            wanted = left[guess] + (max_tokens - len(tried)) * self._characters_per_token
            if len(tried) <= max_tokens:
                enough, ids = guess, tried
            elif guess == len(left) - 1:
                return tried, guess
            else:
                too_many = guess
        return ids, enough

    def is_safe(self, text: str) -> bool:
        """Tell whether a message of `text` can be rendered safely; that is tried once and remembered."""
        key = hashlib.blake2b(valid_unicode(text).encode()).digest()
        if key not in self._verdicts:
            if len(self._verdicts) >= _MAX_VERDICTS:
                self._verdicts.clear()
            try:
                self._render(self._prepared([ChatMessage("user", text)]))
                self._verdicts[key] = True
            except UnsafePromptError:
                self._verdicts[key] = False
        return self._verdicts[key]

    def _render(self, dialog: list[ChatMessage]) -> tuple[str, dict[int, str]]:
        """Return the prompt's text, all control tokens in it the template's, and what reveals the rest."""
        disguise = self._disguise(dialog)
        table = {ord(character): other for character, other in disguise.items()}
        revealed = {ord(other): character for character, other in disguise.items()}
        disguised = [self._disguised(one, table) for one in (dialog, *self._without_thoughts(dialog))]
        plain, hidden, *others = self._process.render([dialog, *disguised], self._switches)
        if plain.error is not None:
            raise PromptError(f"The model's chat template refuses this dialog: {plain.error}.")
        for one in (hidden, *others):
            if one.error is None and one.text.translate(revealed) == plain.text:
                return one.text, revealed
        # The template looks into the messages. Leave them readable, and break only what looks like control.
        mark = next(self._unused(dialog))
        broken = [replace(message, content=self._broken(message.content, mark)) for message in dialog]
        guarded = self._process.render([broken], self._switches)[0]
        unmark = {ord(mark): ""}
        if (
            hidden.error is None
            and guarded.error is None
            and guarded.text.translate(unmark) == plain.text
            and self._control.findall(guarded.text) == self._control.findall(hidden.text)
        ):
            return guarded.text, unmark
        raise UnsafePromptError(
            "The model's chat template changes this dialog in a way that cannot be followed safely. "
            "Leave the model's own control tokens out of the messages."
        )

    def _broken(self, content: str, mark: str) -> str:
        """Return `content` with `mark` inside whatever is spelled like a control token, in any case."""
        return re.sub(
            self._control.pattern,
            lambda match: match[0][0] + mark + match[0][1:],
            content,
            flags=re.IGNORECASE,
        )

    def _disguise(self, dialog: Sequence[ChatMessage]) -> dict[str, str]:
        """Return an unused character for each visible one of the messages."""
        visible = sorted({c for message in dialog for c in message.content if not c.isspace()})
        disguise = dict(zip(visible, self._unused(dialog), strict=False))
        if len(disguise) < len(visible):
            raise PromptError("The dialog has too many different characters.")
        return disguise

    def _disguised(self, dialog: Sequence[ChatMessage], table: dict[int, str]) -> list[ChatMessage]:
        """Return `dialog` disguised, but for the words that its template may look for."""
        return [
            replace(
                message,
                content="".join(
                    run if index % 2 else run.translate(table)
                    for index, run in enumerate(self._kept.split(message.content))
                ),
            )
            for message in dialog
        ]

    def _without_thoughts(self, dialog: Sequence[ChatMessage]) -> Iterator[list[ChatMessage]]:
        """Give `dialog` without what was thought before its answers, in each way that templates know.

        They find that by its marks, which are not to be found in a disguise.
        """
        mark = self._closing
        thought = [bool(mark) and one.role == "assistant" and mark in one.content for one in dialog]
        for trim in _WITHOUT_THOUGHTS if any(thought) else ():
            yield [
                replace(one, content=trim(one.content.rpartition(mark)[2])) if is_thought else one
                for one, is_thought in zip(dialog, thought, strict=True)
            ]

    def _unused(self, dialog: Sequence[ChatMessage]) -> Iterator[str]:
        used = set(self._template).union(*(message.content for message in dialog))
        private = (chr(code) for codes in _PRIVATE_USE for code in codes)
        return (character for character in private if character not in used)

    def _prepared(self, dialog: Sequence[ChatMessage]) -> list[ChatMessage]:
        messages = [replace(message, content=valid_unicode(message.content)) for message in dialog]
        if not self._folds_system or messages[0].role != "system":
            return messages
        system, first, *others = messages
        return [replace(first, content=f"{system.content}\n\n{first.content}"), *others]

    def _probe(self) -> set[int]:
        """Render dialogs of every kind; return the control tokens that end an answer.

        Raises `ModelFormatError`.
        """
        dialog = [*_TURN, _QUESTION]
        try:
            plain, system = self._process.render([dialog, [_SYSTEM, *dialog]], self._switches)
        except PromptError as error:
            raise ModelFormatError(str(error)) from error
        if plain.error is not None:
            raise ModelFormatError(f"The model's chat template fails: {plain.error}.")
        self.probed = plain.text + system.text
        ends = [0]
        for message in dialog:
            place = _place(message, plain.text, ends[-1])
            if place is None:
                raise ModelFormatError("The model's chat template leaves messages out.")
            ends.append(place.end())
        # Where there is no place for a system message, it goes before the first question.
        self._folds_system = system.error is not None or _place(_SYSTEM, system.text) is None
        self.answer_head = plain.text[ends[-1] :]
        match = self._control.search(plain.text, ends[-2], ends[-1])
        return {self._ids[match[0]]} if match else set()


def _num_characters(system: Sequence[ChatMessage], messages: Sequence[ChatMessage]) -> list[int]:
    """Return roughly how long a dialog is, by the number of the oldest turns that are left out of it."""
    *turns, last = (len(message.content) + _CHARACTERS_AROUND for message in messages)
    newest_first = (asked + answered for asked, answered in zip(turns[-2::-2], turns[::-2], strict=True))
    rest = last + sum(len(message.content) + _CHARACTERS_AROUND for message in system)
    return list(accumulate(newest_first, initial=rest))[::-1]


def _place(message: ChatMessage, text: str, start: int = 0) -> re.Match[str] | None:
    """Return where a message stands; a template may have changed its case."""
    return re.compile(re.escape(message.content), re.IGNORECASE).search(text, start)
