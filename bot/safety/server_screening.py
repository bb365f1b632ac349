"""Gives each answer a screen with the rules of the server it is for.

Knows nothing of Discord.
"""

from __future__ import annotations

from collections.abc import Callable

from bot.conversation.jobs import Job
from bot.conversation.screening import Screen
from bot.language.phrases import phrase
from bot.safety.answer_screen import AnswerScreen, Rules
from bot.safety.lists import TextLists
from bot.safety.output_filter import OutputFilter
from bot.safety.safety_model import SafetyModel
from bot.servers.notices import Notice, NoticeKind, Notices
from bot.servers.server_config import ServerConfig
from bot.servers.servers import Servers
from storage.conversations import ConversationRef, Conversations


class ServerScreening:
    """Satisfies `bot.conversation.screening.Screening`."""

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

    async def open(self, job: Job) -> Screen:
        """Return the screen for an answer. Raises `StorageError`."""
        ref = await self._conversations.ref_of(job.conversation_id)
        config = await self._servers.config(ref.guild_id)
        is_restricted = job.origin is not None and job.origin.is_age_restricted
        rules = self._rules(config, has_lists=not is_restricted or config.lists_everywhere)
        return AnswerScreen(rules, self._clock, lambda kind: self._note(kind, job, ref))

    def _rules(self, config: ServerConfig, *, has_lists: bool) -> Rules:
        return Rules(
            self._filters[config.removes_invites],
            TextLists(config.answer_words, config.answer_patterns) if has_lists else TextLists((), ()),
            refuses_unchecked=config.refuses_unchecked,
            safety_model=self._safety_model,
            label=phrase("moderation.label") if config.labels_answers else None,
        )

    def _note(self, kind: NoticeKind, job: Job, ref: ConversationRef) -> None:
        if ref.guild_id is not None:
            self._notices.post(
                Notice(
                    ref.guild_id,
                    kind,
                    about_user_id=job.asker_id,
                    channel_id=ref.channel_id,
                )
            )
