"""The screen of one answer: the output filter, the server's lists and the moderation model, in this order.

While an answer grows the lists look at it from time to time, off the event loop, and only what they looked at
is shown. Knows nothing of Discord and of how answers are made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from bot.conversation.screening import WithheldError
from bot.language.phrases import phrase
from bot.safety.lists import TextLists
from bot.safety.llama_guard import Verdict
from bot.safety.output_filter import FilterStream, OutputFilter
from bot.safety.patterns import Finding
from bot.safety.safety_model import SafetyModel
from bot.servers.notices import NoticeKind

LOOK_INTERVAL_S = 0.5
_LAST_WORD = re.compile(r"\S{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the answers of one server, in one place."""

    filter: OutputFilter
    lists: TextLists
    refuses_unchecked: bool = True
    label: str | None = None
    safety_model: SafetyModel | None = None


class AnswerScreen:
    """Satisfies `bot.conversation.screening.Screen`."""

    def __init__(
        self, rules: Rules, clock: Callable[[], float], on_refusal: Callable[[NoticeKind], None]
    ) -> None:
        self.label = rules.label
        self._rules = rules
        self._stream = FilterStream(rules.filter)
        self._clock = clock
        self._on_refusal = on_refusal
        self._question = ""
        self._looked_at = ""
        self._due_s = 0.0

    async def check_question(self, text: str) -> None:
        """Ask the moderation model; the lists had their look at the gate. Raises `WithheldError`."""
        self._question = text
        await self._judge(NoticeKind.QUESTION_UNSAFE, "moderation.unanswerable", None)

    async def shown(self, text: str) -> str:
        """Return what may be shown of the text so far. Raises `WithheldError`."""
        if self._rules.safety_model is not None:
            return ""  # it judges whole answers
        filtered = self._stream.feed(text, final=False)
        if self._rules.lists.is_empty:
            return filtered
        if self._clock() >= self._due_s:
            self._due_s = self._clock() + LOOK_INTERVAL_S
            # The last word may not be whole yet: it waits for the next look.
            self._looked_at = await self._look(_LAST_WORD.sub("", filtered))
        return self._looked_at

    async def finished(self, text: str) -> str:
        """Return what may be shown of the whole text. Raises `WithheldError`."""
        shown = await self._look(self._stream.feed(text, final=True))
        await self._judge(NoticeKind.ANSWER_WITHHELD, "moderation.withheld", shown)
        return shown

    async def _look(self, text: str) -> str:
        finding = await self._rules.lists.look(text)
        if finding is Finding.FORBIDDEN or (finding is Finding.UNDECIDED and self._rules.refuses_unchecked):
            self._on_refusal(NoticeKind.ANSWER_WITHHELD)
            raise WithheldError(phrase("moderation.withheld"))
        return text

    async def _judge(self, kind: NoticeKind, key: str, answer: str | None) -> None:
        model = self._rules.safety_model
        if model is None:
            return
        verdict = await model.judge(self._question, answer)
        if verdict is Verdict.UNSAFE:
            self._on_refusal(kind)
            raise WithheldError(phrase(key))
        if verdict is Verdict.UNDECIDED and model.refuses_unchecked:
            raise WithheldError(phrase("moderation.unchecked"))
