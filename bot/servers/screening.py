"""What stands between an answer and its readers: output filter, lists and moderation model, in this order.

While an answer grows the lists look at it from time to time, off the event loop, and only what they looked at
is shown. Knows nothing of Discord and of how answers are made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from bot.errors import WithheldError
from bot.language.phrases import phrase
from bot.origin import Keys, Origin
from bot.safety.lists import Finding, TextLists
from bot.safety.output_filter import FilterStream, OutputFilter
from bot.safety.safety_model import SafetyModel, Verdict
from bot.servers.server_config import ServerConfig
from bot.servers.servers import Notice, NoticeKind, Notices, Servers
from storage.conversations import ConversationRef, Conversations

LOOK_INTERVAL_S = 0.5
_LAST_WORD = re.compile(r"\S{1,64}\Z")


class Screen:
    """Decides what of one answer is shown and stored. This one shows everything, as in the terminal."""

    label: str | None = None
    """What is said below the answer, whatever it says."""

    async def check_question(self, text: str) -> None:
        """Raise `WithheldError` unless `text` may be answered. Called anew where the question changed."""

    async def shown(self, text: str) -> str:
        """Return what may be shown of the text so far. Raises `WithheldError`."""
        return text

    async def finished(self, text: str) -> str:
        """Return what may be shown and stored of the whole text. Raises `WithheldError`."""
        return text


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the answers of one server, in one place."""

    filter: OutputFilter
    lists: TextLists
    refuses_unchecked: bool = True
    label: str | None = None
    safety_model: SafetyModel | None = None


class AnswerScreen(Screen):
    """Shows what the rules of a server allow."""

    def __init__(
        self,
        rules: Rules,
        clock: Callable[[], float],
        on_refusal: Callable[[NoticeKind], None],
        keys: Keys = (),
    ) -> None:
        """`keys`: who takes turns at the moderation model."""
        self._keys = keys
        self.label = rules.label
        self._rules = rules
        self._stream = FilterStream(rules.filter)
        self._clock = clock
        self._on_refusal = on_refusal
        self._question = ""
        self._is_judged = False
        self._looked_at = ""
        self._due_s = 0.0

    async def check_question(self, text: str) -> None:
        """Ask the moderation model; the lists had their look at the gate."""
        if self._is_judged and text == self._question:
            return
        self._question, self._is_judged = text, False
        await self._judge(NoticeKind.QUESTION_UNSAFE, "moderation.unanswerable", None)
        self._is_judged = True

    async def shown(self, text: str) -> str:
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
        verdict = await model.judge(self._question, answer, self._keys)
        if verdict is Verdict.UNSAFE:
            self._on_refusal(kind)
            raise WithheldError(phrase(key))
        if verdict is Verdict.UNDECIDED and model.refuses_unchecked:
            raise WithheldError(phrase("moderation.unchecked"))


class Screening:
    """Gives each answer its screen."""

    def __init__(
        self,
        servers: Servers,
        conversations: Conversations,
        notices: Notices,
        clock: Callable[[], float],
        safety_model: SafetyModel | None = None,
    ) -> None:
        self._servers = servers
        self._conversations = conversations
        self._notices = notices
        self._clock = clock
        self._safety_model = safety_model
        self._filters = {flag: OutputFilter(removes_invites=flag) for flag in (True, False)}

    async def open(self, conversation_id: int, asker_id: int | None, origin: Origin | None) -> Screen:
        """Return the screen for an answer in a conversation to a person. Raises `StorageError`."""
        return await self.open_at(await self._conversations.ref_of(conversation_id), asker_id, origin)

    async def open_at(self, ref: ConversationRef, asker_id: int | None, origin: Origin | None) -> Screen:
        """Return the screen for an answer in a place. Raises `StorageError`."""
        config = await self._servers.config(ref.guild_id)
        is_restricted = origin is not None and origin.is_age_restricted
        rules = self._rules(config, has_lists=not is_restricted or config.lists_everywhere)
        keys = () if origin is None else origin.keys
        return AnswerScreen(rules, self._clock, lambda kind: self._note(kind, asker_id, ref), keys)

    def _rules(self, config: ServerConfig, *, has_lists: bool) -> Rules:
        return Rules(
            self._filters[config.removes_invites],
            TextLists(config.answer_words, config.answer_patterns) if has_lists else TextLists((), ()),
            refuses_unchecked=config.refuses_unchecked,
            safety_model=self._safety_model,
            label=phrase("moderation.label") if config.labels_answers else None,
        )

    def _note(self, kind: NoticeKind, asker_id: int | None, ref: ConversationRef) -> None:
        if ref.guild_id is not None:
            self._notices.post(
                Notice(
                    ref.guild_id,
                    kind,
                    about_user_id=asker_id,
                    channel_id=ref.channel_id,
                )
            )
