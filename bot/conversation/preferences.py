"""What holds for one conversation: its parameters and its system prompt, over the operator's defaults.

Owns their validation against the model. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from bot.conversation.parameters import ChatParameters, Value, apply_overrides, describe, find_parameter
from bot.conversation.prompting import check_question
from bot.errors import ParameterError, SystemPromptError
from bot.language.phrases import Phrase, phrase
from engine.types import TextEngine
from storage.conversations import ConversationRef, Conversations
from storage.settings import SettingsStore

MAX_SYSTEM_PROMPT_CHARS = 1500
"""So that it can be shown in one Discord message."""
SYSTEM_PROMPT = "system_prompt"


class Preferences:
    """Reads and changes what conversations set for themselves."""

    def __init__(
        self,
        engine: TextEngine,
        conversations: Conversations,
        settings: SettingsStore,
        defaults: ChatParameters,
    ) -> None:
        self._engine = engine
        self._conversations = conversations
        self._settings = settings
        self.defaults = defaults

    async def parameters(self, conversation_id: int) -> ChatParameters:
        """Return what holds for the conversation."""
        return apply_overrides(self.defaults, await self._settings.all(conversation_id))

    def system_prompt_of(self, parameters: ChatParameters) -> str:
        """Return the system prompt in force: the conversation's, the operator's or the model's own."""
        if parameters.system_prompt is None:
            return self._engine.info.default_system_prompt
        return parameters.system_prompt

    async def describe(self, ref: ConversationRef) -> list[Phrase]:
        """Return a line for each parameter."""
        conversation_id = await self._conversations.open(ref)
        return describe(self.defaults, await self._settings.all(conversation_id))

    async def set(self, ref: ConversationRef, name: str, text: str, *, by_user_id: int) -> tuple[str, Value]:
        """Set the parameter `name` to what `text` says. Raises `ParameterError`."""
        parameter = find_parameter(name)
        value = parameter.parse(text)
        conversation_id = await self._conversations.open(ref)
        overrides = {**await self._settings.all(conversation_id), parameter.name: value}
        changed = apply_overrides(self.defaults, overrides)
        num_tokens = await self._count(self.system_prompt_of(changed))
        if num_tokens > self._max_system_tokens(changed):
            raise ParameterError(phrase("settings.no_room", num_tokens=num_tokens))
        await self._settings.set(
            conversation_id, parameter.name, value, by_user_id=by_user_id, at=datetime.now(UTC)
        )
        return parameter.name, value

    async def reset(self, ref: ConversationRef, name: str | None) -> int:
        """Set one parameter, or all of them, back to the default; return how many had been changed."""
        conversation_id = await self._conversations.open(ref)
        if name is not None:
            return await self._settings.clear(conversation_id, find_parameter(name).name)
        overrides = await self._settings.all(conversation_id)
        changed = [key for key in overrides if key != SYSTEM_PROMPT]
        return sum([await self._settings.clear(conversation_id, key) for key in changed])

    async def system_prompt(self, ref: ConversationRef) -> tuple[str, bool]:
        """Return the system prompt in force, and whether the conversation set it itself."""
        conversation_id = await self._conversations.open(ref)
        overrides = await self._settings.all(conversation_id)
        prompt = self.system_prompt_of(apply_overrides(self.defaults, overrides))
        return prompt, isinstance(overrides.get(SYSTEM_PROMPT), str)

    async def set_system_prompt(self, ref: ConversationRef, text: str, *, by_user_id: int) -> int:
        """Set the system prompt; return its tokens. Raises `SystemPromptError` or `UnsafePromptError`."""
        prompt = text.strip()
        if not prompt:
            raise SystemPromptError(phrase("system.empty"))
        if len(prompt) > MAX_SYSTEM_PROMPT_CHARS:
            raise SystemPromptError(
                phrase(
                    "system.too_many_characters",
                    num_characters=len(prompt),
                    allowed=MAX_SYSTEM_PROMPT_CHARS,
                )
            )
        conversation_id = await self._conversations.open(ref)
        num_tokens = await self._count(prompt)
        allowed = self._max_system_tokens(await self.parameters(conversation_id))
        if num_tokens > allowed:
            raise SystemPromptError(phrase("system.too_many_tokens", num_tokens=num_tokens, allowed=allowed))
        await asyncio.to_thread(check_question, self._engine, "?", prompt, self._engine.info.context_length)
        await self._settings.set(
            conversation_id, SYSTEM_PROMPT, prompt, by_user_id=by_user_id, at=datetime.now(UTC)
        )
        return num_tokens

    async def clear_system_prompt(self, ref: ConversationRef) -> bool:
        """Go back to the default; return whether there was another one."""
        conversation_id = await self._conversations.open(ref)
        return await self._settings.clear(conversation_id, SYSTEM_PROMPT) > 0

    def _max_system_tokens(self, parameters: ChatParameters) -> int:
        """Half of the prompt: the rest is for what people say."""
        return parameters.prompt_budget(self._engine.info.context_length) // 2

    async def _count(self, text: str) -> int:
        return await asyncio.to_thread(self._engine.count_tokens, text)
