"""The system prompts that conversations and servers set: read, counted, checked and changed.

A conversation's text counts before its server's, and that before the operator's. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime

from bot.conversation.preferences import SYSTEM_PROMPT, Preferences, Surroundings, filled
from bot.conversation.prompting import check_question
from bot.errors import SystemPromptError
from bot.language.phrases import Phrase, phrase
from bot.parameters import MAX_SYSTEM_PROMPT_CHARS, ChatParameters
from bot.servers.servers import Servers
from engine.types import PRESETS, TextEngine, preset_name
from storage.conversations import ConversationRef, Conversations
from storage.settings import SettingsStore


@dataclass(frozen=True, slots=True)
class ServerRef:
    """A whole server, as the place of a setting."""

    guild_id: int


Place = ConversationRef | ServerRef
"""What a system prompt is set for."""


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """What the model is told first in a place, and how that came about."""

    text: str
    """All of it."""
    own: str | None
    """What the conversation or its server set, None for the default; empty for the preset `none`."""
    is_guided: bool
    """Whether the operator's guidance comes before what was set."""
    is_servers: bool = False
    """Whether the server set it."""

    @property
    def origin(self) -> Phrase:
        """Say in a few words where the text comes from."""
        if self.own is None:
            return phrase("system.origin_default")
        if self.is_servers:
            return phrase("system.origin_server")
        preset = preset_name(self.own)
        return phrase("system.origin_preset", name=preset) if preset else phrase("system.origin_own")


@dataclass(frozen=True, slots=True)
class PromptCost:
    """What a whole system prompt takes of the context, in tokens.

    num_tokens: of it, guidance included. allowed: of these. num_left: for what people say and what was said.
    num_answer: kept free for an answer.
    """

    num_tokens: int
    allowed: int
    num_left: int
    num_answer: int


class SystemPrompts:
    """Reads and changes system prompts. Without `servers` there are those of conversations only."""

    def __init__(
        self,
        preferences: Preferences,
        engine: TextEngine,
        conversations: Conversations,
        settings: SettingsStore,
        servers: Servers | None = None,
    ) -> None:
        self._preferences = preferences
        self._engine = engine
        self._conversations = conversations
        self._settings = settings
        self._servers = servers

    async def read(self, place: Place) -> SystemPrompt:
        """Return the system prompt in force."""
        parameters = await self._parameters(place)
        text = self._preferences.system_prompt_of(parameters)
        own, is_servers = await self._set_text(place)
        return SystemPrompt(text, own, own is not None and text != own, is_servers)

    async def cost(self, place: Place, text: str | None = None) -> PromptCost:
        """Return what the system prompt takes, or would take with `text` in the place of what is set."""
        parameters = await self._parameters(place)
        if text is not None:
            parameters = dataclasses.replace(parameters, system_prompt=text)
        return await self._cost(place, parameters)

    def filled(self, place: Place, text: str) -> str:
        """Return `text` with its placeholders filled in as they would be now."""
        return filled(text, self._surroundings(place), datetime.now().astimezone())

    async def check(self, place: Place, text: str) -> PromptCost:
        """Return what `text` would take. Raises `SystemPromptError` or a `PromptError` for what cannot be."""
        if not text.strip():
            raise SystemPromptError(phrase("system.empty"))
        if len(text) > MAX_SYSTEM_PROMPT_CHARS:
            key, num = "system.too_many_characters", len(text)
            raise SystemPromptError(phrase(key, num_characters=num, allowed=MAX_SYSTEM_PROMPT_CHARS))
        return await self._check(place, text)

    async def set(self, place: Place, text: str, *, by_user_id: int) -> PromptCost:
        """Set the text of a place. Raises what `check` raises."""
        text = text.strip()
        cost = await self.check(place, text)
        await self._set(place, text, by_user_id)
        return cost

    async def set_preset(self, place: Place, name: str, *, by_user_id: int) -> PromptCost:
        """Set the text to a named one. Raises `SystemPromptError` for an unknown name or a text too long."""
        preset = PRESETS.get(name.strip().lower())
        if preset is None:
            raise SystemPromptError(phrase("system.unknown_preset", names=", ".join(PRESETS)))
        cost = await self._check(place, preset)
        await self._set(place, preset, by_user_id)
        return cost

    async def clear(self, place: Place, *, by_user_id: int) -> bool:
        """Go back to what holds without a text of this place; return whether there was one."""
        if isinstance(place, ServerRef):
            was_set = (await self._set_text(place))[0] is not None
            await self._set(place, None, by_user_id)
            return was_set
        conversation_id = await self._conversations.open(place)
        return await self._settings.clear(conversation_id, SYSTEM_PROMPT) > 0

    async def _check(self, place: Place, text: str) -> PromptCost:
        changed = dataclasses.replace(await self._parameters(place), system_prompt=text)
        whole, cost = self._preferences.system_prompt_of(changed), await self._cost(place, changed)
        if cost.num_tokens > cost.allowed:
            key = "system.too_many_tokens" if whole == text else "system.too_many_tokens_guided"
            raise SystemPromptError(phrase(key, num_tokens=cost.num_tokens, allowed=cost.allowed))
        told = self.filled(place, whole)
        await asyncio.to_thread(check_question, self._engine, "?", told, self._engine.info.context_length)
        return cost

    async def _set(self, place: Place, text: str | None, by_user_id: int) -> None:
        if isinstance(place, ServerRef):
            if self._servers is not None:
                await self._servers.change(place.guild_id, {SYSTEM_PROMPT: text}, by_user_id=by_user_id)
            return
        conversation_id, at = await self._conversations.open(place), datetime.now(UTC)
        await self._settings.set(conversation_id, SYSTEM_PROMPT, text or "", by_user_id=by_user_id, at=at)

    def _surroundings(self, place: Place) -> Surroundings:
        """Return the names of a place; those of a whole server's channels are not known."""
        channel_id = None if isinstance(place, ServerRef) else place.channel_id
        return self._preferences.surroundings(place.guild_id, channel_id)

    async def _cost(self, place: Place, parameters: ChatParameters) -> PromptCost:
        context_length = self._engine.info.context_length
        budget = parameters.prompt_budget(context_length)
        whole = self._preferences.system_prompt_of(parameters, self._surroundings(place))
        num_tokens = await asyncio.to_thread(self._engine.count_tokens, whole)
        num_answer = min(parameters.sampling.max_new_tokens, context_length - budget)
        allowed = self._preferences.max_system_tokens(parameters)
        return PromptCost(num_tokens, allowed, max(budget - num_tokens, 0), num_answer)

    async def _parameters(self, place: Place) -> ChatParameters:
        if isinstance(place, ServerRef):
            return await self._preferences.server_parameters(place.guild_id)
        return await self._preferences.parameters(await self._conversations.open(place))

    async def _set_text(self, place: Place) -> tuple[str | None, bool]:
        """Return the text that the conversation set, else the server's, and whether it is the server's."""
        guild_id = place.guild_id
        if not isinstance(place, ServerRef):
            own = (await self._settings.all(await self._conversations.open(place))).get(SYSTEM_PROMPT)
            if isinstance(own, str):
                return own, False
        if self._servers is None:
            return None, False
        text = (await self._servers.config(guild_id)).system_prompt
        return text, text is not None
